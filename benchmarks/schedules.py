"""All schedules by hand, the model's choice and ``ag.tune``'s, on W1 to W5.

``python -m benchmarks.schedules [--adapter NAME | --cpu] [--level 7] [--only W2,W5/solve]
[--resume] [--out FILE]``. On a device the times are those of a linearization with 40 products
(``solve``) and of one gradient (``gradient``), by the device's timestamps; on the CPU those of
residuals, Jacobian and JᵀJ (``assembly``). Schedules tried by hand are the same for all groups,
atomics among them; the model's and the tuned ones differ from group to group. Solves of 200 000
unknowns and more keep workgroups of 256, which coarse spaces need. At last the fastest by hand, the
tuned and the model's one are set up anew and timed in the same rounds; the best by hand is the one
that is fastest there, so that no ratio is one of lucky runs. The same goes for the slowest. Each
purpose of each problem is written when it is measured; other records of the file stay.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import autograd_gpu as ag
import workloads
from autograd_gpu.codegen.lanes import LANES
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.schedules import (
    MATERIALISATIONS,
    WORKGROUP_SIZES,
    Schedule,
    has_heavy_nodes,
)
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.schedule_trials import (
    AssemblyTrials,
    GradientTrials,
    SolveTrials,
    Stand,
    Trials,
)
from autograd_gpu.solvers.tune import tuned
from benchmarks.metrics import RESULTS, Recorder, processor

FIRST_LOOK = 3
"""Times of each schedule by hand, of which the median is recorded."""

FASTEST = 4
"""By hand, of which the last rounds find the best."""

ROUNDS = {"solve": 15, "gradient": 15, "assembly": 61}
"""Of the comparison at the end, each schedule once a round; more where other work disturbs."""

ROUNDS_OF_THE_WORST = 5

SLOWEST = 3
"""By hand, of which these find the worst."""

MOST_THAT_SWAP = 1e5
"""Elements that compare and swap one word; a million would take minutes."""

LAST = "worst_over_tuned"
"""What is recorded last of a purpose: with it, a purpose is complete."""

Schedules = tuple[Schedule, ...]


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
    if purpose == "solve":
        found += [replace(s, accumulate="two-level") for s in found]
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
        crowd = max(f.largest_valence for f in trials.features)
        waits = schedule.accumulate == "atomic-cas" and crowd > MOST_THAT_SWAP
        sliced = trials.chooser.purpose == "solve" and schedule.accumulate == "two-level"
        same = sliced and not any(has_heavy_nodes(f, schedule) for f in trials.features)
        return trials.allows(schedule) and not waits and not same
    blocks = all(f.assembly is not None and f.assembly.blocks_possible for f in trials.features)
    lanes = all(f.assembly is not None and f.assembly.lanes_possible for f in trials.features)
    return (blocks or schedule.materialise == "jacobian") and (
        lanes or schedule.workgroup_size == 1
    )


def measure(record: Recorder, key: str, trials: Trials) -> None:
    """Everything by hand, then the comparison of the best, the model's, the tuned and the worst."""
    purpose, groups = trials.chooser.purpose, len(trials.features)
    times: dict[Schedules, float] = {}
    with Stand(trials) as stand:
        for schedule in by_hand(purpose):
            if not possible(trials, schedule):
                continue
            found = [stand.sample((schedule,) * groups) for _ in range(FIRST_LOOK)]
            known = [seconds for seconds in found if seconds is not None]
            if not known:
                print(f"{key}: the device refuses {schedule}")
                continue
            times[(schedule,) * groups] = median(known)
            record.add(f"{key}/by_hand/{schedule}", median(known) * 1e6, "us")
    tuning = tuned(trials)
    record.add(f"{key}/samples", tuning.samples, "times", note="that ag.tune took")
    # The least of many single looks is too small, so those that may be the best or the worst are
    # timed again, in the same rounds as the others.
    looks = sorted(times, key=times.__getitem__)
    with Stand(trials) as stand:
        ours = [tuning.schedules, tuning.modelled]
        found = compare(stand, [*ours, *looks[:FASTEST]], ROUNDS[purpose])
        slowest = [s for s in looks[-SLOWEST:] if s not in found]
        slow = compare(stand, [tuning.schedules, *slowest], ROUNDS_OF_THE_WORST)
    best = min(looks[:FASTEST], key=lambda s: ratio_of(found[s], found[tuning.schedules])[0])
    for label, schedules in (
        ("best_by_hand", best), ("tuned", tuning.schedules), ("modelled", tuning.modelled)
    ):  # fmt: skip
        record.add(f"{key}/{label}", median(found[schedules]) * 1e6, "us", note=words(schedules))
    ratio, spread = ratio_of(found[tuning.schedules], found[best])
    record.add(f"{key}/tuned_over_best", ratio, "x", note=f"bar: at most 1.10; {spread}")
    ratio, spread = ratio_of(found[tuning.modelled], found[best])
    record.add(f"{key}/modelled_over_best", ratio, "x", note=spread)
    ratios = {
        s: ratio_of(rounds[s], rounds[tuning.schedules])[0]
        for rounds in (found, slow)
        for s in rounds
        if s in times
    }
    worst = max(ratios, key=ratios.__getitem__)
    record.add(f"{key}/{LAST}", ratios[worst], "x", "higher", note=words(worst))


def compare(stand: Stand, wanted: Sequence[Schedules], rounds: int) -> dict[Schedules, list[float]]:
    """Seconds of each, in rounds, forwards and backwards in turns."""
    distinct = list(dict.fromkeys(wanted))
    stand.ready(distinct)
    found: dict[Schedules, list[float]] = {schedules: [] for schedules in distinct}
    for number in range(rounds):
        for schedules in distinct[:: -1 if number % 2 else 1]:
            seconds = stand.sample(schedules)
            found[schedules].append(math.inf if seconds is None else seconds)
    return found


def ratio_of(first: Sequence[float], second: Sequence[float]) -> tuple[float, str]:
    """Median ratio of times of the same rounds, and between what half of the ratios lie."""
    ratios = np.array(first) / np.array(second)
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(middle), f"half of {len(ratios)} rounds in {low:.3f} to {high:.3f}"


def words(schedules: Sequence[Schedule]) -> str:
    """Schedules of all groups, told once where they are the same."""
    told = schedules[:1] if len(set(schedules)) == 1 else schedules
    return "; ".join(map(str, told))


def purposes(problem: ag.Problem, device: Device | None) -> dict[str, Callable[[], Trials]]:
    """What opens the trials of each purpose."""
    analysis, x = problem.analysis(), current_parameters(problem)
    if device is None:
        return {"assembly": lambda: AssemblyTrials(analysis, x)}
    return {
        "solve": lambda: SolveTrials(analysis, device, x),
        "gradient": lambda: GradientTrials(analysis, device, x),
    }


def main() -> None:
    """Run all; each purpose of each problem is written as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--only", default="W1,W2,W3,W4,W5", help="problems, or W5/solve")
    parser.add_argument("--resume", action="store_true", help="leave out what the file has")
    parser.add_argument("--commit")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = None if chosen.cpu else Device(chosen.adapter)
    hardware = processor() if device is None else device.name
    label = "CPU" if device is None else device.adapter.name.replace(" ", "_")
    out = chosen.out or RESULTS / f"{label}_schedules.json"
    record = Recorder(hardware, "float64" if device is None else "float32", chosen.commit)
    only = chosen.only.split(",")
    for name, make in problems(chosen.level).items():
        if not any(word.split("/")[0] == name for word in only):
            continue
        for purpose, open_trials in purposes(make(), device).items():
            key = f"{name}_level{chosen.level}/{purpose}"
            if name not in only and f"{name}/{purpose}" not in only:
                continue
            if chosen.resume and record.has(out, f"{key}/{LAST}"):
                print(f"{key}: measured before")
                continue
            with closing(open_trials()) as trials:
                measure(record, key, trials)
            record.merge(out)


if __name__ == "__main__":
    main()
