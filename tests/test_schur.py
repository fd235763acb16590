"""Schur complements: what is eliminated, and that the solution is that of the whole system."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

import autograd_gpu as ag
from autograd_gpu.runtime import host_assembly
from autograd_gpu.runtime.block_assembly import BlockAssembly
from autograd_gpu.solvers import linear_solvers, schur
from autograd_gpu.solvers.block_elimination import eliminate_blocks
from autograd_gpu.solvers.direct_solver import DirectSolver
from autograd_gpu.solvers.elimination import eliminate
from autograd_gpu.solvers.linear_solvers import choose_linear_solver
from autograd_gpu.solvers.normal_equations import NormalEquations
from autograd_gpu.solvers.schur import ImplicitSchurComplement, SchurComplement
from autograd_gpu.solvers.sparse_cholesky import PardisoCholesky, SuperLUCholesky
from workloads import MINIMA, bundle_problem, reprojection_error, w3


def random_system(
    rng: np.random.Generator, widths: list[int], links: float
) -> tuple[np.ndarray, sparse.csr_matrix]:
    """A random positive definite matrix of dense blocks, some of them linked; its upper part."""
    block = np.repeat(np.arange(len(widths)), widths)
    linked = np.triu(rng.random((len(widths), len(widths))) < links, 1)
    linked = linked | linked.T | np.eye(len(widths), dtype=bool)
    pattern = linked[block][:, block]
    half = np.where(pattern, rng.standard_normal(pattern.shape), 0.0)
    A = half + half.T
    A += np.diag(np.abs(A).sum(axis=1) + 1.0)
    order = rng.permutation(len(block))
    A, pattern = A[order][:, order], pattern[order][:, order]
    upper = sparse.csr_matrix(np.triu(pattern).astype(float))
    rows = np.repeat(np.arange(len(A)), np.diff(upper.indptr))
    upper.data = A[rows, upper.indices]
    return A, upper


def bundle_like(rng: np.random.Generator) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Normal equations of 3 cameras with 4 numbers and 30 points with 3."""
    cameras, points = 3, 30
    rows = []
    for point in range(points):
        for camera in rng.choice(cameras, 2, replace=False):
            for _ in range(2):
                row = np.zeros(4 * cameras + 3 * points)
                row[4 * camera : 4 * camera + 4] = rng.standard_normal(4)
                first = 4 * cameras + 3 * point
                row[first : first + 3] = rng.standard_normal(3)
                rows.append(row)
    J = np.array(rows)
    A = J.T @ J + np.eye(J.shape[1])
    upper = sparse.csr_matrix(np.triu(A))
    return A, upper


def test_points_are_eliminated_and_cameras_kept():
    _, upper = bundle_like(np.random.default_rng(0))
    split = eliminate(upper.indptr, upper.indices)
    np.testing.assert_array_equal(split.kept, np.arange(12))
    np.testing.assert_array_equal(np.diff(split.block_starts), np.full(30, 3))
    np.testing.assert_array_equal(split.kept_blocks, np.repeat([0, 1, 2], 4))


def test_eliminated_blocks_are_never_neighbours():
    rng = np.random.default_rng(1)
    for _ in range(20):
        A, upper = random_system(rng, list(rng.integers(1, 5, 25)), rng.uniform(0.0, 0.4))
        split = eliminate(upper.indptr, upper.indices)
        together = np.sort(np.concatenate([split.eliminated, split.kept]))
        np.testing.assert_array_equal(together, np.arange(len(A)))
        block = np.repeat(np.arange(len(split.block_starts) - 1), np.diff(split.block_starts))
        C = A[split.eliminated][:, split.eliminated]
        assert not C[block[:, None] != block[None, :]].any()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("points_first", [False, True])
def test_known_blocks_give_the_split_that_is_found_without_them(points_first, frozen):
    arrays = w3(4, 60)
    problem = ag.Problem()
    starts = {"cameras": arrays["cam0"], "points": arrays["X0"]}
    names = sorted(starts, reverse=points_first)
    made = {name: problem.parameters(name, starts[name]) for name in names}
    camera, point = made["cameras"], made["points"]
    problem.add_residuals(
        reprojection_error, camera[arrays["ci"]], point[arrays["pi"]], arrays["obs"]
    )
    # Neighbours among cameras and among points.
    problem.add_residuals(lambda a, b: a * ag.dot(a, b), camera[[0, 1]], camera[[1, 2]])
    problem.add_residuals(lambda a, b: a * ag.dot(a, b), point[[0, 1, 5]], point[[1, 2, 9]])
    if frozen:
        problem.freeze(camera, [2])
        problem.freeze(point, [0, 7])
    blocks = problem.analysis().unknown_blocks
    normal = NormalEquations(BlockAssembly(blocks.starts, blocks.groups))
    assert normal.blocks is not None
    ours = eliminate_blocks(normal.blocks, normal.indptr, normal.indices)
    found = eliminate(normal.indptr, normal.indices)
    for field in dataclasses.fields(found):
        np.testing.assert_array_equal(
            getattr(ours, field.name), getattr(found, field.name), err_msg=field.name
        )


@pytest.fixture(params=["explicit", "explicit, sparse", "implicit"])
def solver(request, monkeypatch):
    if request.param == "explicit, sparse":
        monkeypatch.setattr(schur, "DENSE_KEPT", 0)
    made = ImplicitSchurComplement(1e-13) if request.param == "implicit" else SchurComplement()
    yield made
    made.close()


def test_solution_is_that_of_the_whole_system(solver):
    rng = np.random.default_rng(2)
    systems = [
        random_system(rng, list(rng.integers(1, 6, 30)), links)
        for links in (0.0, 0.05, 0.2, 0.5, 1.0)
    ]
    for A, upper in [*systems, bundle_like(rng)]:
        solver.analyze(upper.indptr, upper.indices, len(A))
        for scale in (1.0, 3.0):
            assert solver.factorize(scale * upper.data)
            b = rng.standard_normal((len(A), 2))
            np.testing.assert_allclose(scale * A @ solver.solve(b), b, atol=1e-9)
            np.testing.assert_allclose(scale * A @ solver.solve(b[:, 0]), b[:, 0], atol=1e-9)


def test_an_indefinite_reduced_system_is_reported():
    # Both blocks on the diagonal are positive, their coupling is too strong.
    upper = sparse.csr_matrix(np.array([[1.0, 2.0], [0.0, 1.0]]))
    solver = SchurComplement()
    solver.analyze(upper.indptr, upper.indices, 2)
    assert not solver.factorize(upper.data)


def test_implicit_iterations_stop_at_the_tolerance():
    A, upper = bundle_like(np.random.default_rng(3))
    solver, counts = ImplicitSchurComplement(), []
    solver.analyze(upper.indptr, upper.indices, len(A))
    assert solver.factorize(upper.data)
    b = np.random.default_rng(4).standard_normal(len(A))
    for tolerance in (1e-2, 1e-6, 1e-12):
        solver.tolerance = tolerance
        x = solver.solve(b)
        counts.append(solver.iterations)
        assert np.linalg.norm(A @ x - b) < 30.0 * tolerance * np.linalg.norm(b)
    assert 0 < counts[0] < counts[1] < counts[2] <= 12 + 2
    solver.close()


@pytest.mark.parametrize("name", ["schur", "schur-implicit"])
def test_bundle_adjustment_reaches_the_same_point(name):
    problem = bundle_problem(cameras=8, points=300)
    wanted = ag.solve(problem, linear_solver="sparse-cholesky", backend="numba")
    found = ag.solve(problem, linear_solver=name, backend="numba")
    assert "eliminated" in found.linear_solver
    np.testing.assert_allclose(found.cost, wanted.cost, rtol=1e-9)


def test_w3_reaches_its_minimum():
    solution = ag.solve(bundle_problem(), linear_solver="schur", backend="numba")
    assert "60000 of 60540 unknowns eliminated" in solution.linear_solver
    np.testing.assert_allclose(solution.cost, MINIMA["W3"], rtol=1e-7)


def test_automatic_choice_takes_it_where_no_fast_library_is(monkeypatch):
    problem = bundle_problem(cameras=8, points=1000)
    normal = problem.analysis().normal_equations
    pattern = (normal.indptr, normal.indices)
    monkeypatch.setattr(linear_solvers, "fastest_sparse_cholesky", SuperLUCholesky)
    chosen, why = choose_linear_solver("auto", normal.n, len(normal.indices), pattern)
    assert isinstance(chosen, SchurComplement)
    assert "3000 of 3072" in why


def test_automatic_choice_counts_kept_unknowns_by_blocks(monkeypatch):
    monkeypatch.setattr(linear_solvers, "fastest_sparse_cholesky", SuperLUCholesky)
    monkeypatch.delattr(linear_solvers, "eliminate")
    normal = bundle_problem(cameras=8, points=1000).analysis().normal_equations
    pattern = (normal.indptr, normal.indices)
    nnz = len(normal.indices)
    chosen, why = choose_linear_solver("auto", normal.n, nnz, pattern, normal.blocks)
    assert isinstance(chosen, SchurComplement)
    assert "3000 of 3072" in why


def test_automatic_choice_beside_pardiso_weighs_the_square_that_is_left(monkeypatch):
    class AsIfInstalled(PardisoCholesky):
        def __init__(self):
            DirectSolver.__init__(self)
            self._finalizer = None

    monkeypatch.setattr(linear_solvers, "fastest_sparse_cholesky", AsIfInstalled)
    chosen = {}
    for cameras, points in ((8, 1000), (60, 1600)):
        normal = bundle_problem(cameras, points).analysis().normal_equations
        pattern = (normal.indptr, normal.indices)
        nnz = len(normal.indices)
        chosen[cameras] = choose_linear_solver("auto", normal.n, nnz, pattern, normal.blocks)
    assert isinstance(chosen[8][0], SchurComplement)
    assert "PARDISO's symbolic phase" in chosen[8][1]
    assert isinstance(chosen[60][0], AsIfInstalled)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_bit_depends_on_the_number_of_threads(threads, monkeypatch):
    monkeypatch.setattr(host_assembly, "available_threads", lambda: threads)
    monkeypatch.setattr(host_assembly, "_SERIAL_WORK", 1)
    A, upper = bundle_like(np.random.default_rng(4))
    solver = SchurComplement()
    solver.analyze(upper.indptr, upper.indices, len(A))
    assert solver.factorize(upper.data)
    found = solver.solve(np.arange(len(A), dtype=float))
    solver.close()
    np.testing.assert_array_equal(found, _solved_by_three_threads(A, upper, monkeypatch))


def _solved_by_three_threads(A, upper, monkeypatch):
    monkeypatch.setattr(host_assembly, "available_threads", lambda: 3)
    solver = SchurComplement()
    solver.analyze(upper.indptr, upper.indices, len(A))
    solver.factorize(upper.data)
    found = solver.solve(np.arange(len(A), dtype=float))
    solver.close()
    return found
