"""What the package does while somebody listens: compilations, cache hits, uploads, dispatches.

Every layer reports here what it does at the moment it does it. Nobody listens by default, and a
report then costs one look at an empty tuple. A listener hears all threads of the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

Fact = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that was done.

    Attributes:
        kind: what sort of thing; ``telemetry.KINDS`` lists them.
        name: of the kernel, buffer, sequence or cache.
        start: ``time.perf_counter()`` when it began, seconds.
        seconds: how long it took; 0 for what is only counted.
        thread: name of the thread that did it.
        facts: sizes in bytes, batch lengths, hit or miss.
    """

    kind: str
    name: str
    start: float
    seconds: float
    thread: str
    facts: Mapping[str, Fact] = field(default_factory=dict[str, Fact])


class Listener(Protocol):
    """Who hears of events; called from the thread that did the thing."""

    def hear(self, event: Event) -> None:
        """Take note of an event."""
        ...


_listeners: tuple[Listener, ...] = ()
_lock = threading.Lock()


def listening() -> bool:
    """Whether somebody listens: what costs time to find out need not be found out otherwise."""
    return bool(_listeners)


def listen(listener: Listener) -> None:
    """Report everything to ``listener`` too, from now on."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)


def leave(listener: Listener) -> None:
    """Report nothing more to ``listener``."""
    global _listeners
    with _lock:
        _listeners = tuple(one for one in _listeners if one is not listener)


def report(
    kind: str, name: str, *, start: float = 0.0, seconds: float = 0.0, **facts: Fact
) -> None:
    """Tell whoever listens; ``start`` is now unless given."""
    if not _listeners:
        return
    event = Event(
        kind, name, start or time.perf_counter(), seconds, threading.current_thread().name, facts
    )
    for listener in _listeners:
        listener.hear(event)


@contextmanager
def timed(kind: str, name: str, **facts: Fact) -> Generator[None]:
    """Report what happens inside, with the time that it takes; also where it fails."""
    start = time.perf_counter()
    try:
        yield
    finally:
        report(kind, name, start=start, seconds=time.perf_counter() - start, **facts)
