"""Bundle adjustment: cameras and points from what the cameras saw, a tenth of it wrong.

Points of a cow are seen by cameras on a ring around it. Poses, focal lengths, distortion and
points start off; a robust loss makes wrong matches harmless. ``autograd-gpu demo bundle``.

Source: the camera of Agarwal, Snavely, Seitz and Szeliski 2010, Bundle adjustment in the large:
rotation, translation, focal length, two radial distortions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.films import Values
from autograd_gpu.demos.models import spot
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import energies

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
NOISE, OUTLIERS = 0.5, 0.1
OPTIONS = ag.LevenbergMarquardtOptions(function_tolerance=1e-6, damping="diagonal")
VIEW = (130, 28)
GOOD, BAD, CAMERA = (0.30, 0.55, 0.80), (0.91, 0.38, 0.16), (0.25, 0.27, 0.33)


def project(pose: Any, lens: Any, point: Any) -> tuple[Any, Any]:
    """Pixel of a point; pose is axis-angle and translation, lens focal length/500 and k₁, k₂."""
    turned = energies.rotate(pose[:3], point)
    x, y, z = turned[0] + pose[3], turned[1] + pose[4], turned[2] + pose[5]
    u, v = -x / z, -y / z
    r2 = u * u + v * v
    scale = 500.0 * lens[0] * (1.0 + r2 * (lens[1] + r2 * lens[2]))
    return scale * u, scale * v


def reprojection(pose: Any, lens: Any, point: Any, seen: Any) -> list[Any]:
    """Pixels between where a point is projected and where it was seen, 2 residuals."""
    u, v = project(pose, lens, point)
    return [u - seen[0], v - seen[1]]


def ring_of_cameras(count: int) -> FloatArray:
    """Poses (count, 6) of cameras that look at the cow from around it."""
    from scipy.spatial.transform import Rotation

    poses = np.zeros((count, 6))
    for k, angle in enumerate(2 * np.pi * np.arange(count) / count):
        height = 0.6 * np.sin(3 * angle)
        eye = np.array([2.5 * np.sin(angle), 0.2 + height, 0.2 + 2.5 * np.cos(angle)])
        back = eye - np.array([0.0, 0.1, 0.2])
        back /= np.linalg.norm(back)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        matrix = np.stack([right, np.cross(back, right), back])
        turn: Any = Rotation.from_matrix(matrix)
        poses[k] = [*turn.as_rotvec(), *(-matrix @ eye)]
    return poses


def eyes_of(poses: FloatArray) -> FloatArray:
    """Where cameras are, (n, 3)."""
    rotate = ag.trace(energies.rotate, 3, 3)
    return -rotate(-poses[:, :3], poses[:, 3:])


def aligned(points: FloatArray, truth: FloatArray) -> tuple[FloatArray, float, FloatArray]:
    """Rotation, scale and shift that take points to the truth best (Umeyama 1991)."""
    a, b = points - points.mean(axis=0), truth - truth.mean(axis=0)
    u, s, vt = np.linalg.svd(b.T @ a)
    sign = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    turn = u @ sign @ vt
    scale = float((s * np.diag(sign)).sum() / np.sum(a * a))
    return turn, scale, truth.mean(axis=0) - scale * turn @ points.mean(axis=0)


def scene(points: FloatArray, eyes: FloatArray, off: FloatArray) -> list[scenes.Body]:
    """Points by how far they are off, and the cameras."""
    tint = np.where((off < 0.02)[:, None], GOOD, BAD)
    return [scenes.dots(points, 0.022, tint), scenes.spheres(eyes, 0.06, CAMERA)]


def main(stage: Stage, cameras: int = 24, stride: int = 2) -> None:
    """Make pictures of the cow, forget how they were made, and find out again."""
    mesh, rng = spot(), np.random.default_rng(3)
    truth = mesh.vertices[::stride]
    normals = scenes.vertex_normals(mesh.vertices, mesh.faces)[::stride]
    poses, lenses = ring_of_cameras(cameras), np.tile([1.0, -0.05, 0.01], (cameras, 1))
    toward = eyes_of(poses)[:, None] - truth[None]
    facing = np.einsum("cnk,nk->cn", toward, normals) > 0.4 * np.linalg.norm(toward, axis=2)
    c, p = np.nonzero(facing & (facing.sum(axis=0) >= 3))
    camera = ag.trace(project, 6, 3, 3)
    seen: FloatArray = camera(poses[c], lenses[c], truth[p])
    seen += NOISE * rng.standard_normal(seen.shape)
    wrong = rng.random(len(seen)) < OUTLIERS
    seen[wrong] += rng.uniform(-60.0, 60.0, (int(wrong.sum()), 2))
    problem = ag.Problem()
    start = poses + rng.standard_normal(poses.shape) * np.array([0.02] * 3 + [0.05] * 3)
    start[0] = poses[0]
    x = problem.parameters("poses", start)
    f = problem.parameters("lenses", np.tile([1.1, 0.0, 0.0], (cameras, 1)))
    q = problem.parameters("points", truth + 0.08 * rng.standard_normal(truth.shape))
    problem.add_residuals(reprojection, x[c], f[c], q[p], seen, loss=ag.losses.Cauchy(1.0),
                          name="seen")  # fmt: skip
    problem.freeze(x, 0)
    problem.freeze(q, np.setdiff1d(np.arange(len(truth)), p))
    print(f"{cameras} cameras, {len(truth)} points, {len(seen)} observations, {wrong.sum()} wrong")
    first = {name: problem.values_of(a) for name, a in (("poses", x), ("lenses", f), ("points", q))}
    s = stage.solve("bundle", problem, OPTIONS)
    used, rows, panels = np.unique(p), list[list[str]](), list[list[scenes.Body]]()

    def placed(values: Values) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Points and cameras in the frame of the truth, and how far off the points are."""
        turn, scale, shift = aligned(values["points"][used], truth[used])
        points = scale * values["points"][used] @ turn.T + shift
        eyes = scale * eyes_of(values["poses"]) @ turn.T + shift
        return points, eyes, np.linalg.norm(points - truth[used], axis=1)

    for name, values in (("start", first), ("solved", s.values)):
        points, eyes, off = placed(values)
        pixels: FloatArray = camera(values["poses"][c], values["lenses"][c], values["points"][p])
        error = np.linalg.norm(pixels - seen, axis=1)[~wrong]
        rows.append([name, f"{np.median(error):.3f}", f"{np.median(off):.4f}",
                     f"{np.linalg.norm(eyes - eyes_of(poses), axis=1).max():.4f}",
                     f"{500 * values['lenses'][:, 0].mean():.1f}"])  # fmt: skip
        panels.append(scene(*placed(values)))
    pictures.render_row(
        stage.path("bundle.png"), panels, ["start", "adjusted"], panel=(600, 480),
        cameras=VIEW, legend={"cameras": CAMERA, "points within 0.02": GOOD, "beyond": BAD},
    )  # fmt: skip
    stage.film("bundle.gif", lambda v: scene(*placed(v)), VIEW)
    points, eyes, _ = placed(s.values)
    stage.open_window(points=points, cameras=eyes)
    columns = ["", "pixels off, median of true matches", "points off, median", "cameras off, most",
               "focal length (500)"]  # fmt: skip
    stage.close(f"Noise of {NOISE} pixels, {100 * OUTLIERS:.0f} % wrong matches", columns, rows)
