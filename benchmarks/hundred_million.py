"""Gradients of up to 100 million springs on one device: time, and memory by our own account.

``python -m benchmarks.hundred_million [--residuals 10000000,30000000,100000000] [--adapter NAME]
[--binding-limit BYTES] [--memory-budget BYTES] [--out FILE]``

A square grid of vertices on a rolling surface, with springs along rows, columns and one diagonal.
Every gradient is checked against NumPy in float64. ``inputs`` are two vertex numbers and a rest
length a spring and the positions, ``state`` is the gradient; all of 4 bytes a number.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.gathered_products import GatheredProducts
from autograd_gpu.runtime.node_incidences import NodeIncidences
from autograd_gpu.runtime.schedules import Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.metrics import RESULTS, Recorder, slope

SIZES = "10000000,30000000,100000000"
WORD = 4


def grid(springs: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Positions, ends ``(2, springs)`` and rest lengths of about so many springs."""
    n = max(2, round((springs / 3.0) ** 0.5))
    number = np.arange(n * n, dtype=np.int64).reshape(n, n)
    ends = np.empty((2, 2 * n * (n - 1) + (n - 1) ** 2), np.int64)
    first = 0
    for a, b in (
        (number[:, :-1], number[:, 1:]),
        (number[:-1], number[1:]),
        (number[:-1, :-1], number[1:, 1:]),
    ):
        ends[0, first : first + a.size] = a.ravel()
        ends[1, first : first + a.size] = b.ravel()
        first += a.size
    u = np.arange(n) / n
    positions = np.empty((n, n, 3))
    positions[..., 0] = u[:, None]
    positions[..., 1] = u
    positions[..., 2] = 0.1 * np.sin(9.0 * u)[:, None] * np.cos(7.0 * u)
    # Springs of two lengths, all out of balance.
    rest = np.full(ends.shape[1], 0.9 / n)
    rest[2 * n * (n - 1) :] = 1.3 / n
    return positions.reshape(-1, 3), ends, rest


def by_numpy(
    x: NDArray[np.float64], ends: NDArray[np.int64], rest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Jᵀr of the springs in float64."""
    i, j = ends
    gradient = np.zeros_like(x)
    length = np.zeros(len(rest))
    for axis in range(3):
        length += np.square(x[j, axis] - x[i, axis])
    factor = 1.0 - rest / np.sqrt(length)
    for axis in range(3):
        pull = factor * (x[j, axis] - x[i, axis])
        gradient[:, axis] = np.bincount(j, pull, len(x)) - np.bincount(i, pull, len(x))
    return gradient


def measure(record: Recorder, device: Device, springs: int, budget: int | None) -> float:
    """Everything about one size; returns seconds per gradient and spring."""
    began = time.perf_counter()
    positions, ends, rest = grid(springs)
    # What float32 represents, so that the check sees rounding of the device alone.
    positions = positions.astype(np.float32).astype(np.float64)
    rest = rest.astype(np.float32).astype(np.float64)
    count = len(rest)
    key = f"springs/{count}"
    record.add(f"{key}/generate", time.perf_counter() - began, "s")
    began = time.perf_counter()
    problem = ag.Problem()
    x = problem.parameters("x", positions)
    problem.add_residuals(ag.meshes.energies.spring, x[ends[0]], x[ends[1]], rest, name="springs")
    analysis = problem.analysis()
    flat = current_parameters(problem)
    record.add(f"{key}/describe", time.perf_counter() - began, "s")
    began = time.perf_counter()
    lists = NodeIncidences(array_layouts(analysis), analysis.groups, flat, schedules=[Schedule()])
    record.add(f"{key}/order", time.perf_counter() - began, "s")
    device.memory.trim()
    device.memory.reset_peak()
    began = time.perf_counter()
    with GatheredProducts(device, lists, budget, ("gradient",)) as products:
        record.add(f"{key}/upload", time.perf_counter() - began, "s")
        began = time.perf_counter()
        gradient = products.gradient(flat).reshape(-1, 3)
        record.add(f"{key}/first_gradient", time.perf_counter() - began, "s", note="with read-back")
        record.add(f"{key}/pieces", products.pieces, "1")

        def run(times: int) -> None:
            if products.streamed:
                for _ in range(times):
                    products.gradient(flat)
            else:
                products.runner.run(["gradient"] * times)
                products.wait()

        few, many = (1, 3) if products.streamed else (100, 1100)
        seconds = slope(run, few, many)
    record.add(f"{key}/gradient", 1e3 * seconds, "ms", note="streamed" if products.streamed else "")
    inputs, state = WORD * (3 * count + positions.size), WORD * positions.size
    peak = device.memory.peak
    record.add(f"{key}/inputs_and_state", inputs + state, "bytes")
    record.add(f"{key}/peak_device_memory", peak, "bytes")
    record.add(f"{key}/memory_ratio", peak / (inputs + state), "1", note="bar: 1.5")
    oracle = by_numpy(positions, ends, rest)
    error = float(np.abs(gradient - oracle).max() / np.abs(oracle).max())
    record.add(f"{key}/largest_error", error, "1", note="of the largest entry, NumPy float64")
    return seconds / count


def main() -> None:
    """Measure all sizes and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--residuals", default=SIZES)
    parser.add_argument("--adapter")
    parser.add_argument("--binding-limit", type=int)
    parser.add_argument("--memory-budget", type=int)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    limits = {"max-storage-buffer-binding-size": chosen.binding_limit}
    device = Device(chosen.adapter, limits=limits if chosen.binding_limit else None)
    record = Recorder(device.name, "float32")
    name = device.adapter.name.replace(" ", "_")
    out = chosen.out or RESULTS / f"{name}_hundred_million.json"
    for limit in ("max-storage-buffer-binding-size", "max-buffer-size"):
        record.add(limit, device.limits[limit], "bytes", better="higher")
    smallest = 0.0
    for springs in map(int, chosen.residuals.split(",")):
        each = measure(record, device, springs, chosen.memory_budget)
        smallest = smallest or each
        note = "of the smallest size; bar: 1.3"
        record.add(f"springs/{springs}/time_per_spring", each / smallest, "1", note=note)
        record.write(out)  # what is measured stays, whatever becomes of the next size
        gc.collect()


if __name__ == "__main__":
    main()
