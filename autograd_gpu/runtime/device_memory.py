"""How many bytes a device's buffers take, now and at most."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Memory of a device's buffers at one moment.

    Attributes:
        bytes: of the buffers that exist, those for read-back on the host included.
        peak: most that ``bytes`` has been.
        buffers: how many exist.
    """

    bytes: int
    peak: int
    buffers: int


class DeviceMemory:
    """The account of one device: every buffer that this package makes there, and no others.

    What a driver takes for itself, for compiled kernels, and for the copies that it makes while
    uploading is not known to it. May be used from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[int, tuple[Any, int]] = {}
        self._bytes = 0
        self._peak = 0

    @property
    def bytes(self) -> int:
        """Bytes of the buffers that exist."""
        return self._bytes

    @property
    def peak(self) -> int:
        """Most that ``bytes`` has been, since the device was opened or `reset_peak`."""
        return self._peak

    def report(self) -> MemoryReport:
        """All figures at this moment."""
        with self._lock:
            return MemoryReport(self._bytes, self._peak, len(self._sizes))

    def reset_peak(self) -> None:
        """Forget the peak: it is what there is now."""
        with self._lock:
            self._peak = self._bytes

    def created(self, buffer: Any, size: int) -> None:
        """Book a buffer of ``size`` bytes."""
        with self._lock:
            self._sizes[id(buffer)] = (buffer, size)
            self._bytes += size
            self._peak = max(self._peak, self._bytes)

    def destroyed(self, buffer: Any) -> None:
        """Book that a buffer is gone; what is not in the books is no matter."""
        with self._lock:
            _, size = self._sizes.pop(id(buffer), (None, 0))
            self._bytes -= size

    def cleared(self) -> None:
        """Book that the device is gone, and all buffers with it."""
        with self._lock:
            self._sizes.clear()
            self._bytes = 0

    def __repr__(self) -> str:
        return f"DeviceMemory({self._bytes} bytes in {len(self._sizes)} buffers, peak {self._peak})"
