"""Copies of a problem in pieces: as many at a time as memory allows, none lost to a fault.

A copy knows nothing of the others, so cuts change nothing that it comes to. Copies that have
ended are done with, whatever happens to those that come after them.
"""

from __future__ import annotations

import time

import numpy as np

from autograd_gpu.runtime.batch import IndexArray
from autograd_gpu.runtime.choice import BackendChoice, bytes_of_elements, bytes_of_number
from autograd_gpu.runtime.streamed_session import BESIDE
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.batch_levenberg_marquardt import BatchLevenbergMarquardt
from autograd_gpu.solvers.recovery import FAULTS, Recovery, let_go
from autograd_gpu.solvers.solution import Status


def run_in_pieces(
    run: BatchLevenbergMarquardt, recovery: Recovery, memory_budget: int | None
) -> int:
    """Until every copy has ended, wherever and in how many pieces that takes.

    Args:
        run: its copies are stepped.
        recovery: where, and what became of that.
        memory_budget: bytes on the backend at a time; None for no limit but a device's own.

    Returns:
        The number of pieces. After Ctrl-C, copies that had not ended are ``INTERRUPTED``.

    Raises:
        DeviceMemoryError: not even one copy fits.
        DeviceError, KernelError: the device failed before the first step, and was asked for.
    """
    began = time.perf_counter()
    everyone = np.arange(len(run.values[0]))
    most = min(len(everyone), _fitting(run.analysis, recovery.choice, memory_budget))
    waiting: list[IndexArray] = [everyone]
    pieces = 1
    with recovery.of(run.analysis):
        while waiting:
            which = waiting.pop(0)
            if len(which) > most:
                cuts = np.array_split(which, -(-len(which) // most))
                waiting[:0] = cuts
                pieces += len(cuts) - 1
                continue
            try:
                run.stage(which, began)
            except FAULTS as error:
                if isinstance(error, MemoryError) and len(which) > 1:
                    let_go(error)
                    most = (len(which) + 1) // 2
                    recovery.note_shortage(error, _when(run), f"{most} copies at a time")
                elif recovery.on_a_device:
                    begun = bool(run.states.iterations.any())
                    at = "the last accepted points"
                    recovery.leave(error, run.analysis, _when(run), at, begun=begun)
                else:
                    raise
                run.choice = recovery.choice
            except KeyboardInterrupt:
                if not run.states.iterations.any():
                    raise
                run.states.status[run.going(everyone)] = Status.INTERRUPTED
                break
            which = run.going(which)
            if len(which):
                waiting.insert(0, which)
    return pieces


def _when(run: BatchLevenbergMarquardt) -> str:
    steps = int(run.states.iterations.max())
    return f"after {steps} steps" if steps else "before the first step"


def _fitting(analysis: Analysis, choice: BackendChoice, budget: int | None) -> int:
    """How many copies fit into a budget, or what is left of the device's own; at least 1."""
    limits = [budget]
    if choice.device is not None and choice.device.memory.budget is not None:
        limits.append(choice.device.memory.budget - choice.device.memory.bytes)
    rooms = [limit for limit in limits if limit is not None]
    if not rooms:
        return 1 << 62
    sizes = bytes_of_elements(choice, analysis.groups)
    of_one = sum(g.count * size for g, size in zip(analysis.groups, sizes, strict=True))
    of_one += bytes_of_number(choice) * analysis.parameter_count
    beside = len(analysis.groups) * BESIDE
    return max(1, (min(rooms) - beside) // max(1, of_one))
