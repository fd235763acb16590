"""10 000 six-joint arms by ``ag.solve_batch``, against a Python loop over SciPy.

``python -m benchmarks.many_arms [--copies 10000] [--scipy 200] [--out FILE]``

SciPy solves the same arms one by one, with the residual in NumPy and SciPy's own differences, to
the same tolerances; only a sample of them, because the loop takes minutes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

import autograd_gpu as ag
from benchmarks.metrics import RESULTS, Recorder, processor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import arms

TOLERANCE = 1e-8
AT_TARGET = 1e-10
"""Cost below which an arm counts as there: 14 µm away."""


def numpy_reach(target: Any, orientation: Any) -> Callable[[Any], Any]:
    """The residual as a NumPy user writes it: 4 x 4 transforms, multiplied."""
    ct, st = np.cos(arms.TWIST), np.sin(arms.TWIST)
    a, d = np.array(arms.LENGTH), np.array(arms.OFFSET)
    wanted = orientation.reshape(3, 3)

    def residual(q: Any) -> Any:
        c, s = np.cos(q), np.sin(q)
        links = np.zeros((6, 4, 4))
        links[:, 0, 0], links[:, 0, 1], links[:, 0, 2], links[:, 0, 3] = c, -s * ct, s * st, a * c
        links[:, 1, 0], links[:, 1, 1], links[:, 1, 2], links[:, 1, 3] = s, c * ct, -c * st, a * s
        links[:, 2, 1], links[:, 2, 2], links[:, 2, 3], links[:, 3, 3] = st, ct, d, 1.0
        whole = links[0]
        for k in range(1, 6):
            whole = whole @ links[k]
        return np.concatenate([whole[:3, 3] - target, 0.2 * (whole[:3, :3] - wanted).ravel()])

    return residual


def scipy_rate(count: int, method: str) -> tuple[float, float]:
    """Arms a second, and share of them at their target."""
    given = arms.arms(count)
    residuals = [
        numpy_reach(t, o) for t, o in zip(given["target"], given["orientation"], strict=True)
    ]
    began = time.perf_counter()
    costs = [
        least_squares(f, q, method=method, ftol=TOLERANCE, xtol=TOLERANCE, gtol=1e-10).cost
        for f, q in zip(residuals, given["start"], strict=True)
    ]
    return count / (time.perf_counter() - began), float(np.mean(np.array(costs) < AT_TARGET))


def batch_rate(count: int) -> tuple[float, float, float]:
    """The same of ``solve_batch``, kernels compiled; and seconds of the run that compiles them."""
    given, problem = arms.arms(count), arms.arm_problem()
    data = {"reach": {k: given[k][:, None] for k in ("target", "orientation")}}
    start = {"q": given["start"][:, None]}
    first = ag.solve_batch(problem, start, data).seconds
    runs = [ag.solve_batch(problem, start, data) for _ in range(3)]
    best = min(runs, key=lambda r: r.seconds)
    print(best.report())
    return count / best.seconds, float(np.mean(best.costs < AT_TARGET)), first


def main() -> None:
    """Measure, print and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=10_000)
    parser.add_argument("--scipy", type=int, default=200, help="arms that SciPy solves")
    parser.add_argument("--out", type=Path, default=RESULTS / "many_arms.json")
    chosen = parser.parse_args()
    record = Recorder(processor(), "float64")
    rate, solved, first = batch_rate(chosen.copies)
    record.add("solve_batch", rate, "arms/s", "higher", f"{solved:.1%} at their target")
    record.add("solve_batch/first", first, "s", note="compiling included")
    for method in ("lm", "trf"):
        slow, share = scipy_rate(chosen.scipy, method)
        record.add(f"scipy/{method}", slow, "arms/s", "higher", f"{share:.1%} at their target")
        record.add(f"speedup/{method}", rate / slow, "times", "higher")
    record.write(chosen.out)


if __name__ == "__main__":
    main()
