"""Solves and evaluations at once: the same bits as one after another, errors, cancelling."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import InputError
from autograd_gpu.runtime.device import Device


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    opened = Device(wgsl_adapters()[0])
    yield opened
    opened.close()


def several() -> list[ag.Problem]:
    """Different topologies, and two of the same one, so that kernels are shared."""
    makers: list[Callable[[], ag.Problem]] = [
        lambda: workloads.springs_problem(1),
        lambda: workloads.springs_problem(2),
        lambda: workloads.deformation_problem(1),
        lambda: workloads.bending_problem(1),
        lambda: workloads.curve_problem(300),
    ]
    return [make() for make in makers]


def bits(solution: ag.Solution) -> bytes:
    costs = np.array([r.cost for r in solution.history])
    return b"".join(v.tobytes() for v in solution.values.values()) + costs.tobytes()


async def all_at_once(problems: list[ag.Problem], **how: Any) -> list[ag.Solution]:
    return list(await asyncio.gather(*(ag.solve_async(p, **how) for p in problems)))


def test_solves_at_once_have_the_bits_of_solves_in_turn() -> None:
    one_by_one = [ag.solve(p, backend="numba") for p in several()]
    for _ in range(2):
        together = asyncio.run(all_at_once(several(), backend="numba"))
        assert [bits(s) for s in together] == [bits(s) for s in one_by_one]


@pytest.mark.wgsl
def test_several_problems_on_one_device(device: Device) -> None:
    how: dict[str, Any] = {"backend": "wgsl", "device": device, "linear_solver": "pcg"}
    options = ag.LevenbergMarquardtOptions(max_iterations=6)
    one_by_one = [ag.solve(p, options=options, **how) for p in several()]
    before = device.counters.snapshot()
    together = asyncio.run(all_at_once(several(), options=options, **how))
    after = device.counters.snapshot()
    assert [bits(s) for s in together] == [bits(s) for s in one_by_one]
    assert after.pipelines_created == before.pipelines_created, "kernels are shared by threads"


@pytest.mark.wgsl
def test_evaluations_at_once(device: Device) -> None:
    async def run(problems: list[ag.Problem]) -> list[ag.Problem]:
        calls = [
            ag.evaluate_async(p, backend=b, device=device if b == "wgsl" else None)
            for p in problems
            for b in ("numpy", "numba", "wgsl")
        ]
        return list(await asyncio.gather(*calls))

    problems = several()
    found = asyncio.run(run(problems))
    for k, problem in enumerate(several()):
        for j, backend in enumerate(("numpy", "numba", "wgsl")):
            alone = problem.evaluate(backend, device=device if backend == "wgsl" else None)
            assert found[3 * k + j].residuals.tobytes() == alone.residuals.tobytes()
            assert found[3 * k + j].jacobian.data.tobytes() == alone.jacobian.data.tobytes()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_one_problem_many_times_at_once(backend: str) -> None:
    problem = workloads.springs_problem(1)
    alone = bits(ag.solve(workloads.springs_problem(1), backend=backend))
    together = asyncio.run(all_at_once([problem] * 4, backend=backend))
    assert {bits(s) for s in together} == {alone}


def test_threads_may_share_a_problem_without_asyncio() -> None:
    problem = workloads.springs_problem(1)
    wanted = problem.evaluate(backend="numba").residuals.tobytes()
    found: list[bytes] = []

    def work() -> None:
        found.extend(problem.evaluate(backend="numba").residuals.tobytes() for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {wanted} and len(found) == 80


def test_errors_reach_whoever_waits() -> None:
    async def run() -> list[Any]:
        good = ag.solve_async(workloads.springs_problem(1), backend="numba")
        bad = ag.solve_async(workloads.springs_problem(1), linear_solver="none")
        return list(await asyncio.gather(good, bad, return_exceptions=True))

    good, bad = asyncio.run(run())
    assert good.status.converged
    assert isinstance(bad, InputError)
    with pytest.raises(InputError, match="callback: got int"):
        asyncio.run(all_at_once([workloads.springs_problem(1)], callback=3))


def test_a_callback_sees_every_iteration_and_values() -> None:
    seen: list[int] = []

    def callback(record: Any, values: dict[str, Any]) -> bool:
        seen.append(record.iteration)
        return values["x"].shape != (42, 3)

    (solution,) = asyncio.run(all_at_once([workloads.springs_problem(1)], callback=callback))
    assert seen == [r.iteration for r in solution.history]


def test_cancelling_stops_the_solve() -> None:
    started, go_on = threading.Event(), threading.Event()
    seen: list[int] = []

    def callback(record: Any) -> bool:
        seen.append(record.iteration)
        started.set()
        assert go_on.wait(60.0)
        return False

    async def run() -> ag.Solution:
        problem = workloads.springs_problem(1)
        task = asyncio.create_task(ag.solve_async(problem, backend="numpy", callback=callback))
        await asyncio.to_thread(started.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        # Waits until the first has let go of the problem.
        return await ag.solve_async(problem, backend="numpy")

    assert asyncio.run(run()).status.converged
    assert len(seen) == 1
