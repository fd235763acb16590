"""The package's errors for what wgpu reports: a lost device, memory that ran out, a bad text."""

from __future__ import annotations

import re

from autograd_gpu.codegen.program import PipelineSpec
from autograd_gpu.errors import (
    AutogradGpuError,
    DeviceError,
    DeviceLimitError,
    DeviceLostError,
    DeviceMemoryError,
    KernelError,
)

_OUT_OF_MEMORY = ("not enough memory left", "out of memory", "resource_exhausted")
"""What wgpu-native says of memory that ran out: as a validation error, not as the error of that
name, seen with 29.0 on two drivers whose allocations really failed. The last is XLA's."""

_ERROR_LINE = re.compile(r"┌─ [^\n]*?:(\d+):\d+")


def work_error(device: str, what: str, error: Exception) -> DeviceError:
    """For a failure of wgpu's in the middle of ``what`` on the device of that name."""
    reason = _reason(error)
    if _is_lost(reason):
        return _lost(device, what, reason)
    if is_out_of_memory(error):
        return DeviceMemoryError(
            f"{device} ran out of memory during {what}: {reason}; free other buffers, set a "
            "memory_budget, or use fewer elements"
        )
    return DeviceError(f"{device} refused {what}: {reason}")


def allocation_error(device: str, name: str, size: int, error: Exception) -> DeviceError:
    """For a buffer that could not be made."""
    reason = _reason(error)
    if _is_lost(reason):
        return _lost(device, f"allocation of buffer {name!r}", reason)
    kind = DeviceMemoryError if is_out_of_memory(error) else DeviceLimitError
    return kind(
        f"{device} cannot allocate buffer {name!r} of {size} bytes: {reason}; free other buffers, "
        "set a memory_budget, or use fewer elements"
    )


def pipeline_error(device: str, spec: PipelineSpec, error: Exception) -> AutogradGpuError:
    """For a text that was rejected: with the line, if the compiler names one."""
    if _is_lost(_reason(error)):
        return _lost(device, f"compilation of pipeline {spec.name!r}", _reason(error))
    found = _ERROR_LINE.search(str(error))
    line = int(found.group(1)) if found else None
    source_lines = spec.source.splitlines()
    quoted = ""
    if line is not None and line <= len(source_lines):
        quoted = f", line {line}: {source_lines[line - 1].strip()!r}"
    return KernelError(
        f"{device} rejected pipeline {spec.name!r} (entry point {spec.entry_point!r})"
        f"{quoted}\n{error}\nThe whole text is in this error's .source",
        source=spec.source,
        line=line,
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on the device or on the host for it."""
    if isinstance(error, MemoryError):  # GPUOutOfMemoryError is one
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _lost(device: str, what: str, reason: str) -> DeviceLostError:
    return DeviceLostError(
        f"{device} was lost during {what} ({reason}); values on it are gone: call "
        "device.reopen(), and split the work if a watchdog stopped a long dispatch"
    )


def _is_lost(reason: str) -> bool:
    return "lost" in reason.lower() or "destroyed" in reason.lower()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if line not in ("Validation Error", "Caused by:"))
