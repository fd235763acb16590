"""Page and picture that ``benchmarks.gpu_wins`` writes, from the records of all machines."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autograd_gpu.runtime.choice import GPU_MIN_RESIDUALS
from benchmarks.gpu_wins import ENERGIES, SUFFIX, Case
from benchmarks.metrics import RESULTS

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "when-the-gpu-wins.md"
PICTURE = DOCS / "pictures" / "gpu-wins.png"
MARKS = re.compile(r"(<!-- measured: gpu wins -->\n).*?(<!-- end -->)", re.DOTALL)
ACCURACY = 0.01
"""A solve has arrived when its cost is above the one that all reached by less than this part."""
COLORS = {"cpu": ("#9aa3b2", "#4d5b75"), "wgsl": ("#e8622a", "#b03a10"), "jax": ("#2f9e77",)}

Place = tuple[str, str]
"""Side and hardware."""
Times = dict[Place, dict[int, float]]
"""Seconds by place and number of vertices."""


def load(paths: Iterable[Path]) -> list[Case]:
    """Records of all machines."""
    return [Case(**row) for path in sorted(paths) for row in json.loads(path.read_text())]


def arrival(case: Case, common: float) -> tuple[float, int]:
    """Seconds and iterations until a solve was at a cost that all reached."""
    step = next(k for k, cost in enumerate(case.costs) if cost <= (1.0 + ACCURACY) * common)
    return case.seconds[step], step


def common_costs(cases: Iterable[Case]) -> dict[int, float]:
    """The cost of one energy that every place reached, by number of vertices."""
    common: dict[int, float] = {}
    for case in cases:
        common[case.vertices] = max(common.get(case.vertices, 0.0), min(case.costs))
    return common


def times_of(cases: Sequence[Case]) -> Times:
    """Seconds to arrive, of the cases of one energy."""
    common, times = common_costs(cases), Times()
    for case in cases:
        seconds = arrival(case, common[case.vertices])[0]
        times.setdefault((case.side, case.hardware), {})[case.vertices] = seconds
    return times


def break_even(gpu: dict[int, float], cpu: dict[int, float]) -> float:
    """Vertices from which on the GPU is faster at every size; infinite if it never is.

    Between two measured sizes times are taken for powers of the size. Sizes that only the GPU was
    measured at count for it, for the CPU had dropped out.
    """
    sizes = sorted(set(gpu) & set(cpu))
    faster = [gpu[n] < cpu[n] for n in sizes]
    if not sizes or not faster[-1]:
        return math.inf
    if all(faster):
        return float(sizes[0])
    last = max(k for k, wins in enumerate(faster) if not wins)
    low, high = sizes[last], sizes[last + 1]
    before, after = np.log(gpu[low] / cpu[low]), np.log(gpu[high] / cpu[high])
    part = before / (before - after)
    return float(np.exp(np.log(low) + part * np.log(high / low)))


def _seconds(value: float) -> str:
    return f"{1e3 * value:.3g} ms" if value < 1.0 else f"{value:.3g} s"


def table(energy: str, cases: Sequence[Case]) -> list[str]:
    """One row a size: seconds (iterations) of every place."""
    common = common_costs(cases)
    places = _places(cases)
    lines = [
        "| vertices | residuals | unknowns | " + " | ".join(_name(p) for p in places) + " |",
        "|---" * (3 + len(places)) + "|",
    ]
    for vertices in sorted(common):
        here = {(c.side, c.hardware): c for c in cases if c.vertices == vertices}
        size = next(iter(here.values()))
        cells = [_grouped(n) for n in (vertices, size.residuals, size.unknowns)]
        for place in places:
            if place not in here:
                cells.append("–")
                continue
            seconds, steps = arrival(here[place], common[vertices])
            cells.append(f"{_seconds(seconds)} ({steps})")
        lines.append(f"| {' | '.join(cells)} |")
    return [f"### {energy.capitalize()}", "", *lines, "", *_verdicts(cases), *_solvers(cases)]


def _solvers(cases: Sequence[Case]) -> list[str]:
    """What solved the linear systems, from which size on."""
    lines: list[str] = []
    for place in _places(cases):
        here = sorted((c for c in cases if (c.side, c.hardware) == place), key=_vertices)
        parts = [
            f"{_plain(case)} from {_grouped(case.vertices)} vertices"
            for before, case in zip([None, *here], here, strict=False)
            if before is None or _plain(before) != _plain(case)
        ]
        lines.append(f"* {_name(place)}: {'; '.join(parts)}.")
    return [*lines, ""]


def _plain(case: Case) -> str:
    return re.sub(r" of \d+ unknowns", "", case.solver)


def _vertices(case: Case) -> int:
    return case.vertices


def _places(cases: Sequence[Case]) -> list[Place]:
    order = list(COLORS)
    return sorted({(c.side, c.hardware) for c in cases}, key=lambda p: (order.index(p[0]), p[1]))


def _name(place: Place) -> str:
    side, hardware = place
    return {"cpu": hardware, "wgsl": f"{hardware}, WGSL", "jax": f"{hardware}, JAX"}[side]


def _verdicts(cases: Sequence[Case]) -> list[str]:
    times, lines = times_of(cases), list[str]()
    residuals = {c.vertices: c.residuals for c in cases}
    for gpu in (p for p in times if p[0] != "cpu"):
        for cpu in (p for p in times if p[0] == "cpu"):
            at = break_even(times[gpu], times[cpu])
            if not math.isfinite(at):
                lines.append(f"* {_name(gpu)} is at no measured size faster than {_name(cpu)}.")
                continue
            sizes = sorted(residuals)
            # Residuals are nearly a multiple of vertices.
            near = min(sizes, key=lambda n: abs(math.log(n / at)))
            count = at * residuals[near] / near
            lines.append(
                f"* **{_name(gpu)} beats {_name(cpu)} from about {_rounded(at)} vertices, "
                f"{_rounded(count)} residuals.**"
            )
    return lines


def _rounded(value: float) -> str:
    digits = max(0, len(str(int(value))) - 2)
    return _grouped(round(value / 10**digits) * 10**digits)


def _grouped(value: int) -> str:
    return f"{value:,}".replace(",", " ")


def section(cases: Sequence[Case]) -> str:
    """Everything on the page that is measured."""
    lines: list[str] = []
    for energy in ENERGIES:
        lines += table(energy, [c for c in cases if c.energy == energy])
    commits = sorted({(c.hardware, c.commit) for c in cases})
    said = "; ".join(f"{hardware} at {commit}" for hardware, commit in commits)
    bound = _grouped(GPU_MIN_RESIDUALS)
    lines += [
        "### The rule", "",
        f'`backend="auto"` takes a GPU where `precision="float32"` was asked for, the adapter is '
        f"no software, and there are at least **{bound} residuals**.", "",
        f"Commits: {said}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def draw(cases: Sequence[Case], path: Path) -> None:
    """Seconds against vertices, one panel an energy."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(12.0, 4.4), dpi=90, layout="constrained")
    panels: Any = figure.subplots(1, len(ENERGIES), sharey=True)
    for axes, energy in zip(panels, ENERGIES, strict=True):
        here = [c for c in cases if c.energy == energy]
        times, used = times_of(here), dict.fromkeys(COLORS, 0)
        for side, hardware in _places(here):
            shades = COLORS[side]
            color = shades[used[side] % len(shades)]
            used[side] += 1
            rows = sorted(times[side, hardware].items())
            label = _name((side, hardware))
            axes.loglog(*np.array(rows).T, "o-", ms=4, lw=1.8, color=color, label=label)
        axes.set_title(energy)
        axes.set_xlabel("vertices")
        axes.grid(True, color="0.9", lw=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds to the cost that all reach")
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(path)


def write_page() -> None:
    """Page and picture from what lies in benchmarks/results/."""
    cases = load(RESULTS.glob(f"*{SUFFIX}"))
    if not cases:
        print("no records yet, so the page stays as it is")
        return
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKS.sub(rf"\g<1>{section(cases)}\g<2>", page), encoding="utf-8")
    try:
        draw(cases, PICTURE)
    except ImportError as error:
        print(f"no picture: {error}; pip install 'autograd-gpu[plot]'")
    print(f"wrote {PAGE}")
