"""The buffers of a device: who has them, which wait to be used again, how many bytes they take."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakSet

IDLE_LIMIT = 1 << 28
"""Bytes of buffers that wait to be used again, at most."""

LARGEST_SURPLUS = 1.25
"""A waiting buffer serves for one that is smaller by up to this factor."""


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Memory of a device's buffers at one moment.

    Attributes:
        bytes: of the buffers that somebody owns, those for read-back on the host included.
        idle: of those that wait to be used again.
        peak: most that both together have been.
        buffers: how many are owned.
        budget: most that both together may be; None for no limit.
    """

    bytes: int
    idle: int
    peak: int
    buffers: int
    budget: int | None


@dataclass(slots=True)
class _Entry:
    """A buffer and what it was made for; the reference keeps its number its own."""

    buffer: Any
    size: int
    usage: int


class Lender(Protocol):
    """An owner of buffers that it can do without."""

    def give_up(self) -> None:
        """Give back all that is not in use."""
        ...


class DeviceMemory:
    """The account of one device: every buffer that this package makes there, and no others.

    A buffer is owned by whoever asked for it until it is given back; then it waits for the next
    who wants one of its kind, so that a problem that is solved again allocates nothing. What a
    driver takes for itself, for compiled kernels, and for the copies that it makes while uploading
    is not known here. May be used from several threads.

    Args:
        budget: most bytes of all buffers together; None for no limit.

    Attributes:
        lenders: who owns buffers only to save making them again.
    """

    def __init__(self, budget: int | None = None) -> None:
        self._lock = threading.Lock()
        self._owned: dict[int, _Entry] = {}
        self._waiting: list[_Entry] = []
        self._bytes = self._idle = self._peak = 0
        self.budget = budget
        self.lenders: WeakSet[Lender] = WeakSet()

    @property
    def bytes(self) -> int:
        """Bytes of the buffers that somebody owns."""
        return self._bytes

    @property
    def idle(self) -> int:
        """Bytes of the buffers that wait to be used again."""
        return self._idle

    @property
    def peak(self) -> int:
        """Most that both together have been, since the device was opened or `reset_peak`."""
        return self._peak

    def report(self) -> MemoryReport:
        """All figures at this moment."""
        with self._lock:
            return MemoryReport(self._bytes, self._idle, self._peak, len(self._owned), self.budget)

    def reset_peak(self) -> None:
        """Forget the peak: it is what there is now."""
        with self._lock:
            self._peak = self._bytes + self._idle

    def take(self, size: int, usage: int) -> Any:
        """A waiting buffer of at least ``size`` bytes and this usage, owned from now on; or None.

        What it holds is what its last owner left there.
        """
        largest = max(LARGEST_SURPLUS * size, 256.0)
        with self._lock:
            fitting = [
                entry
                for entry in self._waiting
                if entry.usage == usage and size <= entry.size <= largest
            ]
            if not fitting:
                return None
            entry = min(fitting, key=lambda e: e.size)
            self._waiting.remove(entry)
            self._idle -= entry.size
            self._own(entry)
            return entry.buffer

    def make_room(self, size: int) -> bool:
        """Destroy what waits, as far as the budget asks; whether ``size`` more bytes fit in."""
        if self.budget is None:
            return True
        with self._lock:
            while self._waiting and self._bytes + self._idle + size > self.budget:
                self._destroy_one()
            return self._bytes + self._idle + size <= self.budget

    def created(self, buffer: Any, size: int, usage: int) -> None:
        """Book a new buffer of ``size`` bytes."""
        with self._lock:
            self._own(_Entry(buffer, size, usage))

    def give_back(self, buffer: Any, *, keep: bool = True) -> None:
        """End the ownership of a buffer: it waits, or is destroyed if there is no room for that."""
        with self._lock:
            entry = self._owned.pop(id(buffer), None)
            if entry is None:  # of a device that is gone
                buffer.destroy()
                return
            self._bytes -= entry.size
            if not keep or entry.size > IDLE_LIMIT:
                buffer.destroy()
                return
            self._waiting.append(entry)
            self._idle += entry.size
            while self._idle > IDLE_LIMIT:
                self._destroy_one()

    def trim(self) -> None:
        """Destroy all buffers that wait, and those of work that is only kept for later."""
        for lender in list(self.lenders):
            lender.give_up()
        with self._lock:
            while self._waiting:
                self._destroy_one()

    def cleared(self) -> None:
        """Book that the device is gone, and all buffers with it."""
        with self._lock:
            self._owned.clear()
            self._waiting.clear()
            self._bytes = self._idle = 0

    def _own(self, entry: _Entry) -> None:
        self._owned[id(entry.buffer)] = entry
        self._bytes += entry.size
        self._peak = max(self._peak, self._bytes + self._idle)

    def _destroy_one(self) -> None:
        """The one that has waited longest."""
        entry = self._waiting.pop(0)
        self._idle -= entry.size
        entry.buffer.destroy()

    def __repr__(self) -> str:
        return (
            f"DeviceMemory({self._bytes} bytes in {len(self._owned)} buffers, {self._idle} idle, "
            f"peak {self._peak})"
        )
