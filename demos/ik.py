"""Ten thousand robot arms reach for ten thousand points of a cow: inverse kinematics in one solve.

An arm has a turning base and five hinges. Its residuals are the way from its tip to its target, a
mild wish to stay straight, and a stiff one to keep within the limits of its hinges. The arms share
nothing, so JᵀJ is block diagonal, and one kernel evaluates all of them. ``autograd-gpu demo ik``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.models import spot
from autograd_gpu.demos.stage import Stage

FloatArray = NDArray[np.float64]
LINKS, LINK, LIMIT = 5, 0.42, np.radians(110.0)
OPTIONS = ag.LevenbergMarquardtOptions(damping="identity", function_tolerance=1e-6)
CAMERA = (60, 24)
ARM, TIP = (0.55, 0.58, 0.64), (0.91, 0.38, 0.16)


def joints_of(base: Any, angles: Any) -> list[Any]:
    """Positions of the joints of an arm, base first and tip last; y is up, lengths in units."""
    c, s = ag.cos(angles[0]), ag.sin(angles[0])
    bend, out, up, joints = 0.0, 0.0, 0.0, [base]
    for k in range(LINKS):
        bend = bend + angles[k + 1]
        out, up = out + LINK * ag.sin(bend), up + LINK * ag.cos(bend)
        joints.append([base[0] + c * out, base[1] + up, base[2] + s * out])
    return joints


def reach(angles: Any, base: Any, target: Any) -> list[Any]:
    """The way from the tip of an arm to its target, 3 residuals."""
    tip = joints_of(base, angles)[-1]
    return [20.0 * (tip[k] - target[k]) for k in range(3)]


def comfort(angles: Any) -> list[Any]:
    """Bent joints cost a little, joints beyond their limit a lot."""
    bends = [angles[k + 1] for k in range(LINKS)]
    return [0.05 * b for b in bends] + [5.0 * ag.relu(ag.abs(b) - LIMIT) for b in bends]


def targets_on_spot(count: int) -> tuple[FloatArray, FloatArray]:
    """Points of the cow's surface, and where the arms that reach for them stand, (count, 3)."""
    mesh = spot()
    rng = np.random.default_rng(2)
    face = rng.choice(len(mesh.faces), count, p=mesh.face_areas / mesh.face_areas.sum())
    weights = rng.dirichlet(np.ones(3), count)
    points = np.einsum("nk,nkc->nc", weights, mesh.vertices[mesh.faces[face]])
    # Around the cow, on the side of the point, about an arm's length away.
    away = points[:, [0, 2]] - [0.0, 0.2]
    angle = np.arctan2(away[:, 1], away[:, 0]) + 0.25 * rng.standard_normal(count)
    bases = np.column_stack([1.5 * np.cos(angle), np.full(count, -0.74), 0.2 + 1.5 * np.sin(angle)])
    return points, bases


def main(stage: Stage, count: int = 10_000) -> None:
    """Solve all arms at once, and draw the tips and some of the arms."""
    targets, bases = targets_on_spot(count)
    toward = targets - bases
    start = np.full((count, LINKS + 1), 0.2)
    start[:, 0] = np.arctan2(toward[:, 2], toward[:, 0])
    problem = ag.Problem()
    angles = problem.parameters("angles", start)
    problem.add_residuals(reach, angles, bases, targets, name="reach")
    problem.add_residuals(comfort, angles, name="comfort")
    s = stage.solve(f"{count} arms", problem, OPTIONS)
    arms = ag.trace(joints_of, 3, LINKS + 1)
    rows = list[list[str]]()
    for name, values in (("start", start), ("solved", s.values["angles"])):
        joints = arms(bases, values)
        off = np.linalg.norm(joints[:, -1] - targets, axis=1)
        bend = np.degrees(np.abs(values[:, 1:]).max(axis=1))
        rows.append([name, f"{np.median(off):.4f}", f"{off.max():.4f}",
                     f"{100 * np.mean(off < 0.01):.1f} %", f"{np.median(bend):.0f}°",
                     f"{bend.max():.0f}°"])  # fmt: skip
        draw_some(stage, name, joints)
    stage.film("ik.gif", lambda v: scene(arms(bases, v["angles"])), CAMERA)
    stage.open_window(tips=arms(bases, s.values["angles"])[:, -1], targets=targets)
    print(f"{count / s.timings['total']:.0f} arms a second")
    columns = ["arms", "tip off, median", "largest", "within 0.01", "largest bend, median", "most"]
    stage.close(f"{count} arms of {LINKS} links and {LINKS + 1} joints", columns, rows)


def draw_some(stage: Stage, name: str, joints: FloatArray) -> None:
    """All tips, and every so many arms, as a picture."""
    pictures.render_row(
        stage.path(f"ik-{name}.png"), [scene(joints)], [None], panel=(760, 560), cameras=CAMERA,
        legend={"tips": TIP},
    )  # fmt: skip


def scene(joints: FloatArray) -> list[scenes.Body]:
    """All tips, and every so many arms."""
    some = joints[:: max(1, len(joints) // 70)]
    return [
        scenes.dots(joints[:, -1], 0.012, TIP),
        scenes.tubes(some[:, :-1].reshape(-1, 3), some[:, 1:].reshape(-1, 3), 0.012, ARM),
        scenes.spheres(some[:, :-1].reshape(-1, 3), 0.024, (0.30, 0.42, 0.62)),
    ]
