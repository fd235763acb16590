"""Ceres Solver beside us on one CPU: time to the cost that Ceres ends with, and bare evaluation.

``python -m benchmarks.peers_ceres [--only W3,W5] [--out FILE]`` builds `benchmarks/peers/*.cc` with
g++ (Debian: ``libceres-dev libeigen3-dev libsuitesparse-dev libopenblas0-pthread``). Both get the
same arrays and the same number of threads, and run in turn. Ceres' time is that of ``Solve``; ours
is that of ``ag.solve`` on a problem made anew, kernels compiled before: both order and allocate in
it, neither builds the problem or compiles.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import autograd_gpu as ag
import workloads
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.runtime.threads import available_threads
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.metrics import RESULTS, Recorder, processor

SOURCES = Path(__file__).resolve().parent / "peers"
FLAGS = ("-O3", "-DNDEBUG", "-march=native", "-DEIGEN_MAX_ALIGN_BYTES=16", "-I/usr/include/eigen3")


@dataclass(frozen=True)
class Duel:
    """One workload: how Ceres solves it best, for how long, and how often we repeat."""

    solver: str
    iterations: int
    repeats: int


DUELS = {
    "W1r_s3": Duel("snc", 200, 5),
    "W1r_s5": Duel("snc", 200, 1),
    "W2_s3": Duel("snc", 60, 5),
    "W2_s5": Duel("snc", 60, 1),
    "W3": Duel("ds", 60, 5),
    "W4_s3": Duel("snc", 100, 5),
    "W4_s5": Duel("snc", 100, 3),
    "W5": Duel("dne", 60, 5),
}
EVALUATED = {**workloads.PROBLEMS, "W1r_s7": lambda: workloads.springs_problem(7)}
"""What is evaluated beside the bare loop; W1r_s7 is too large to be solved here."""

ARRAYS = {"W1r": workloads.w1r, "W2": workloads.w2, "W3": workloads.w3, "W4": workloads.w4}


def arrays_of(name: str) -> dict[str, Any]:
    """The arrays of a workload such as ``W2_s5``."""
    kind, _, level = name.partition("_s")
    if kind == "W5":
        return workloads.w5()
    return ARRAYS[kind](int(level)) if level else ARRAYS[kind]()


def built(program: str, folder: Path) -> Path:
    """Compile one of the C++ programs."""
    binary = folder / program
    libraries = ("-lceres", "-lglog", "-fopenmp")
    source = str(SOURCES / f"{program}.cc")
    subprocess.run(["g++", *FLAGS, source, *libraries, "-o", str(binary)], check=True)
    return binary


def written(name: str, folder: Path) -> Path:
    """A folder with the workload's arrays as raw numbers."""
    target = folder / name
    target.mkdir()
    for key, array in arrays_of(name).items():
        integral = array.dtype.kind in "iu"
        raw = array.astype(np.int32 if integral else np.float64)
        (target / f"{key}.{'i32' if integral else 'f64'}").write_bytes(raw.tobytes())
    return target


def output(*command: object) -> dict[str, Any]:
    """What a peer printed. Threads of OpenBLAS fight with those of Ceres on few cores."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(c) for c in command], check=True, capture_output=True, text=True, env=environment
    )
    return json.loads(done.stdout)


def seconds_to_cost(name: str, target: float, repeats: int) -> tuple[float, ag.Solution]:
    """Median seconds of ``ag.solve`` until the cost is at most ``target``."""
    options = ag.LevenbergMarquardtOptions(
        max_iterations=400, function_tolerance=0.0, gradient_tolerance=0.0, parameter_tolerance=0.0
    )

    def solve() -> tuple[float, ag.Solution]:
        problem = workloads.PROBLEMS[name]()
        began = time.perf_counter()
        solution = ag.solve(
            problem, options=options, backend="numba", precision="float64",
            callback=lambda record: record.cost <= target,
        )  # fmt: skip
        return time.perf_counter() - began, solution

    runs = [solve() for _ in range(repeats + 1)][1:]
    runs.sort(key=lambda run: run[0])
    return runs[len(runs) // 2]


ROUNDS = 3
"""Of evaluations; of each side the fastest counts, as two threads may begin on one core."""


def evaluation_seconds(name: str) -> float:
    """Median seconds of residuals and Jacobian together, in the fastest round."""
    problem = EVALUATED[name]()
    analysis = problem.analysis()
    session = analysis.session(choose_backend("numba", "float64", None, analysis.row_count))
    x = current_parameters(problem)

    def once() -> float:
        began = time.perf_counter()
        session.residual_jacobian(x)
        return time.perf_counter() - began

    once()
    return min(float(np.median([once() for _ in range(20)])) for _ in range(ROUNDS))


def duel(record: Recorder, name: str, programs: dict[str, Path], data: Path) -> None:
    """Both solve one workload."""
    duel, threads = DUELS[name], available_threads()
    peer = output(
        programs["ceres_solve"], data, name, duel.solver, threads, duel.iterations, duel.repeats
    )
    # Ceres ends within 1e-8 of where its cost would go; a cost a rounding above it is the same.
    target = peer["final"] * (1.0 + 1e-9)
    ours, solution = seconds_to_cost(name, target, duel.repeats)
    reached = solution.cost <= target
    note = f"Ceres {peer['version']} {duel.solver}, {peer['iterations']} iterations"
    record.add(f"{name} Ceres solve", peer["seconds"], "s", note=f"{note}, to {peer['final']:.10g}")
    record.add(
        f"{name} ours to that cost", ours if reached else math.inf, "s",
        note=f"{solution.iterations} iterations, {solution.cost:.10g}, {solution.linear_solver}",
    )  # fmt: skip
    record.add(f"{name} Ceres / ours", peer["seconds"] / ours, "x", "higher")


def evaluations(record: Recorder, name: str, programs: dict[str, Path], data: Path) -> None:
    """Both compute residuals and Jacobian of one workload; nothing else."""
    command = (programs["jets_loop"], data, name, available_threads())
    jets = min(float(output(*command)["seconds"]) for _ in range(ROUNDS))
    evaluation = evaluation_seconds(name)
    record.add(f"{name} residual+J, Jets loop", 1e3 * jets, "ms")
    record.add(f"{name} residual+J, ours", 1e3 * evaluation, "ms")
    record.add(f"{name} residual+J, Jets / ours", jets / evaluation, "x", "higher")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(EVALUATED))
    parser.add_argument("--out", type=Path, default=RESULTS / "ceres.json")
    parser.add_argument("--commit", default=None)
    chosen = parser.parse_args()
    record = Recorder(processor(), "float64", chosen.commit)
    with tempfile.TemporaryDirectory() as folder:
        programs = {p: built(p, Path(folder)) for p in ("ceres_solve", "jets_loop")}
        for name in chosen.only.split(","):
            data = written(name, Path(folder))
            if name in DUELS:
                duel(record, name, programs, data)
            evaluations(record, name, programs, data)
    record.write(chosen.out)


if __name__ == "__main__":
    main()
