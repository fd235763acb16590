"""QR of the Jacobian: the step of the damped problem, digits that JᵀJ loses, whole solves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import autograd_gpu as ag
from autograd_gpu.errors import InputError, SolveError
from autograd_gpu.solvers import dense_qr
from autograd_gpu.solvers.dense_qr import DenseQR
from workloads import springs_problem


@pytest.mark.parametrize(("rows", "columns"), [(20, 7), (7, 7), (4, 9), (1, 1)])
def test_step_is_that_of_the_damped_problem(rows, columns):
    rng = np.random.default_rng(rows)
    J, r = rng.standard_normal((rows, columns)), rng.standard_normal(rows)
    matrix, solver = sparse.csr_matrix(J), DenseQR()
    solver.analyze(np.zeros(1, int), np.zeros(0, int), columns)
    solver.linearize(matrix, r)
    for scale in (1e-6, 1.0, 1e6):
        damping = scale * rng.uniform(0.5, 2.0, columns)
        assert solver.damp(damping)
        stacked = np.vstack([J, np.diag(np.sqrt(damping))])
        wanted = -np.linalg.lstsq(stacked, np.concatenate([r, np.zeros(columns)]), rcond=None)[0]
        np.testing.assert_allclose(solver.step(), wanted, rtol=1e-8, atol=1e-12)


def test_a_jacobian_is_factorised_once(monkeypatch):
    counted = []
    reduced = dense_qr._reduced
    monkeypatch.setattr(dense_qr, "_reduced", lambda *a: counted.append(a[0].shape) or reduced(*a))
    matrix, solver = sparse.csr_matrix(np.eye(5, 3)), DenseQR()
    solver.analyze(np.zeros(1, int), np.zeros(0, int), 3)
    for scale in (1.0, 2.0, 3.0):
        solver.linearize(matrix, np.ones(5))
        assert solver.damp(np.full(3, scale))
    assert counted == [(5, 3), (6, 3), (6, 3), (6, 3)]


def test_keeps_digits_that_normal_equations_lose():
    # Läuchli's matrix: JᵀJ is singular in float64, J is not.
    tiny = 1e-9
    J = np.vstack([np.ones(3), tiny * np.eye(3)])
    assert np.linalg.matrix_rank(J.T @ J) == 1
    exact = np.array([1.0, -2.0, 3.0])
    solver = DenseQR()
    solver.analyze(np.zeros(1, int), np.zeros(0, int), 3)
    solver.linearize(sparse.csr_matrix(J), -J @ exact)
    assert solver.damp(np.zeros(3))
    np.testing.assert_allclose(solver.step(), exact, rtol=1e-6)


def test_a_missing_rank_is_reported_and_damping_restores_it():
    solver = DenseQR()
    solver.analyze(np.zeros(1, int), np.zeros(0, int), 2)
    solver.linearize(sparse.csr_matrix(np.array([[1.0, 0.0], [2.0, 0.0]])), np.ones(2))
    assert not solver.damp(np.zeros(2))
    assert solver.damp(np.full(2, 1e-3))
    assert np.isfinite(solver.step()).all()


def test_misuse_and_size_are_named(monkeypatch):
    solver = DenseQR()
    with pytest.raises(SolveError, match="linearize"):
        solver.damp(np.zeros(2))
    monkeypatch.setattr(dense_qr, "_LARGEST", 10)
    with pytest.raises(InputError, match="dense Jacobian of 4 × 3"):
        solver.linearize(sparse.csr_matrix(np.zeros((4, 3))), np.zeros(4))


def test_solves_reach_the_same_minimum():
    problem = springs_problem(1)
    problem.freeze(problem.arrays[0], [0, 5])
    wanted = ag.solve(problem, linear_solver="dense-cholesky", backend="numba")
    found = ag.solve(problem, linear_solver="dense-qr", backend="numba")
    assert found.linear_solver.startswith("dense-qr")
    np.testing.assert_allclose(found.cost, wanted.cost, rtol=1e-9)
    for a, b in zip(found.history[:5], wanted.history[:5], strict=True):
        np.testing.assert_allclose(a.cost, b.cost, rtol=1e-9)
