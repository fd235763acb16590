"""One problem on every backend of this machine: a table, and which of them wins here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import autograd_gpu as ag
from autograd_gpu.cli import print_table
from autograd_gpu.demos.films import Reel
from autograd_gpu.errors import DeviceError, MissingDependencyError

BACKENDS = (("numba", "float64"), ("wgsl", "float32"), ("numpy", "float64"))
SAMPLE = 4
"""Iterations that a comparison looks at, and at which it stops where more would take long."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A solve after a warm-up, so that its seconds hold no compilation.

    Attributes:
        solution: of the solve after the warm-up.
        compile_seconds: opening of the session, and the first evaluations.
    """

    solution: ag.Solution
    compile_seconds: float

    @property
    def label(self) -> str:
        """Backend and precision."""
        return f"{self.solution.backend} {self.solution.precision}"

    @property
    def evaluation_seconds(self) -> float:
        """Residuals and Jacobians, per iteration."""
        return self.solution.timings.get("evaluate", 0.0) / max(self.solution.iterations, 1)

    @property
    def iteration_seconds(self) -> float:
        """All of an iteration: the median of the first ones, which every backend made."""
        seconds = [record.seconds for record in self.solution.history[: SAMPLE + 1]]
        return float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0

    @property
    def row(self) -> list[str]:
        """Cells of the table."""
        s = self.solution
        return [
            self.label,
            s.device,
            f"{self.compile_seconds:.2f} s",
            f"{1e3 * self.evaluation_seconds:.1f} ms",
            f"{1e3 * self.iteration_seconds:.1f} ms",
            f"{s.history[: SAMPLE + 1][-1].cost:.7g}",
            f"{s.cost:.7g} ({s.iterations})" if s.success else "cut short",
            str(len(s.kernels)),
        ]


def timed_solve(
    problem: ag.Problem,
    options: ag.LevenbergMarquardtOptions,
    backend: str = "auto",
    precision: str = "auto",
    *,
    progress: bool = False,
    callback: Reel | None = None,
) -> Run:
    """Compile by one iteration from the start, then solve."""
    once = replace(options, max_iterations=1)
    warm = ag.solve(problem, options=once, backend=backend, precision=precision).timings
    solution = ag.solve(
        problem, options=options, backend=backend, precision=precision, progress=progress,
        callback=callback,
    )  # fmt: skip
    seconds = warm.get("compile", 0.0) + warm.get("evaluate", 0.0)
    return Run(solution=solution, compile_seconds=seconds)


def compare(
    problem: ag.Problem, options: ag.LevenbergMarquardtOptions, done: Run | None = None
) -> list[Run]:
    """Solve on every backend that ``done`` does not cover; print the table and the winner.

    A backend that cannot run here is named in one line and left out.
    """
    runs = [] if done is None else [done]
    for backend, precision in BACKENDS:
        if done is not None and f"{backend} {precision}" == done.label:
            continue
        try:
            runs.append(timed_solve(problem, options, backend, precision))
        except (DeviceError, MissingDependencyError) as error:
            print(f"No {backend} on this machine, the others do without it: {error}")
    # Where the linear algebra is the same for all, only evaluations tell backends apart.
    alike = len({run.solution.linear_solver for run in runs}) == 1
    runs.sort(key=lambda run: run.evaluation_seconds if alike else run.iteration_seconds)
    columns = ["backend", "device", "compile", "evaluation", "iteration", f"cost after {SAMPLE}"]
    print_table(
        "Backends: time per iteration, and evaluation (residuals and Jacobian) as a part of it",
        [*columns, "last cost (iterations)", "kernels"],
        [run.row for run in runs],
    )
    best = runs[0]
    if alike:
        why = f"evaluates fastest; {best.solution.linear_solver} solves for all of them"
    else:
        why = "has the fastest iteration"
    print(f"Winner here: {best.label} on {best.solution.device} {why}.")
    return runs
