"""A robot that climbs a sphere finds out where it was, though some of what it saw is wrong.

Every pose is a rotation and a place, an element of SE(3). Edges say how the body moved from one
pose to another: the steps in between, and where it recognised a place of the lap before; two in a
hundred of those are mistaken. Run it with ``autograd-gpu demo posegraph``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.stage import Stage
from autograd_gpu.estimation import PoseGraph, sphere_of_poses

FloatArray = NDArray[np.float64]
SE3 = ag.manifolds.SE3

# What an edge may be off before it counts less, in standard deviations; a large one is no loss.
ROBUST, PLAIN = 2.0, 1e6
OPTIONS = ag.LevenbergMarquardtOptions(max_iterations=30, function_tolerance=1e-6)
STEP_COLOR, CLOSURE_COLOR, WRONG_COLOR = "#3b6fb6", "#b9bec8", "#e8622a"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One solve: where it began, which loss it had, and what came of it."""

    start: str
    loss: str
    solution: ag.Solution
    error: float

    @property
    def row(self) -> list[str]:
        """Cells of the table."""
        s = self.solution
        cost = f"{s.initial_cost:.4g} → {s.cost:.6g}"
        seconds = f"{s.timings['total']:.1f} s"
        return [self.start, self.loss, cost, str(s.iterations), seconds, f"{self.error:.3f}"]


def error_of(poses: FloatArray, true: FloatArray) -> float:
    """Root mean square distance between places, in the unit of the sphere's radius 10."""
    distances = np.linalg.norm(poses[:, 4:] - true[:, 4:], axis=1)
    return float(np.linalg.norm(distances) / np.sqrt(len(distances)))


def turned(true: FloatArray, degrees: float) -> FloatArray:
    """The poses, each turned about an axis of its own; the first, which is held, stays."""
    axes = np.random.default_rng(1).standard_normal((len(true), 3))
    axes *= np.radians(degrees) / np.linalg.norm(axes, axis=1, keepdims=True)
    away = SE3.from_vector(true) @ SE3.exp(np.concatenate([axes, np.zeros_like(axes)], axis=1))
    numbers = SE3.nearest(away.to_vector())
    numbers[0] = true[0]
    return numbers


def solve_all(graph: PoseGraph, true: FloatArray, stage: Stage) -> tuple[ag.Problem, list[Run]]:
    """From odometry without and with a loss, and with it from poses turned by 30 degrees."""
    problem = graph.problem(ag.losses.Huber(PLAIN))
    runs: list[Run] = []
    for start, poses, loss, delta in (
        ("odometry", graph.poses, "none", PLAIN),
        ("odometry", graph.poses, "Huber", ROBUST),
        ("turned by 30°", turned(true, 30.0), "Huber", ROBUST),
    ):
        # Numbers of the loss are data: the kernels stay.
        problem.update(poses=poses, data={"between": {"loss_delta": delta}})
        solution = stage.solve(f"from {start}, loss: {loss}", problem, OPTIONS, small=True)
        error = error_of(solution.values["poses"], true)
        runs.append(Run(start=start, loss=loss, solution=solution, error=error))
    return problem, runs


def draw(path: Path, graph: PoseGraph, true: FloatArray, panels: dict[str, FloatArray]) -> None:
    """Poses and edges from the side, panel by panel; wrong closures are orange."""
    figure = scenes.empty_figure((450 * len(panels), 480))
    kinds = kinds_of_edges(graph, true)
    for k, (title, poses) in enumerate(panels.items()):
        axes = figure.add_axes((k / len(panels), 0.0, 1.0 / len(panels), 0.9))
        paint(axes, graph, kinds, poses)
        figure.text((k + 0.5) / len(panels), 0.95, title, ha="center", size=12)
    figure.savefig(path, dpi=100)


def kinds_of_edges(graph: PoseGraph, true: FloatArray) -> dict[str, NDArray[np.bool_]]:
    """Masks of edges by colour: closures, wrong ones, steps."""
    i, j = graph.edges.T
    measured = SE3.from_vector(true[i]).inverse() @ SE3.from_vector(true[j])
    off = (SE3.from_vector(graph.measurements).inverse() @ measured).log()
    wrong, steps = np.linalg.norm(off[:, 3:], axis=1) > 1.0, j - i == 1
    return {CLOSURE_COLOR: ~(steps | wrong), WRONG_COLOR: wrong, STEP_COLOR: steps}


def paint(
    axes: Any, graph: PoseGraph, kinds: dict[str, NDArray[np.bool_]], poses: FloatArray
) -> None:
    """One panel: the edges between poses, seen from the side."""
    collections: Any = scenes.matplotlib_module("collections")
    look = SE3.exp(np.radians([-70.0, 0.0, 0.0, 0.0, 0.0, 0.0])) @ SE3.exp([0, 0, 0.6, 0, 0, 0])
    places = look.act(poses[:, 4:])[:, :2]
    for color, chosen in kinds.items():
        ends = places[graph.edges[chosen]]
        width = 0.4 if color == CLOSURE_COLOR else 0.8
        axes.add_collection(collections.LineCollection(ends, colors=color, linewidths=width))
    axes.set_aspect("equal")
    axes.autoscale()
    axes.set_axis_off()


def main(stage: Stage, laps: int = 50) -> list[Path]:
    """Solve three times, print a table and write pictures; returns the files."""
    graph, true = sphere_of_poses(laps, laps, outliers=0.02)
    print(f"{len(graph.poses)} poses, {len(graph.edges)} edges, {laps} laps around a sphere")
    problem, runs = solve_all(graph, true, stage)
    last = runs[-1].solution
    drift = error_of(graph.poses, true)
    columns = problem.columns(problem.arrays[0])
    print(f"{last.backend} {last.precision} on {last.device}, {last.linear_solver};", end=" ")
    print(f"{columns.max() + 1} tangent coordinates of {columns.shape[0]} poses")
    panels = {f"odometry: off by {drift:.2f}": graph.poses}
    for run, what in zip(runs, ("least squares", "with Huber's loss"), strict=False):
        panels[f"{what}: off by {run.error:.2f}"] = run.solution.values["poses"]
    draw(stage.path("posegraph.png"), graph, true, panels)
    pictures.plot_convergence(
        stage.path("posegraph_convergence.png"),
        {f"{r.start}, loss: {r.loss}": [h.cost for h in r.solution.history] for r in runs},
        title="Cost of a pose graph",
    )
    kinds = kinds_of_edges(graph, true)
    stage.film_of_plot("posegraph.gif", lambda axes, v: paint(axes, graph, kinds, v["poses"]))
    places = last.values["poses"][:, 4:]
    stage.open_window(
        true=true[:, 4:], found=(places[graph.edges[:, 0]], places[graph.edges[:, 1]])
    )
    return stage.close(
        f"Pose graph: odometry alone is off by {drift:.3f} (root mean square; the radius is 10)",
        ["from", "loss", "cost", "iterations", "time", "off by"],
        [run.row for run in runs],
    )
