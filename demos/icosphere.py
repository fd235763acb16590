"""Pull a sphere by its poles, and turn the head of a cow: as-rigid-as-possible deformation.

Every vertex i has a position x_i and a rotation r_i (axis times angle). An edge (i, j) would like
to be its rest edge, turned by r_i; handles are vertices that are told where to be. Run it with
``autograd-gpu demo icosphere``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.backends import SAMPLE, Run, compare, timed_solve
from autograd_gpu.demos.films import Values
from autograd_gpu.demos.models import spot
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import Mesh, energies

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Positions and angles of a mesh of unit size are of one order, so Levenberg's identity suits them.
# Scaled by diag(JᵀJ), the stiff handles would be held back most, and they should go first.
OPTIONS = ag.LevenbergMarquardtOptions(
    max_iterations=200, damping="identity", initial_damping=1e-3, function_tolerance=5e-5
)


# 1. The energy is two plain functions of one element: ``energies.as_rigid_as_possible``, and this.


def handle(position: ag.Vec3, target: ag.Vec3) -> ag.Vec3:
    """Ten times the way from a vertex to where it is told to be, 3 residuals."""
    return 10.0 * (position - target)


# 2. A problem lists parameters, and residuals over index arrays into them.


@dataclass(frozen=True, kw_only=True)
class Pose:
    """A mesh, vertices that are held where they are, and vertices that are moved to targets."""

    mesh: Mesh
    held: IntArray
    moved: IntArray
    targets: FloatArray

    def problem(self) -> ag.Problem:
        """One element per directed edge, and one per handle."""
        rest = self.mesh.vertices
        i, j = self.mesh.directed_edges.T
        handles = np.concatenate([self.held, self.moved])
        targets = np.concatenate([rest[self.held], self.targets])
        problem = ag.Problem()
        x = problem.parameters("x", rest)
        r = problem.parameters("r", np.zeros_like(rest))
        problem.add_residuals(
            energies.as_rigid_as_possible, x[i], x[j], r[i], rest[j] - rest[i], name="rigidity"
        )
        problem.add_residuals(handle, x[handles], targets, name="handles")
        return problem


# 3. Two poses.


def sphere(level: int) -> Pose:
    """Unit sphere: the lowest 2 % of the vertices held, the highest 2 % moved sideways and up."""
    mesh = ag.meshes.icosphere(level)
    count = max(1, round(0.02 * len(mesh.vertices)))
    by_height = np.argsort(np.round(mesh.vertices[:, 2], 9), kind="stable")
    moved = by_height[-count:]
    targets = mesh.vertices[moved] + [0.5, 0.0, 0.5]
    return Pose(mesh=mesh, held=by_height[:count], moved=moved, targets=targets)


def cow() -> Pose:
    """Spot: hooves held, muzzle raised by 25 degrees and turned by 50 about the neck."""
    mesh = spot()
    _, y, z = mesh.vertices.T
    held, moved = np.flatnonzero(y < -0.6), np.flatnonzero((y > 0.15) & (z < -0.55))
    neck = np.array([0.0, 0.25, -0.1])
    turn = ag.trace(energies.rotate, 3, 3)  # what a solve traces also evaluates on plain arrays
    raised = turn(np.radians([25.0, 0.0, 0.0]), mesh.vertices[moved] - neck)
    targets = turn(np.radians([0.0, -50.0, 0.0]), raised) + neck + [0.0, 0.12, 0.0]
    return Pose(mesh=mesh, held=held, moved=moved, targets=targets)


# 4. Solve, say what happened, draw.


def solve(name: str, pose: Pose, stage: Stage) -> tuple[ag.Problem, Run]:
    """Solve to the end with a progress bar, and report."""
    problem = pose.problem()
    print(f"\nThe {name}: {len(pose.mesh.vertices)} vertices, {len(pose.mesh.edges)} edges")
    run = timed_solve(
        problem, OPTIONS, stage.backend, progress=stage.progress, callback=stage.callback
    )
    s = run.solution
    print(f"cost     {s.initial_cost:.6g} → {s.cost:.6g} in {s.iterations} iterations", end=", ")
    print(f"{s.timings['total']:.1f} s; {s.status.value}: {s.message}")
    print(f"backend  {run.label} on {s.device} ({s.backend_reason}); {s.linear_solver}")
    print(f"compile  {run.compile_seconds:.2f} s before that")
    return problem, run


def frame(mesh: Mesh, axes: list[int], values: Values) -> list[scenes.Body]:
    """What a film shows of a point."""
    return [scenes.checked_body("x", values["x"][:, axes], mesh.faces, pictures.AFTER_COLOR)]


def main(stage: Stage, level: int = 5) -> list[Path]:
    """Solve both poses, compare backends on the sphere, and write pictures; returns the files."""
    sample = OPTIONS if level <= 4 else replace(OPTIONS, max_iterations=SAMPLE)
    histories, meshes = dict[str, list[float]](), dict[str, Mesh]()
    # Pictures have y up and the sphere has z, so its coordinates are drawn in another order.
    views = {
        "sphere": (lambda: sphere(level), [1, 2, 0], (-115, 4)),
        "cow": (cow, [0, 1, 2], (110, 8)),
    }
    for name, (make, axes, camera) in views.items():
        pose = make()
        problem, run = solve(name, pose, stage)
        stage.film(f"{name}.gif", partial(frame, pose.mesh, axes), camera)
        runs = compare(problem, sample, run) if name == "sphere" else [run]
        for each in runs:
            above = [r.cost - run.solution.cost for r in each.solution.history[:-1]]
            histories[f"{name}, {each.label}"] = above
        rest, after = pose.mesh.vertices, run.solution.values["x"]
        meshes[name] = Mesh(after[:, axes], pose.mesh.faces)
        pictures.render_before_after(
            stage.path(f"{name}.png"),
            (rest[:, axes], pose.mesh.faces),
            (after[:, axes], pose.mesh.faces),
            handles=pose.moved,
            fixed=pose.held,
            titles=("at rest", "as rigid as possible"),
            camera=camera,
        )
    pictures.plot_convergence(
        stage.path("convergence.png"), histories, minimum=0.0, title="Cost above the last one"
    )
    stage.open_window(**meshes)
    return stage.end()
