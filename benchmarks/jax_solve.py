"""The backend ``jax``: solves on JAX's device beside jaxls, residual and Jacobian beside ``vmap``.

``python benchmarks/jax_solve.py solves [--levels 5,7] [--precisions float64,float32]`` times 20
steps of Levenberg-Marquardt on W2, as-rigid-as-possible, on the device that JAX uses, and jaxls in
turn with them where it is installed. ``… evaluation [--only W2_s5,W3]`` times residual + Jacobian
against the hand-vmapped JAX of ``peers_jax_vmapped.py`` in both of its modes, in turn; run that one
on a CPU. It needs the package installed with the extra [jax] (a wheel will do) and this folder
beside ``tests``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# At the end: the checkout's folders are no installed package.
sys.path.append(str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import jax

import autograd_gpu as ag
import workloads
from autograd_gpu.codegen.kernel import Product
from autograd_gpu.runtime.jax_backend import JaxSession, device_name
from autograd_gpu.runtime.jax_incidence import JaxTables
from autograd_gpu.runtime.jax_solve import JaxSolve
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.metrics import RESULTS, Recorder, processor
from benchmarks.peers_jax_vmapped import jaxls_solver, terms_of, vmapped

STEPS = 20
EVALUATED = ("W1r_s7", "W2_s5", "W3", "W4_s5", "W5")


def seconds_of(run: Callable[[], Any]) -> tuple[float, Any]:
    """Wall-clock time of a call and its result."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


class OurSolve:
    """W2 at a level, analysed: a solve that gives its cost."""

    def __init__(self, level: int, precision: str, linear_tolerance: float) -> None:
        self.problem = workloads.deformation_problem(level)
        options = ag.LevenbergMarquardtOptions(
            linear_tolerance=linear_tolerance, max_linear_iterations=2000
        )
        began = time.perf_counter()
        analysis = self.problem.analysis()
        self._start = current_parameters(self.problem)
        tables = JaxTables(
            array_layouts(analysis), analysis.groups, self._start, options.damping, precision
        )
        self._engine = JaxSolve(tables)
        self.analysis = time.perf_counter() - began
        self._options = options
        self.iterations = 0

    def __call__(self) -> float:
        """Solve from the start."""
        o = self._options
        self._engine.start(self._start, o.initial_damping, o.linear_tolerance, o.min_gain_ratio)
        records = [self._engine.step(o.max_linear_iterations) for _ in range(STEPS)]
        self.iterations = sum(r.linear_iterations for r in records)
        return records[-1].cost

    def true_cost(self) -> float:
        """Cost of the last solve's point, by NumPy in float64."""
        flat = self._engine.parameters()
        made = self.problem.copy()
        first = 0
        for array in made.arrays:
            shape = made.values_of(array).shape
            size = int(np.prod(shape))
            made.update(**{array.name: flat[first : first + size].reshape(shape)})
            first += size
        return made.evaluate(backend="numpy").cost


def solves(
    record: Recorder, level: int, precisions: list[str], repeats: int, linear_tolerance: float
) -> None:
    """First and warm solves; warm ones of all contestants in turn."""
    name = f"W2_s{level}"
    runs: dict[str, Callable[[], float]] = {}
    for precision in precisions:
        ours = runs[precision] = OurSolve(level, precision, linear_tolerance)
        record.add(f"{name}/{precision}/analyze", ours.analysis, "s", note="tables and uploads")
    peer = jaxls_solver(level, STEPS)
    if peer is None:
        print(f"{name}: jaxls is not installed; its records are left out")
    else:
        runs["jaxls"] = peer[0]
        record.add(f"{name}/jaxls/analyze", peer[1], "s", note="float64")
    for label, run in runs.items():
        seconds, _ = seconds_of(run)
        record.add(f"{name}/{label}/first", seconds, "s", note="with compilation")
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    costs: dict[str, float] = {}
    for _ in range(repeats):
        for label, run in runs.items():
            took, costs[label] = seconds_of(run)
            seconds[label].append(took)
    for label, run in runs.items():
        note = f"{STEPS} steps, median of {repeats}"
        cost = costs[label]
        if isinstance(run, OurSolve):
            note += f", {run.iterations} CG iterations"
            cost = run.true_cost()
        record.add(f"{name}/{label}/warm", float(np.median(seconds[label])), "s", note=note)
        record.add(f"{name}/{label}/cost", cost, "1", note="float64 evaluation at the end")
    if peer is not None:
        ratio = np.median(seconds["jaxls"]) / np.median(seconds[precisions[0]])
        record.add(f"{name}/times_faster_than_jaxls", float(ratio), "x", "higher")


def problem_of(name: str) -> ag.Problem:
    """A workload by name, any level."""
    if name == "W1r_s7":
        return workloads.springs_problem(7)
    return workloads.PROBLEMS[name]()


def evaluation(record: Recorder, name: str, repeats: int) -> None:
    """Residual + Jacobian in float64: ours, and ``vmap`` of forward and reverse mode, in turn."""
    problem = problem_of(name)
    analysis = problem.analysis()
    x = current_parameters(problem)
    if name.startswith("W2"):  # rotations of zero take the easy branch
        x = x + 0.1 * np.random.default_rng(0).standard_normal(x.shape)
    session = JaxSession(analysis.groups, analysis.parameter_count, "float64")
    kind, _, level = name.partition("_s")
    terms = terms_of(kind, int(level or 0))
    on_device = jax.numpy.asarray(x)
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: jax.block_until_ready(session.launch(Product.RESIDUAL_JACOBIAN, x))
    }
    for mode in ("forward", "reverse"):
        peer = vmapped(terms, mode)
        runs[mode] = lambda peer=peer: jax.block_until_ready(peer(on_device))
    for label, run in runs.items():
        took, _ = seconds_of(run)
        record.add(f"{name}/{label}/compile", took, "s", note="and one evaluation")
    mine = 0.5 * float(np.sum(session.residuals(x) ** 2))
    theirs = 0.5 * float(np.sum(np.asarray(runs["forward"]()[0]) ** 2))
    assert abs(mine - theirs) <= 1e-9 * abs(theirs), (name, mine, theirs)
    times: dict[str, list[float]] = {label: [] for label in runs}
    for _ in range(repeats):
        for label, run in runs.items():
            times[label].append(seconds_of(run)[0])
    note = f"{analysis.row_count} residuals, {len(analysis.indices)} entries of J"
    for label, values in times.items():
        record.add(f"{name}/{label}", float(np.median(values)) * 1e3, "ms", note=note)
        record.add(f"{name}/{label}/least", min(values) * 1e3, "ms")
    best = min(np.median(times["forward"]), np.median(times["reverse"]))
    ratio = float(best / np.median(times["ours"]))
    record.add(f"{name}/times_faster_than_vmap", ratio, "x", "higher", note="its better mode")


def main() -> None:
    """Run what was asked for and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("solves", "evaluation"))
    parser.add_argument("--levels", default="5,7")
    parser.add_argument("--precisions", default="float64,float32")
    parser.add_argument("--only", default=",".join(EVALUATED))
    parser.add_argument("--linear-tolerance", type=float, default=1e-3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)  # for the peers; our own calls need no flag
    on_cpu = jax.default_backend() == "cpu"
    hardware = f"{processor()}, JAX" if on_cpu else device_name()
    record = Recorder(hardware, "float64", chosen.commit)
    print(hardware, "JAX", jax.__version__, "load", os.getloadavg())
    if chosen.what == "solves":
        for level in map(int, chosen.levels.split(",")):
            solves(
                record, level, chosen.precisions.split(","), chosen.repeats, chosen.linear_tolerance
            )
    else:
        for name in chosen.only.split(","):
            evaluation(record, name, chosen.repeats)
    print("load at the end", os.getloadavg())
    label = "CPU" if on_cpu else jax.devices()[0].device_kind.replace(" ", "_")
    record.write(chosen.out or RESULTS / f"{label}_jax_{chosen.what}.json")


if __name__ == "__main__":
    main()
