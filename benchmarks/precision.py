"""Accuracy and slowdown of float32, double-float, native float64 and mixed on one adapter.

``python -m benchmarks.precision [--adapter NAME] [--level 4] [--solves W2_s3,W4_s3] [--out FILE]
[--graphs 200] [--parts self_test,op,kernel,graph,solve]``. Per precision that the adapter has:

* ``self_test/…``: measuring the arithmetic, and reading the verdict of an earlier process;
* ``op/…``: worst relative error of an op over 65 536 operands, against the C library's long double;
* ``kernel/…``: time of residuals and Jacobian per element, a slope without transfers, and the
  largest difference from Numba in float64, relative to 1 + |entry|;
* ``graph/…``: gradients of random graphs of 3 to 40 ops against NumPy's; how many there are, the
  part that the rule of ``tests/float64_gradients.py`` keeps, and the largest |error| / (1 + |g|) of
  those, which must be at most 1e-10;
* ``solve/…``: a whole solve, warm; its cost against that of the CPU in float64; its steps. Once
  with default options and once with tolerances of 1e-14.

``pcg`` solves stay on the device. On a software adapter times are processor seconds of all threads,
which other work disturbs less.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import autograd_gpu as ag
import workloads
from autograd_gpu.codegen.kernel import Product
from autograd_gpu.codegen.program import BufferSpec, SequenceSpec
from autograd_gpu.disk_cache import FOLDER_VARIABLE
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.ops import NODE_OPS
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.numba_backend import NumbaSession
from autograd_gpu.runtime.number_formats import FORMATS
from autograd_gpu.runtime.self_test import (
    NATIVE_FEATURE,
    evaluate_on,
    forget_verdicts,
    self_test,
)
from autograd_gpu.runtime.wgsl_backend import WgslSession
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.metrics import RESULTS, Recorder, processor, slope
from float64_gradients import GRAPHS, LIMIT, SMALL, gradient_errors, pack_of

OPERANDS = 65_536
RANGES: dict[str, tuple[tuple[float, float], ...]] = {
    "add": ((-1e3, 1e3),) * 2, "sub": ((-1e3, 1e3),) * 2, "mul": ((-1e3, 1e3),) * 2,
    "div": ((-1e3, 1e3),) * 2, "sqrt": ((1e-3, 1e3),), "cbrt": ((1e-3, 1e3),),
    "exp": ((-40.0, 40.0),), "expm1": ((-1.0, 1.0),), "log": ((1e-3, 1e3),),
    "log1p": ((-0.5, 10.0),), "sin": ((-1.5, 1.5),), "cos": ((-1.5, 1.5),),
    "tan": ((-1.5, 1.5),), "asin": ((-1.0, 1.0),), "acos": ((-1.0, 0.99),),
    "atan": ((-30.0, 30.0),), "atan2": ((-10.0, 10.0),) * 2, "sinh": ((-20.0, 20.0),),
    "cosh": ((-20.0, 20.0),), "tanh": ((-10.0, 10.0),), "hypot": ((-1e3, 1e3),) * 2,
    "pow": ((0.1, 10.0), (-3.0, 3.0)),
}  # fmt: skip
"""Operands, uniform; ops that NumPy has in long double."""

TIGHT = ag.LevenbergMarquardtOptions(
    max_iterations=200, function_tolerance=1e-14, gradient_tolerance=1e-14,
    parameter_tolerance=1e-14,
)  # fmt: skip
OPTIONS = {"default": None, "tight": TIGHT}

ENERGIES: dict[str, Callable[[int], ag.Problem]] = {
    "as_rigid_as_possible": workloads.deformation_problem,
    "dihedral": workloads.bending_problem,
    # As many sightings as the others have elements, roughly.
    "reprojection": lambda level: workloads.bundle_problem(60, 64 * 4**level),
}


def precisions_of(device: Device) -> list[str]:
    """Number types that kernels on a device can compute in."""
    native = ["float64-native"] if NATIVE_FEATURE in device.capabilities else []
    return ["float32", *native, "float64-emulated"]


# -- self-test -----------------------------------------------------------------------------------


def self_tests(record: Recorder, device: Device) -> None:
    """Seconds of a measurement, and of reading its verdict from disk as a new process does."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {FOLDER_VARIABLE: folder}),
    ):
        for precision in precisions_of(device)[1:]:
            for key in (f"self_test/{precision}", f"self_test/{precision}/warm"):
                forget_verdicts()
                began = time.perf_counter()
                verdict = self_test(device, precision)
                seconds = time.perf_counter() - began
                record.add(key, seconds, "s", note=verdict.describe())


# -- ops -----------------------------------------------------------------------------------------


def op_errors(record: Recorder, device: Device, precision: str) -> None:
    """Worst relative error of each op; operands are exact in ``precision``."""
    if np.finfo(np.longdouble).eps > 2e-19:
        print("this platform's long double is no better than float64: ops are not measured")
        return
    number = FORMATS[precision]
    for name, ranges in RANGES.items():
        rng = np.random.default_rng(len(name))
        drawn = [rng.uniform(low, high, OPERANDS) for low, high in ranges]
        operands = tuple(number.decode(number.encode(x, "operands").reshape(-1)) for x in drawn)
        builder = Builder()
        inputs = tuple(builder.input(k, 0) for k in range(len(ranges)))
        arguments = [Argument(f"x{k}", ()) for k in range(len(ranges))]
        graph = Graph.build(builder, [builder.raw(name, inputs)], arguments, (1,), name)
        got = evaluate_on(device, precision, graph, operands)[:, 0]
        want = NODE_OPS[name].numpy(*(x.astype(np.longdouble) for x in operands))
        error = float(np.max(np.abs(got - want) / np.abs(want)))
        record.add(f"op/{name}/{precision}", error, "rel", note=f"{OPERANDS} operands")


# -- kernels -------------------------------------------------------------------------------------


def clock_of(device: Device) -> Callable[[], float]:
    """Processor time where the device is a CPU, wall-clock time elsewhere."""
    return time.process_time if device.adapter.is_software else time.perf_counter


def kernel_seconds(session: WgslSession, parameters: np.ndarray) -> float:
    """Seconds of one evaluation of residuals and Jacobian, without transfers."""
    session.residual_jacobian(parameters)
    runner = session.runner
    program = runner.program
    product = program.sequences[Product.RESIDUAL_JACOBIAN.value]
    fence = BufferSpec(name="fence", size=4, role="state")
    alone = SequenceSpec(dispatches=product.dispatches, downloads=())
    runner.extend(
        dataclasses.replace(
            program,
            buffers=(*program.buffers, fence),
            sequences={**program.sequences, "alone": alone},
        )
    )

    def run(count: int) -> None:
        runner.run(["alone"] * count)
        runner.read("fence")

    run(1)
    began = time.perf_counter()
    run(1)
    once = time.perf_counter() - began
    many = int(np.clip(0.4 / once, 11, 110))
    return slope(run, 1, many, 5, clock_of(runner.device))


def kernels(record: Recorder, device: Device, name: str, problem: ag.Problem) -> None:
    """Residuals and Jacobian of a problem's first group in every number type.

    One group alone, since llvmpipe takes milliseconds to go from one pipeline to another.
    """
    groups = problem.analysis().groups[:1]
    x = current_parameters(problem)
    # A point where nothing vanishes.
    x = x + 0.01 * np.random.default_rng(0).standard_normal(x.size) * np.maximum(np.abs(x), 0.1)
    number = FORMATS["float32"]
    x = number.decode(number.encode(x, "parameters"))
    with NumbaSession(groups, x.size, "float64") as session:
        exact = [a.copy() for a in session.residual_jacobian(x)]
    elements = sum(g.count for g in groups)
    seconds: dict[str, float] = {}
    for precision in precisions_of(device):
        began = time.perf_counter()
        products = (Product.RESIDUAL_JACOBIAN,)
        with WgslSession(groups, x.size, precision, device, products) as session:
            got = session.residual_jacobian(x)
            first = time.perf_counter() - began
            error = max(
                float(np.max(np.abs(g - e) / (1.0 + np.abs(e))))
                for g, e in zip(got, exact, strict=True)
            )
            seconds[precision] = kernel_seconds(session, x)
        key = f"kernel/{name}/{precision}"
        record.add(f"{key}/first", first, "s", note="compilation, upload, evaluation, download")
        record.add(f"{key}/error", error, "", note="of residuals and Jacobian")
        record.add(f"{key}/time", 1e9 * seconds[precision] / elements, "ns", note="per element")
        slowdown = seconds[precision] / seconds["float32"]
        record.add(f"{key}/slowdown", slowdown, "x", note=f"against float32, {elements} elements")


# -- random graphs -------------------------------------------------------------------------------


def graphs(record: Recorder, device: Device, count: int) -> None:
    """Gradients of ``count`` random graphs in float64, whole packs."""
    packs = -(-count // GRAPHS)
    fair = np.concatenate([pack_of(seed, GRAPHS, *SMALL).fair for seed in range(packs)])
    record.add("graph/generated", float(fair.size), "1", note=f"{SMALL[0]} to {SMALL[1]} ops")
    kept = f"{fair.sum()} graphs"
    record.add("graph/kept", float(fair.mean()), "1", "higher", note=kept)
    for precision in precisions_of(device)[1:]:
        worst = max(
            float(gradient_errors(device, precision, pack_of(seed, GRAPHS, *SMALL)).max())
            for seed in range(packs)
        )
        record.add(f"graph/{precision}/error", worst, "", note=f"{kept}, allowed {LIMIT:g}")


# -- solves --------------------------------------------------------------------------------------


def solve(record: Recorder, device: Device, name: str) -> None:
    """One problem in every precision, factorised on the CPU or wholly on the device."""
    problem = workloads.PROBLEMS[name]()
    exact = ag.solve(problem, backend="numba", precision="float64", options=TIGHT).cost
    cases = [("numba", "float64", "sparse-cholesky")]
    if not device.adapter.is_software:
        cases.append(("wgsl", "mixed", "auto"))
    cases += [
        ("wgsl", precision, linear_solver)
        for linear_solver in ("pcg", "sparse-cholesky")
        for precision in (*precisions_of(device), "mixed")
    ]
    for backend, precision, linear_solver in cases:
        for tolerances, options in OPTIONS.items():
            where = {"device": device} if backend == "wgsl" else {}
            how = {"backend": backend, "precision": precision, "linear_solver": linear_solver}
            seconds: list[float] = []
            clock = clock_of(device)
            for _ in range(3):
                began = clock()
                solution = ag.solve(problem, options=options, **how, **where)
                seconds.append(clock() - began)
            cost = _cost_at(problem, solution)
            key = f"solve/{name}/{tolerances}/{backend}-{precision}-{linear_solver}"
            note = f"{solution.status.name}; {solution.linear_solver_reason}"
            record.add(f"{key}/warm", min(seconds[1:]), "s", note=f"first {seconds[0]:.2f} s")
            record.add(f"{key}/cost_error", abs(cost - exact) / exact, "rel", note=note)
            record.add(f"{key}/steps", float(solution.iterations), "1")


def _cost_at(problem: ag.Problem, solution: ag.Solution) -> float:
    """Cost of a solution, in float64 on the CPU; the problem stays where it was."""
    start = {array.name: problem.values_of(array).copy() for array in problem.arrays}
    problem.update(**solution.values)
    cost = problem.evaluate(backend="numba", precision="float64").cost
    problem.update(**start)
    return cost


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", help="part of its name; the default one if left out")
    parser.add_argument("--level", type=int, help="icosphere subdivisions of the kernels' problems")
    parser.add_argument("--solves", default="W2_s3,W4_s3", help="names in tests/workloads.py")
    parser.add_argument("--graphs", type=int, default=200, help="random graphs")
    parser.add_argument("--parts", default="self_test,op,kernel,graph,solve")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    chosen = parser.parse_args()
    device = Device(chosen.adapter)
    software = device.adapter.is_software
    hardware = f"{device.name}, driver {device.adapter.driver}; CPU {processor()}"
    print(hardware)
    level = chosen.level if chosen.level is not None else (4 if software else 6)
    record = Recorder(hardware, "several, named in the key", chosen.commit)
    parts = chosen.parts.split(",")
    if "self_test" in parts:
        self_tests(record, device)
    if "op" in parts:
        for precision in precisions_of(device):
            op_errors(record, device, precision)
    if "kernel" in parts:
        for name, make in ENERGIES.items():
            kernels(record, device, name, make(level))
    if "graph" in parts:
        graphs(record, device, chosen.graphs)
    if "solve" in parts:
        for name in filter(None, chosen.solves.split(",")):
            solve(record, device, name)
    label = device.adapter.name.split(" (")[0].replace(" ", "_")
    record.write(chosen.out or RESULTS / f"{label}_precision.json")


if __name__ == "__main__":
    main()
