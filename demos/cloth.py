"""A cloth falls over a ball: implicit Euler, a least-squares problem in every time step.

x(t + h) minimises ½ m/h² ‖x − (x + h v + h² g)‖² plus the energies of stretch, bending and contact
at x(t + h) itself, so stiff cloth is stable at large steps. Where inertia would carry each vertex
is data that changes from step to step; nothing is compiled twice. ``autograd-gpu demo cloth``.

Source: Baraff and Witkin 1998, Large steps in cloth simulation; as a minimisation, Martin et al.
2011, Example-based elastic materials, §4.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import Mesh, energies

FloatArray = NDArray[np.float64]
STEP, GRAVITY, RADIUS, GAP = 1.0 / 30.0, np.array([0.0, -9.81, 0.0]), 0.45, 0.02
CLOTH, BALL = (0.80, 0.27, 0.22), (0.55, 0.60, 0.68)
OPTIONS = ag.LevenbergMarquardtOptions(
    max_iterations=40, function_tolerance=3e-4, initial_damping=3e-3
)
CAMERA = (30, 16)


def inertia(x: ag.Vec3, free: ag.Vec3, weight: ag.Scalar) -> ag.Vec3:
    """√m/h times the way from where a vertex would go without forces (gravity is in there)."""
    return weight * (x - free)


def ball_contact(x: ag.Vec3, radius: ag.Scalar, weight: ag.Scalar) -> ag.Scalar:
    """How deep a vertex is inside of the ball around the origin."""
    return weight * ag.relu(radius - ag.norm(x))


def build(mesh: Mesh) -> ag.Problem:
    """All energies of a cloth of 0.3 kg per square unit."""
    mass = 0.3 * mesh.vertex_areas
    i, j = mesh.edges.T
    a, b, c, d = mesh.dihedral_stencils.T
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    problem.add_residuals(inertia, x, mesh.vertices, np.sqrt(mass) / STEP, name="inertia")
    problem.add_residuals(energies.edge_strain, x[i], x[j], mesh.edge_lengths, weight=0.6,
                          name="stretch")  # fmt: skip
    problem.add_residuals(energies.strain_limit, x[i], x[j], mesh.edge_lengths, -1.0, 0.04,
                          weight=4.0, name="limit")  # fmt: skip
    problem.add_residuals(energies.dihedral_bending, x[a], x[b], x[c], x[d], 0.0, 0.004,
                          name="bending")  # fmt: skip
    problem.add_residuals(ball_contact, x, RADIUS + GAP, 60.0, name="ball")
    problem.add_residuals(energies.plane_collision, x, ag.shared([0.0, -0.75, 0.0]),
                          ag.shared([0.0, 1.0, 0.0]), GAP, 60.0, name="floor")  # fmt: skip
    return problem


def advance(
    stage: Stage, problem: ag.Problem, x: FloatArray, v: FloatArray
) -> tuple[FloatArray, FloatArray, ag.Solution]:
    """One time step: new positions and velocities."""
    free = x + STEP * v + STEP**2 * GRAVITY
    problem.update(x=x, data={"inertia": {"free": free}})
    s = ag.solve(problem, options=OPTIONS, backend=stage.backend)
    after = s.values["x"]
    velocity = (after - x) / STEP
    # Friction: what touches the ball loses speed along it.
    touching = np.linalg.norm(after, axis=1) < RADIUS + 1.5 * GAP
    velocity[touching] *= 0.6
    return after, 0.995 * velocity, s


def main(stage: Stage, cells: int = 26, steps: int = 40) -> None:
    """Drop a cloth of cells × cells squares, and film it."""
    flat = ag.meshes.grid(cells, cells, 1.8, 1.8)
    turn = np.array([[np.cos(0.5), 0, np.sin(0.5)], [0, 1, 0], [-np.sin(0.5), 0, np.cos(0.5)]])
    lying = (flat.vertices - [0.9, 0.9, 0.0])[:, [0, 2, 1]] @ turn.T
    # Its lower side is seen as well: every face stands twice in pictures.
    mesh = Mesh(lying + np.array([0.06, 0.75, 0.04]), flat.faces[:, ::-1])
    problem = build(mesh)
    x, v = np.array(mesh.vertices), np.zeros_like(mesh.vertices)
    ball = scenes.spheres(np.zeros((1, 3)), RADIUS, BALL, fineness=4)
    floor = ag.meshes.grid(1, 1, 2.0, 2.0)
    ground = scenes.checked_body(
        "floor", floor.vertices[:, [0, 2, 1]] + [-1.0, -0.75, -1.0], floor.faces[:, ::-1],
        (0.86, 0.87, 0.89),
    )  # fmt: skip
    frames, rows = list[list[scenes.Body]](), list[list[str]]()
    iterations, seconds = 0, 0.0
    for step in range(steps + 1):
        if step % 2 == 0:
            stage.reel.add({"x": x})
        if step in (0, steps // 4, steps // 2, steps):
            frames.append([ball, *scenes.both_sides("cloth", x, mesh.faces, CLOTH)])
            i, j = mesh.edges.T
            strain = np.linalg.norm(x[j] - x[i], axis=1) / mesh.edge_lengths - 1.0
            energy = float(0.15 * mesh.vertex_areas @ np.sum(v**2, axis=1))
            limit = f"{100 * strain.max():.1f} %"
            rows.append([f"{step * STEP:.2f} s", f"{x[:, 1].min():.3f}", f"{energy:.4f} J",
                         limit, str(iterations), f"{seconds:.1f} s"])  # fmt: skip
        if step < steps:
            x, v, s = advance(stage, problem, x, v)
            iterations, seconds = iterations + s.iterations, seconds + s.timings["total"]
            if stage.progress and step % 10 == 9:
                print(
                    f"step {step + 1} of {steps}: {seconds:.1f} s, lowest point {x[:, 1].min():.2f}"
                )
    pictures.render_row(
        stage.path("cloth.png"), frames, [f"t = {row[0]}" for row in rows], cameras=CAMERA,
        panel=(400, 420),
    )  # fmt: skip
    stage.film("cloth.gif", lambda v: [
        ground, ball, *scenes.both_sides("cloth", v["x"], mesh.faces, CLOTH)], CAMERA, (360, 300),
        always=True,
    )  # fmt: skip
    stage.open_window(cloth=Mesh(x, mesh.faces))
    columns = ["time", "lowest point", "kinetic energy", "largest strain", "iterations", "solving"]
    stage.close(f"A cloth of {len(x)} vertices, steps of 1/30 s", columns, rows)
