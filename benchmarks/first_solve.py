"""The first solve of a residual function that nobody has seen: tracing, differentiation, compiling.

``python -m benchmarks.first_solve [--adapter NAME] [--ops 400] [--functions 0.1,0.4] [--repeats 5]
[--out FILE]``. ``--functions`` are shares of elementary functions (sin, tanh, exp) among the
operations; each is some thirty instructions, which drivers compile wherever it is called. Every
repetition makes another random function of about that many operations, so nothing is in any cache,
not even the driver's; the folder of caches on disk is a new one. The device is open, and one solve
of a small problem has been made before, so libraries are loaded. Beside it, where JAX is
installed: the first call of its ``jit`` of the same function with its Jacobian, for a batch.

What is written is the median, and where the time went: tracing, simplification and kernels (ours),
and the driver's compilation, which runs in parallel, so that its kernels add up to more than it
took. The first solve takes one step of Levenberg-Marquardt.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import autograd_gpu as ag
from autograd_gpu.disk_cache import FOLDER_VARIABLE
from autograd_gpu.events import Event, leave, listen
from benchmarks.metrics import RESULTS, Recorder, processor

ELEMENTS = 4000
LARGEST_RESIDUAL = 1e3
OPTIONS = ag.LevenbergMarquardtOptions(max_iterations=1)


def random_residual(ops: int, seed: int, share: float) -> Callable[[Any, Any, Any, Any], list[Any]]:
    """A function ``(m, p, q, d)`` of ``ops`` operations and 3 residuals; ``m`` has sin, tanh, exp.

    Every operation takes the last value, so that none is left out, and most an earlier one. A
    ``share`` of them, evenly spread, are elementary functions.
    """
    generator = np.random.default_rng(seed)
    functions = np.diff(np.floor(share * np.arange(ops + 1)).astype(int)) > 0
    kinds = generator.integers(0, 4, ops)
    others = generator.random(ops)

    def residual(m: Any, p: Any, q: Any, d: Any) -> list[Any]:
        values = [p[0], p[1], p[2], q[0], q[1], q[2], d]
        for k in range(ops):
            x, y = values[-1], values[int(others[k] * (len(values) - 1))]
            if functions[k]:
                values.append((m.sin, m.tanh, m.sin, lambda v: m.exp(-v * v))[kinds[k]](x))
            elif kinds[k] == 0:
                values.append(x + y)
            elif kinds[k] == 1:
                values.append(y - x)
            elif kinds[k] == 2:
                values.append(x * y)
            else:  # keeps values of order 1 at any depth
                values.append(0.5 * x)
        return values[-3:]

    return residual


class Seconds:
    """Seconds by kind of event, and from when to when drivers compiled."""

    def __init__(self) -> None:
        self.of: defaultdict[str, float] = defaultdict(float)
        self.compiling = math.inf, -math.inf

    def hear(self, event: Event) -> None:
        """Add an event."""
        if event.kind in ("generate", "compile"):
            self.of[f"{event.kind}: {event.name.partition('-')[2] or event.name}"] += event.seconds
        if event.kind == "compile":
            first, last = self.compiling
            self.compiling = min(first, event.start), max(last, event.start + event.seconds)

    def phases(self, began: float) -> dict[str, float]:
        """All of them, of a solve that began then."""
        first, last = self.compiling
        return {**self.of, "until the first text": first - began, "compile: all": last - first}


def moderate_seeds(ops: int, share: float, first: int) -> Iterator[int]:
    """Seeds of functions whose residuals are moderate: some square their values until infinity."""
    points, data = numbers(1000)
    for seed in itertools.count(first):
        with np.errstate(all="ignore"):
            values = random_residual(ops, seed, share)(np, points[:-1].T, points[1:].T, data)
        if all(np.abs(v).max() < LARGEST_RESIDUAL for v in values):
            yield seed


def numbers(elements: int) -> tuple[np.ndarray, np.ndarray]:
    """Points in order of 1, and data."""
    return np.random.default_rng(0).normal(size=(elements + 1, 3)), np.linspace(0.2, 1.0, elements)


def problem_of(ops: int, seed: int, elements: int, share: float = 0.1) -> ag.Problem:
    """A chain of points, an element for each pair."""
    points, data = numbers(elements)
    residual = random_residual(ops, seed, share)
    problem = ag.Problem()
    x = problem.parameters("x", points)
    problem.add_residuals(lambda p, q, d: residual(ag, p, q, d), x[:-1], x[1:], data)
    return problem


def first_solve(
    ops: int, seed: int, elements: int, share: float, solver: str, where: dict[str, Any]
) -> tuple[dict[str, float], int]:
    """Seconds of phases of a first solve, ``total`` among them, and operations of the residual."""
    heard = Seconds()
    listen(heard)
    began = time.perf_counter()
    problem = problem_of(ops, seed, elements, share)
    built = time.perf_counter()
    solution = ag.solve(problem, options=OPTIONS, linear_solver=solver, **where)
    total = time.perf_counter() - began
    leave(heard)
    graph = problem.groups[0].topology.graph
    seconds = {f"solve: {k}": v for k, v in solution.timings.items() if k != "total"}
    seconds |= heard.phases(began)
    return {"trace and simplify": built - began, "total": total, **seconds}, sum(
        bool(node.args) for node in graph.nodes
    )


def jax_first_call(ops: int, seed: int, elements: int, share: float) -> tuple[float, float] | None:
    """Seconds of the first call of JAX's jit of residuals and Jacobian, and of a second one."""
    try:
        jax: Any = importlib.import_module("jax")
    except ImportError:
        return None
    jnp = jax.numpy
    points, data = numbers(elements)
    residual = random_residual(ops, seed, share)

    def both(p: Any, q: Any, d: Any) -> tuple[Any, Any]:
        def of(pq: Any) -> Any:
            return jnp.stack(residual(jnp, pq[:3], pq[3:], d))

        pq = jnp.concatenate([p, q])
        return of(pq), jax.jacfwd(of)(pq)

    arguments = [jnp.asarray(a, jnp.float32) for a in (points[:-1], points[1:], data)]
    jax.block_until_ready(arguments)
    jitted = jax.jit(jax.vmap(both))
    began = time.perf_counter()
    jax.block_until_ready(jitted(*arguments))
    first = time.perf_counter() - began
    began = time.perf_counter()
    jax.block_until_ready(jitted(*arguments))
    return first, time.perf_counter() - began


def medians(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Median by key; a phase that a row lacks counts as 0 there."""
    keys = dict.fromkeys(k for row in rows for k in row)
    return {k: float(np.median([row.get(k, 0.0) for row in rows])) for k in keys}


def measure(record: Recorder, chosen: argparse.Namespace, where: dict[str, Any]) -> None:
    """First solves with each share of functions by each linear solver, and JAX."""
    elements = chosen.elements
    shares = [float(share) for share in chosen.functions.split(",")]
    cases = [(share, solver) for share in shares for solver in chosen.solvers.split(",")]
    for k, (share, solver) in enumerate(cases):
        first_solve(10, 1000 + k, 100, share, solver, where)  # what is loaded once a process
        runs = [
            first_solve(chosen.ops, seed, elements, share, solver, where)
            for seed in islice(moderate_seeds(chosen.ops, share, 100 * k), chosen.repeats)
        ]
        ops = int(np.median([count for _, count in runs]))
        found = medians([seconds for seconds, _ in runs])
        note = f"median of {len(runs)} functions of about {ops} operations, {elements} elements"
        key = f"first_solve/{share:.0%}_functions/{solver}"
        record.add(key, found.pop("total"), "s", note=note)
        for phase, seconds in found.items():
            record.add(f"{key}/{phase}", seconds, "s")
    for share in shares:
        seeds = islice(moderate_seeds(chosen.ops, share, 0), -(-chosen.repeats // 2))
        peers = [jax_first_call(chosen.ops, seed, elements, share) for seed in seeds]
        calls = [peer for peer in peers if peer is not None]
        if calls:
            jax: Any = importlib.import_module("jax")
            note = f"residuals and Jacobian alone, no solve; on {jax.devices()[0].device_kind}"
            key = f"first_solve/{share:.0%}_functions/jax"
            record.add(f"{key}_jit", float(np.median([c[0] for c in calls])), "s", note=note)
            record.add(f"{key}_again", float(np.median([c[1] for c in calls])), "s")


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter")
    parser.add_argument("--ops", type=int, default=400)
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--functions", default="0.1,0.4")
    parser.add_argument("--solvers", default="pcg")
    parser.add_argument("--backend", default="wgsl")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    chosen = parser.parse_args()
    where: dict[str, Any] = {"backend": chosen.backend}
    hardware = processor()
    if chosen.backend == "wgsl":
        device = ag.Device(chosen.adapter)
        hardware = device.name
        where |= {"precision": "float32", "device": device}
    record = Recorder(hardware, where.get("precision", "float64"), chosen.commit)
    print(hardware)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER_VARIABLE] = folder
        measure(record, chosen, where)
    label = hardware.split(" (")[0].replace(" ", "_")
    record.write(chosen.out or RESULTS / f"{label}_first_solve.json")


if __name__ == "__main__":
    main()
