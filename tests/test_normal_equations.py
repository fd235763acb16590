"""Assembly of JᵀJ and Jᵀr against SciPy's products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from autograd_gpu.errors import ShapeError
from autograd_gpu.runtime.host_assembly import HostAssembly, upper_gram_pattern
from autograd_gpu.solvers.normal_equations import NormalEquations, RowGram


@st.composite
def jacobians(draw):
    """Random CSR arrays: unsorted rows, duplicates, empty rows and columns all occur."""
    n = draw(st.integers(1, 12))
    rows = draw(st.integers(0, 15))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = rng.integers(0, draw(st.integers(1, 6)), rows)
    indptr = np.concatenate(([0], np.cumsum(lengths)))
    indices = rng.integers(0, n, indptr[-1])
    if draw(st.booleans()):
        indptr, indices = indptr.astype(np.int32), indices.astype(np.int32)
    return indptr, indices, rng.standard_normal(indptr[-1]), n


def expected(indptr, indices, values, n):
    J = sparse.csr_matrix((values, indices, indptr), shape=(indptr.size - 1, n)).toarray()
    return J, np.triu(J.T @ J)


def large_jacobian(rows=60_000, n=20_000, width=6, seed=0):
    rng = np.random.default_rng(seed)
    indices = (rng.integers(0, n, (rows, 1)) + rng.integers(0, 50, (rows, width))) % n
    indptr = np.arange(0, indices.size + 1, width)
    return indptr, indices.ravel(), rng.standard_normal(indices.size), n


@given(jacobians())
@settings(max_examples=150, deadline=None)
def test_agrees_with_scipy(jacobian):
    indptr, indices, values, n = jacobian
    J, upper = expected(*jacobian)
    r = np.linspace(-1.0, 1.0, J.shape[0])
    equations = NormalEquations(RowGram(indptr, indices, n))
    equations.assemble(values, r)
    np.testing.assert_allclose(equations.matrix().toarray(), upper, atol=1e-13)
    np.testing.assert_allclose(equations.gradient, J.T @ r, atol=1e-13)
    np.testing.assert_allclose(equations.diagonal, np.diag(upper), atol=1e-13)


@given(jacobians())
@settings(max_examples=100, deadline=None)
def test_sparse_products_agree_with_scipy(jacobian):
    indptr, indices, values, n = jacobian
    J, upper = expected(*jacobian)
    assembly = HostAssembly(indptr, indices, n)
    v, r = np.linspace(1.0, 2.0, n), np.linspace(-1.0, 1.0, J.shape[0])
    np.testing.assert_allclose(assembly.product(values, v), J @ v, atol=1e-13)
    np.testing.assert_allclose(assembly.transposed_product(values, r), J.T @ r, atol=1e-13)
    norms = assembly.column_squared_norms(values)
    np.testing.assert_allclose(norms, np.diag(upper), atol=1e-13)


@given(jacobians())
@settings(max_examples=100, deadline=None)
def test_pattern_is_sorted_complete_and_has_the_diagonal(jacobian):
    indptr, indices, _, n = jacobian
    starts, columns = upper_gram_pattern(indptr, indices, n)
    _, upper = expected(indptr, indices, np.ones(indices.size), n)
    np.testing.assert_array_equal(columns[starts[:-1]], np.arange(n))
    pattern = np.zeros((n, n), bool)
    for a in range(n):
        row = columns[starts[a] : starts[a + 1]]
        assert (np.diff(row) > 0).all()
        pattern[a, row] = True
    np.testing.assert_array_equal(pattern, (upper != 0) | np.eye(n, dtype=bool))
    assert starts.dtype == columns.dtype == np.int32


def test_results_do_not_depend_on_the_number_of_threads():
    indptr, indices, values, n = large_jacobian()
    r = np.random.default_rng(1).standard_normal(indptr.size - 1)
    results = []
    for threads in (1, 2, 5):
        gram = RowGram(indptr, indices, n, threads)
        equations = NormalEquations(gram)
        equations.assemble(values, r)
        assert not gram.is_dense
        products = gram.assembly.product(values, r[:n])
        norms = gram.assembly.column_squared_norms(values)
        pattern = (equations.indptr, equations.indices)
        results.append((*pattern, equations.upper, equations.gradient, products, norms))
        equations.close()
    assert len(HostAssembly(indptr, indices, n, 5)._gram_ranges) == 5
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_large_sorted_and_unsorted_rows_agree():
    indptr, indices, values, n = large_jacobian()
    J = sparse.csr_matrix((values, indices, indptr), shape=(indptr.size - 1, n), copy=True)
    J.sum_duplicates()
    assert HostAssembly(J.indptr, J.indices, n)._rows_are_sorted
    assert not HostAssembly(indptr, indices, n)._rows_are_sorted
    r = np.ones(indptr.size - 1)
    for starts, columns, entries in ((indptr, indices, values), (J.indptr, J.indices, J.data)):
        equations = NormalEquations(RowGram(starts, columns, n))
        equations.assemble(entries, r)
        difference = abs(equations.matrix() - sparse.triu(J.T @ J)).max()
        assert difference < 1e-12
        equations.close()


def test_duplicates_add_up_before_they_are_squared():
    equations = NormalEquations(RowGram(np.array([0, 3]), np.array([20, 4, 20]), 40))
    equations.assemble(np.array([1.0, 10.0, 2.0]), np.array([5.0]))
    assert equations.diagonal[20] == 9.0
    assert equations.matrix()[4, 20] == 30.0
    assert equations.gradient[20] == 15.0


@pytest.mark.parametrize("rows", [1, 63, 5000])
def test_full_jacobian_goes_through_blas(rows):
    n = 150
    rng = np.random.default_rng(rows)
    J, r = rng.standard_normal((rows, n)), rng.standard_normal(rows)
    gram = RowGram(np.arange(rows + 1) * n, np.tile(np.arange(n), rows), n)
    equations = NormalEquations(gram)
    assert gram.is_dense
    for scale in (1.0, 3.0):  # the second assembly starts from used buffers
        equations.assemble(scale * J.ravel(), r)
        tolerance = 1e-12 * rows * scale**2
        reference = scale**2 * np.triu(J.T @ J)
        np.testing.assert_allclose(equations.matrix().toarray(), reference, atol=tolerance)
        np.testing.assert_allclose(equations.gradient, scale * (J.T @ r), atol=tolerance)


def test_damping_is_added_to_the_diagonal_only_and_not_kept():
    indptr, indices, values, n = large_jacobian(rows=300, n=200)
    equations = NormalEquations(RowGram(indptr, indices, n))
    equations.assemble(values, np.zeros(300))
    before = equations.upper.copy()
    damping = np.linspace(1.0, 2.0, n)
    for expected_damping in (damping, 0.5 * damping, np.full(n, 3.0)):
        damped = equations.damped(expected_damping)
        change = damped - before
        np.testing.assert_allclose(change[equations.indptr[:-1]], expected_damping)
        assert np.count_nonzero(change) == n
        np.testing.assert_array_equal(equations.upper, before)
    np.testing.assert_array_equal(equations.damped(3.0), damped)


def test_buffers_are_reused():
    indptr, indices, values, n = large_jacobian(rows=300, n=200)
    equations = NormalEquations(RowGram(indptr, indices, n))
    buffers = (equations.upper, equations.gradient, equations.diagonal, equations.damped(1.0))
    equations.assemble(values, np.ones(300))
    after = (equations.upper, equations.gradient, equations.diagonal, equations.damped(1.0))
    assert all(a is b for a, b in zip(buffers, after, strict=True))
    assert np.shares_memory(equations.matrix().data, equations.upper)


def test_read_only_input_is_accepted_and_left_alone():
    indptr, indices, values, n = large_jacobian(rows=300, n=200)
    r = np.ones(300)
    for array in (indptr, indices, values, r):
        array.flags.writeable = False
    equations = NormalEquations(RowGram(indptr, indices, n))
    equations.assemble(values, r)
    assert equations.diagonal.sum() > 0


def test_bad_arrays_are_named():
    indptr, indices, n = np.array([0, 2]), np.array([0, 1]), 30
    with pytest.raises(ShapeError, match="columns must lie in"):
        NormalEquations(RowGram(indptr, np.array([0, 30]), n))
    with pytest.raises(ShapeError, match="row starts"):
        NormalEquations(RowGram(np.array([0, 3]), indices, n))
    with pytest.raises(ShapeError, match="must not decrease"):
        NormalEquations(RowGram(np.array([0, 2, 1, 2]), indices, n))
    equations = NormalEquations(RowGram(indptr, indices, n))
    with pytest.raises(ShapeError, match="values of J"):
        equations.assemble(np.ones(3), np.ones(1))
    with pytest.raises(ShapeError, match="float32"):
        equations.assemble(np.ones(2, np.float32), np.ones(1))
    with pytest.raises(ShapeError, match="vector"):
        equations.assemble(np.ones(2), np.ones(2))
    with pytest.raises(ShapeError, match="damping"):
        equations.damped(np.ones(3))
