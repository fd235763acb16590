"""Direct solvers: solutions, definiteness, reuse after failure, and the choice among them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from scipy import sparse

from autograd_gpu.errors import InputError, MissingDependencyError, ShapeError, SolveError
from autograd_gpu.solvers.linear_solvers import (
    LINEAR_SOLVERS,
    DenseCholesky,
    LinearSolver,
    choose_linear_solver,
)
from autograd_gpu.solvers.schur import SchurComplement
from autograd_gpu.solvers.sparse_cholesky import (
    CholmodCholesky,
    PardisoCholesky,
    SuperLUCholesky,
    available_sparse_cholesky,
)

CLASSES = {
    "DenseCholesky": DenseCholesky,
    "Schur": SchurComplement,
    "SuperLU": SuperLUCholesky,
    "PARDISO": PardisoCholesky,
    "CHOLMOD": CholmodCholesky,
}


@pytest.fixture(params=CLASSES)
def solver(request):
    found = {name: (present, how) for name, present, how in available_sparse_cholesky()}
    present, how = found.get(request.param, (True, ""))
    if not present:
        with pytest.raises(MissingDependencyError, match="pip install"):
            CLASSES[request.param]()
        pytest.skip(f"{request.param} is not installed: {how}")
    made = CLASSES[request.param]()
    yield made
    made.close()


def grid_laplacian(k: int) -> sparse.csr_matrix:
    """Upper triangle of the Laplacian of a k by k grid plus the identity, sorted CSR."""
    line = sparse.diags_array([-np.ones(k - 1), np.ones(k - 1)], offsets=[-1, 1])
    path = sparse.eye_array(k)
    links = abs(sparse.kron(line, path) + sparse.kron(path, line))
    upper = sparse.csr_matrix(sparse.triu(sparse.eye_array(k * k) * 5.0 - links))
    upper.sort_indices()
    return upper


def full(upper: sparse.csr_matrix) -> np.ndarray:
    return (upper + sparse.triu(upper, 1).T).toarray()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_solves_a_grid(solver: LinearSolver, dtype):
    upper = grid_laplacian(15)
    n = upper.shape[0]
    solver.analyze(upper.indptr.astype(dtype), upper.indices.astype(dtype), n)
    assert solver.factorize(upper.data)
    b = np.random.default_rng(0).standard_normal(n)
    x = solver.solve(b)
    assert x.shape == (n,)
    np.testing.assert_allclose(full(upper) @ x, b, atol=1e-12)


def test_many_right_hand_sides(solver: LinearSolver):
    upper = grid_laplacian(6)
    solver.analyze(upper.indptr, upper.indices, 36)
    assert solver.factorize(upper.data)
    B = np.random.default_rng(0).standard_normal((36, 4))
    original = B.copy()
    np.testing.assert_allclose(full(upper) @ solver.solve(B), B, atol=1e-12)
    np.testing.assert_array_equal(B, original)


def test_changed_values_are_factorised_again(solver: LinearSolver):
    upper = grid_laplacian(9)
    solver.analyze(upper.indptr, upper.indices, 81)
    b = np.arange(81.0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        upper.data *= 1.0 + 0.05 * rng.random(upper.data.size)
        assert solver.factorize(upper.data)
        x = solver.solve(b)
        np.testing.assert_allclose(full(upper) @ x, b, atol=1e-11)
    upper.data[:] = np.nan  # the caller's buffer may change before the next solve
    np.testing.assert_array_equal(solver.solve(b), x)


@pytest.mark.parametrize("break_it", ["negative", "indefinite", "zero", "nan", "inf"])
def test_not_positive_definite_is_reported_and_survived(solver: LinearSolver, break_it):
    upper = grid_laplacian(9)
    solver.analyze(upper.indptr, upper.indices, 81)
    good, b = upper.data.copy(), np.ones(81)
    bad = good.copy()
    middle = upper.indptr[40]
    if break_it == "indefinite":  # positive diagonal, strong coupling
        bad[middle + 1] = 50.0
    else:
        bad[middle] = {"negative": -1.0, "zero": 0.0, "nan": np.nan, "inf": np.inf}[break_it]
    for first in (bad, good):
        assert solver.factorize(first) == (first is good)
        assert not solver.factorize(bad)
        with pytest.raises(SolveError, match="no factorisation"):
            solver.solve(b)
        assert solver.factorize(good)
        np.testing.assert_allclose(full(upper) @ solver.solve(b), b, atol=1e-12)


def test_one_unknown(solver: LinearSolver):
    solver.analyze(np.array([0, 1], np.int32), np.array([0], np.int32), 1)
    assert solver.factorize(np.array([4.0]))
    np.testing.assert_allclose(solver.solve(np.array([2.0])), [0.5])
    assert not solver.factorize(np.array([0.0]))
    assert not solver.factorize(np.array([-1.0]))


def test_singular_matrix_is_not_positive_definite(solver: LinearSolver):
    solver.analyze(np.array([0, 1, 2, 3], np.int32), np.array([0, 1, 2], np.int32), 3)
    assert not solver.factorize(np.array([1.0, 0.0, 1.0]))
    assert solver.factorize(np.array([1.0, 2.0, 4.0]))
    np.testing.assert_allclose(solver.solve(np.ones(3)), [1.0, 0.5, 0.25])


def test_definiteness_of_random_matrices(solver: LinearSolver):
    # Few links, so several connected components: PARDISO overlooks some last pivots there.
    rng = np.random.default_rng(0)
    for shift in np.tile([-0.5, -1e-2, -1e-6, 1e-6, 1e-2], 40):
        n = int(rng.integers(1, 30))
        A = np.where(rng.random((n, n)) < 0.05, rng.standard_normal((n, n)), 0.0)
        A = np.triu(A, 1) + np.triu(A, 1).T
        A += (shift - np.linalg.eigvalsh(A)[0]) * np.eye(n)
        upper = sparse.csr_matrix(np.triu(A + 100.0 * np.eye(n)))
        upper.data[upper.indptr[:-1]] -= 100.0  # the diagonal is stored even where it is zero
        solver.analyze(upper.indptr, upper.indices, n)
        assert solver.factorize(upper.data) == (shift > 0)


def test_new_pattern_and_use_after_close(solver: LinearSolver):
    for k in (4, 7):
        upper = grid_laplacian(k)
        solver.analyze(upper.indptr, upper.indices, k * k)
        assert solver.factorize(upper.data)
        b = np.ones(k * k)
        np.testing.assert_allclose(full(upper) @ solver.solve(b), b, atol=1e-12)
        solver.close()
        with pytest.raises(SolveError, match="analyze"):
            solver.factorize(upper.data)


def test_wrong_arrays_are_named(solver: LinearSolver):
    upper = grid_laplacian(4)
    with pytest.raises(ShapeError, match="diagonal"):
        lower = sparse.csr_matrix(upper.T)
        solver.analyze(lower.indptr, lower.indices, 16)
    with pytest.raises(ShapeError, match="row starts"):
        solver.analyze(upper.indptr, upper.indices, 15)
    with pytest.raises(SolveError, match="analyze"):
        solver.factorize(upper.data)
    solver.analyze(upper.indptr, upper.indices, 16)
    with pytest.raises(ShapeError, match="one per entry"):
        solver.factorize(upper.data[:-1])
    assert solver.factorize(upper.data)
    with pytest.raises(ShapeError, match="right-hand side"):
        solver.solve(np.ones(17))


def test_dropping_an_open_solver_is_harmless(solver: LinearSolver):
    upper = grid_laplacian(5)
    other = type(solver)()
    other.analyze(upper.indptr, upper.indices, 25)
    assert other.factorize(upper.data)
    solver.analyze(upper.indptr, upper.indices, 25)
    assert solver.factorize(2.0 * upper.data)
    del other
    gc.collect()
    b = np.ones(25)
    np.testing.assert_allclose(full(upper) @ solver.solve(b), 0.5 * b, atol=1e-12)


def test_sparse_solution_is_the_same_to_the_bit_in_every_run(solver: LinearSolver):
    upper = grid_laplacian(60)
    solver.analyze(upper.indptr, upper.indices, 3600)
    b = np.random.default_rng(0).standard_normal(3600)
    solutions = []
    for _ in range(3):
        if isinstance(solver, SuperLUCholesky):  # its first factorisation finds the ordering
            assert solver.factorize(upper.data)
        assert solver.factorize(upper.data)
        solutions.append(solver.solve(b))
    np.testing.assert_array_equal(solutions[0], solutions[1])
    np.testing.assert_array_equal(solutions[0], solutions[2])


def test_threads_of_pardiso_sleep_soon_and_others_are_left_as_they_were():
    from autograd_gpu.solvers import sparse_cholesky

    try:
        openmp = sparse_cholesky._load_openmp()
    except MissingDependencyError:
        pytest.skip("PARDISO is not installed")
    if openmp is None:
        pytest.skip("MKL has other threads than Intel's OpenMP here")
    solver, seen = PardisoCholesky(), []
    upper = grid_laplacian(5)
    openmp.kmp_set_blocktime(37)
    solver.analyze(upper.indptr, upper.indices, 25)
    inner = solver._handle.routine

    def watched(*arguments):
        seen.append(openmp.kmp_get_blocktime())
        inner(*arguments)

    solver._handle.routine = watched
    assert solver.factorize(upper.data)
    assert openmp.kmp_get_blocktime() == 37
    openmp.kmp_set_blocktime(0)  # what is shorter already stays
    solver.solve(np.ones(25))
    assert openmp.kmp_get_blocktime() == 0
    assert set(seen[:-1]) == {1}
    assert seen[-1] == 0
    openmp.kmp_set_blocktime(200)
    solver.close()


def test_choice():
    chosen, why = choose_linear_solver("auto", 5, 15)
    assert isinstance(chosen, DenseCholesky)
    assert "5 unknowns" in why
    chosen, why = choose_linear_solver("auto", 2000, 2000 * 2001 // 2)
    assert isinstance(chosen, DenseCholesky)
    assert "full" in why
    chosen, why = choose_linear_solver("auto", 60_000, 1_300_000)
    assert chosen.name.startswith("sparse-cholesky (")
    assert "Cholesky" in why
    chosen.close()
    chosen, _ = choose_linear_solver("sparse-cholesky", 5, 15)
    assert chosen.name.startswith("sparse-cholesky (")
    chosen, _ = choose_linear_solver("dense-cholesky", 5000, 15_000)
    assert chosen.name.startswith("dense-cholesky")


def test_choice_without_fast_libraries_says_what_would_be_faster(monkeypatch):
    from autograd_gpu.solvers import sparse_cholesky

    def missing():
        raise MissingDependencyError("not here")

    monkeypatch.setattr(sparse_cholesky, "_load_mkl", missing)
    monkeypatch.setattr(sparse_cholesky, "_load_cholmod", missing)
    chosen, why = choose_linear_solver("auto", 60_000, 1_300_000)
    assert isinstance(chosen, SuperLUCholesky)
    assert "pip install autograd-gpu[fast]" in why
    assert [found for _, found, _ in available_sparse_cholesky()] == [False, False, True]


def test_unknown_solvers():
    with pytest.raises(InputError) as caught:
        choose_linear_solver("cholesky", 5, 15)
    assert all(name in str(caught.value) for name in LINEAR_SOLVERS)
