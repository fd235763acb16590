"""JᵀJ v of as-rigid-as-possible on a device: every materialisation, JAX, and the bytes alone.

``python -m benchmarks.jtj_product [--adapter NAME] [--level 8] [--copy-rate 4.29e12]``.
Ours is the product inside a resident solve (with damping and the sums that conjugate gradients
need, J linearized before) and the single product of ``Operators``, its linearization included
where something is stored. JAX is measured in the same run where it is installed: J linearized
once, then products by its ``jvp`` and transpose in one jitted function; and all of it anew in each
product, where XLA may fuse. The faster counts. The floor is reading each input and writing each
output once at the speed of a copy.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import workloads
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
from autograd_gpu.runtime.schedules import MATERIALISATIONS, WORKGROUP_SIZES, Schedule
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.device_solve import BYTES_PER_SECOND
from benchmarks.metrics import RESULTS, Recorder, slope


def ours(record: Recorder, device: Device, level: int, key: str) -> tuple[float, np.ndarray]:
    """Seconds of the fastest product in a solve, and JᵀJ v at a turned pose for the check."""
    problem = workloads.deformation_problem(level)
    analysis = problem.analysis()
    start = current_parameters(problem)
    x = point(start)
    chooser = ScheduleChooser("solve", identity_of(device))
    # Vertices are ordered where they start, as in a solve; the turned pose is a cloud of noise.
    base = NodeTables(array_layouts(analysis), analysis.groups, start, schedules=chooser)
    chosen = base.schedules
    best = np.inf
    for materialise in MATERIALISATIONS:
        for size in WORKGROUP_SIZES:
            schedules = [Schedule(materialise=materialise, workgroup_size=size)]
            seconds = product_seconds(device, base.rescheduled(schedules * 2), x)
            record.add(f"{key}/in_solve/{schedules[0]}", seconds * 1e6, "us")
            best = min(best, seconds)
    seconds = product_seconds(device, base.rescheduled(chosen), x)
    record.add(f"{key}/in_solve/chosen", seconds * 1e6, "us", note="; ".join(map(str, chosen)))
    vector = direction(x.size)
    tried = [Schedule(materialise="nothing", workgroup_size=size) for size in WORKGROUP_SIZES]
    for schedule in [*tried, Schedule(materialise="jacobian")]:
        with Operators(device, base.rescheduled([schedule] * 2)) as operators:
            result = operators.jtj_product(x, vector)

            def run(count: int, on: Operators = operators) -> None:
                on.runner.run(["jtj_product"] * count)

            alone = slope(run, 5, 55, 5)
        record.add(f"{key}/alone/{schedule}", alone * 1e6, "us", note="linearization included")
        if schedule in tried:
            best = min(best, alone)
    record.add(f"{key}/ours", best * 1e6, "us", note="the fastest of these")
    return best, result


def point(x: np.ndarray) -> np.ndarray:
    """A pose at which no rotation is zero, where derivatives would be those of a special case."""
    return x + 0.3 * np.random.default_rng(0).standard_normal(x.size)


def direction(size: int) -> np.ndarray:
    """What J is multiplied with."""
    return np.random.default_rng(1).standard_normal(size)


def product_seconds(device: Device, tables: NodeTables, x: np.ndarray) -> float:
    """Seconds of the product in a resident solve, by the slope over products behind a step."""
    solve = DeviceSolve(device, tables)
    solve.start(x, 1e-4, 0.0, 1e-3)

    def repeat(*sequences: str) -> Callable[[int], None]:
        def run(count: int) -> None:
            solve.runner.run([*sequences] * count)
            solve.runner.read("state")

        return run

    # Products one after another change nothing but their own result and sums.
    few, many = ("linearize", "product"), ("linearize", *("product",) * 9)
    difference = slope(repeat(*many), 2, 22, 5) - slope(repeat(*few), 2, 22, 5)
    solve.close()
    return difference / 8


def floor_bytes(level: int) -> int:
    """Parameters, vector and result of every vertex; ends and rest vector of every edge."""
    arrays = workloads.w2(level)
    return 4 * (3 * 6 * len(arrays["p"]) + (2 + 3) * len(arrays["de"]))


# -- JAX -----------------------------------------------------------------------------------------


def jax_seconds(level: int) -> tuple[float, float, np.ndarray] | None:
    """Seconds of a product, linearized before and anew, and the product; None without JAX."""
    try:
        jax: Any = importlib.import_module("jax")
    except ImportError:
        return None
    jnp = jax.numpy
    arrays = workloads.w2(level)
    i, j = (jnp.asarray(arrays["de"][:, k]) for k in (0, 1))
    q, t = jnp.asarray(arrays["q"], jnp.float32), jnp.asarray(arrays["t"], jnp.float32)
    h = jnp.asarray(arrays["h"])

    def rotate(r: Any, v: Any) -> Any:
        # Rodrigues with safe divisions, as the residual function of the workload.
        s = (r * r).sum(1, keepdims=True)
        angle = jnp.sqrt(s)
        c = jnp.cross(r, v)
        return v + jnp.sin(angle) / angle * c + (1 - jnp.cos(angle)) / s * jnp.cross(r, c)

    def residuals(p: Any) -> Any:
        x, r = p
        edges = (x[j] - x[i]) - rotate(r[i], q)
        return edges, 10.0 * (x[h] - t)

    count = len(arrays["p"])
    flat = point(np.concatenate([arrays["x0"].ravel(), arrays["r0"].ravel()]))

    def split(vector: np.ndarray) -> Any:
        halves = vector.reshape(2, count, 3)
        return tuple(jnp.asarray(half, jnp.float32) for half in halves)

    p, v = split(flat), split(direction(flat.size))
    _, jvp = jax.linearize(residuals, p)
    closed = jax.make_jaxpr(jvp)(v)
    flat_v, tree = jax.tree_util.tree_flatten(v)

    def both(consts: Any, vector: Any) -> Any:
        def image(*parts: Any) -> Any:
            return jax.core.eval_jaxpr(closed.jaxpr, consts, *parts)

        return jax.linear_transpose(image, *vector)(image(*vector))

    def anew(point: Any, vector: Any) -> Any:
        image = jax.jvp(residuals, (point,), (vector,))[1]
        return jax.vjp(residuals, point)[1](image)[0]

    amortised = clock(jax.jit(both), closed.consts, tuple(flat_v))
    fused = clock(jax.jit(anew), p, v)
    result = jax.tree_util.tree_unflatten(tree, jax.jit(both)(closed.consts, tuple(flat_v)))
    return amortised, fused, np.concatenate([np.asarray(part).ravel() for part in result])


def clock(function: Callable[..., Any], *arguments: Any) -> float:
    """Median seconds of a call, fifty back to back, warmed up."""
    jax: Any = importlib.import_module("jax")
    jax.block_until_ready(function(*arguments))
    began = time.perf_counter()
    while time.perf_counter() - began < 0.5:
        jax.block_until_ready(function(*arguments))
    seconds: list[float] = []
    for _ in range(7):
        t0 = time.perf_counter()
        for _ in range(50):
            out = function(*arguments)
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - t0) / 50)
    return float(np.median(seconds))


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter")
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--copy-rate", type=float, default=BYTES_PER_SECOND)
    parser.add_argument("--commit")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = Device(chosen.adapter)
    record = Recorder(device.name, "float32", chosen.commit)
    key = f"arap_level{chosen.level}/jtj_product"
    seconds, product = ours(record, device, chosen.level, key)
    floor = floor_bytes(chosen.level) / chosen.copy_rate
    record.add(f"{key}/bytes_floor", floor * 1e6, "us", note=f"at {chosen.copy_rate:.3g} B/s")
    record.add(f"{key}/times_the_floor", seconds / floor, "x", note="bar: at most 2")
    peer = jax_seconds(chosen.level)
    if peer is not None:
        amortised, fused, theirs = peer
        record.add(f"{key}/jax_linearized_before", amortised * 1e6, "us")
        record.add(f"{key}/jax_anew", fused * 1e6, "us")
        faster = min(amortised, fused) / seconds
        record.add(f"{key}/times_faster_than_jax", faster, "x", "higher", note="bar: at least 5")
        error = np.abs(product - theirs).max() / np.abs(theirs).max()
        record.add(f"{key}/difference_from_jax", error, "rel")
    label = device.adapter.name.replace(" ", "_")
    record.write(chosen.out or RESULTS / f"{label}_jtj_product.json")


if __name__ == "__main__":
    main()
