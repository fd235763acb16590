"""Known mistakes in the use of devices and kernels, found in what telemetry heard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from autograd_gpu.events import Event

READBACKS = 10
"""Read-backs of one thing from which on they look like a loop."""
DISPATCHES_PER_READBACK = 8
"""Fewer than these between read-backs: the device waits for the host, and not the other way."""
SMALL_DISPATCH = 1024
"""Invocations below which a dispatch takes as long as an empty one."""
DISPATCHES = 20
"""Dispatches from which on their size matters."""
ROUNDS = 5
"""Times that compilation comes after work, from which on it looks like a loop."""
REPEATS = 3
"""Uploads of the same bytes from which on they look like a loop."""
SMALL_UPLOAD = 4096
"""Bytes below which an upload costs nothing but its call."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One mistake.

    Attributes:
        kind: ``read-backs in a loop``, ``small dispatches``, ``compiling in a loop`` or
            ``uploads repeated``.
        message: what was seen, where, and what to do.
        count: how often.
    """

    kind: str
    message: str
    count: int


def advise(events: Sequence[Event]) -> list[Advice]:
    """What the events look like, at most one of each kind and name."""
    return [advice for rule in _RULES for advice in rule(events)]


def _readbacks(events: Sequence[Event]) -> list[Advice]:
    """Sequences that are read back again and again with little work in between."""
    count: Counter[str] = Counter()
    work: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    since = 0
    for event in events:
        if event.kind == "dispatch":
            since += 1
        elif event.kind == "run" and event.facts.get("whole_step"):
            since += DISPATCHES_PER_READBACK
        elif event.kind == "download":
            count[event.name] += 1
            work[event.name] += since
            moved[event.name] += int(event.facts["bytes"])
            since = 0
    return [
        Advice(
            "read-backs in a loop",
            f"{name!r} was read back {n} times, {moved[name] / n:.4g} bytes each, after "
            f"{work[name] / n:.2g} dispatches on average: every time the device waits for the "
            "host; let the solve stay on the device (linear_solver='pcg'), or read back at the end",
            n,
        )
        for name, n in count.items()
        if n >= READBACKS and work[name] < DISPATCHES_PER_READBACK * n
    ]


def _small_dispatches(events: Sequence[Event]) -> list[Advice]:
    sizes = [int(e.facts["invocations"]) for e in events if e.kind == "dispatch"]
    if len(sizes) < DISPATCHES or sum(sizes) >= SMALL_DISPATCH * len(sizes):
        return []
    return [
        Advice(
            "small dispatches",
            f"{len(sizes)} dispatches have {sum(sizes) / len(sizes):.3g} invocations on average, "
            f"a device is idle below {SMALL_DISPATCH}: use backend='numba' for problems this "
            "small, or solve many of them at once (ag.solve_batch)",
            len(sizes),
        )
    ]


def _compiling(events: Sequence[Event]) -> list[Advice]:
    """Compilation that follows work again and again."""
    rounds, worked, names = 0, False, set[str]()
    for event in events:
        if event.kind in ("dispatch", "run"):
            worked = True
        elif event.kind == "compile":
            names.add(event.name)
            rounds, worked = rounds + worked, False
    if rounds < ROUNDS:
        return []
    return [
        Advice(
            "compiling in a loop",
            f"kernels were compiled {rounds} times after others had run, {len(names)} different "
            "ones: numbers that change from problem to problem belong in data arguments of "
            "add_residuals, not in the text of the residual function (problem.update(data=…) "
            "replaces them)",
            rounds,
        )
    ]


def _uploads(events: Sequence[Event]) -> list[Advice]:
    count: Counter[tuple[str, int, int]] = Counter()
    for event in events:
        if event.kind == "upload" and int(event.facts["bytes"]) >= SMALL_UPLOAD:
            checksum = int(event.facts.get("checksum", -1))
            count[event.name, int(event.facts["bytes"]), checksum] += 1
    return [
        Advice(
            "uploads repeated",
            f"the same {size} bytes were uploaded {n} times to buffer {name!r}: build the problem "
            "once and solve it again, with problem.update(…) for what does change",
            n,
        )
        for (name, size, checksum), n in count.items()
        if n >= REPEATS and checksum >= 0
    ]


_RULES: tuple[Callable[[Sequence[Event]], list[Advice]], ...] = (
    _readbacks,
    _small_dispatches,
    _compiling,
    _uploads,
)
