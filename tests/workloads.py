"""Least-squares problems whose minima are known: springs, ARAP, bundle adjustment, bending, curves.

Every ``w…`` function returns plain arrays, made with ``numpy.random.default_rng(0)``, so that
other solvers can be given the very same numbers; every ``…_problem`` function builds an
``ag.Problem`` from them. The mesh is generated here, not by ``autograd_gpu.meshes``, because the
noise of the start depends on the numbering of the vertices.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.meshes import energies

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]
Arrays = dict[str, NDArray[Any]]

# Source of the three tables: Ceres Solver 2.1, own measurements, cost = ½‖r‖² in float64.
MINIMA = MappingProxyType(
    {
        "W1r_s3": 7.72789e-3,
        "W2_s3": 0.36808938464,
        "W3": 17533.428228,
        "W4_s3": 0.42237279149,
        "W4_s5": 0.42369937814,
        "W5": 1247.6417065,
    }
)
"""Cost at the minimum that Ceres finds; W1r_s3 is given to its last digit, 1e-8."""

INITIAL_COSTS = MappingProxyType(
    {
        "W1r_s3": 5.0613197301,
        "W1r_s5": 4.9997032237,
        "W2_s3": 325.0,
        "W2_s5": 5125.0,
        "W3": 2352873.3230,
        "W4_s3": 23.388085544,
        "W4_s5": 363.15399350,
        "W5": 404170.25118,
    }
)
"""Cost at the start."""

CERES_AFTER_20_ITERATIONS = MappingProxyType(
    {
        "W1r_s3": 7.882838829e-3,
        "W1r_s5": 0.15631453556,
        "W2_s5": 0.49906458881,
    }
)
"""Cost after 20 iterations with damping 1e-4 on diag(JᵀJ); these are no minima."""


# -- mesh --------------------------------------------------------------------------------------


def icosphere(subdivisions: int) -> tuple[FloatArray, IntArray]:
    """Vertices ``(n, 3)`` and faces ``(m, 3)`` of a unit sphere, an icosahedron split s times."""
    t = (1.0 + 5.0**0.5) / 2.0
    vertices = np.array(
        [[-1, t, 0], [1, t, 0], [-1, -t, 0], [1, -t, 0], [0, -1, t], [0, 1, t],
         [0, -1, -t], [0, 1, -t], [t, 0, -1], [t, 0, 1], [-t, 0, -1], [-t, 0, 1]],
        np.float64,
    )  # fmt: skip
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    faces = np.array(
        [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4],
         [11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8],
         [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]],
        np.int64,
    )  # fmt: skip
    for _ in range(subdivisions):
        vertices, faces = _split(vertices, faces)
    return vertices, faces.astype(np.int32)


def _split(vertices: FloatArray, faces: IntArray) -> tuple[FloatArray, IntArray]:
    """Four faces for one; the new vertices are numbered by the edge they halve."""
    sides = np.sort(_sides(faces), axis=1)
    codes, of_side = np.unique(sides[:, 0] * len(vertices) + sides[:, 1], return_inverse=True)
    middles = vertices[codes // len(vertices)] + vertices[codes % len(vertices)]
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    ab, bc, ca = of_side.reshape(3, -1) + len(vertices)
    a, b, c = faces.T
    corners = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    split = np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)
    return np.concatenate([vertices, middles]), split.reshape(-1, 3)


def _sides(faces: IntArray) -> IntArray:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def edges_of(faces: IntArray) -> IntArray:
    """Edges i < j, ``(k, 2)``, in lexicographic order."""
    return np.unique(np.sort(_sides(faces), axis=1), axis=0).astype(np.int32)


def hinges_of(faces: IntArray) -> IntArray:
    """Vertices (a, b, c, d), a < b, of the triangles (a, b, c) and (b, a, d) at every edge ab."""
    sides = np.concatenate([faces, faces[:, [1, 2, 0]], faces[:, [2, 0, 1]]]).astype(np.int64)
    along = sides[sides[:, 0] < sides[:, 1]]
    against = sides[sides[:, 0] > sides[:, 1]]
    along = along[np.lexsort((along[:, 1], along[:, 0]))]
    against = against[np.lexsort((against[:, 0], against[:, 1]))]
    return np.column_stack([along, against[:, 2]]).astype(np.int32)


# -- arrays ------------------------------------------------------------------------------------


def w1r(subdivisions: int) -> Arrays:
    """Springs at 0.9 of their length, from noise of 0.3 mean edge lengths."""
    p, faces = icosphere(subdivisions)
    e = edges_of(faces)
    lengths = np.linalg.norm(p[e[:, 0]] - p[e[:, 1]], axis=1)
    noise = np.random.default_rng(0).standard_normal(p.shape)
    return {"p": p, "e": e, "L0": 0.9 * lengths, "x0": p + 0.3 * lengths.mean() * noise}


def w2(subdivisions: int) -> Arrays:
    """As-rigid-as-possible: the lowest 2 % of the vertices held, the highest 2 % pulled aside."""
    p, faces = icosphere(subdivisions)
    e = edges_of(faces)
    directed = np.concatenate([e, e[:, ::-1]])
    directed = directed[np.lexsort((directed[:, 1], directed[:, 0]))].astype(np.int32)
    count = round(0.02 * len(p))
    by_height = np.argsort(np.round(p[:, 2], 9), kind="stable")
    handles = np.concatenate([by_height[:count], by_height[-count:]]).astype(np.int32)
    targets = p[handles].copy()
    targets[count:] += np.array([0.5, 0.0, 0.5])
    return {
        "p": p,
        "de": directed,
        "q": p[directed[:, 1]] - p[directed[:, 0]],
        "h": handles,
        "t": targets,
        "x0": p.copy(),
        "r0": np.zeros_like(p),
    }


def w3(cameras: int = 60, points: int = 20_000) -> Arrays:
    """Bundle adjustment in the model of BAL: a ring of cameras, each point in 3 to 7 of them."""
    rng = np.random.default_rng(0)
    true_cameras = _ring_of_cameras(cameras)
    true_points = 0.7 * rng.standard_normal((points, 3))
    sightings = rng.integers(3, 8, points)
    first = rng.integers(0, cameras, points)
    pi = np.repeat(np.arange(points), sightings)
    k = np.arange(len(pi)) - np.repeat(np.cumsum(sightings) - sightings, sightings)
    ci = (first[pi] + k) % cameras
    pixels = _projected(true_cameras[ci], true_points[pi])
    observed = pixels + 0.5 * rng.standard_normal((len(pi), 2))
    spread = np.array([0.005] * 3 + [0.02] * 3 + [4.0, 0.005, 0.002])
    cam0 = true_cameras + rng.standard_normal(true_cameras.shape) * spread
    return {
        "ci": ci.astype(np.int32),
        "pi": pi.astype(np.int32),
        "obs": observed,
        "cam0": cam0,
        "X0": true_points + 0.03 * rng.standard_normal(true_points.shape),
    }


def _ring_of_cameras(count: int) -> FloatArray:
    """Axis-angle, translation, focal length, two distortions; no angle of the ring is π."""
    a = (np.arange(count) + 0.37) * 2 * np.pi / count
    centers = np.stack([6 * np.cos(a), 6 * np.sin(a), 0.8 * np.sin(3 * a)], 1)
    back = centers / np.linalg.norm(centers, axis=1, keepdims=True)
    right = np.cross(np.array([0, 0, 1.0]), back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    rotations = np.stack([right, np.cross(back, right), back], 1)
    lens = [np.full((count, 1), value) for value in (800.0, -0.05, 0.01)]
    angles = np.array([_axis_angle(r) for r in rotations])
    return np.concatenate([angles, -np.einsum("nij,nj->ni", rotations, centers), *lens], 1)


def _axis_angle(m: FloatArray) -> FloatArray:
    w = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    cosine = np.clip((np.trace(m) - 1) / 2, -1, 1)
    angle = np.arctan2(np.linalg.norm(w) / 2, cosine)
    return w / np.linalg.norm(w) * angle


def _rotated(r: FloatArray, v: FloatArray) -> FloatArray:
    t2 = (r * r).sum(-1, keepdims=True)
    t = np.sqrt(t2)
    across = np.cross(r, v)
    return v + np.sin(t) / t * across + (1 - np.cos(t)) / t2 * np.cross(r, across)


def _projected(camera: FloatArray, point: FloatArray) -> FloatArray:
    in_camera = _rotated(camera[:, :3], point) + camera[:, 3:6]
    u = -in_camera[:, :2] / in_camera[:, 2:3]
    r2 = (u * u).sum(1, keepdims=True)
    return camera[:, 6:7] * (1 + camera[:, 7:8] * r2 + camera[:, 8:9] * r2 * r2) * u


def w4(subdivisions: int) -> Arrays:
    """Bending towards flat hinges against edge strain, from noise of 0.1 mean edge lengths."""
    p, faces = icosphere(subdivisions)
    h = hinges_of(faces)
    a, b, c, d = (p[h[:, k]] for k in range(4))
    e = b - a
    lengths = np.linalg.norm(e, axis=1)
    areas = 0.5 * (
        np.linalg.norm(np.cross(e, c - a), axis=1) + np.linalg.norm(np.cross(d - a, e), axis=1)
    )
    noise = np.random.default_rng(0).standard_normal(p.shape)
    return {
        "p": p,
        "h": h,
        "L": lengths,
        "sw": np.sqrt(0.05 * lengths * lengths / areas),
        "x0": p + 0.1 * lengths.mean() * noise,
    }


def w5(count: int = 1_000_000) -> Arrays:
    """A decay plus an oscillation, 5 parameters, with noise of 0.05."""
    rng = np.random.default_rng(0)
    t = rng.uniform(0.0, 4.0, count)
    a, b, c, d, e = 2.5, 1.3, 0.8, 4.0, 0.5
    y = a * np.exp(-b * t) + c * np.sin(d * t) + e + 0.05 * rng.standard_normal(count)
    return {"t": t, "y": y, "theta0": np.array([1.0, 1.0, 1.0, 3.7, 0.0])}


# -- problems ----------------------------------------------------------------------------------


def springs_problem(subdivisions: int) -> ag.Problem:
    """W1r: springs and a weak anchor of every vertex."""
    arrays = w1r(subdivisions)
    problem = ag.Problem()
    x = problem.parameters("x", arrays["x0"])
    i, j = arrays["e"].T
    problem.add_residuals(energies.spring, x[i], x[j], arrays["L0"], name="springs")
    problem.add_residuals(energies.anchor, x, arrays["p"], 0.05, name="anchor")
    return problem


def deformation_problem(subdivisions: int) -> ag.Problem:
    """W2: positions and rotations, edges in both directions, and handles."""
    arrays = w2(subdivisions)
    problem = ag.Problem()
    x = problem.parameters("x", arrays["x0"])
    r = problem.parameters("r", arrays["r0"])
    i, j = arrays["de"].T
    problem.add_residuals(
        energies.as_rigid_as_possible, x[i], x[j], r[i], arrays["q"], name="edges"
    )
    problem.add_residuals(energies.anchor, x[arrays["h"]], arrays["t"], 10.0, name="handles")
    return problem


def reprojection_error(camera: Any, point: Any, observed: Any) -> Any:
    """Pixels between projection and observation; 9 camera parameters as in BAL."""
    in_camera = energies.rotate(camera[0:3], point) + camera[3:6]
    u = -in_camera[0:2] / in_camera[2]
    r2 = ag.dot(u, u)
    return camera[6] * (1 + camera[7] * r2 + camera[8] * r2 * r2) * u - observed


def with_outliers(
    observed: FloatArray, share: float, pixels: tuple[float, float] = (5.0, 25.0)
) -> FloatArray:
    """Sightings of which a share is displaced by so many pixels along each axis."""
    rng = np.random.default_rng(1)
    wrong = rng.choice(len(observed), round(share * len(observed)), replace=False)
    sides = rng.choice([-1.0, 1.0], (len(wrong), 2))
    moved = observed.copy()
    moved[wrong] += sides * rng.uniform(*pixels, (len(wrong), 2))
    return moved


def robust_bundle_problem(
    cameras: int,
    points: int,
    outliers: float,
    loss: ag.losses.Loss | None,
    pixels: tuple[float, float] = (5.0, 25.0),
) -> ag.Problem:
    """W3 with gross outliers and a loss, and the points held near their start.

    That anchor is so weak (a point is seen to 1e-3, and may be 1 away for one pixel / 100) that it
    only fixes the seven motions that no sighting sees: so two solves can be compared by number,
    unless outliers are so gross that some points end far away and pull the rest along.
    """
    arrays = w3(cameras, points)
    problem = ag.Problem()
    camera = problem.parameters("cameras", arrays["cam0"])
    point = problem.parameters("points", arrays["X0"])
    seen = with_outliers(arrays["obs"], outliers, pixels)
    problem.add_residuals(
        reprojection_error, camera[arrays["ci"]], point[arrays["pi"]], seen, loss=loss, name="seen"
    )
    problem.add_residuals(energies.anchor, point, arrays["X0"], 0.01, name="gauge")
    return problem


def aligned_cameras(cameras: FloatArray, wanted: FloatArray) -> FloatArray:
    """Cameras after the similarity that brings their centres closest to those wanted.

    Source: Umeyama 1991, "Least-squares estimation of transformation parameters between two point
    patterns", equations 40 to 42.
    """
    from scipy.spatial.transform import Rotation

    def centers(cameras: FloatArray) -> FloatArray:
        return -Rotation.from_rotvec(cameras[:, :3]).inv().apply(cameras[:, 3:6])

    a, b = centers(cameras), centers(wanted)
    from_a, from_b = a - a.mean(axis=0), b - b.mean(axis=0)
    u, d, v = np.linalg.svd(from_b.T @ from_a)
    sides = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ v))])
    turn = Rotation.from_matrix((u * sides) @ v)
    scale = float(d @ sides) / float(np.sum(from_a * from_a))
    shift = b.mean(axis=0) - scale * turn.apply(a.mean(axis=0))
    turned = Rotation.from_rotvec(cameras[:, :3]) * turn.inv()
    moved = scale * cameras[:, 3:6] - turned.apply(shift)
    return np.concatenate([turned.as_rotvec(), moved, cameras[:, 6:]], axis=1)


def bundle_problem(cameras: int = 60, points: int = 20_000) -> ag.Problem:
    """W3: cameras and points, one residual of two pixels a sighting."""
    arrays = w3(cameras, points)
    problem = ag.Problem()
    camera = problem.parameters("cameras", arrays["cam0"])
    point = problem.parameters("points", arrays["X0"])
    problem.add_residuals(
        reprojection_error, camera[arrays["ci"]], point[arrays["pi"]], arrays["obs"]
    )
    return problem


def bending_problem(subdivisions: int) -> ag.Problem:
    """W4: hinges, edges, and a weak anchor of every vertex."""
    arrays = w4(subdivisions)
    problem = ag.Problem()
    x = problem.parameters("x", arrays["x0"])
    a, b, c, d = (x[arrays["h"][:, k]] for k in range(4))
    problem.add_residuals(energies.dihedral_angle, a, b, c, d, weight=arrays["sw"], name="bending")
    problem.add_residuals(energies.edge_strain, a, b, arrays["L"], name="edges")
    problem.add_residuals(energies.anchor, x, arrays["p"], 0.01, name="anchor")
    return problem


def decay_and_oscillation(theta: Any, t: Any, y: Any) -> Any:
    """Curve minus observation."""
    a, b, c, d, e = theta
    return a * ag.exp(-b * t) + c * ag.sin(d * t) + e - y


def curve_problem(count: int = 1_000_000) -> ag.Problem:
    """W5: one block of 5 parameters that all elements share."""
    arrays = w5(count)
    problem = ag.Problem()
    theta = problem.parameters("theta", arrays["theta0"][None])
    problem.add_residuals(decay_and_oscillation, theta[0], arrays["t"], arrays["y"], name="curve")
    return problem


PROBLEMS: MappingProxyType[str, Callable[[], ag.Problem]] = MappingProxyType(
    {
        "W1r_s3": lambda: springs_problem(3),
        "W1r_s5": lambda: springs_problem(5),
        "W2_s3": lambda: deformation_problem(3),
        "W2_s5": lambda: deformation_problem(5),
        "W3": bundle_problem,
        "W4_s3": lambda: bending_problem(3),
        "W4_s5": lambda: bending_problem(5),
        "W5": curve_problem,
    }
)
