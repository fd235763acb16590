"""Covariance of chosen blocks: the dense inverse, null spaces, frozen blocks."""

from __future__ import annotations

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.errors import InputError, SolveError
from autograd_gpu.solvers import covariance as module
from workloads import bundle_problem


def anchored_springs(n: int = 20, anchored: bool = True) -> tuple[ag.Problem, ag.ParameterArray]:
    rng = np.random.default_rng(0)
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((n, 2)))
    i, j = np.triu_indices(n, 1)
    problem.add_residuals(lambda p, q: q - p, x[i], x[j])
    if anchored:
        problem.add_residuals(lambda p, w: w * p, x, rng.uniform(0.5, 2.0, n))
    return problem, x


def dense_inverse(problem: ag.Problem) -> np.ndarray:
    J = problem.evaluate("numpy", "float64").jacobian.toarray()
    return np.linalg.pinv(J.T @ J, rcond=1e-12, hermitian=True)


@pytest.fixture(params=["dense", "sparse"])
def path(request, monkeypatch):
    """Small problems through the path of large ones, too."""
    if request.param == "sparse":
        monkeypatch.setattr(module, "_LARGEST_DENSE", 0)
    return request.param


def test_equals_the_dense_inverse(path):
    problem, x = anchored_springs()
    wanted = dense_inverse(problem)
    found = problem.covariance(x)
    np.testing.assert_allclose(found.matrix, wanted, rtol=1e-10, atol=1e-12)
    for k, block in enumerate(found.blocks[0]):
        own = slice(2 * k, 2 * k + 2)
        np.testing.assert_allclose(block, wanted[own, own], rtol=1e-10, atol=1e-12)
    deviations = np.sqrt(np.diag(wanted)).reshape(-1, 2)
    np.testing.assert_allclose(found.standard_deviations[0], deviations, rtol=1e-10, atol=1e-14)
    assert found.null_space_dimension == 0


def test_chosen_blocks_in_the_order_asked(monkeypatch):
    monkeypatch.setattr(module, "_COLUMNS_AT_A_TIME", 3)
    problem, x = anchored_springs()
    wanted = dense_inverse(problem)
    found = problem.covariance(x[[7, 2]], x[11], x[[2]])
    numbers = [14, 15, 4, 5, 22, 23, 4, 5]
    np.testing.assert_allclose(
        found.matrix, wanted[np.ix_(numbers, numbers)], rtol=1e-10, atol=1e-14
    )
    assert [b.shape for b in found.blocks] == [(2, 2, 2), (1, 2, 2), (1, 2, 2)]
    np.testing.assert_allclose(found.blocks[1][0], wanted[22:24, 22:24], rtol=1e-10, atol=1e-14)
    scaled = problem.covariance(x[[7]], variance=4.0)
    np.testing.assert_allclose(scaled.matrix, 4.0 * wanted[14:16, 14:16], rtol=1e-10, atol=1e-14)


def test_frozen_blocks_have_no_covariance():
    problem, x = anchored_springs()
    problem.freeze(x, [3, 4])
    found = problem.covariance(x[[2, 3]])
    wanted = dense_inverse(problem)
    np.testing.assert_allclose(found.blocks[0][0], wanted[4:6, 4:6], rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(found.blocks[0][1], 0.0)
    np.testing.assert_array_equal(found.matrix[:, 2:], 0.0)


def test_translations_are_a_null_space_of_dimension_2(path):
    problem, x = anchored_springs(anchored=False)
    with pytest.raises(SolveError, match="null-space dimension 2"):
        problem.covariance(x)
    found = problem.covariance(x, null_space="pseudo-inverse")
    assert found.null_space_dimension == 2
    np.testing.assert_allclose(found.matrix, dense_inverse(problem), atol=1e-10)


def test_a_parameter_that_nothing_depends_on_is_named_null():
    problem, x = anchored_springs()
    problem.parameters("unused", np.zeros(3))
    with pytest.raises(SolveError, match="null-space dimension 3"):
        problem.covariance(x)


def test_a_bundle_without_gauge_has_a_null_space_of_dimension_7(path):
    problem = bundle_problem(cameras=5, points=60)
    problem.update(**ag.solve(problem, backend="numba").values)
    cameras, _ = problem.arrays
    with pytest.raises(SolveError, match="null-space dimension 7"):
        problem.covariance(cameras)
    found = problem.covariance(cameras, null_space="pseudo-inverse")
    wanted = dense_inverse(problem)[:45, :45]
    np.testing.assert_allclose(found.matrix, wanted, atol=1e-6 * np.abs(wanted).max())


def test_a_larger_bundle_too():
    problem = bundle_problem(cameras=8, points=800)
    problem.update(**ag.solve(problem, backend="numba").values)
    _, points = problem.arrays
    found = problem.covariance(points[[5, 6]], null_space="pseudo-inverse")
    assert found.null_space_dimension == 7
    assert (np.linalg.eigvalsh(found.matrix) > -1e-12 * np.abs(found.matrix).max()).all()


def test_bad_requests_are_named():
    problem, x = anchored_springs()
    other, y = anchored_springs()
    with pytest.raises(InputError, match="nothing was asked for"):
        problem.covariance()
    with pytest.raises(InputError, match="another problem's"):
        problem.covariance(y)
    with pytest.raises(InputError, match="got ndarray"):
        problem.covariance(np.zeros(3))
    with pytest.raises(InputError, match="null_space='ignore'"):
        problem.covariance(x, null_space="ignore")
    with pytest.raises(InputError, match="variance"):
        problem.covariance(x, variance=-1.0)
    assert len(other.arrays) == 1


def test_the_joint_matrix_of_too_many_numbers_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_LARGEST_JOINT", 10)
    problem, x = anchored_springs()
    found = problem.covariance(x)
    with pytest.raises(InputError, match="joint matrix of 40 numbers"):
        _ = found.matrix
    wanted = dense_inverse(problem)
    np.testing.assert_allclose(found.blocks[0][19], wanted[38:, 38:], rtol=1e-10, atol=1e-14)
