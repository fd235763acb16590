"""Registration: a cow is moved onto a noisy scan of itself in another pose, rigidly, then bending.

Iterated closest points: match every vertex with the nearest point of the scan, solve, match again.
Rigid: six unknowns and point-to-plane distances. Then every vertex is free, held together by
as-rigid-as-possible edges that grow softer. ``autograd-gpu demo icp``.

Source: Chen and Medioni 1992, Object modelling by registration of multiple range images; Amberg,
Romdhani and Vetter 2007, Optimal step nonrigid ICP algorithms, for the falling stiffness.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.models import spot
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import Mesh, energies

FloatArray = NDArray[np.float64]
NOISE = 0.004
SCAN = (0.91, 0.38, 0.16)
CAMERA = (118, 10)
RIGID = ag.LevenbergMarquardtOptions(max_iterations=10, function_tolerance=1e-6)
BENDING = ag.LevenbergMarquardtOptions(
    max_iterations=4, damping="identity", initial_damping=1e-3, function_tolerance=1e-4
)


def moved_distance(pose: Any, p: Any, q: Any, normal: Any) -> Any:
    """Distance from a plane of the scan of a point moved by a pose (axis-angle, translation)."""
    return energies.point_to_plane(energies.rotate(pose[:3], p) + pose[3:], q, normal)


def scan_of(mesh: Mesh) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The cow bent, moved and measured: 20 000 points, normals, and the true vertices."""
    x, y, z = mesh.vertices.T
    turn = 0.5 * np.clip((0.25 - z) / 0.8, 0.0, 1.0) ** 2  # the head looks aside and down
    c, s = np.cos(turn), np.sin(turn)
    bent = np.column_stack([c * x + s * (z - 0.25), y - 0.15 * turn * (0.5 - z),
                            c * (z - 0.25) - s * x + 0.25])  # fmt: skip
    rotate = ag.trace(energies.rotate, 3, 3)
    pose = np.array([0.15, 0.55, -0.1])
    true: FloatArray = rotate(pose, bent) + np.array([0.25, 0.1, -0.15])
    solid, rng = Mesh(true, mesh.faces), np.random.default_rng(6)
    face = rng.choice(len(mesh.faces), 20_000, p=solid.face_areas / solid.face_areas.sum())
    weights = rng.dirichlet(np.ones(3), len(face))
    points: FloatArray = np.einsum("nk,nkc->nc", weights, true[mesh.faces[face]])
    noisy: FloatArray = points + NOISE * rng.standard_normal((len(points), 3))
    return noisy, solid.face_normals[face], true


def match(
    tree: Any, normals: FloatArray, x: FloatArray, faces: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Nearest point of the scan of every vertex, of ten the first whose normal faces its way."""
    near = tree.query(x, k=10)[1]
    own = scenes.vertex_normals(x, faces)
    agree = np.einsum("nkc,nc->nk", normals[near], own) > 0.5
    return near[np.arange(len(x)), np.argmax(agree, axis=1)]


def main(stage: Stage, rounds: int = 15) -> None:
    """Register twice and say how far vertices are from where they should be."""
    from scipy import spatial

    mesh = spot()
    rest = mesh.vertices
    points, normals, true = scan_of(mesh)
    search: Any = spatial
    tree = search.KDTree(points)
    rotate = ag.trace(energies.rotate, 3, 3)
    rows, results = list[list[str]](), {"start": rest}

    def report(name: str, x: FloatArray, seconds: float) -> None:
        near = tree.query(x)[0]
        off = np.linalg.norm(x - true, axis=1)
        rows.append([name, f"{np.median(near):.4f}", f"{np.median(off):.4f}",
                     f"{np.quantile(off, 0.95):.4f}", f"{seconds:.1f} s"])  # fmt: skip
        if stage.progress:
            print(f"{name}: vertices off by {np.median(off):.4f} (median)")

    report("start", rest, 0.0)
    rigid = ag.Problem()
    pose = rigid.parameters("pose", np.zeros((1, 6)))
    near = match(tree, normals, rest, mesh.faces)
    rigid.add_residuals(moved_distance, pose[0], rest, points[near], normals[near],
                        loss=ag.losses.Huber(0.05), name="scan")  # fmt: skip
    seconds, x, value = 0.0, rest, np.zeros((1, 6))
    stage.reel.add({"x": rest})
    for _ in range(rounds):
        near = match(tree, normals, x, mesh.faces)
        rigid.update(pose=value, data={"scan": {"q": points[near], "normal": normals[near]}})
        s = ag.solve(rigid, options=RIGID, backend=stage.backend)
        value, seconds = s.values["pose"], seconds + s.timings["total"]
        x = rotate(value[0, :3], rest) + value[0, 3:]
        stage.reel.add({"x": x})
    results["rigid"] = x
    report("rigid", x, seconds)

    # Rest edges are turned once and for all, so that the rotations start at zero.
    i, j = mesh.directed_edges.T
    bending = ag.Problem()
    positions, turns = bending.parameters("x", x), bending.parameters("r", np.zeros_like(x))
    bending.add_residuals(
        energies.as_rigid_as_possible, positions[i], positions[j], turns[i], x[j] - x[i],
        weight=np.ones(len(i)), name="rigidity",
    )  # fmt: skip
    bending.add_residuals(energies.point_to_plane, positions, points[near], normals[near],
                          loss=ag.losses.Huber(0.05), name="scan")  # fmt: skip
    seconds, state = 0.0, {"x": x, "r": np.zeros_like(x)}
    for stiffness in np.geomspace(5.0, 0.2, rounds):
        near = match(tree, normals, state["x"], mesh.faces)
        data = {"scan": {"q": points[near], "normal": normals[near]},
                "rigidity": {"weight": np.full(len(i), stiffness)}}  # fmt: skip
        bending.update(x=state["x"], r=state["r"], data=data)
        s = ag.solve(bending, options=BENDING, backend=stage.backend)
        state, seconds = s.values, seconds + s.timings["total"]
        stage.reel.add({"x": state["x"]})
        if stage.progress:
            print(f"stiffness {stiffness:.2f}: cost {s.cost:.4g}, {seconds:.1f} s")
    results["bending"] = state["x"]
    report("bending", state["x"], seconds)
    scan = scenes.dots(points[::4], 0.007, SCAN)
    bodies = [
        [scenes.checked_body(name, v, mesh.faces, pictures.AFTER_COLOR), scan]
        for name, v in results.items()
    ]
    pictures.render_row(
        stage.path("icp.png"), bodies, list(results), panel=(480, 440), cameras=CAMERA,
        legend={"scan": SCAN},
    )  # fmt: skip
    stage.film("icp.gif", lambda v: [
        scenes.checked_body("cow", v["x"], mesh.faces, pictures.AFTER_COLOR), scan], CAMERA,
    )  # fmt: skip
    stage.open_window(start=mesh, registered=Mesh(results["bending"], mesh.faces))
    columns = ["", "to the scan, median", "to the truth, median", "95 % below", "solving"]
    stage.close(f"A scan of {len(points)} points, noise {NOISE}", columns, rows)
