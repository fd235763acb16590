"""Blocks that many elements share: gathered by a team of threads, or summed in two levels.

``python -m benchmarks.heavy_nodes [--adapter NAME] [--share 1.0] [--only curve,hub] [--out FILE]``.
Times are those of a linearization with 40 products of conjugate gradients (``solve``) and of one
gradient (``gradient``), float32; all groups of a problem have the same schedule.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import autograd_gpu as ag
import workloads
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.schedules import DETERMINISTIC, MATERIALISATIONS, Schedule
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.schedule_trials import GradientTrials, SolveTrials, Stand
from benchmarks.metrics import RESULTS, Recorder

ROUNDS = 5
"""Every schedule is timed once in each."""


def shared_lens(cameras: int, points: int) -> ag.Problem:
    """The bundle of W3, whose cameras all have the same focal length and distortion."""
    arrays = workloads.w3(cameras, points)
    problem = ag.Problem()
    pose = problem.parameters("poses", arrays["cam0"][:, :6])
    lens = problem.parameters("lens", arrays["cam0"][:, 6:].mean(axis=0, keepdims=True))
    point = problem.parameters("points", arrays["X0"])

    def error(p: Any, f: Any, x: Any, observed: Any) -> Any:
        q = energies.rotate(p[0:3], x) + p[3:6]
        u = -q[0:2] / q[2]
        r2 = ag.dot(u, u)
        return f[0] * (1 + f[1] * r2 + f[2] * r2 * r2) * u - observed

    problem.add_residuals(
        error, pose[arrays["ci"]], lens[0], point[arrays["pi"]], arrays["obs"], name="sightings"
    )
    return problem


def hub(count: int) -> ag.Problem:
    """Springs along a ring of vertices, and from all of them to one in the middle."""
    angle = 2.0 * np.pi * np.arange(count) / count
    ring = np.stack([np.cos(angle), np.sin(angle), 0.1 * np.sin(5.0 * angle)], axis=1)
    i = np.concatenate([np.full(count, count), np.arange(count)])
    j = np.concatenate([np.arange(count), (np.arange(count) + 1) % count])
    problem = ag.Problem()
    x = problem.parameters("x", np.concatenate([ring, [[0.1, 0.2, 0.0]]]))
    rest = np.concatenate([np.ones(count), np.full(count, 6.0 / count)])
    problem.add_residuals(energies.spring, x[i], x[j], rest, name="springs")
    return problem


def problems(share: float) -> dict[str, Callable[[], ag.Problem]]:
    """W5 and W3, fewer cameras, a lens that all cameras share, a mesh with one heavy vertex."""
    points, samples = max(500, round(20_000 * share)), max(20_000, round(1_000_000 * share))
    return {
        "curve": lambda: workloads.curve_problem(samples),
        "bundle_60": lambda: workloads.bundle_problem(60, points),
        "bundle_12": lambda: workloads.bundle_problem(12, points),
        "shared_lens": lambda: shared_lens(60, points),
        "hub": lambda: hub(samples // 5),
    }


def measure(record: Recorder, name: str, device: Device, problem: ag.Problem) -> None:
    """Median times of every schedule, each once a round."""
    parameters, analysis = current_parameters(problem), problem.analysis()
    for opened in (SolveTrials, GradientTrials):
        with opened(analysis, device, parameters) as trials:
            compare(record, f"{name}/{trials.purpose}", trials)


def compare(record: Recorder, name: str, trials: SolveTrials | GradientTrials) -> None:
    """Every schedule of one purpose."""
    with Stand(trials) as stand:
        groups = len(trials.features)
        # Single products store nothing in two levels.
        stored = MATERIALISATIONS if trials.purpose == "solve" else MATERIALISATIONS[:1]
        wanted = [
            (Schedule(materialise=m, accumulate=a),) * groups for m in stored for a in DETERMINISTIC
        ]
        stand.ready(wanted)
        times = [[stand.sample(schedules) for schedules in wanted] for _ in range(ROUNDS)]
        for schedules, samples in zip(wanted, zip(*times, strict=True), strict=True):
            known = [seconds for seconds in samples if seconds is not None]
            if known:
                record.add(f"{name}/{schedules[0]}", float(np.median(known)) * 1e6, "us")
        modelled = trials.chooser(trials.features)
        known = [t for t in (stand.sample(modelled) for _ in range(ROUNDS)) if t is not None]
        if known:
            words = "; ".join(dict.fromkeys(map(str, modelled)))
            record.add(f"{name}/modelled", float(np.median(known)) * 1e6, "us", note=words)


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--only", default="curve,bundle_60,bundle_12,shared_lens,hub")
    parser.add_argument("--commit")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = Device(chosen.adapter)
    record = Recorder(device.name, "float32", chosen.commit)
    out = chosen.out or RESULTS / f"{device.adapter.name.replace(' ', '_')}_heavy_nodes.json"
    for name, make in problems(chosen.share).items():
        if name not in chosen.only.split(","):
            continue
        measure(record, name, device, make())
        record.write(out)


if __name__ == "__main__":
    main()
