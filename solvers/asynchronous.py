"""Solves and evaluations beside other work: awaitable, several at once, on one device or many.

Each runs in a thread of a small pool. A problem serves one solve or evaluation at a time, and
others of the same problem wait (``Problem.alone``); buffers belong to a session or a solve, and
pipelines, counters and the queue of a device, like all caches of kernels, have locks of their own.
So results have the bits that they have one after another.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

from autograd_gpu.runtime.threads import available_threads
from autograd_gpu.solvers.evaluation import Evaluation
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.solution import Solution
from autograd_gpu.solvers.solve import solve
from autograd_gpu.solvers.watcher import Callback

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device

_Result = TypeVar("_Result")

FEWEST_WORKERS, MOST_WORKERS = 2, 8
"""Solves that run at once; more wait in line. Kernels of the CPU have a pool of their own."""


async def solve_async(
    problem: Problem,
    method: str = "auto",
    linear_solver: str = "auto",
    options: SolverOptions | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Solution:
    """``ag.solve`` in a thread, to be awaited; several may run at once.

    Cancelling the awaiting task stops the solve after the iteration that it is in.

    Args:
        problem: what to solve. Leave it as it is meanwhile; another solve of it waits.
        method: as for ``ag.solve``.
        linear_solver: as for ``ag.solve``.
        options: as for ``ag.solve``.
        backend: as for ``ag.solve``.
        precision: as for ``ag.solve``.
        device: as for ``ag.solve``.
        callback: as for ``ag.solve``; called in the thread of the solve.
        progress: as for ``ag.solve``.

    Returns:
        The solution, with the bits that ``ag.solve`` gives.

    Raises:
        AutogradGpuError: as ``ag.solve``.
    """
    stop = threading.Event()
    call = functools.partial(
        solve, problem, method, linear_solver, options, backend, precision, device,
        _stoppable(callback, stop), progress,
    )  # fmt: skip
    return await _beside(call, stop)


async def evaluate_async(
    problem: Problem,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> Evaluation:
    """``problem.evaluate`` in a thread, to be awaited; several may run at once.

    Args:
        problem: what to evaluate at its current parameters.
        backend: as for ``problem.evaluate``.
        precision: as for ``problem.evaluate``.
        device: as for ``problem.evaluate``.

    Raises:
        AutogradGpuError: as ``problem.evaluate``.
    """
    return await _beside(functools.partial(problem.evaluate, backend, precision, device))


@functools.lru_cache(maxsize=1)
def _workers() -> ThreadPoolExecutor:
    count = max(FEWEST_WORKERS, min(MOST_WORKERS, available_threads()))
    return ThreadPoolExecutor(count, thread_name_prefix="autograd_gpu_solve")


async def _beside(call: Callable[[], _Result], stop: threading.Event | None = None) -> _Result:
    """The result of a call in a thread of the pool; ``stop`` is set if nobody waits any more."""
    try:
        return await asyncio.get_running_loop().run_in_executor(_workers(), call)
    except asyncio.CancelledError:
        if stop is not None:
            stop.set()
        raise


def _stoppable(callback: Callback | None, stop: threading.Event) -> Callback:
    """A callback that also ends the solve once ``stop`` is set."""
    if callback is None:
        return lambda record: stop.is_set()
    if not callable(callback):
        return callback  # which ag.solve refuses with its own words

    function = cast("Callable[..., Any]", callback)

    # Whether it takes values too is asked of the function that it wraps.
    @functools.wraps(function)
    def called(*arguments: Any) -> bool:
        return bool(function(*arguments)) or stop.is_set()

    return called
