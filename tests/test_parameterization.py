"""Maps of disks to the plane: Tutte's embedding, and symmetric Dirichlet from there by Newton."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.meshes import Mesh, energies
from tolerances import GRAPH, tolerance

Array = NDArray[np.float64]
EXACT = tolerance("float64", GRAPH)


def bump(cells: int) -> Mesh:
    """A square with a hill and waves: a disk that is not developable."""
    flat = ag.meshes.grid(cells, cells)
    x, y, _ = flat.vertices.T
    z = 0.7 * np.exp(-12.0 * ((x - 0.4) ** 2 + (y - 0.55) ** 2)) + 0.1 * np.sin(9.0 * x)
    return Mesh(np.stack([x, y, z], axis=1), flat.faces)


def signed_areas(faces: NDArray[np.int64], u: Array) -> Array:
    s, t = u[faces[:, 1]] - u[faces[:, 0]], u[faces[:, 2]] - u[faces[:, 0]]
    return 0.5 * (s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0])


def flattening(mesh: Mesh, start: Array) -> ag.Problem:
    problem = ag.Problem()
    u = problem.parameters("u", start)
    a, b, c = mesh.faces.T
    problem.add_energy(
        energies.symmetric_dirichlet, u[a], u[b], u[c], mesh.face_gradients, weight=mesh.face_areas
    )
    return problem


def test_the_embedding_is_tuttes() -> None:
    mesh = bump(9)
    u = ag.meshes.tutte_embedding(mesh)
    assert (signed_areas(mesh.faces, u) > 0.0).all()
    loop = mesh.boundary_loops[0]
    area = mesh.face_areas.sum()
    EXACT.check(np.linalg.norm(u[loop], axis=1), np.sqrt(area / np.pi), "radius")
    rings = mesh.one_rings
    for v in mesh.interior_vertices:
        ring = rings.values[rings.indptr[v] : rings.indptr[v + 1]]
        EXACT.check(u[v], u[ring].mean(axis=0), f"vertex {v}")
    triangle = ag.meshes.tutte_embedding(Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]]))
    assert signed_areas(np.array([[0, 1, 2]]), triangle)[0] > 0.0


@pytest.mark.parametrize(
    "mesh",
    [
        ag.meshes.icosphere(0),
        Mesh(np.eye(6, 3), [[0, 1, 2], [3, 4, 5]]),
        Mesh(np.eye(4, 3), [[0, 1, 2]]),
    ],
    ids=["closed", "two parts", "a vertex without a face"],
)
def test_only_disks_are_embedded(mesh: Mesh) -> None:
    with pytest.raises(ag.MeshError, match=r"tutte_embedding: the mesh has \d boundaries.*a disk"):
        ag.meshes.tutte_embedding(mesh)


def test_the_energy_is_that_of_singular_values() -> None:
    mesh = bump(2)
    u = np.random.default_rng(0).standard_normal((len(mesh.vertices), 2))
    a, b, c = mesh.faces.T
    jacobians = np.stack([u[b] - u[a], u[c] - u[a]], axis=2) @ mesh.face_gradients
    squares = np.linalg.svd(jacobians, compute_uv=False) ** 2
    expected = (squares + 1.0 / squares).sum(axis=1)
    expected[np.linalg.det(jacobians) <= 0.0] = 1e30
    assert {*(expected == 1e30)} == {False, True}
    energy = ag.trace(energies.symmetric_dirichlet, 2, 2, 2, (2, 2))
    EXACT.check(energy(u[a], u[b], u[c], mesh.face_gradients), expected, "energy")
    ratio = np.sqrt(squares[:, 0] / squares[:, 1])
    expected = np.where(np.linalg.det(jacobians) > 0.0, ratio + 1.0 / ratio, 1e30)
    conformal = ag.trace(energies.mips, 2, 2, 2, (2, 2))
    EXACT.check(conformal(u[a], u[b], u[c], mesh.face_gradients), expected, "MIPS")
    # Of a turned and scaled flat face: 2, the least.
    turned = 3.0 * np.array([[0.6, 0.8], [-0.8, 0.6]])
    flat = ag.meshes.grid(1, 1)
    corners = (flat.vertices[:, :2] @ turned)[flat.faces]
    found = conformal(*np.moveaxis(corners, 1, 0), flat.face_gradients)
    EXACT.check(found, np.full(2, 2.0), "MIPS of a similarity")


def test_newton_minimises_mips() -> None:
    mesh = bump(8)
    problem = ag.Problem()
    start = ag.meshes.tutte_embedding(mesh)
    u = problem.parameters("u", start)
    a, b, c = mesh.faces.T
    problem.add_energy(energies.mips, u[a], u[b], u[c], mesh.face_gradients, weight=mesh.face_areas)
    loop = mesh.boundary_loops[0]
    problem.freeze(u, [loop[0], loop[len(loop) // 2]])
    assert problem.check_gradients().ok
    s = ag.solve(problem, backend="numpy", options=ag.NewtonOptions(function_tolerance=1e-12))
    assert s.success, s.message
    assert (signed_areas(mesh.faces, s.values["u"]) > 0.0).all()
    # A disk can be mapped conformally, its triangles nearly so; and no other map of them is
    # better, the least-squares conformal one from the same two vertices neither.
    least = 2.0 * mesh.face_areas.sum()
    assert least < s.cost < least + 0.1 * (s.initial_cost - least)
    linear = ag.Problem()
    w = linear.parameters("u", start)
    linear.add_residuals(
        energies.conformal, w[a], w[b], w[c], mesh.face_gradients,
        weight=np.sqrt(mesh.face_areas), name="conformal",
    )  # fmt: skip
    linear.freeze(w, [loop[0], loop[len(loop) // 2]])
    other = ag.solve(linear, backend="numpy").values["u"]
    distortion = ag.trace(energies.mips, 2, 2, 2, (2, 2))
    values = distortion(other[a], other[b], other[c], mesh.face_gradients)
    assert s.cost < mesh.face_areas @ values
    problem.update(u=s.values["u"])
    assert np.abs(problem.evaluate(backend="numpy").gradient).max() < 1e-5


def test_the_longest_step_ends_where_the_first_face_is_flat() -> None:
    mesh = bump(4)
    u = ag.meshes.tutte_embedding(mesh)
    rng = np.random.default_rng(1)
    for _ in range(20):
        d = rng.standard_normal(u.shape)
        longest = ag.meshes.longest_step_without_flips(mesh.faces, u, d)
        for share in np.linspace(0.0, 0.999, 30):
            assert (signed_areas(mesh.faces, u + share * longest * d) > 0.0).all()
        assert signed_areas(mesh.faces, u + 1.001 * longest * d).min() < 0.0
    for harmless in (np.zeros_like(u), u, np.ones_like(u)):
        assert ag.meshes.longest_step_without_flips(mesh.faces, u, harmless) == np.inf
    with pytest.raises(ag.ShapeError, match=r"expected both \(n, 2\)"):
        ag.meshes.longest_step_without_flips(mesh.faces, u, u[:3])


def test_a_flat_square_comes_back_from_the_circle() -> None:
    mesh = ag.meshes.grid(7, 7)
    start = ag.meshes.tutte_embedding(mesh)
    solution = ag.solve(flattening(mesh, start), options=ag.NewtonOptions(function_tolerance=1e-14))
    assert solution.success, solution.message
    assert solution.initial_cost > 4.1
    assert solution.cost == pytest.approx(4.0, abs=1e-9)  # four times the area: an isometry
    u = solution.values["u"]
    i, j = mesh.edges.T
    np.testing.assert_allclose(np.linalg.norm(u[i] - u[j], axis=1), mesh.edge_lengths, rtol=1e-4)


@pytest.mark.parametrize("projection", ["clamp", "absolute"])
@pytest.mark.parametrize("bounded", [False, True])
def test_newton_minimises_symmetric_dirichlet(projection: str, bounded: bool) -> None:
    mesh = bump(8)
    problem = flattening(mesh, ag.meshes.tutte_embedding(mesh))
    assert problem.check_gradients().ok

    def bound(point: dict[str, Array], step: dict[str, Array]) -> float:
        return 0.9 * ag.meshes.longest_step_without_flips(mesh.faces, point["u"], step["u"])

    solution = ag.solve(
        problem,
        options=ag.NewtonOptions(
            projection=projection,
            step_bound=bound if bounded else None,
            function_tolerance=1e-13,
        ),
    )
    assert solution.success, solution.message
    assert (signed_areas(mesh.faces, solution.values["u"]) > 0.0).all()
    problem.update(u=solution.values["u"])
    assert np.abs(problem.evaluate().gradient).max() < 1e-5
    # Gradients alone end at the same map.
    other = flattening(mesh, ag.meshes.tutte_embedding(mesh))
    slow = ag.solve(other, method="l-bfgs", options=ag.LBFGSOptions(max_iterations=1000))
    assert solution.cost == pytest.approx(slow.cost, rel=1e-5)
    assert solution.cost <= slow.cost
    assert 4.0 * mesh.face_areas.sum() < solution.cost < solution.initial_cost
