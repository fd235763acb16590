"""How many threads OpenBLAS takes while threads of ours share the cores with it.

After a product in several threads OpenBLAS keeps its workers spinning for some 20 ms, and it takes
several for a dot product of 10 000 numbers already. On two cores that slowed all else in a solve:
evaluating bundle adjustment (W3) took 30 ms a step where it takes 5.
"""

from __future__ import annotations

import functools
import importlib
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()
_depth = 0
# By file: the library, and its number of threads before it was held.
_before: dict[str, tuple[Any, int]] = {}


@functools.cache
def _libraries(scipy_too: bool) -> tuple[Any, ...]:
    """Copies of OpenBLAS in this process; SciPy's wheel brings its own."""
    found: Any = importlib.import_module("threadpoolctl").ThreadpoolController()
    return tuple(found.select(internal_api=["openblas", "blis"]).lib_controllers)


def _nothing(force: bool) -> None:
    """What versions do that let any thread set the number."""


def _set_threads(library: Any, threads: int) -> None:
    # threadpoolctl 3.8 lets one thread alone set this number, and ignores others without a word.
    # Here the last of several that held it sets it back, whichever that is.
    release = getattr(library, "clear_controlling_thread", _nothing)
    release(force=True)
    library.set_num_threads(threads)
    release(force=True)


def _hold() -> None:
    for library in _libraries("scipy.linalg" in sys.modules):
        if library.filepath not in _before:
            _before[library.filepath] = library, library.get_num_threads()
            _set_threads(library, 1)


def _restore() -> None:
    for library, threads in _before.values():
        _set_threads(library, threads)
    _before.clear()


@contextmanager
def one_blas_thread(held: bool = True) -> Generator[None]:
    """Hold OpenBLAS to one thread, in the whole process, until the last such block ends.

    Args:
        held: whether to do so at all.
    """
    global _depth
    if not held:
        yield
        return
    with _lock:
        _depth += 1
        _hold()
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _restore()


@contextmanager
def all_blas_threads(lifted: bool = True) -> Generator[None]:
    """Give OpenBLAS back its threads for a product that is worth them, under `one_blas_thread`.

    Nothing if several threads hold it: the others go on with one thread each.

    Args:
        lifted: whether to do so at all.
    """
    with _lock:
        lifts = lifted and _depth == 1
        if lifts:
            _restore()
    try:
        yield
    finally:
        with _lock:
            if lifts and _depth:
                _hold()
