"""Poses for a cow: a few handles are moved, and the rest follows as rigidly as it can.

Every corner of every face compares the face's deformation with the rotation of its vertex
(``energies.as_rigid_as_possible_face``). One problem serves all poses: new positions and targets
are data, and nothing is traced or compiled again. ``autograd-gpu demo arap``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.models import spot
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import Mesh, energies

FloatArray = NDArray[np.float64]
OPTIONS = ag.LevenbergMarquardtOptions(
    damping="identity", initial_damping=1e-3, function_tolerance=1e-3
)


def handle(position: ag.Vec3, target: ag.Vec3) -> ag.Vec3:
    """Ten times the way to the target."""
    return 10.0 * (position - target)


def turned(points: FloatArray, degrees: list[float], about: list[float]) -> FloatArray:
    """Points turned by an axis-angle vector about a centre."""
    rotate = ag.trace(energies.rotate, 3, 3)  # what a solve traces also evaluates on arrays
    return rotate(np.radians(degrees), points - np.array(about)) + np.array(about)


def look_back(p: FloatArray) -> FloatArray:
    """The muzzle goes up and to the side."""
    head = turned(turned(p, [20.0, 0, 0], [0, 0.25, -0.1]), [0, -60.0, 0], [0, 0.25, -0.1])
    return np.where(p[:, 2:] < -0.4, head + np.array([0.0, 0.08, 0.0]), p)


def graze(p: FloatArray) -> FloatArray:
    """The muzzle goes down to the grass."""
    return np.where(p[:, 2:] < -0.4, turned(p, [-55.0, 0, 0], [0, 0.2, 0.05]), p)


def rear(p: FloatArray) -> FloatArray:
    """Front hooves and head rise about the hind hooves."""
    front = p[:, 2:] < 0.35
    return np.where(front, turned(p, [38.0, 0, 0], [0, -0.7, 0.45]), p)


POSES: dict[str, Callable[[FloatArray], FloatArray]] = {
    "looks back": look_back,
    "grazes": graze,
    "rears": rear,
}


def build(mesh: Mesh, handles: NDArray[np.int64]) -> ag.Problem:
    """Positions and rotations of all vertices; one element per corner, and one per handle."""
    rest, faces = mesh.vertices, np.tile(mesh.faces, (3, 1))
    a, b, c = faces.T
    problem = ag.Problem()
    x = problem.parameters("x", rest)
    r = problem.parameters("r", np.zeros_like(rest))
    problem.add_residuals(
        energies.as_rigid_as_possible_face,
        x[a], x[b], x[c], r[mesh.faces.T.ravel()], rest[b] - rest[a], rest[c] - rest[a],
        np.tile(mesh.face_gradients, (3, 1, 1)),
        weight=np.sqrt(np.tile(mesh.face_areas, 3) / 3.0), name="rigidity",
    )  # fmt: skip
    problem.add_residuals(handle, x[handles], rest[handles], name="handles")
    return problem


def main(stage: Stage, poses: Sequence[str] = tuple(POSES)) -> None:
    """Solve poses and draw them."""
    mesh = spot()
    _, y, z = mesh.vertices.T
    muzzle, hooves = (z < -0.55) & (y > 0.15), y < -0.66
    handles = np.flatnonzero(muzzle | hooves)
    problem = build(mesh, handles)
    rest, rows = mesh.vertices, list[list[str]]()
    results: dict[str, FloatArray] = {}
    bodies = [[scenes.checked_body("rest", rest, mesh.faces, pictures.BEFORE_COLOR)]]
    for name in poses:
        targets = POSES[name](rest)[handles]
        problem.update(x=rest, r=np.zeros_like(rest), data={"handles": {"target": targets}})
        s = stage.solve(f"The cow {name}", problem, OPTIONS)
        after = s.values["x"]
        results[name] = after
        i, j = mesh.edges.T
        strain = np.abs(np.linalg.norm(after[j] - after[i], axis=1) / mesh.edge_lengths - 1.0)
        away = np.linalg.norm(after[handles] - targets, axis=1).max()
        rows.append([name, str(s.iterations), f"{s.cost:.4g}", f"{100 * np.median(strain):.2f} %",
                     f"{100 * np.quantile(strain, 0.99):.1f} %", f"{away:.3g}",
                     f"{s.timings['total']:.1f} s"])  # fmt: skip
        body = scenes.checked_body(name, after, mesh.faces, pictures.AFTER_COLOR)
        marks = scenes.spheres(after[handles], 0.013, pictures.HANDLE_COLOR)
        bodies.append([body, marks])
    pictures.render_row(
        stage.path("arap.png"), bodies, ["at rest", *poses], panel=(400, 460), cameras=(118, 8),
        legend={"handles": pictures.HANDLE_COLOR},
    )  # fmt: skip
    stage.film_of_mesh("arap.gif", "x", mesh.faces, (118, 8))
    stage.open_window(rest=mesh, **{k.replace(" ", "_"): Mesh(v, mesh.faces)
                                    for k, v in results.items()})  # fmt: skip
    columns = ["pose", "iterations", "cost", "median strain", "99 % below", "handles off", "time"]
    stage.close("As rigid as possible: strain of edges", columns, rows)
