"""Energies of surfaces, maps, shapes and contact: closed forms, and gradients by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.meshes import energies
from autograd_gpu.ragged import Ragged
from autograd_gpu.sequence import unrolled

RNG = np.random.default_rng(5)

# Function, shape of each argument; a list is a sequence of so many items of a shape.
ENERGIES: list[tuple[Any, tuple[Any, ...]]] = [
    (energies.strain_limit, (3, 3, 1, 1, 1)),
    (energies.laplacian_smoothing, (3, 3, 1)),
    (energies.bilaplacian_smoothing, (3, [5, 3], 1)),
    (energies.cotangent_bilaplacian, (3, [5, 3], [5, 1], 1)),
    (energies.cotangent_dirichlet, (3, 3, 3, (2, 2))),
    (energies.shell_bending, (3, 3, 3, 3, 1, 1, 1)),
    (energies.shell_stretch, (3, 3, 1)),
    (energies.shell_area, (3, 3, 3, 1)),
    (energies.willmore, (3, [5, 3])),
    (energies.conformal, (2, 2, 2, (2, 2))),
    (energies.isometric, (2, 2, 2, (2, 2))),
    (energies.as_rigid_as_possible_face, (3, 3, 3, 3, 3, 3, (2, 2))),
    (energies.landmark, (3, 3, 3, 3, 3)),
    (energies.point_to_plane, (3, 3, 3)),
    (energies.plane_collision, (3, 3, 3, 1, 1)),
    (energies.self_repulsion, (3, 3, 1, 1)),
    (energies.tangent_point, (3, 3, 3, 1)),
    (energies.quad_planarity, (3, 3, 3, 3)),
    (energies.equal_angles, (3, 3, 3)),
    (energies.volume, (3, 3, 3, 3, 1, 1)),
    (energies.enclosed_volume, ([2, 3], [2, 3], [2, 3], 1, 1)),
]


def graph_of(function, shapes):
    """The graph of a function whose sequences are unrolled, and the shape of every argument."""
    lengths = [s[0] if isinstance(s, list) else None for s in shapes]
    flat = [w for s in shapes for w in ([s[1]] * s[0] if isinstance(s, list) else [s])]
    return ag.trace(unrolled(function, lengths), *flat), flat


@pytest.mark.parametrize(("function", "shapes"), ENERGIES, ids=lambda v: getattr(v, "__name__", ""))
def test_jacobian_against_central_differences(function, shapes):
    graph, flat = graph_of(function, shapes)
    batch, step = 16, 1e-6
    arguments = [
        RNG.uniform(0.5, 1.5, batch)
        if w == 1
        else RNG.standard_normal((batch, *(w if isinstance(w, tuple) else (w,))))
        for w in flat
    ]
    columns = []
    for k, argument in enumerate(arguments):
        for component in range(argument[0].size):
            sides = []
            for sign in (1.0, -1.0):
                moved = argument.reshape(batch, -1).copy()
                moved[:, component] += sign * step
                shifted = [*arguments]
                shifted[k] = moved.reshape(argument.shape)
                sides.append(np.reshape(graph(*shifted), (batch, -1)))
            columns.append((sides[0] - sides[1]) / (2.0 * step))
    expected = np.stack(columns, axis=-1)
    got = np.reshape(ag.jacobian(graph)(*arguments), expected.shape)
    assert np.abs(expected).max() > 1e-3
    # Third derivatives of curvatures are large on random stars.
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def evaluate(function, *arguments):
    graph = ag.trace(function, *[np.shape(a) or 1 for a in map(np.asarray, arguments)])
    return np.ravel(graph(*[np.asarray(a, dtype=float)[None] for a in arguments]))


def cost(mesh, function, *arguments, weight=None, start=None):
    """½‖r‖² over a mesh, ``x`` in the arguments standing for its vertices."""
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices if start is None else start)
    problem.add_residuals(function, *[a(x) if callable(a) else a for a in arguments], weight=weight)
    return problem.evaluate(backend="numpy").cost


def corners(mesh):
    return [lambda x, k=k: x[mesh.faces[:, k]] for k in range(3)]


def rings(mesh, rows=slice(None)):
    return [lambda x: x[rows], lambda x: x[mesh.one_rings][rows]]


# ---------------------------------------------------------------- sheets and smoothness


@pytest.mark.parametrize(("length", "expected"), [(1.0, -0.4), (1.9, 0.0), (2.1, 0.0), (3.0, 0.4)])
def test_strain_limit(length, expected):
    got = evaluate(energies.strain_limit, [0, 0, 0], [0, length, 0], 2.0, -0.1, 0.1)
    assert got == pytest.approx([expected], abs=1e-15)


def test_smoothing_of_a_vertex():
    p, q = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.0, 3.0])
    assert evaluate(energies.laplacian_smoothing, p, q, 2.0) == pytest.approx([2, -4, 0])
    mesh = ag.meshes.disk(3)
    flat = cost(mesh, energies.bilaplacian_smoothing, *rings(mesh, [0]), 1.0)
    assert flat == pytest.approx(0.0, abs=1e-28)
    lifted = mesh.vertices.copy()
    lifted[0, 2] = 0.25
    up = cost(mesh, energies.bilaplacian_smoothing, *rings(mesh, [0]), 3.0, start=lifted)
    assert up == pytest.approx(0.5 * (3.0 * 0.25) ** 2)


def test_dirichlet_energy_is_the_sum_over_edges_with_cotangent_weights():
    # Sheared, so that some weights are negative and no sum of squares over edges exists.
    sheared = ag.meshes.grid(3, 4).vertices @ np.array([[1, 0, 0], [2.0, 1, 0], [0, 0, 1]])
    mesh = ag.meshes.Mesh(sheared, ag.meshes.grid(3, 4).faces)
    assert (mesh.cotangent_weights < -0.1).any()
    f = RNG.standard_normal((len(mesh.vertices), 3))
    i, j = mesh.edges.T
    expected = 0.5 * np.sum(mesh.cotangent_weights * np.sum((f[j] - f[i]) ** 2, axis=1))
    got = cost(mesh, energies.cotangent_dirichlet, *corners(mesh), mesh.face_gradients,
               weight=np.sqrt(mesh.face_areas), start=f)  # fmt: skip
    assert got == pytest.approx(expected, rel=1e-12)
    # The identity's gradient is the identity of the plane: ½ · 2 · area.
    got = cost(mesh, energies.cotangent_dirichlet, *corners(mesh), mesh.face_gradients,
               weight=np.sqrt(mesh.face_areas))  # fmt: skip
    assert got == pytest.approx(mesh.face_areas.sum(), rel=1e-12)


def ring_weights(mesh):
    """Cotangent weights as a sequence for every one-ring."""
    owner = np.repeat(np.arange(len(mesh.vertices)), mesh.one_rings.lengths)
    pairs = np.sort(np.stack([owner, mesh.one_rings.values], axis=1), axis=1)
    n = len(mesh.vertices)
    rows = np.searchsorted(mesh.edges @ [n, 1], pairs @ [n, 1])
    return Ragged(mesh.one_rings.indptr, mesh.cotangent_weights[rows])


def test_bilaplacian_of_a_sphere():
    # On the unit sphere Δx = −2n: ½ ∫ |Δx|² = ½ · 4 · 4π.
    mesh = ag.meshes.icosphere(3)
    got = cost(mesh, energies.cotangent_bilaplacian, *rings(mesh), ring_weights(mesh),
               mesh.vertex_areas)  # fmt: skip
    assert got == pytest.approx(8 * np.pi, rel=0.01)


def test_rigid_faces():
    rest = np.array([[2.0, 0, 0], [1.0, 3.0, 0]])
    mesh = ag.meshes.Mesh([[0, 0, 0], *rest], [[0, 1, 2]])
    r, shift = np.array([0.3, -1.0, 0.4]), np.array([5.0, 6.0, 7.0])
    turned = [evaluate(energies.rotate, r, v) for v in rest]
    gradients = mesh.face_gradients[0]

    def value(scale):
        moved = [shift, *(scale * v + shift for v in turned)]
        return evaluate(energies.as_rigid_as_possible_face, *moved, r, *rest, gradients)

    np.testing.assert_allclose(value(1.0), 0.0, atol=1e-14)
    # J = 1.5 R, so J − R has two singular values of ½.
    assert np.sum(value(1.5) ** 2) == pytest.approx(2 * 0.25)


# ---------------------------------------------------------------- shells


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_willmore_energy_of_a_sphere_and_of_a_plane(scale):
    mesh = ag.meshes.icosphere(3)
    got = cost(mesh, energies.willmore, *rings(mesh), start=scale * mesh.vertices)
    assert got == pytest.approx(4 * np.pi, rel=0.005)
    flat = ag.meshes.disk(4)
    assert cost(flat, energies.willmore, *rings(flat, flat.interior_vertices)) < 1e-25


def test_shell_of_a_rolled_sheet():
    # A sheet rolled to a radius R bends by the angle 2 asin(h / 2R) at each line across it; the
    # diagonals of the cells stay flat. ½ Σ 3 e²/A θ²; A = e h are the two triangles at a line.
    n, h, e, radius = 12, 0.2, 0.5, 1.5
    mesh = ag.meshes.grid(1, n, width=n * h, height=e)
    step = 2 * np.arcsin(h / (2 * radius))
    phi = step * np.rint(mesh.vertices[:, 0] / h)
    rolled = np.stack([radius * np.sin(phi), mesh.vertices[:, 1], radius * np.cos(phi)], axis=1)
    a, b, c, d = mesh.dihedral_stencils.T
    lengths = np.linalg.norm(mesh.vertices[b] - mesh.vertices[a], axis=1)
    areas = np.full(len(a), e * h)
    stencil = [lambda x, k=k: x[k] for k in (a, b, c, d)]
    got = cost(mesh, energies.shell_bending, *stencil, 0.0, lengths, areas, start=rolled)
    assert got == pytest.approx(0.5 * (n - 1) * 3 * e**2 / (e * h) * step**2, rel=1e-12)


def test_shell_membrane():
    assert evaluate(energies.shell_stretch, [0, 0, 0], [0, 3, 4], 4.0) == pytest.approx([0.5])
    triangle = [0, 0, 0], [3, 0, 0], [0, 2, 0]
    assert evaluate(energies.shell_area, *triangle, 4.0) == pytest.approx([2 * (3 / 4 - 1)])


# ---------------------------------------------------------------- maps


def flat_map(mesh, function, u):
    problem = ag.Problem()
    x = problem.parameters("u", u)
    i, j, k = mesh.faces.T
    problem.add_residuals(function, x[i], x[j], x[k], mesh.face_gradients,
                          weight=np.sqrt(mesh.face_areas))  # fmt: skip
    return problem.evaluate(backend="numpy").cost


def test_conformal_energy_is_dirichlet_less_area():
    mesh = ag.meshes.cylinder(9, 3, caps=False)
    u = RNG.standard_normal((len(mesh.vertices), 2))
    i, j = mesh.edges.T
    dirichlet = 0.5 * np.sum(mesh.cotangent_weights * np.sum((u[j] - u[i]) ** 2, axis=1))
    a, b, c = (u[mesh.faces[:, k]] for k in range(3))
    s, t = b - a, c - a
    area = 0.5 * np.sum(s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0])
    assert flat_map(mesh, energies.conformal, u) == pytest.approx(dirichlet - area, rel=1e-12)


def test_maps_of_a_plane():
    mesh = ag.meshes.grid(3, 4, width=2.0)
    u = mesh.vertices[:, :2]
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])
    assert flat_map(mesh, energies.conformal, 3.0 * u @ turn.T + 1.0) < 1e-25
    assert flat_map(mesh, energies.isometric, u @ turn.T + 1.0) < 1e-25
    # Stretched by 3 and ½, and turned: (σ₁ − 1)² + (σ₂ − 1)² on an area of 2.
    stretched = u @ np.diag([3.0, 0.5]) @ turn.T
    assert flat_map(mesh, energies.isometric, stretched) == pytest.approx(0.5 * 2 * (4 + 0.25))
    flipped = u @ np.diag([3.0, -0.5])
    assert flat_map(mesh, energies.isometric, flipped) == pytest.approx(0.5 * 2 * (4 + 2.25))


def test_isometric_at_a_collapsed_face():
    zeros = [np.zeros(2)] * 3
    got = evaluate(energies.isometric, *zeros, np.eye(2))
    np.testing.assert_array_equal(got, 0.0)
    graph = ag.jacobian(ag.trace(energies.isometric, 2, 2, 2, (2, 2)))
    assert np.isfinite(graph(*[z[None] for z in zeros], np.eye(2)[None])).all()


# ---------------------------------------------------------------- shapes


def test_planarity_of_quads():
    flat = [0, 0, 1], [2, 0, 1], [3, 2, 1], [0, 1, 1]
    assert evaluate(energies.quad_planarity, *flat) == pytest.approx([0.0], abs=1e-15)
    # Diagonals along x at height 0 and along y at height h are h apart.
    bent = [-1, 0, 0], [0, -1, 0.3], [1, 0, 0], [0, 1, 0.3]
    assert np.abs(evaluate(energies.quad_planarity, *bent)) == pytest.approx([0.3])


def test_equal_angles():
    regular = [0, 0, 0], [1, 0, 0], [0.5, np.sqrt(0.75), 0]
    np.testing.assert_allclose(evaluate(energies.equal_angles, *regular), 0.0, atol=1e-15)
    right = [0, 0, 0], [1, 0, 0], [0, 1, 0]
    expected = np.radians([30.0, -15.0, -15.0])
    np.testing.assert_allclose(evaluate(energies.equal_angles, *right), expected, atol=1e-15)


def test_volumes():
    corner = [1, 1, 1], [3, 1, 1], [1, 4, 1], [1, 1, 5]
    assert evaluate(energies.volume, *corner, 1.5, 2.0) == pytest.approx([2 * (4.0 - 1.5)])
    mesh = ag.meshes.box(1, (1.0, 2.0, 3.0))
    moved = mesh.vertices + np.array([5.0, 6.0, 7.0])
    corners = [Ragged([0, len(mesh.faces)], column) for column in mesh.faces.T]
    got = cost(mesh, energies.enclosed_volume, *(lambda x, r=r: x[r] for r in corners),
               np.array([4.0]), np.array([0.5]), start=moved)  # fmt: skip
    assert got == pytest.approx(0.5 * (0.5 * (6.0 - 4.0)) ** 2)


# ---------------------------------------------------------------- targets and contact


def test_landmark_and_point_to_plane():
    corner = [0, 0, 0], [4, 0, 0], [0, 4, 0]
    got = evaluate(energies.landmark, *corner, [0.5, 0.25, 0.25], [1.0, 0.0, 2.0])
    assert got == pytest.approx([0.0, 1.0, -2.0])
    got = evaluate(energies.point_to_plane, [5, 6, 7], [1, 1, 1], [0, 0, 2.0])
    assert got == pytest.approx([6.0])


@pytest.mark.parametrize(("height", "expected"), [(2.0, 0.0), (0.1, 0.0), (0.05, 0.5), (-1.0, 11)])
def test_plane_collision(height, expected):
    got = evaluate(energies.plane_collision, [9, 9, height], [0, 0, 0], [0, 0, 3.0], 0.1, 10.0)
    assert got == pytest.approx([expected], abs=1e-14)


@pytest.mark.parametrize(("distance", "expected"), [(0.0, 2.0), (0.5, 1.5), (2.0, 0.0), (3.0, 0)])
def test_self_repulsion(distance, expected):
    got = evaluate(energies.self_repulsion, [1, 1, 1], [1, 1, 1 + distance], 2.0, 2.0)
    assert got == pytest.approx([expected])


def test_tangent_point_radius_on_a_sphere():
    # Any two points of a sphere of radius R see the sphere itself.
    directions = RNG.standard_normal((20, 2, 3))
    p, q = np.moveaxis(directions / np.linalg.norm(directions, axis=2, keepdims=True), 1, 0)
    graph = ag.trace(energies.tangent_point, 3, 3, 3, 1)
    np.testing.assert_allclose(graph(2.5 * p, p, 2.5 * q, np.ones(20)), 1 / 2.5, rtol=1e-11)


def test_close_pairs():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 0.5, 0], [5, 5, 5]], dtype=float)
    assert energies.close_pairs(points, 1.05).tolist() == [[0, 1], [0, 2]]
    assert energies.close_pairs(points, 1.05, [[1, 0]]).tolist() == [[0, 2]]
    assert energies.close_pairs(points, 0.1).shape == (0, 2)
    for radius in (0.0, -1.0, np.nan):
        with pytest.raises(InputError, match="radius is"):
            energies.close_pairs(points, radius)
    with pytest.raises(ShapeError, match=r"vertices has shape \(4,\)"):
        energies.close_pairs(points[:, 0], 1.0)
    with pytest.raises(ShapeError, match=r"edges has shape \(3,\)"):
        energies.close_pairs(points, 1.0, [0, 1, 2])
