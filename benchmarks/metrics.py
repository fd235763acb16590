"""One measured figure a record; records of a run go to one JSON file that names the hardware."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure: what, how much, in which unit, which direction is better, where, in which dtype."""

    key: str
    value: float
    unit: str
    better: str
    hardware: str
    dtype: str
    commit: str
    note: str = ""


def commit() -> str:
    """Short hash of the checkout; ``+`` if it has changes, ``unknown`` outside one."""
    root = Path(__file__).resolve().parents[1]
    try:
        rev = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        dirty = subprocess.run(
            ["git", "status", "--porcelain"],
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return rev + ("+" if dirty else "")


def processor() -> str:
    """Name of the CPU and its number of threads."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        if models:
            return f"{models[0]}, {len(models)} threads"
    return name


class Recorder:
    """Collects the records of one run, prints each, and writes them at the end."""

    def __init__(self, hardware: str, dtype: str, revision: str | None = None) -> None:
        self.hardware = hardware
        self.dtype = dtype
        self.commit = revision or commit()
        self.metrics: list[Metric] = []

    def add(self, key: str, value: float, unit: str, better: str = "lower", note: str = "") -> None:
        """Record a figure."""
        metric = Metric(
            key=key, value=value, unit=unit, better=better, hardware=self.hardware,
            dtype=self.dtype, commit=self.commit, note=note,
        )  # fmt: skip
        self.metrics.append(metric)
        print(f"{key:44s} {value:14.6g} {unit:6s} {note}", flush=True)

    def write(self, path: Path) -> None:
        """Write all records as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(m) for m in self.metrics], indent=1) + "\n")
        print(f"wrote {path}")

    def merge(self, path: Path) -> None:
        """Write all records, and keep those of the file whose keys are not among them."""
        own = {m.key for m in self.metrics}
        kept = [m for m in _stored(path) if m["key"] not in own]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([*kept, *map(asdict, self.metrics)], indent=1) + "\n")
        print(f"wrote {path}")

    def has(self, path: Path, key: str) -> bool:
        """Whether the file has a record of this hardware and commit."""
        wanted = (key, self.hardware, self.commit)
        return any((m["key"], m["hardware"], m["commit"]) == wanted for m in _stored(path))


def _stored(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text()) if path.exists() else []


def slope(
    run: Callable[[int], None],
    few: int,
    many: int,
    repeats: int = 7,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds per unit of work: the median slope of time between two amounts.

    Submission and waiting cancel. The clocks are warmed up by half a second of the same work.
    With ``time.process_time`` as the clock, what else a CPU does hardly counts.
    """
    began = time.perf_counter()
    while time.perf_counter() - began < 0.5:
        run(many)
    values: list[float] = []
    for _ in range(repeats):
        t0 = clock()
        run(few)
        t1 = clock()
        run(many)
        t2 = clock()
        values.append(((t2 - t1) - (t1 - t0)) / (many - few))
    return float(np.median(values))
