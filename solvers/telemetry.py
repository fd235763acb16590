"""``ag.telemetry``: what the package does inside a ``with`` block, counted and timed.

| kind of event | what | facts |
|---|---|---|
| ``generate`` | a derivative or text was made | |
| ``compile`` | a function or pipeline was compiled | target |
| ``load`` | machine code came from disk | target |
| ``cache`` | something was looked for | hit |
| ``run`` | a kernel ran on the CPU over a range, or was handed to JAX, untimed | elements |
| ``dispatch`` | a kernel was handed to a device | invocations |
| ``device`` | a pass of dispatches of a kernel took its time there | dispatches |
| ``upload``, ``download`` | bytes travelled; a download waits for the work before it | bytes |
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any

from autograd_gpu.events import Event, leave, listen
from autograd_gpu.runtime.device_clock import read_clocks
from autograd_gpu.solvers.adviser import Advice, advise

VERSION = 1
"""Of the JSON document; raised when a key changes its meaning."""
KEPT_EVENTS = 200_000
"""Events that are kept for the trace and the advice; totals go on beyond it."""


@dataclass(slots=True)
class KernelTotals:
    """What happened to one kernel.

    Attributes:
        name: of the kernel.
        compiled, loaded: how often it was compiled, or its machine code came from disk.
        compile_seconds: for both.
        dispatches: on a device.
        invocations: of all of them.
        device_seconds: by the device's timestamps; 0 where it has none.
        runs: ranges on the CPU's threads.
        elements: of all of them.
        run_seconds: summed over threads.
    """

    name: str
    compiled: int = 0
    loaded: int = 0
    compile_seconds: float = 0.0
    dispatches: int = 0
    invocations: int = 0
    device_seconds: float = 0.0
    runs: int = 0
    elements: int = 0
    run_seconds: float = 0.0

    @property
    def batch(self) -> float:
        """Mean number of invocations of a dispatch, or of elements of a run."""
        return (self.invocations + self.elements) / max(1, self.dispatches + self.runs)


@dataclass(slots=True)
class BufferTotals:
    """What travelled under one name: of a buffer up, of the sequence that ended with it down."""

    name: str
    uploads: int = 0
    downloads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class CacheTotals:
    """How often something was looked for in a cache, and was there."""

    name: str
    hits: int = 0
    misses: int = 0


@dataclass(slots=True)
class _Totals:
    kernels: dict[str, KernelTotals] = field(default_factory=dict[str, KernelTotals])
    buffers: dict[str, BufferTotals] = field(default_factory=dict[str, BufferTotals])
    caches: dict[str, CacheTotals] = field(default_factory=dict[str, CacheTotals])
    generated: int = 0
    generate_seconds: float = 0.0

    def add(self, event: Event) -> None:
        """Count an event."""
        facts: Any = event.facts
        if event.kind == "cache":
            cache = self.caches.setdefault(event.name, CacheTotals(event.name))
            cache.hits += bool(facts["hit"])
            cache.misses += not facts["hit"]
        elif event.kind == "generate":
            self.generated += 1
            self.generate_seconds += event.seconds
        elif event.kind in ("upload", "download"):
            buffer = self.buffers.setdefault(event.name, BufferTotals(event.name))
            buffer.uploads += event.kind == "upload"
            buffer.downloads += event.kind == "download"
            buffer.bytes_up += facts["bytes"] if event.kind == "upload" else 0
            buffer.bytes_down += facts["bytes"] if event.kind == "download" else 0
            buffer.seconds += event.seconds
        else:
            self._add_kernel(event, facts)

    def _add_kernel(self, event: Event, facts: Any) -> None:
        kernel = self.kernels.setdefault(event.name, KernelTotals(event.name))
        if event.kind in ("compile", "load"):
            kernel.compiled += event.kind == "compile"
            kernel.loaded += event.kind == "load"
            kernel.compile_seconds += event.seconds
        elif event.kind == "dispatch":
            kernel.dispatches += 1
            kernel.invocations += facts["invocations"]
        elif event.kind == "device":
            kernel.device_seconds += event.seconds
        elif event.kind == "run":
            kernel.runs += 1
            kernel.elements += facts["elements"]
            kernel.run_seconds += event.seconds


class Telemetry:
    """Listens while its ``with`` block runs; use it once, or again to add up.

    It hears all threads of the process. Listening costs some microseconds a dispatch, and puts
    dispatches of different kernels into passes of their own on devices with timestamps.
    """

    def __init__(self) -> None:
        self._totals = _Totals()
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._heard = 0
        self._lock = threading.Lock()
        self._began: float | None = None
        self._seconds = 0.0

    def __enter__(self) -> Telemetry:
        self._began = time.perf_counter()
        listen(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        read_clocks()
        leave(self)
        self._seconds = self.seconds
        self._began = None

    def hear(self, event: Event) -> None:
        """Take note of an event; called by whoever does something."""
        with self._lock:
            self._heard += 1
            self._events.append(event)
            self._totals.add(event)

    # -- what was heard ----------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Time inside the ``with`` block so far."""
        return self._seconds + (time.perf_counter() - self._began if self._began else 0.0)

    @property
    def events(self) -> list[Event]:
        """The events, or the last ``KEPT_EVENTS`` of them."""
        with self._lock:
            return list(self._events)

    @property
    def kernels(self) -> list[KernelTotals]:
        """Totals of each kernel, the one that took longest first."""
        return sorted(
            self._totals.kernels.values(),
            key=lambda k: (-(k.device_seconds + k.run_seconds + k.compile_seconds), k.name),
        )

    @property
    def buffers(self) -> list[BufferTotals]:
        """What travelled, most bytes first."""
        return sorted(
            self._totals.buffers.values(), key=lambda b: (-(b.bytes_up + b.bytes_down), b.name)
        )

    @property
    def caches(self) -> list[CacheTotals]:
        """Hits and misses by cache."""
        return sorted(self._totals.caches.values(), key=lambda c: c.name)

    @property
    def totals(self) -> dict[str, float]:
        """Sums over everything."""
        kernels, buffers, caches = self.kernels, self.buffers, self.caches
        return {
            "generated": self._totals.generated,
            "generate_seconds": self._totals.generate_seconds,
            "compiled": sum(k.compiled for k in kernels),
            "loaded": sum(k.loaded for k in kernels),
            "compile_seconds": sum(k.compile_seconds for k in kernels),
            "dispatches": sum(k.dispatches for k in kernels),
            "device_seconds": sum(k.device_seconds for k in kernels),
            "runs": sum(k.runs for k in kernels),
            "run_seconds": sum(k.run_seconds for k in kernels),
            "uploads": sum(b.uploads for b in buffers),
            "downloads": sum(b.downloads for b in buffers),
            "bytes_up": sum(b.bytes_up for b in buffers),
            "bytes_down": sum(b.bytes_down for b in buffers),
            "cache_hits": sum(c.hits for c in caches),
            "cache_misses": sum(c.misses for c in caches),
        }

    def advice(self) -> list[Advice]:
        """Known mistakes that what was heard looks like; see ``adviser.py``."""
        return advise(self.events)

    # -- as text and data --------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Everything but the single events, as JSON can write it."""
        return {
            "version": VERSION,
            "seconds": self.seconds,
            "totals": self.totals,
            "kernels": [{**asdict(k), "batch": k.batch} for k in self.kernels],
            "buffers": [asdict(b) for b in self.buffers],
            "caches": [asdict(c) for c in self.caches],
            "advice": [asdict(a) for a in self.advice()],
            "events_dropped": self._heard - len(self._events),
        }

    def chrome_trace(self) -> dict[str, Any]:
        """The events for ``chrome://tracing`` or ui.perfetto.dev: a row a thread, one the device's.

        Times are microseconds since the first event.
        """
        events = self.events
        origin = min((e.start for e in events), default=0.0)
        rows = {"device": 0}
        written: list[dict[str, Any]] = []
        for event in events:
            row = "device" if event.kind == "device" else event.thread
            written.append(
                {
                    "name": event.name,
                    "cat": event.kind,
                    "pid": 1,
                    "tid": rows.setdefault(row, len(rows)),
                    "ts": 1e6 * (event.start - origin),
                    **({"ph": "X", "dur": 1e6 * event.seconds} if event.seconds else _INSTANT),
                    "args": dict(event.facts),
                }
            )
        names = [
            {"name": "thread_name", "ph": "M", "pid": 1, "tid": k, "args": {"name": row}}
            for row, k in rows.items()
        ]
        return {"traceEvents": [*names, *written], "displayTimeUnit": "ms"}

    def save(self, path: str | Path) -> Path:
        """Write ``to_json`` to a file."""
        return _write(path, self.to_json())

    def save_trace(self, path: str | Path) -> Path:
        """Write ``chrome_trace`` to a file."""
        return _write(path, self.chrome_trace())

    def report(self) -> str:
        """Tables of kernels, of what travelled and of caches, and the advice."""
        from rich.console import Console
        from rich.table import Table

        def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
            made = Table(title=title, title_justify="left")
            for k, column in enumerate(columns):
                made.add_column(column, justify="right" if k else "left", overflow="fold")
            for row in rows:
                made.add_row(*row)
            return made

        console = Console(file=StringIO(), width=140, highlight=False, markup=False)
        console.print(
            table(
                f"Kernels in {self.seconds:.3g} s",
                ["kernel", "compiled", "from disk", "compile", "calls", "batch", "device", "CPU"],
                [_kernel_row(k) for k in self.kernels],
            )
        )
        if self.buffers:
            rows = [
                [b.name, f"{b.uploads}", _bytes(b.bytes_up), f"{b.downloads}", _bytes(b.bytes_down)]
                for b in self.buffers
            ]
            titles = ["buffer or sequence", "uploads", "up", "read-backs", "down"]
            console.print(table("Traffic", titles, rows))
        if self.caches:
            found = [[c.name, f"{c.hits}", f"{c.misses}"] for c in self.caches]
            console.print(table("Caches", ["cache", "hits", "misses"], found))
        for advice in self.advice():
            console.print(f"! {advice.message}")
        text = console.file
        assert isinstance(text, StringIO)
        return text.getvalue().rstrip()

    def __str__(self) -> str:
        return self.report()


_INSTANT = {"ph": "i", "s": "t"}


def telemetry() -> Telemetry:
    """Count and time what happens inside: ``with ag.telemetry() as t: …``, then ``print(t)``."""
    return Telemetry()


def _kernel_row(k: KernelTotals) -> list[str]:
    calls = k.dispatches + k.runs
    return [
        k.name,
        f"{k.compiled}",
        f"{k.loaded}",
        _seconds(k.compile_seconds),
        f"{calls}",
        f"{k.batch:.0f}" if calls else "",
        _seconds(k.device_seconds),
        _seconds(k.run_seconds),
    ]


def _seconds(seconds: float) -> str:
    if not seconds:
        return ""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024.0:
            break
        value, unit = value / 1024.0, larger
    return f"{value:.3g} {unit}"


def _write(path: str | Path, document: dict[str, Any]) -> Path:
    file = Path(path)
    file.write_text(json.dumps(document), encoding="utf-8")
    return file
