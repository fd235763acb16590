"""One small problem solved again and again: solves a second, and memory that does not grow.

``python -m benchmarks.resolve [--solves 10000] [--backend numba] [--out FILE]``

Edge springs of an icosahedron (12 vertices, 36 unknowns, 30 residuals). Every solve gets new start
values (``start``), or new start values and new rest lengths (``data``). SciPy's ``least_squares``
solves the same starts with a NumPy residual and its exact Jacobian in the same run. Seconds are
those of the wall clock; processor time stands beside them, because it hardly sees what else runs.
"""

from __future__ import annotations

import argparse
import importlib
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from benchmarks.metrics import RESULTS, Recorder, processor

FloatArray = NDArray[np.float64]
LOTS = 10
"""The solves are timed in so many lots; the median is recorded."""


class Springs:
    """The problem, as we see it and as SciPy does, and its starts."""

    def __init__(self, backend: str) -> None:
        mesh = ag.meshes.icosphere(0)
        self.backend = backend
        self.i, self.j = mesh.edges.T
        self.rest: FloatArray = 0.9 * mesh.edge_lengths
        self.vertices: FloatArray = mesh.vertices
        self.rng = np.random.default_rng(0)
        self.problem = ag.Problem()
        x = self.problem.parameters("x", mesh.vertices)
        spring = ag.meshes.energies.spring
        self.problem.add_residuals(spring, x[self.i], x[self.j], self.rest, name="springs")

    def start(self) -> FloatArray:
        """Vertices, moved by a few per cent."""
        return self.vertices + 0.05 * self.rng.standard_normal(self.vertices.shape)

    def ours(self) -> float:
        """One solve from a new start; its cost."""
        self.problem.update(x=self.start())
        return ag.solve(self.problem, backend=self.backend).cost

    def ours_with_data(self) -> float:
        """One solve with new rest lengths; its cost."""
        rest = self.rest * self.rng.uniform(0.95, 1.05, len(self.rest))
        self.problem.update(data={"springs": rest}, x=self.start())
        return ag.solve(self.problem, backend=self.backend).cost

    def scipy(self, method: str) -> float:
        """One solve by SciPy; its cost."""
        optimize: Any = importlib.import_module("scipy.optimize")
        i, j, edges = self.i, self.j, np.arange(len(self.i))

        def residuals(x: FloatArray) -> FloatArray:
            p = x.reshape(-1, 3)
            return np.linalg.norm(p[j] - p[i], axis=1) - self.rest

        def jacobian(x: FloatArray) -> FloatArray:
            p = x.reshape(-1, 3)
            difference = p[j] - p[i]
            direction = difference / np.linalg.norm(difference, axis=1)[:, None]
            rows = np.zeros((len(i), len(p), 3))
            rows[edges, i], rows[edges, j] = -direction, direction
            return rows.reshape(len(i), -1)

        return float(
            optimize.least_squares(
                residuals, self.start().ravel(), jac=jacobian, method=method,
                ftol=1e-8, xtol=1e-8, gtol=1e-10,
            ).cost
        )  # fmt: skip


def resident_bytes() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(record: Recorder, name: str, solve: Callable[[], float], solves: int) -> None:
    """Solves a second of one way, the worst cost, and by how much the process grew."""
    for _ in range(20):
        solve()
    per_lot = max(1, solves // LOTS)
    seconds: list[float] = []
    busy: list[float] = []
    worst, after_first = 0.0, 0
    for _ in range(LOTS):
        wall, cpu = time.perf_counter(), time.process_time()
        worst = max(worst, *(solve() for _ in range(per_lot)))
        seconds.append((time.perf_counter() - wall) / per_lot)
        busy.append((time.process_time() - cpu) / per_lot)
        after_first = after_first or resident_bytes()
    record.add(f"{name}/solves_per_second", 1.0 / float(np.median(seconds)), "1/s", "higher")
    record.add(f"{name}/processor_time", 1e3 * float(np.median(busy)), "ms", note="a solve")
    record.add(f"{name}/worst_cost", worst, "1")
    grown = resident_bytes() - after_first
    note = f"of the process, from solve {per_lot} to solve {LOTS * per_lot}"
    record.add(f"{name}/growth", grown, "bytes", note=note)


def main() -> None:
    """Measure both ways and SciPy, and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solves", type=int, default=10_000)
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--out", type=Path, default=RESULTS / "EPYC_resolve.json")
    chosen = parser.parse_args()
    record = Recorder(processor(), "float64")
    springs = Springs(chosen.backend)
    measure(record, "start", springs.ours, chosen.solves)
    measure(record, "data", springs.ours_with_data, chosen.solves)
    for method in ("trf", "lm"):
        # SciPy's lm wants at least as many residuals as unknowns; 30 springs have 36.
        if method == "lm" and len(springs.rest) < springs.vertices.size:
            continue
        few = max(LOTS, chosen.solves // 20)
        measure(record, f"scipy_{method}", lambda m=method: springs.scipy(m), few)
    record.write(chosen.out)


if __name__ == "__main__":
    main()
