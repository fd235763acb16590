"""Resident solves of a problem that wait for its next solve: tables, buffers and bindings stay.

A solve is taken out while it runs and put back at its end. New data are written into the buffers
that there are. What waits is given up when the device's memory runs out, or has a budget.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from autograd_gpu.runtime.batch import BoundGroup, FloatArray
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.step_record import StepRecord

LARGEST_KEPT = 1 << 30
"""Bytes of tables above which a solve is not kept: its arrays on the host are as large."""

Key = tuple[object, ...]
"""Of a choice of backend, then what else distinguishes solves of one problem."""


class ResidentSolve(Protocol):
    """Steps of one problem on one device, whatever runs them: WebGPU or JAX."""

    def start(
        self, parameters: FloatArray, damping: float, linear_tolerance: float, min_gain: float
    ) -> None:
        """Upload the start point and reset the state."""
        ...

    def step(self, max_linear_iterations: int) -> StepRecord:
        """Try one step, and keep it or not."""
        ...

    def parameters(self) -> FloatArray:
        """The last accepted point."""
        ...

    def statement_counts(self) -> dict[str, int]:
        """Kernel name -> number of computed values in its text."""
        ...

    def close(self) -> None:
        """Free what it owns."""
        ...


@dataclass(frozen=True, slots=True)
class KeptSolve:
    """A solve on a WebGPU device with its tables, and the groups whose data it has."""

    device: Device
    solve: DeviceSolve
    tables: NodeTables
    groups: Sequence[BoundGroup]

    def with_data(self, groups: Sequence[BoundGroup]) -> KeptSolve | None:
        """The same with the data of the same groups as they are now; uploads what differs.

        None if such data need tables of another structure.
        """
        if groups is self.groups:
            return self
        tables = self.tables.with_data(groups)
        if tables is None:
            return None
        self.solve.rebind(tables)
        return replace(self, tables=tables, groups=groups)


class ResidentSolves:
    """What waits, at most one solve for each key; owned by an analysis."""

    def __init__(self) -> None:
        self._waiting: dict[Key, KeptSolve] = {}
        self._lock = threading.Lock()
        self._closed = False

    def take(self, key: Key, groups: Sequence[BoundGroup]) -> KeptSolve | None:
        """The solve for a key, with the data of these groups; the caller owns it. None without."""
        with self._lock:
            kept = self._waiting.pop(key, None)
        if kept is None:
            return None
        usable: KeptSolve | None = None
        try:
            if kept.solve.alive:
                usable = kept.with_data(groups)
        finally:
            if usable is None:
                kept.solve.close()
        return usable

    def keep(self, key: Key, kept: KeptSolve) -> None:
        """Let a solve wait, or close it where it may not."""
        memory = kept.device.memory
        small = kept.tables.tables.nbytes + kept.tables.numbers.nbytes <= LARGEST_KEPT
        with self._lock:
            wanted = small and memory.budget is None and not self._closed
            if wanted and key not in self._waiting:
                self._waiting[key] = kept
                memory.lenders.add(self)
                return
        kept.solve.close()

    def give_up(self) -> None:
        """Close all that waits: others need its memory."""
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
        for kept in waiting:
            kept.solve.close()

    def drop(self, choice: Key) -> None:
        """Close what waits for a choice of backend."""
        with self._lock:
            gone = [key for key in self._waiting if key[0] == choice]
            waiting = [self._waiting.pop(key) for key in gone]
        for kept in waiting:
            kept.solve.close()

    def handed_on(self) -> ResidentSolves:
        """All of it for another analysis of the same structure."""
        other = ResidentSolves()
        with self._lock:
            other._waiting, self._waiting = self._waiting, {}
        for kept in other._waiting.values():
            kept.device.memory.lenders.add(other)
        return other

    def close(self) -> None:
        """Close all that waits, and all that comes back."""
        self._closed = True
        self.give_up()
