"""The pool of threads that runs nogil kernels over ranges; opened at first use."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache


def available_threads() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(available_threads(), thread_name_prefix="autograd_gpu")


def run_in_threads(tasks: Sequence[Callable[[], None]]) -> None:
    """Run the tasks, in this thread if there is only one; the first error is raised here."""
    if len(tasks) == 1:
        tasks[0]()
        return
    futures = [_pool().submit(task) for task in tasks]
    try:
        for future in futures:
            future.result()
    except BaseException:
        # Interrupted or failed: nothing may write to its arrays any more when this returns.
        for future in futures:
            future.cancel()
        wait(futures)
        raise
