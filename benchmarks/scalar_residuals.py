"""Seconds to record, group and print residuals built one by one.

Each residual has 31 operations over six of 30 000 parameters, and one number of its own. Machine
code is not compiled. Imports and one small warm-up are apart; text that is printed once is taken
out of its cache before each measurement.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import autograd_gpu as ag
from autograd_gpu.codegen.kernel import _make_kernel  # pyright: ignore[reportPrivateUsage]
from autograd_gpu.codegen.render import render
from benchmarks.metrics import RESULTS, Recorder, processor

PARAMETERS = 30_000


def residuals_of(count: int) -> Any:
    """A function that builds ``count`` residuals one by one."""

    def residuals(p: Any) -> list[Any]:
        out: list[Any] = []
        for k in range(count):
            a, b, c, d, e, f = (p[(6 * k + j) % len(p)] for j in range(6))
            dx, dy, dz = a - d, b - e, c - f
            length = ag.sqrt(dx * dx + dy * dy + dz * dz)
            u = ag.sin(length * 0.5) * dx + ag.cos(length) * dy
            w = (u - length * (1.0 + 0.01 * k)) / (1.0 + u * u)
            t = ag.exp(-w * w) + a * b - c * d
            out.append(t * 2.0 + w * e - f)
        return out

    return residuals


def measure(count: int) -> tuple[float, float, Any]:
    """Wall-clock and processor seconds of ``compile`` for ``count`` residuals, and its result."""
    params = [ag.Value(0.1 * (k % 17)) for k in range(PARAMETERS)]
    render.cache_clear()
    _make_kernel.cache_clear()
    began, busy = time.perf_counter(), time.process_time()
    compiled = ag.CompiledResiduals.compile(params, residuals_of(count), backend="numba")
    return time.perf_counter() - began, time.process_time() - busy, compiled


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--counts", type=int, nargs="+", default=[5_000, 20_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="EPYC_scalar_residuals.json")
    arguments = parser.parse_args()
    measure(100)
    recorder = Recorder(processor(), "float64")
    for count in arguments.counts:
        runs = [measure(count) for _ in range(arguments.repeats)]
        # Wall-clock time says little without what else the cores were doing.
        load = f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        note = f"{count} residuals, {runs[0][2].kernel_count} kernel, {load}"
        for kind, position in (("wall", 0), ("processor", 1)):
            key = f"scalar_residuals_{count}_{kind}"
            recorder.add(key, min(run[position] for run in runs), "s", note=note)
    recorder.write(RESULTS / arguments.out)


if __name__ == "__main__":
    main()
