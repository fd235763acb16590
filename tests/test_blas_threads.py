"""One BLAS thread while ours work: held, given back, and lifted for large products."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import scipy.linalg.lapack
from threadpoolctl import ThreadpoolController, threadpool_limits

import autograd_gpu as ag
from autograd_gpu.runtime.blas_threads import all_blas_threads, one_blas_thread
from autograd_gpu.solvers import dense_cholesky
from autograd_gpu.solvers.dense_cholesky import DenseCholesky
from workloads import curve_problem


def numbers() -> list[int]:
    """Threads of each copy of OpenBLAS."""
    found = ThreadpoolController().select(internal_api=["openblas", "blis"])
    return [library.num_threads for library in found.lib_controllers]


@pytest.fixture(autouse=True)
def three_threads():
    """As on a larger machine."""
    with threadpool_limits(3, user_api="blas"):
        if not numbers():
            pytest.skip("NumPy uses another BLAS here")
        yield


def test_held_to_one_thread_until_the_outermost_block_ends():
    before = numbers()
    assert set(before) == {3}
    with pytest.raises(ZeroDivisionError), one_blas_thread():
        assert set(numbers()) == {1}
        with one_blas_thread():
            pass
        assert set(numbers()) == {1}
        with one_blas_thread(False):
            assert set(numbers()) == {1}
        raise ZeroDivisionError
    assert numbers() == before
    with one_blas_thread(False):
        assert numbers() == before


def test_lifted_for_a_large_product_unless_others_hold_it_too():
    with all_blas_threads():
        assert set(numbers()) == {3}
    with one_blas_thread():
        with all_blas_threads():
            assert set(numbers()) == {3}
        assert set(numbers()) == {1}
        with one_blas_thread(), all_blas_threads():
            assert set(numbers()) == {1}
    assert set(numbers()) == {3}


def test_threads_that_overlap_leave_the_number_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def second():
        with one_blas_thread():
            entered.set()
            leave.wait(60.0)

    worker = threading.Thread(target=second)
    with one_blas_thread():
        worker.start()
        assert entered.wait(60.0)
    assert set(numbers()) == {1}
    leave.set()
    worker.join()
    assert set(numbers()) == {3}


@pytest.mark.parametrize(("samples", "during"), [(10_000, {1}), (100, {3})])
def test_a_solve_holds_it_where_kernels_run_in_threads(samples, during):
    seen: list[int] = []
    ag.solve(curve_problem(samples), backend="numpy", callback=lambda _: seen.extend(numbers()))
    assert set(seen) == during
    assert set(numbers()) == {3}


def test_a_function_of_the_user_keeps_its_threads():
    seen: list[int] = []

    def outside(x):
        seen.extend(numbers())
        return x, [np.ones((len(x), 1, 1))]

    problem = ag.Problem()
    x = problem.parameters("x", np.ones(5000))
    problem.add_external(outside, x, name="outside")
    assert ag.solve(problem, backend="numpy").success
    assert set(seen) == {3}


@pytest.mark.parametrize(("bound", "during"), [(1, {3}), (1000, {1})])
def test_a_large_dense_factorisation_takes_all_threads(bound, during, monkeypatch):
    monkeypatch.setattr(dense_cholesky, "_THREADED", bound)
    solver, seen = DenseCholesky(), []
    n = 80
    starts = np.concatenate([[0], np.cumsum(np.arange(n, 0, -1))])
    rows, columns = np.triu_indices(n)
    solver.analyze(starts, columns, n)
    lapack = scipy.linalg.lapack

    class Watched:
        @staticmethod
        def dpotrf(*arguments, **options):
            seen.extend(numbers())
            return lapack.dpotrf(*arguments, **options)

    monkeypatch.setattr(dense_cholesky.importlib, "import_module", lambda name: Watched)
    with one_blas_thread():
        assert solver.factorize(np.where(rows == columns, 100.0, 1.0))
    assert set(seen) == during
