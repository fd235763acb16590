"""How long dispatches take on a device, by timestamp queries; only while somebody listens.

A pass has a timestamp at its begin and at its end, so dispatches that follow each other in one
pipeline share a pass, and others get one of their own: that costs some microseconds a pass, which
the times measured do not contain. Ticks are turned into seconds by the period of the queue.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from ..events import report
from .adapters import load_wgpu, timestamp_period
from .device import Device

FEATURE = "timestamp-query"
PASSES = 2048
"""Passes whose times are kept on the device before they are read: a query set has 4096 entries."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One dispatch with everything resolved.

    Attributes:
        name: of the kernel.
        pipeline, bind_group: wgpu's.
        grid: workgroups along x and y.
        invocations: elements or nodes that it is for.
    """

    name: str
    pipeline: Any
    bind_group: Any
    grid: tuple[int, int]
    invocations: int


def encode(compute: Any, launches: Sequence[Launch]) -> None:
    """Write dispatches into a compute pass."""
    pipeline = group = None
    for launch in launches:
        # Both stay bound between dispatches; setting them again costs more than the
        # dispatch itself.
        if launch.pipeline is not pipeline:
            pipeline = launch.pipeline
            compute.set_pipeline(pipeline)
        if launch.bind_group is not group:
            group = launch.bind_group
            compute.set_bind_group(0, group)
        compute.dispatch_workgroups(*launch.grid)


class DeviceClock:
    """Times of the passes of one program; calls take turns, as those of its runner do.

    Args:
        device: with the feature ``timestamp-query``.
        turn: the lock under which the runner calls.
    """

    def __init__(self, device: Device, turn: threading.Lock) -> None:
        wgpu = load_wgpu()
        self._device = device
        self._period = timestamp_period(device.queue)
        self._queries = device.wgpu_device.create_query_set(
            type=wgpu.QueryType.timestamp, count=2 * PASSES
        )
        usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
        self._ticks = device.wgpu_device.create_buffer(size=16 * PASSES, usage=usage)
        self._pending: list[tuple[str, int, float]] = []
        self._turn = turn
        _clocks.add(self)

    def encode(self, encoder: Any, launches: Sequence[Launch]) -> None:
        """Write dispatches in passes of one pipeline each, with timestamps as far as there is room.

        What has been submitted before is read first where the room is short.
        """
        runs = [list(run) for _, run in groupby(launches, key=lambda each: id(each.pipeline))]
        if len(self._pending) + len(runs) > PASSES:
            self.read()
        now = time.perf_counter()
        for run in runs[: PASSES - len(self._pending)]:
            k = len(self._pending)
            self._pending.append((run[0].name, len(run), now))
            compute = encoder.begin_compute_pass(
                timestamp_writes={
                    "query_set": self._queries,
                    "beginning_of_pass_write_index": 2 * k,
                    "end_of_pass_write_index": 2 * k + 1,
                }
            )
            encode(compute, run)
            compute.end()
        rest = [launch for run in runs[PASSES:] for launch in run]
        if rest:  # one submission of more passes than a query set has entries for
            compute = encoder.begin_compute_pass()
            encode(compute, rest)
            compute.end()

    def read(self) -> None:
        """Report the times of all passes submitted so far; waits for them."""
        if not self._pending:
            return
        count = len(self._pending)
        encoder = self._device.wgpu_device.create_command_encoder()
        encoder.resolve_query_set(self._queries, 0, 2 * count, self._ticks, 0)
        self._device.submit(encoder)
        data = self._device.queue.read_buffer(self._ticks, 0, 16 * count)
        ticks = np.frombuffer(data, np.uint64).reshape(count, 2)
        for name, dispatches, start, seconds in self._times(ticks):
            report("device", name, start=start, seconds=seconds, dispatches=dispatches)
        self._pending = []

    def finish(self) -> None:
        """``read``, when it is nobody else's turn."""
        with self._turn:
            self.read()

    def _times(self, ticks: Any) -> Iterator[tuple[str, int, float, float]]:
        """Name, dispatches, begin on the host's clock, and seconds of each pass.

        A device has a clock of its own: the first pass of a submission is taken to begin when it
        was encoded.
        """
        tick = 1e-9 * self._period
        first: dict[float, int] = {}
        for (name, dispatches, encoded), (begin, end) in zip(
            self._pending, ticks.tolist(), strict=True
        ):
            origin = first.setdefault(encoded, begin)
            yield name, dispatches, encoded + tick * (begin - origin), tick * max(0, end - begin)

    def close(self) -> None:
        """Free its buffer and queries."""
        _clocks.discard(self)
        self._ticks.destroy()
        self._queries.destroy()


_clocks: weakref.WeakSet[DeviceClock] = weakref.WeakSet()


def read_clocks() -> None:
    """Report what all clocks have not reported yet; waits for the work."""
    for clock in list(_clocks):
        # A device that was lost or closed has no times to tell.
        with contextlib.suppress(Exception):
            clock.finish()
