"""JAX as the rest of the package sees it: named errors, and times while somebody listens.

JAX returns before its device has done the work. Only while somebody listens is every call waited
for, so that its time is known; without listeners nothing here waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..events import listening, report
from .device_errors import work_error
from .jax_functions import compilations, default_device, load_jax

_OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
"""XLA's status, which JAX's messages begin with."""


def device_name() -> str:
    """The device that JAX uses by default."""
    device = default_device()
    return f"{'CPU' if device.platform == 'cpu' else device.device_kind} (JAX)"


@contextmanager
def jax_errors(what: str) -> Generator[None]:
    """Errors of JAX's runtime in the middle of ``what`` become those of this package.

    Raises:
        DeviceMemoryError: memory ran out (RESOURCE_EXHAUSTED).
        DeviceLostError, DeviceError: the device failed otherwise.
    """
    try:
        yield
    except (load_jax().errors.JaxRuntimeError, ValueError) as error:
        # Transfers to the device say by a ValueError that memory ran out.
        if isinstance(error, ValueError) and _OUT_OF_MEMORY not in str(error):
            raise
        raise work_error(device_name(), what, error) from error


def call(name: str, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
    """Call a jitted function of this package; waited for only while somebody listens.

    Args:
        name: of the kernel, for reports.
        function: jitted.
        args: of the function.
        options: keywords of the function; ``count`` is the number of elements of a batch.
    """
    if not listening():
        return function(*args, **options)
    before, start = compilations.of_this_thread, time.perf_counter()
    result = function(*args, **options)
    if compilations.of_this_thread != before:  # then it returned when it was compiled
        now = time.perf_counter()
        report("compile", name, start=start, seconds=now - start, target="jax")
        start = now
    load_jax().block_until_ready(result)
    seconds, count = time.perf_counter() - start, options.get("count")
    facts = {"elements": count} if count is not None else {"elements": 1, "whole_step": True}
    report("run", name, start=start, seconds=seconds, **facts)
    return result


def upload(name: str, make: Callable[[], Any]) -> Any:
    """Arrays on JAX's device, from whatever makes them; their bytes are booked under ``name``."""
    start = time.perf_counter()
    with jax_errors(f"upload of {name}"):
        made = make()
        if listening():
            load_jax().block_until_ready(made)
            size = sum(leaf.nbytes for leaf in load_jax().tree_util.tree_leaves(made))
            report("upload", name, start=start, seconds=time.perf_counter() - start, bytes=size)
    return made


def download(name: str, arrays: Any) -> list[NDArray[Any]]:
    """All arrays on the host, in order, once they are there."""
    start = time.perf_counter()
    with jax_errors(f"read-back of {name}"):
        found = [np.asarray(array) for array in load_jax().tree_util.tree_leaves(arrays)]
    size = sum(array.nbytes for array in found) if listening() else 0
    report("download", name, start=start, seconds=time.perf_counter() - start, bytes=size)
    return found
