"""Device-resident kernels on a GPU: gather gradient and Levenberg-Marquardt, with peers.

``python -m benchmarks.device_solve [adapter]`` prints one Metric record per line and writes them to
``benchmarks/results/``. Clocks are warmed up by back-to-back work; device time is the slope of
wall time over the number of dispatches in one submission, so submission and read-back cancel.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import autograd_gpu as ag
import workloads
from autograd_gpu.codegen.program import BufferSpec
from autograd_gpu.codegen.solve_program import gradient_program
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import ArrayLayout, NodeTables
from autograd_gpu.runtime.program_runner import ProgramRunner
from autograd_gpu.solvers.evaluation import current_parameters


def layouts(problem: ag.Problem) -> list[ArrayLayout]:
    """Parameter arrays as the node tables want them."""
    analysis = problem.analysis()
    return [
        ArrayLayout(
            base=analysis.base[a.name],
            blocks=a.blocks,
            width=a.width,
            frozen=problem.frozen_of(a),
        )
        for a in problem.arrays
    ]


def slope(run: Callable[[int], None], few: int, many: int, repeats: int = 7) -> float:
    """Seconds per unit of work: median slope between two amounts."""
    began = time.perf_counter()
    while time.perf_counter() - began < 0.5:
        run(few)
    values = []
    for _ in range(repeats):
        t0 = time.perf_counter()
        run(few)
        t1 = time.perf_counter()
        run(many)
        t2 = time.perf_counter()
        values.append(((t2 - t1) - (t1 - t0)) / (many - few))
    return float(np.median(values))


def springs(level: int) -> ag.Problem:
    """Edge springs of a noisy icosphere at 0.9 of their rest length, and nothing else."""
    vertices, faces = workloads.icosphere(level)
    i, j = workloads.edges_of(faces).T
    rest = 0.9 * np.linalg.norm(vertices[i] - vertices[j], axis=1)
    noise = np.random.default_rng(0).standard_normal(vertices.shape)
    problem = ag.Problem()
    x = problem.parameters("x", vertices + 0.3 * rest.mean() * noise)
    problem.add_residuals(ag.meshes.energies.spring, x[i], x[j], rest, name="springs")
    return problem


def gradient(device: Device, level: int) -> None:
    """Spring gradient by gathering, float32."""
    problem = springs(level)
    x = current_parameters(problem)
    tables = NodeTables(layouts(problem), problem.analysis().groups, x, stored=False)
    program = gradient_program(tables.sizes)
    # A buffer to wait for: reading the gradient itself would let the clocks fall.
    fence = BufferSpec(name="fence", size=4, role="state")
    program = dataclasses.replace(program, buffers=(*program.buffers, fence))
    with ProgramRunner(device, program) as runner:
        runner.upload("control", tables.control)
        runner.upload("tables", tables.tables)
        packed = tables.pack(x)
        runner.upload("parameters", np.concatenate([packed, packed]))
        got = tables.unpack(runner.run("gradient", np.float32)["result"])

        def run(count: int) -> None:
            runner.run(["dispatch"] * count)
            runner.read("fence")

        seconds = slope(run, 10, 110)
        nodes, edges = tables.sizes.nodes[0], tables.sizes.elements[0]
        check = np.abs(got).max()
        print(
            f"gradient level {level}: {edges} edges, {nodes} vertices, {seconds * 1e6:.1f} us, "
            f"largest entry {check:.6g}",
            flush=True,
        )


def solve(device: Device, name: str, make: Callable[[], ag.Problem], steps: int) -> None:
    """Levenberg-Marquardt, float32, a fixed number of steps."""
    problem = make()
    t0 = time.perf_counter()
    analysis = problem.analysis()
    x = current_parameters(problem)
    tables = NodeTables(layouts(problem), analysis.groups, x)
    t1 = time.perf_counter()
    engine = DeviceSolve(device, tables)
    t2 = time.perf_counter()
    for repeat in range(3):
        engine.start(x, 1e-4, 1e-2, 1e-3)
        t3 = time.perf_counter()
        records = [engine.step(400) for _ in range(steps)]
        t4 = time.perf_counter()
        inner = sum(r.linear_iterations for r in records)
        print(
            f"{name} run {repeat}: tables {t1 - t0:.3f} s, compile {t2 - t1:.3f} s, solve "
            f"{t4 - t3:.4f} s, cost {records[-1].cost:.7g}, CG {inner}, accepted "
            f"{sum(r.accepted for r in records)}",
            flush=True,
        )

    def repeat_of(*sequences: str) -> Callable[[int], None]:
        def run(count: int) -> None:
            engine._runner.run([*sequences] * count)
            engine._runner.read("state")

        return run

    engine.start(x, 1e-4, 0.0, 1e-3)
    linearize = slope(repeat_of("linearize"), 4, 44, 5)
    product = slope(repeat_of("linearize", "product"), 4, 44, 5) - linearize
    step = slope(repeat_of("linearize", "cg"), 4, 44, 5) - linearize
    trial = slope(repeat_of("linearize", "trial_only"), 4, 44, 5) - linearize
    print(
        f"{name}: linearize {linearize * 1e6:.1f} us, product {product * 1e6:.1f} us, CG "
        f"iteration {step * 1e6:.1f} us, trial {trial * 1e6:.1f} us",
        flush=True,
    )
    engine.close()


if __name__ == "__main__":
    chosen = Device(sys.argv[1] if len(sys.argv) > 1 else None)
    levels = [int(v) for v in sys.argv[2].split(",")] if len(sys.argv) > 2 else [5, 7]
    print(chosen.name)
    gradient(chosen, 9 if 7 in levels else 5)
    for level in levels:
        solve(chosen, f"W2_s{level}", lambda level=level: workloads.deformation_problem(level), 20)
    solve(chosen, "W4_s5", lambda: workloads.bending_problem(5), 20)
    solve(chosen, "W3", workloads.bundle_problem, 10)
