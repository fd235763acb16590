"""Every error that the package raises on purpose, under one root.

A message says what was wrong, where (residual group, argument, element), what came, what was
expected, and what to do about it.
"""

from __future__ import annotations


class AutogradGpuError(Exception):
    """Root of all errors raised on purpose by autograd_gpu."""


class TraceError(AutogradGpuError, TypeError):
    """A residual function did something that cannot be traced (a branch, ``math.sin``, …)."""


class ShapeError(AutogradGpuError, ValueError):
    """Lengths or widths of arrays, index arrays or weights do not fit together."""


class IndexRangeError(AutogradGpuError, IndexError):
    """An index array has a negative entry or one past the end."""


class InputError(AutogradGpuError, ValueError):
    """A value that nothing can start from: NaN, infinity, an unknown option, no residuals."""


class UnknownNameError(InputError, KeyError):
    """A key that a mapping does not have."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print its repr


class MeshError(InputError):
    """A mesh that an operation cannot work on: zero-area faces, non-manifold edges or others."""


class FileFormatError(InputError):
    """A file with a line that does not say what its format says; names file and line."""


class MissingDependencyError(AutogradGpuError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class DeviceError(AutogradGpuError, RuntimeError):
    """No usable device, or the device refused something."""


class DeviceLostError(DeviceError):
    """The device went away in the middle of work."""


class DeviceLimitError(DeviceError):
    """A buffer or kernel is larger than the device allows, and it cannot be split."""


class DeviceMemoryError(DeviceLimitError, MemoryError):
    """The device is out of memory, and smaller pieces did not help."""


class PrecisionError(DeviceError):
    """The device cannot give the precision asked for."""


class KernelError(AutogradGpuError, RuntimeError):
    """Generated source was rejected by its compiler.

    Attributes:
        source: the generated text, or an empty string.
        line: 1-based line in ``source`` that the compiler complained of, or None.
    """

    def __init__(self, message: str, source: str = "", line: int | None = None) -> None:
        super().__init__(message)
        self.source = source
        self.line = line


class SolveError(AutogradGpuError, RuntimeError):
    """A solver could not produce any step at all."""
