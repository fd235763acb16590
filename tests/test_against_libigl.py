"""As-rigid-as-possible and flattening on spot, against libigl: same mesh, same handles.

libigl minimises by alternating local and global steps, so it shares neither code nor method with
us. Energies of both results are evaluated by NumPy here, with rotations from an SVD.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.demos.models import spot
from autograd_gpu.meshes import Mesh, energies

igl: Any = pytest.importorskip("igl", reason="libigl comes with the extra [test]")


def jacobians(mesh, x):
    """[x_b − x_a, x_c − x_a] G of every face, (m, width, 2)."""
    corners = x[mesh.faces]
    edges = np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], axis=2)
    return edges @ mesh.face_gradients


def spokes_and_rims(mesh, x):
    """½ Σ A/3 ‖J − R J₀‖² over faces and their corners, R the best rotation of the corner."""
    now, rest, areas = jacobians(mesh, x), jacobians(mesh, mesh.vertices), mesh.face_areas / 3
    covariance = np.zeros((len(mesh.vertices), 3, 3))
    for k in range(3):
        np.add.at(
            covariance, mesh.faces[:, k], areas[:, None, None] * now @ np.swapaxes(rest, 1, 2)
        )
    u, _, vt = np.linalg.svd(covariance)
    u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotations = u @ vt
    return 0.5 * sum(
        np.sum(areas * np.sum((now - rotations[mesh.faces[:, k]] @ rest) ** 2, axis=(1, 2)))
        for k in range(3)
    )


def handles():
    """Hooves held; the muzzle raised by 0.12, and turned by 40 degrees about the vertical."""
    mesh = spot()
    _, y, z = mesh.vertices.T
    held, moved = np.flatnonzero(y < -0.6), np.flatnonzero((y > 0.15) & (z < -0.55))
    c, s = np.cos(np.radians(40.0)), np.sin(np.radians(40.0))
    turned = mesh.vertices[moved] @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]).T + [0, 0.12, 0]
    rows = np.concatenate([held, moved])
    order = np.argsort(rows)
    return rows[order], np.concatenate([mesh.vertices[held], turned])[order]


def test_as_rigid_as_possible():
    mesh = spot()
    rows, targets = handles()
    data = igl.ARAPData()
    data.energy, data.max_iter = igl.ARAP_ENERGY_TYPE_SPOKES_AND_RIMS, 300
    igl.arap_precomputation(mesh.vertices.copy(), mesh.faces.copy(), 3, rows.astype(np.int32), data)
    theirs = igl.arap_solve(np.asfortranarray(targets), data, mesh.vertices.copy())

    start = mesh.vertices.copy()
    start[rows] = targets
    problem = ag.Problem()
    x = problem.parameters("x", start)
    r = problem.parameters("r", np.zeros_like(start))
    faces, rest = np.tile(mesh.faces, (3, 1)), mesh.vertices
    a, b, c = faces.T
    problem.add_residuals(
        energies.as_rigid_as_possible_face,
        x[a], x[b], x[c], r[mesh.faces.T.ravel()], rest[b] - rest[a], rest[c] - rest[a],
        np.tile(mesh.face_gradients, (3, 1, 1)),
        weight=np.sqrt(np.tile(mesh.face_areas, 3) / 3),
    )  # fmt: skip
    problem.freeze(x, rows)
    options = ag.LevenbergMarquardtOptions(
        function_tolerance=1e-4, damping="identity", initial_damping=1e-3
    )
    # NumPy evaluates: compiling would take longer than the solve.
    solution = ag.solve(problem, backend="numpy", options=options)
    ours = spokes_and_rims(mesh, solution.values["x"])
    assert solution.success
    # The energy that was minimised is the one that is compared; its rotations are the best ones.
    assert ours == pytest.approx(solution.cost, rel=1e-3)
    assert ours == pytest.approx(spokes_and_rims(mesh, theirs), rel=0.01)
    assert ours < 0.1 * spokes_and_rims(mesh, start)


@cache
def opened() -> Mesh:
    """Spot, cut along a tree that joins the hooves, the muzzle and the tail."""
    mesh = spot()
    _, _, z = mesh.vertices.T
    feet = np.array([[sx * 0.25, -0.74, sz] for sx in (-1, 1) for sz in (-0.3, 0.4)])
    hooves = [int(np.argmin(np.linalg.norm(mesh.vertices - foot, axis=1))) for foot in feet]
    ends = [*hooves, int(np.argmin(z)), int(np.argmax(z))]
    return ag.meshes.cut(mesh, ag.meshes.seam(mesh, ends))[0]


def flat_problem(function, u, fixed):
    mesh = opened()
    problem = ag.Problem()
    x = problem.parameters("u", u)
    a, b, c = mesh.faces.T
    problem.add_residuals(
        function, x[a], x[b], x[c], mesh.face_gradients, weight=np.sqrt(mesh.face_areas)
    )
    problem.freeze(x, fixed)
    return problem


def conformal_map():
    """Of libigl, and the vertices that it held."""
    mesh = opened()
    (loop,) = mesh.boundary_loops
    ends = np.array([loop[0], loop[len(loop) // 2]])
    held = np.array([[0.0, 0.0], [1.0, 0.0]])
    return igl.lscm(mesh.vertices.copy(), mesh.faces.copy(), ends, held)[0], ends


def conformal_energy(mesh, u):
    """½ ∫ |∂̄u|², the Dirichlet energy less the area of the image."""
    j = jacobians(mesh, u)
    return 0.5 * np.sum(mesh.face_areas * (np.sum(j**2, axis=(1, 2)) - 2 * np.linalg.det(j)))


def test_least_squares_conformal_map():
    mesh = opened()
    theirs, ends = conformal_map()
    start = mesh.vertices[:, [0, 2]].copy()
    start[ends] = theirs[ends]
    solution = ag.solve(flat_problem(energies.conformal, start, ends), backend="numpy")
    assert solution.success
    assert solution.cost == pytest.approx(conformal_energy(mesh, theirs), rel=1e-6)
    np.testing.assert_allclose(solution.values["u"], theirs, atol=1e-4)


def test_isometric_flattening():
    mesh = opened()
    conformal, ends = conformal_map()
    area = np.sum(mesh.face_areas * np.linalg.det(jacobians(mesh, conformal)))
    start = conformal * np.sqrt(mesh.face_areas.sum() / area)
    data = igl.ARAPData()
    data.max_iter = 200
    held = ends[:1]
    igl.arap_precomputation(mesh.vertices.copy(), mesh.faces.copy(), 2, held.astype(np.int32), data)
    theirs = igl.arap_solve(np.asfortranarray(start[held]), data, start.copy())

    options = ag.LevenbergMarquardtOptions(function_tolerance=1e-5)
    problem = flat_problem(energies.isometric, start, held)
    solution = ag.solve(problem, backend="numpy", options=options)

    def energy(u):
        j = jacobians(mesh, u)
        size = np.linalg.svd(j, compute_uv=False)
        size[:, 1] *= np.sign(np.linalg.det(j))
        return 0.5 * np.sum(mesh.face_areas * np.sum((size - 1.0) ** 2, axis=1))

    assert solution.success
    assert energy(solution.values["u"]) == pytest.approx(solution.cost, rel=1e-10)
    assert solution.cost == pytest.approx(energy(theirs), rel=0.01)
    assert solution.cost < 0.5 * solution.initial_cost
