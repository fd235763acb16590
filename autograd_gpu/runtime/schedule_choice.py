"""The decision about schedules, and the memory of what was measured.

Executors ask a ``ScheduleChooser``. It takes the schedules that ``ag.tune`` found to be fastest for
problems with the same topologies and sizes on the same device, and otherwise the least estimate.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autograd_gpu.codegen.kernel import GENERATOR_VERSION
from autograd_gpu.disk_cache import DiskCache, damaged
from autograd_gpu.errors import InputError
from autograd_gpu.runtime.schedule_costs import GPU, PROFILES, DeviceProfile, estimate
from autograd_gpu.runtime.schedules import (
    Alternative,
    Decision,
    GroupFeatures,
    Schedule,
    alternatives,
)
from autograd_gpu.runtime.threads import available_threads

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device

FORMAT = "2"
"""Of the entries on disk."""

GRADIENT_WORKGROUP = 128
"""Threads of a workgroup of gradients where estimates are equal."""

REMEMBERED = 256
"""Measured choices kept in memory."""

Measured = tuple[tuple[tuple[Schedule, ...], float], ...]
"""Schedules of all groups with the seconds that they took, what was chosen first."""


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Where schedules run: what measurements are remembered by, and the profile of estimates."""

    key: tuple[str, ...]
    profile: DeviceProfile

    @property
    def name(self) -> str:
        """For people."""
        return self.key[0]


def identity_of(device: Device | None) -> DeviceIdentity:
    """Of a WebGPU device; of the host if None."""
    if device is None:
        return DeviceIdentity(_host_key(), GPU)
    adapter = device.adapter
    profile = PROFILES["software" if adapter.is_software else "gpu"]
    return DeviceIdentity((adapter.name, adapter.backend, adapter.driver, _wgpu_version()), profile)


@lru_cache(maxsize=1)
def _wgpu_version() -> str:
    return importlib.metadata.version("wgpu")


@lru_cache(maxsize=1)
def _host_key() -> tuple[str, ...]:
    return ("CPU", platform.machine(), _processor(), f"{available_threads()} threads")


def _processor() -> str:
    """The model of the CPU; ``platform`` starts a program to find it, and often does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration, IndexError):
        return platform.processor()


def size_class(count: int) -> int:
    """Problems of one class are at most a factor of two apart."""
    return round(math.log2(max(1, count)))


_memory: OrderedDict[tuple[str, ...], Measured | None] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class ScheduleChooser:
    """Chooses the schedules of all groups of a problem for one purpose on one device.

    Attributes:
        purpose: ``solve``, ``gradient`` or ``assembly``.
        where: the device.
        fixed: schedules asked for, one per group or one for all; None to choose.
        measured: take what was measured, where anything was.
    """

    purpose: str
    where: DeviceIdentity
    fixed: tuple[Schedule, ...] | None = None
    measured: bool = True

    def __call__(self, groups: Sequence[GroupFeatures]) -> tuple[Schedule, ...]:
        """One schedule per group."""
        return tuple(d.schedule for d in self.decide(groups))

    def decide(self, groups: Sequence[GroupFeatures]) -> tuple[Decision, ...]:
        """One decision per group, with what else there was.

        Raises:
            InputError: schedules were asked for, and not as many as there are groups.
        """
        if self.fixed is not None:
            return self._asked_for(groups)
        measured = self.recall(groups) if self.measured else None
        decisions = self._by_model(groups)
        if measured is None:
            return decisions
        best, seconds = measured[0]
        return tuple(
            replace(
                decision,
                schedule=schedule,
                source="measured",
                reason=f"measured on {self.where.name}: all groups in {_text(seconds)}, the "
                f"best of {len(measured)} tried",
                alternatives=_with_times(decision, best, measured, k),
            )
            for k, (decision, schedule) in enumerate(zip(decisions, best, strict=True))
        )

    def _asked_for(self, groups: Sequence[GroupFeatures]) -> tuple[Decision, ...]:
        assert self.fixed is not None
        wanted = self.fixed * len(groups) if len(self.fixed) == 1 else self.fixed
        if len(wanted) != len(groups):
            raise InputError(
                f"schedules: got {len(wanted)}, the problem has {len(groups)} batches of "
                "residuals; give one for each, or one for all"
            )
        return tuple(
            Decision(features=f, schedule=s, source="asked for", reason="asked for")
            for f, s in zip(groups, wanted, strict=True)
        )

    def _by_model(self, groups: Sequence[GroupFeatures]) -> tuple[Decision, ...]:
        ranked = [self._ranked(f) for f in groups]
        # Kernels of a device serve several groups; on the host all groups are summed alike.
        shared = "materialise" if self.purpose == "assembly" else "workgroup_size"
        common = _common(ranked, shared)
        return tuple(
            _least(features, [a for a in found if getattr(a.schedule, shared) == common])
            for features, found in zip(groups, ranked, strict=True)
        )

    def _ranked(self, features: GroupFeatures) -> list[Alternative]:
        """Alternatives with their estimates; ties go to the larger workgroup.

        But for gradients to workgroups of 128: on an H200 gradients of W1 to W5 are 0 to 9 % faster
        with them than with 256, and up to 3 % slower. Solves keep 256, which coarse spaces need.
        """
        most = GRADIENT_WORKGROUP if self.purpose == "gradient" else math.inf
        found = [
            Alternative(s, estimate(features, s, self.purpose, self.where.profile))
            for s in alternatives(features, self.purpose)
        ]
        return sorted(
            found,
            key=lambda a: (
                a.estimated,
                a.schedule.workgroup_size > most,
                -a.schedule.workgroup_size,
            ),
        )

    # -- measurements --------------------------------------------------------------------------

    def key(self, groups: Sequence[GroupFeatures]) -> tuple[str, ...]:
        """What measurements are remembered by: device, topologies, sizes and valences."""
        return (
            self.purpose,
            *self.where.key,
            *(part for f in groups for part in _group_key(f)),
        )

    def recall(self, groups: Sequence[GroupFeatures]) -> Measured | None:
        """What was measured for such a problem, by this process or another one; None if nothing.

        Entries that do not read as they should, and those of other versions of the kernels, count
        as absent, with one warning. The disk is asked once: small problems are solved again and
        again, and what another process measures meanwhile may wait.
        """
        key = self.key(groups)
        with _lock:
            if key in _memory:
                _memory.move_to_end(key)
                return _memory[key]
        cache = DiskCache("schedules")
        stored = cache.get(key)
        found = None if stored is None else _read(stored, len(groups), cache.path(key))
        _keep(key, found)
        return found

    def remember(self, groups: Sequence[GroupFeatures], measured: Measured) -> None:
        """Keep measurements in memory and on disk; the first is taken from now on."""
        key = self.key(groups)
        _keep(key, measured)
        DiskCache("schedules").put(key, _write(measured))

    def forget(self, groups: Sequence[GroupFeatures]) -> None:
        """Choose by estimates again."""
        key = self.key(groups)
        with _lock:
            _memory.pop(key, None)
        path = DiskCache("schedules").path(key)
        if path is not None:
            path.unlink(missing_ok=True)


def forget_memory() -> None:
    """Forget what this process keeps; entries on disk stay."""
    with _lock:
        _memory.clear()


def _keep(key: tuple[str, ...], measured: Measured | None) -> None:
    with _lock:
        _memory[key] = measured
        _memory.move_to_end(key)
        while len(_memory) > REMEMBERED:
            _memory.popitem(last=False)


def _group_key(features: GroupFeatures) -> Iterable[str]:
    yield features.topology
    yield str(size_class(features.elements))
    yield features.precision
    for place, valence in zip(features.places, features.valences, strict=True):
        sizes = f"{size_class(round(valence))}:{size_class(place.most)}"
        yield f"{place.node_set}:{place.width}:{sizes}"


def _write(measured: Measured) -> bytes:
    rows = [
        {
            "seconds": seconds,
            "schedules": [[s.materialise, s.accumulate, s.workgroup_size] for s in schedules],
        }
        for schedules, seconds in measured
    ]
    return json.dumps({**_version(), "measured": rows}).encode()


def _version() -> dict[str, str]:
    """What an entry must say of itself; not part of the key, so that older ones are noticed."""
    return {"format": FORMAT, "generator": GENERATOR_VERSION}


def _read(stored: bytes, groups: int, path: Path | None) -> Measured | None:
    try:
        document: dict[str, Any] = json.loads(stored)
        if {name: document[name] for name in _version()} != _version():
            _warn_of_version()
            return None
        found = tuple(
            (
                tuple(
                    Schedule(materialise=m, accumulate=a, workgroup_size=w)
                    for m, a, w in row["schedules"]
                ),
                float(row["seconds"]),
            )
            for row in document["measured"]
        )
    except (ValueError, TypeError, LookupError, InputError):
        found = ()
    if found and all(len(schedules) == groups for schedules, _ in found):
        return found
    if path is not None:
        path.unlink(missing_ok=True)
        damaged(path)
    return None


@lru_cache(maxsize=1)
def _warn_of_version() -> None:
    """Once: whoever has tuned finds all problems chosen by the model again."""
    warnings.warn(
        "ag.tune: what another version of this package has measured is ignored, since its kernels "
        "are others; call ag.tune again where schedules should be measured",
        RuntimeWarning,
        stacklevel=2,
    )


def _common(ranked: Sequence[Sequence[Alternative]], shared: str) -> object:
    """The value of a field that all groups share with the least sum of estimates."""
    fastest: list[dict[object, float]] = []
    for found in ranked:
        values: dict[object, float] = {}
        for alternative in found:  # in rising order
            values.setdefault(getattr(alternative.schedule, shared), alternative.estimated)
        fastest.append(values)
    if not fastest:
        return None
    everywhere = [v for v in fastest[0] if all(v in values for values in fastest)]
    return min(everywhere, key=lambda v: sum(values[v] for values in fastest))


def _least(features: GroupFeatures, found: Sequence[Alternative]) -> Decision:
    best = found[0]
    reason = "the only one"
    if len(found) > 1:
        second = found[1]
        reason = (
            f"least estimate, {_text(best.estimated)}; next is {second.schedule.materialise}, "
            f"{second.schedule.accumulate} at {_text(second.estimated)}"
        )
    return Decision(
        features=features,
        schedule=best.schedule,
        source="model",
        reason=reason,
        alternatives=tuple(found),
    )


def _with_times(
    decision: Decision, best: tuple[Schedule, ...], measured: Measured, k: int
) -> tuple[Alternative, ...]:
    """Alternatives of group k; measured are those that differed from the best in k alone."""
    times: dict[Schedule, float] = {}
    for schedules, seconds in measured:
        if schedules[:k] + schedules[k + 1 :] == best[:k] + best[k + 1 :]:
            times.setdefault(schedules[k], seconds)
    known = {a.schedule: a for a in decision.alternatives}
    return tuple(replace(a, measured=times.get(s)) for s, a in known.items()) + tuple(
        Alternative(s, math.nan, t) for s, t in times.items() if s not in known
    )


def _text(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1.0 else f"{seconds:.3g} s"
