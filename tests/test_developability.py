"""Developability energies: closed forms, definitions spelt out, invariance, gradients, kernels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.meshes import developability
from autograd_gpu.sequence import unrolled
from sessions import NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import GRAPH, tolerance

Array = NDArray[np.float64]
ENERGIES: dict[str, Callable[..., Any]] = developability.ENERGIES
BACKENDS = parameters_of([NUMPY, NUMBA, *WGSL])

each_energy = pytest.mark.parametrize("name", ENERGIES)
CENTRE = np.array([0.1, -0.2, 0.3])


def value(name: str, ring: Array, p: Array = CENTRE) -> float:
    graph = ag.trace(unrolled(ENERGIES[name], [None, len(ring)]), 3, *[3] * len(ring))
    return float(graph(p, *ring))


def around(heights: Array, radii: Array | float = 1.0) -> Array:
    """A ring around CENTRE at equal steps of angle."""
    n = len(heights)
    angles = 0.4 + 2.0 * np.pi * np.arange(n) / n
    flat = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.reshape(radii, (-1, 1))
    return CENTRE + np.column_stack([flat, heights])


def pyramid(n: int, height: float) -> Array:
    return around(np.full(n, -height))


def hinge(n: int, angle: float) -> Array:
    """A ring of 2n around CENTRE, folded along its edges 0 and n by ``angle``."""
    t = np.pi * np.arange(2 * n) / n
    y, x = np.sin(t), np.cos(t)
    folded = np.where(y > 0.0, 0.0, -np.abs(y) * np.sin(angle))
    across = np.where(y > 0.0, y, y * np.cos(angle))
    across[[0, n]] = folded[[0, n]] = 0.0
    return CENTRE + np.column_stack([x, across, folded])


def normals_of(ring: Array) -> tuple[Array, Array]:
    """Unit normals and angles of a star, without ag."""
    spokes = ring - CENTRE
    following = np.roll(spokes, -1, axis=0)
    area = np.cross(spokes, following)
    lengths = np.linalg.norm(area, axis=1)
    return area / lengths[:, None], np.arctan2(lengths, (spokes * following).sum(axis=1))


RANDOM = np.random.default_rng(11)
ROUGH = {n: around(0.5 * RANDOM.standard_normal(n), 0.5 + RANDOM.random(n)) for n in (3, 4, 5, 7)}


@each_energy
@pytest.mark.parametrize("n", [3, 5, 6])
def test_zero_on_a_flat_star(name: str, n: int) -> None:
    assert value(name, around(np.zeros(n), 0.5 + RANDOM.random(n))) == pytest.approx(0.0, abs=1e-12)


@each_energy
@pytest.mark.parametrize("angle", [0.3, 1.5, -2.5])
def test_zero_on_a_hinge(name: str, angle: float) -> None:
    # A vertex of a cylinder or a cone has such a star: the fold is the ruling.
    assert value(name, hinge(3, angle)) == pytest.approx(0.0, abs=1e-12)


@each_energy
@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_positive_on_a_sphere_and_on_a_saddle(name: str, n: int) -> None:
    saddle = around(0.6 * np.cos(2.0 * 2.0 * np.pi * np.arange(n) / n + 0.7))
    assert value(name, pyramid(n, 0.5)) > 1e-2
    assert value(name, saddle) > 1e-2


@pytest.mark.parametrize(("n", "height"), [(3, 0.4), (5, 0.2), (6, 2.0)])
def test_pyramid_has_a_closed_form(n: int, height: float) -> None:
    """C is diagonal: nθ · (sin²φ / 2, sin²φ / 2, cos²φ), φ the normals' angle to the axis."""
    ring = pyramid(n, height)
    normals, angles = normals_of(ring)
    cosine = float(normals[0, 2])
    eigenvalues = n * angles[0] * np.array([(1.0 - cosine**2) / 2.0] * 2 + [cosine**2])
    harmonic = 1.0 / np.sum(1.0 / eigenvalues)
    assert value("differentiable plane alignment", ring) == pytest.approx(harmonic, rel=1e-9)
    # The first two eigenvalues may coincide: the root of their difference has half of the digits.
    assert value("covariance eigenvalue", ring) == pytest.approx(eigenvalues.min(), rel=1e-7)
    # One of n faces each, so the mean of a part has length |sin(mπ/n) / (m sin(π/n))| sideways.
    sideways = [
        m * (1.0 - cosine**2) * (1.0 - (np.sin(m * np.pi / n) / (m * np.sin(np.pi / n))) ** 2)
        for m in range(1, n)
    ]
    best = min(a + b for a, b in zip(sideways, sideways[::-1], strict=True))
    assert value("combinatorial bipartition", ring) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("n", ROUGH)
def test_definitions_spelt_out(n: int) -> None:
    ring = ROUGH[n]
    normals, angles = normals_of(ring)
    covariance = np.einsum("k,ki,kj->ij", angles, normals, normals)
    least, *others = np.linalg.eigvalsh(covariance)

    def left_over(members: Array) -> float:
        return sum(
            float(np.sum((a - b) ** 2)) for a, b in itertools.combinations(members, 2)
        ) / len(members)

    turned = [np.roll(normals, -k, axis=0) for k in range(n)]
    cuts = [left_over(t[:m]) + left_over(t[m:]) for t in turned for m in range(1, n)]
    pairs = list(itertools.combinations(range(n), 2))
    i, j = max(pairs, key=lambda pair: float(np.sum((normals[pair[0]] - normals[pair[1]]) ** 2)))
    near = np.linalg.norm(normals - normals[i], axis=1) <= np.linalg.norm(
        normals - normals[j], axis=1
    )
    variance = 0.0
    for part in (near, ~near):
        mean = np.average(normals[part], axis=0, weights=angles[part])
        variance += float(angles[part] @ np.sum((normals[part] - mean) ** 2, axis=1))
    crosses = [np.cross(normals[a], normals[b]) for a, b in pairs]
    widest = max(crosses, key=lambda c: float(c @ c))
    along = [d / np.linalg.norm(d) for d in (*(ring - CENTRE), widest)]
    off = [float(d @ covariance @ d) for d in along]
    expected = {
        "covariance eigenvalue": least,
        "combinatorial bipartition": min(cuts),
        "bimodal variance": variance,
        "alignment": min(off[:-1]),
        "great circle": off[-1],
        "differentiable plane alignment": 1.0 / (1.0 / least + sum(1.0 / v for v in others)),
    }
    found = {name: value(name, ring) for name in ENERGIES}
    assert found == pytest.approx(expected, rel=1e-8)
    for name in ("alignment", "great circle"):
        assert found[name] >= least * (1.0 - 1e-12)
    assert least / 3.0 <= found["differentiable plane alignment"] * (1.0 + 1e-9)


def test_small_eigenvalues_have_their_own_digits() -> None:
    """On a fine mesh normals are nearly equal, and λ₁ is far below the rounding of λ₃."""
    for flat in (1e-2, 1e-4, 1e-6):
        ring = CENTRE + (ROUGH[5] - CENTRE) * [1.0, 1.0, flat]
        normals, angles = normals_of(ring)
        mean = np.average(normals, axis=0, weights=angles)
        # The deviations have full digits, so λ₁ is the least eigenvalue of a 2 × 2 matrix up to a
        # relative error of the order of flat².
        spread = np.einsum("k,ki,kj->ij", angles, normals - mean, normals - mean)[:2, :2]
        assert value("covariance eigenvalue", ring) == pytest.approx(
            np.linalg.eigvalsh(spread)[0], rel=10.0 * flat**2 + 1e-9
        )


@each_energy
def test_invariant_under_motion_scale_and_turning_of_the_ring(name: str) -> None:
    ring = ROUGH[5]
    expected = value(name, ring)
    rotation, _ = np.linalg.qr(RANDOM.standard_normal((3, 3)))
    rotation *= np.linalg.det(rotation)
    for moved, p in (
        (np.roll(ring, 2, axis=0), CENTRE),
        (ring @ rotation.T + 3.0, rotation @ CENTRE + 3.0),
        (7.0 * ring, 7.0 * CENTRE),
        (ring[::-1], CENTRE),
    ):
        assert value(name, np.ascontiguousarray(moved), p) == pytest.approx(expected, rel=1e-8)


@each_energy
def test_a_face_without_area_leaves_the_gradient_finite(name: str) -> None:
    ring = ROUGH[5].copy()
    ring[2] = ring[1]
    graph = ag.trace(unrolled(ENERGIES[name], [None, 5]), 3, *[3] * 5)
    assert np.isfinite(graph(CENTRE, *ring))
    assert np.isfinite(ag.jacobian(graph)(CENTRE, *ring)).all()
    flat = around(np.zeros(5))
    assert np.isfinite(ag.jacobian(graph)(CENTRE, *flat)).all()


def sphere_problem(name: str, level: int = 1) -> ag.Problem:
    """A star of every vertex; moved a little, since choices tie on the regular mesh."""
    mesh = ag.meshes.icosphere(level)
    noise = 0.03 * np.random.default_rng(3).standard_normal(mesh.vertices.shape)
    start = (mesh.vertices + noise).astype(np.float32).astype(float)
    problem = ag.Problem()
    x = problem.parameters("x", start)
    v = mesh.interior_vertices
    problem.add_residuals(ENERGIES[name], x[v], x[mesh.one_rings][v], name=name)
    return problem


@each_energy
def test_gradients_and_one_kernel_a_valence(name: str) -> None:
    problem = sphere_problem(name)
    checked = problem.check_gradients()
    assert checked.ok, str(checked)
    assert [g.name for g in problem.groups] == [f"{name} (length 5)", f"{name} (length 6)"]
    assert len({g.topology.key for g in problem.groups}) == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["differentiable plane alignment"])
def test_backends_agree_with_the_oracle(backend: Backend, name: str) -> None:
    problem = sphere_problem(name, level=0)
    oracle = problem.evaluate(backend="numpy")
    found = problem.evaluate(
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )
    bound = tolerance(backend.precision, GRAPH)
    bound.check(found.residuals, oracle.residuals, name)
    bound.check(found.jacobian.toarray(), oracle.jacobian.toarray(), name)


def test_interior_vertices() -> None:
    grid = ag.meshes.grid(2, 2)
    assert grid.interior_vertices.tolist() == [4]
    assert len(ag.meshes.icosphere(0).interior_vertices) == 12
    # Two tetrahedra that share vertex 0: two fans meet there. Vertex 7 has no face.
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    other = np.where(faces == 0, 0, faces + 3)
    two = ag.meshes.Mesh(RANDOM.standard_normal((8, 3)), np.concatenate([faces, other]))
    assert two.interior_vertices.tolist() == [1, 2, 3, 4, 5, 6]
