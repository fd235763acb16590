"""The pool of threads: every task runs once, here too, and errors stop the rest."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from autograd_gpu.runtime import threads
from autograd_gpu.runtime.threads import run_in_threads


@pytest.fixture(params=[1, 2, 5])
def available(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(threads, "available_threads", lambda: request.param)
    threads._pool.cache_clear()
    yield request.param
    threads._pool.cache_clear()


@pytest.mark.parametrize("count", [0, 1, 2, 40])
def test_every_task_runs_once(available: int, count: int) -> None:
    done: list[int] = []
    run_in_threads([lambda k=k: done.append(k) for k in range(count)])
    assert sorted(done) == list(range(count))


def test_threads_run_beside_each_other_and_the_caller_is_one_of_them(available: int) -> None:
    met = threading.Barrier(available, timeout=60.0)
    who: list[int] = []

    def task() -> None:
        who.append(threading.get_ident())
        met.wait()

    run_in_threads([task] * available)
    assert len(set(who)) == available
    assert threading.get_ident() in who


def test_tasks_that_run_tasks_do_not_wait_for_each_other(available: int) -> None:
    done: list[int] = []

    def outer() -> None:
        run_in_threads([lambda k=k: done.append(k) for k in range(3)])

    run_in_threads([outer] * 8)
    assert sorted(done) == sorted([0, 1, 2] * 8)


@pytest.mark.parametrize("where", ["caller", "other"])
def test_an_error_is_raised_here_and_ends_the_rest(where: str, available: int) -> None:
    if where == "other" and available == 1:
        return
    caller, failed, done = threading.get_ident(), threading.Event(), list[int]()

    def task(number: int) -> None:
        if failed.is_set():
            time.sleep(0.005)
            done.append(number)
        elif (threading.get_ident() == caller) == (where == "caller"):
            failed.set()
            raise ValueError(where)
        else:
            assert failed.wait(60.0)

    with pytest.raises(ValueError, match=where):
        run_in_threads([lambda k=k: task(k) for k in range(1000)])
    assert len(done) < 900
