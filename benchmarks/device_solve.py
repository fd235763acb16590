"""Kernels that stay on the device: gather gradient and Levenberg-Marquardt, float32.

``python -m benchmarks.device_solve [--adapter NAME] [--levels 5,7] [--out FILE]``; levels are
icosphere subdivisions of the as-rigid-as-possible workload W2. JAX is measured in the same run
where it is installed. ``--preconditioners`` instead compares block-Jacobi with coarse spaces on
W1r, W2 and W4 at those levels; ``--unknowns 192,384,768`` are the sizes of the spaces.
"""

from __future__ import annotations

import argparse
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
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.program_runner import ProgramRunner
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.device_preconditioner import AdaptiveSteps
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.metrics import RESULTS, Recorder, slope
from benchmarks.peers_jax import gradient_seconds

BYTES_PER_SECOND = 4.29e12
"""Measured copy rate of an NVIDIA H200, for the bytes floor of the gradient."""


def springs(level: int) -> tuple[ag.Problem, tuple[np.ndarray, ...]]:
    """Edge springs of an icosphere at 0.9 of its edge lengths, and a noisy point to evaluate at.

    The order of the nodes is made from the problem's own positions, once, as in any solve.
    """
    vertices, faces = workloads.icosphere(level)
    i, j = workloads.edges_of(faces).T
    rest = 0.9 * np.linalg.norm(vertices[i] - vertices[j], axis=1)
    noise = np.random.default_rng(0).standard_normal(vertices.shape)
    problem = ag.Problem()
    x = problem.parameters("x", vertices)
    problem.add_residuals(ag.meshes.energies.spring, x[i], x[j], rest, name="springs")
    return problem, (vertices + 0.3 * rest.mean() * noise, i, j, rest)


def gradient(record: Recorder, device: Device, level: int) -> None:
    """Spring gradient by gathering against its bytes floor and JAX."""
    problem, arrays = springs(level)
    analysis = problem.analysis()
    x = current_parameters(problem)
    tables = NodeTables(array_layouts(analysis), analysis.groups, x, schedules=[Schedule()])
    program = gradient_program(tables.sizes)
    # A buffer to wait for: reading the gradient itself would let the clocks fall.
    fence = BufferSpec(name="fence", size=4, role="state")
    program = dataclasses.replace(program, buffers=(*program.buffers, fence))
    with ProgramRunner(device, program) as runner:
        runner.upload("control", tables.control)
        runner.upload("tables", tables.tables)
        packed = tables.pack(arrays[0].ravel())
        runner.upload("parameters", np.concatenate([packed, packed]))
        ours = tables.unpack(runner.run("gradient", np.float32)["result"]).reshape(-1, 3)

        def run(count: int) -> None:
            runner.run(["dispatch"] * count)
            runner.read("fence")

        seconds = slope(run, 10, 110)
    edges, vertices = len(arrays[1]), len(arrays[0])
    # Positions in and out, and each edge's neighbour and rest length from both ends.
    moved = 4 * (6 * vertices + 2 * 2 * edges + vertices)
    key = f"spring_gradient/{edges}_edges"
    record.add(key, seconds * 1e6, "us", note=f"{vertices} vertices")
    record.add(f"{key}/bytes_floor", moved / BYTES_PER_SECOND * 1e6, "us", note="at 4.29 TB/s")
    peer = gradient_seconds(*arrays)
    if peer is not None:
        record.add(f"{key}/jax_grad", peer[0] * 1e6, "us", note="same run, same card")
        record.add(f"{key}/times_faster_than_jax", peer[0] / seconds, "x", "higher")
        error = np.abs(ours - peer[1]).max() / np.abs(peer[1]).max()
        record.add(f"{key}/difference_from_jax", error, "rel")


def solve(record: Recorder, device: Device, name: str, problem: ag.Problem, steps: int) -> None:
    """Levenberg-Marquardt, a fixed number of steps; cold, then the median of five warm runs."""
    began = time.perf_counter()
    analysis = problem.analysis()
    x = current_parameters(problem)
    tables = NodeTables(array_layouts(analysis), analysis.groups, x)
    engine = DeviceSolve(device, tables)
    built = time.perf_counter() - began
    seconds: list[float] = []
    for _ in range(6):
        engine.start(x, 1e-4, 1e-2, 1e-3)
        t0 = time.perf_counter()
        records = [engine.step(400) for _ in range(steps)]
        seconds.append(time.perf_counter() - t0)
    inner = sum(r.linear_iterations for r in records)
    unknowns = analysis.column_count
    note = f"{steps} steps, {inner} CG iterations, {unknowns} unknowns"
    record.add(f"{name}/first", built + seconds[0], "s", note="tables, compilation and solve")
    record.add(f"{name}/warm", float(np.median(seconds[1:])), "s", note=note)
    record.add(f"{name}/cost", records[-1].cost, "1", note="float32, from the device")
    _phases(record, engine, x, name)
    engine.close()


def _phases(record: Recorder, engine: DeviceSolve, x: np.ndarray, name: str) -> None:
    runner = engine.runner
    engine.start(x, 1e-4, 0.0, 1e-3)

    def repeat(*sequences: str) -> Callable[[int], None]:
        def run(count: int) -> None:
            runner.run([*sequences] * count)
            runner.read("state")

        return run

    # Each is measured behind a linearization, so that CG never finds itself converged.
    linearize = slope(repeat("linearize"), 4, 64, 5)
    record.add(f"{name}/linearize", linearize * 1e6, "us")
    for label, sequence in (("product", "product"), ("cg_iteration", "cg"), ("trial", "try")):
        both = slope(repeat("linearize", sequence), 4, 64, 5)
        record.add(f"{name}/{label}", (both - linearize) * 1e6, "us")


def preconditioners(
    record: Recorder, device: Device, name: str, problem: ag.Problem, steps: int, sizes: list[int]
) -> None:
    """The same steps with block-Jacobi, with coarse spaces, and as the solver chooses."""
    analysis = problem.analysis()
    x, layouts = current_parameters(problem), array_layouts(analysis)
    tables = NodeTables(layouts, analysis.groups, x)
    cases = [("block-jacobi", sizes[-1]), *(("coarse", n) for n in sizes), ("auto", sizes[-1])]
    for how, unknowns in cases:
        engine = DeviceSolve(device, tables)
        seconds: list[float] = []
        for _ in range(6):
            engine.start(x, 1e-4, 1e-2, 1e-3)
            adaptive = AdaptiveSteps(engine, tables, layouts, x, how, unknowns)
            t0 = time.perf_counter()
            records = [adaptive.step(400) for _ in range(steps)]
            seconds.append(time.perf_counter() - t0)
        key = f"{name}/{how}" if how != "coarse" else f"{name}/coarse_{unknowns}"
        inner = sum(r.linear_iterations for r in records)
        note = adaptive.describe()
        record.add(f"{key}/iterations", float(inner), "1", note=note)
        record.add(f"{key}/first", seconds[0], "s", note="with the set-up of the coarse space")
        record.add(f"{key}/warm", float(np.median(seconds[1:])), "s", note=f"{steps} steps")
        record.add(f"{key}/cost", records[-1].cost, "1", note="float32, from the device")
        if how == "coarse":
            _coarse_phases(record, engine, x, key)
        engine.close()


def _coarse_phases(record: Recorder, engine: DeviceSolve, x: np.ndarray, name: str) -> None:
    runner = engine.runner
    engine.start(x, 1e-4, 0.0, 1e-3)

    def seconds(*sequences: str) -> float:
        def run(count: int) -> None:
            runner.run([*sequences] * count)
            runner.read("state")

        return slope(run, 4, 64, 5)

    plain = seconds("linearize")
    assembled = seconds("linearize", "coarse_assemble")
    prepared = seconds("linearize", "coarse")
    record.add(f"{name}/assemble", (assembled - plain) * 1e6, "us")
    record.add(f"{name}/invert_and_start", (prepared - assembled) * 1e6, "us")
    for label, sequence in (("product", "coarse_product"), ("cg_iteration", "coarse_cg")):
        both = seconds("linearize", "coarse", sequence)
        record.add(f"{name}/{label}", (both - prepared) * 1e6, "us")


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter")
    parser.add_argument("--levels", default="3")
    parser.add_argument("--gradient-level", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    parser.add_argument("--preconditioners", action="store_true")
    parser.add_argument("--unknowns", default="768")
    chosen = parser.parse_args()
    device = Device(chosen.adapter)
    record = Recorder(device.name, "float32", chosen.commit)
    print(device.name)
    label = device.adapter.name.replace(" ", "_")
    if chosen.preconditioners:
        sizes = sorted(map(int, chosen.unknowns.split(",")))
        for level in map(int, chosen.levels.split(",")):
            for name, make in (
                ("W1r", workloads.springs_problem),
                ("W2", workloads.deformation_problem),
                ("W4", workloads.bending_problem),
            ):
                preconditioners(record, device, f"{name}_s{level}", make(level), 20, sizes)
        record.write(chosen.out or RESULTS / f"{label}_preconditioners.json")
        return
    gradient(record, device, chosen.gradient_level)
    for level in map(int, chosen.levels.split(",")):
        solve(record, device, f"W2_s{level}", workloads.deformation_problem(level), 20)
    solve(record, device, "W4_s5", workloads.bending_problem(5), 10)
    solve(record, device, "W3", workloads.bundle_problem(), 10)
    record.write(chosen.out or RESULTS / f"{label}_device_solve.json")


if __name__ == "__main__":
    main()
