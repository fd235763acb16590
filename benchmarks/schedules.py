"""All schedules by hand, the model's choice and ``ag.tune``'s, on W1 to W5.

``python -m benchmarks.schedules [--adapter NAME | --cpu] [--level 7] [--only W2,W3] [--out FILE]``.
On a device the times are those of a linearization with 40 products (``solve``) and of one gradient
(``gradient``); on the CPU those of residuals, Jacobian and JᵀJ (``assembly``). Schedules tried by
hand are the same for all groups, atomics among them; the model's and the tuned ones differ from
group to group. Solves of 200 000 unknowns and more keep workgroups of 256, which coarse spaces
need. The winners are timed again side by side, so that no ratio is one of lucky runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import autograd_gpu as ag
import workloads
from autograd_gpu.codegen.lanes import LANES
from autograd_gpu.errors import InputError
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.schedules import MATERIALISATIONS, WORKGROUP_SIZES, Schedule
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.schedule_trials import (
    AssemblyTrials,
    GradientTrials,
    SolveTrials,
    Trials,
)
from autograd_gpu.solvers.tune import tuned
from benchmarks.metrics import RESULTS, Recorder, processor

ROUNDS = 5
"""Of the comparison of winners, each schedule once a round."""


def problems(level: int) -> dict[str, Callable[[], ag.Problem]]:
    """W1 to W5; meshes are icospheres of that level, hinges of one less."""
    share = 4.0 ** min(0, level - 5)  # small machines get small problems
    points = max(500, round(20_000 * share))
    return {
        "W1": lambda: workloads.springs_problem(level),
        "W2": lambda: workloads.deformation_problem(level),
        "W3": lambda: workloads.bundle_problem(60, points),
        "W4": lambda: workloads.bending_problem(level - 1),
        "W5": lambda: workloads.curve_problem(max(20_000, round(1_000_000 * share))),
    }


def by_hand(purpose: str) -> list[Schedule]:
    """Every schedule that all groups can share."""
    if purpose == "assembly":
        return [
            Schedule(materialise=m, workgroup_size=lanes)
            for m in ("jacobian", "jtj-blocks")
            for lanes in (1, LANES)
        ]
    found = [
        Schedule(materialise=m, workgroup_size=size)
        for m in MATERIALISATIONS
        for size in WORKGROUP_SIZES
    ]
    if purpose == "gradient":
        found += [
            Schedule(accumulate=a, workgroup_size=size)
            for a in ("two-level", "atomic-native", "atomic-cas")
            for size in WORKGROUP_SIZES
        ]
    return found


def possible(trials: Trials, schedule: Schedule) -> bool:
    """Whether every group can have a schedule; the host cannot sum all problems by blocks."""
    if trials.chooser.purpose != "assembly":
        return trials.allows(schedule)
    blocks = all(f.assembly is not None and f.assembly.blocks_possible for f in trials.features)
    lanes = all(f.assembly is not None and f.assembly.lanes_possible for f in trials.features)
    return (blocks or schedule.materialise == "jacobian") and (
        lanes or schedule.workgroup_size == 1
    )


def measure(record: Recorder, name: str, trials: Trials) -> None:
    """Everything by hand, then the comparison of the best, the model's and the tuned."""
    purpose, groups = trials.chooser.purpose, len(trials.features)
    key = f"{name}/{purpose}"
    times: dict[tuple[Schedule, ...], float] = {}
    for schedule in by_hand(purpose):
        if not possible(trials, schedule):
            continue
        seconds = trials.seconds((schedule,) * groups)
        if seconds is None:
            print(f"{key}: the device refuses {schedule}")
            continue
        times[(schedule,) * groups] = seconds
        record.add(f"{key}/by_hand/{schedule}", seconds * 1e6, "us")
    tuning = tuned(trials)
    best, worst = min(times, key=times.__getitem__), max(times, key=times.__getitem__)
    again = compare(trials, [best, tuning.schedules, tuning.modelled])
    for label, schedules in (
        ("best_by_hand", best), ("tuned", tuning.schedules), ("modelled", tuning.modelled)
    ):  # fmt: skip
        record.add(f"{key}/{label}", again[schedules] * 1e6, "us", note=words(schedules))
    ratio = again[tuning.schedules] / again[best]
    record.add(f"{key}/tuned_over_best", ratio, "x", note="bar: at most 1.10")
    record.add(f"{key}/modelled_over_best", again[tuning.modelled] / again[best], "x")
    slowest = times[worst] / again[tuning.schedules]
    record.add(f"{key}/worst_over_tuned", slowest, "x", "higher", note=words(worst))


def compare(trials: Trials, wanted: Sequence[tuple[Schedule, ...]]) -> dict[object, float]:
    """Median seconds of each, measured in turns."""
    distinct = list(dict.fromkeys(wanted))
    found: dict[object, list[float]] = {schedules: [] for schedules in distinct}
    for _ in range(ROUNDS):
        for schedules in distinct:
            seconds = trials.seconds(schedules)
            found[schedules].append(math.inf if seconds is None else seconds)
    return {schedules: float(np.median(seconds)) for schedules, seconds in found.items()}


def words(schedules: Sequence[Schedule]) -> str:
    """Schedules of all groups, told once where they are the same."""
    return "; ".join(dict.fromkeys(map(str, schedules)))


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--only", default="W1,W2,W3,W4,W5")
    parser.add_argument("--commit")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = None if chosen.cpu else Device(chosen.adapter)
    hardware = processor() if device is None else device.name
    precision = "float64" if device is None else "float32"
    record = Recorder(hardware, precision, chosen.commit)
    label = "CPU" if device is None else device.adapter.name.replace(" ", "_")
    out = chosen.out or RESULTS / f"{label}_schedules.json"
    for name, make in problems(chosen.level).items():
        if name not in chosen.only.split(","):
            continue
        problem = make()
        analysis, x = problem.analysis(), current_parameters(problem)
        kinds: list[Callable[[], Trials]] = [lambda a=analysis, x=x: AssemblyTrials(a, x)]
        if device is not None:
            kinds = [
                lambda a=analysis, x=x, d=device: SolveTrials(a, d, x),
                lambda a=analysis, x=x, d=device: GradientTrials(a, d, x),
            ]
        for open_trials in kinds:
            try:
                trials = open_trials()
            except InputError as error:
                print(f"{name}: {error}")
                continue
            with closing(trials):
                measure(record, f"{name}_level{chosen.level}", trials)
        record.write(out)


if __name__ == "__main__":
    main()
