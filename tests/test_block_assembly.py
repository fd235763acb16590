"""Assembly of JᵀJ by blocks of unknowns against sums over the entries of J."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu.errors import ShapeError
from autograd_gpu.runtime import host_assembly
from autograd_gpu.runtime.block_assembly import BlockAssembly, SharedAssembly
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.normal_equations import NormalEquations, RowGram
from workloads import bundle_problem, curve_problem, deformation_problem, springs_problem


def coupled(p, q):
    return [ag.dot(p, q) - 1.0, p[0] * q[1], q[2] * q[0] - p[1]]


def difference(p, q, target):
    """Coordinates never meet, so JᵀJ has three separate parts."""
    return p - q - target


def turned(pose, p):
    """Two rows with structural zeros, and a component that is not used."""
    return [pose[0] * p[1] + pose[3], pose[1] * p[0] * pose[4]]


def scaled(s, p):
    return ag.exp(s) * p


FUNCTIONS = ("coupled", "difference", "turned", "scaled")


def random_problem(rng: np.random.Generator, names: list[str], frozen: float) -> ag.Problem:
    """Points, poses of 5 numbers and one scale, and elements between random ones of them."""
    problem = ag.Problem()
    points = problem.parameters("points", rng.standard_normal((9, 3)))
    poses = problem.parameters("poses", rng.standard_normal((4, 5)))
    scale = problem.parameters("scale", rng.standard_normal(1))
    n = 14
    i, j = np.array([rng.choice(9, 2, replace=False) for _ in range(n)]).T
    k = rng.integers(0, 4, n)
    if "coupled" in names:
        problem.add_residuals(coupled, points[i], points[j])
    if "difference" in names:
        problem.add_residuals(difference, points[j], points[i], rng.standard_normal((n, 3)))
    if "turned" in names:
        problem.add_residuals(turned, poses[k], points[i])
    if "scaled" in names:
        problem.add_residuals(scaled, scale[0], points[j])
    for array in (points, poses):
        rows = np.flatnonzero(rng.random(len(array)) < frozen)
        if len(rows):
            problem.freeze(array, rows)
    return problem


def equations(problem: ag.Problem, kind: type) -> tuple[NormalEquations, NormalEquations]:
    """The normal equations of a problem at its parameters, by blocks and by entries."""
    analysis = problem.analysis()
    session = analysis.session(choose_backend("numpy", "float64", None, analysis.row_count))
    residuals, values = session.residual_jacobian(current_parameters(problem))
    blocks = analysis.unknown_blocks
    ours = NormalEquations(kind(blocks.starts, blocks.groups))
    rows = NormalEquations(RowGram(analysis.indptr, analysis.indices, analysis.column_count))
    for _ in range(2):  # the second time from used buffers
        ours.assemble(values, residuals)
    rows.assemble(analysis.free_values(values), residuals)
    return ours, rows


def check(ours: NormalEquations, rows: NormalEquations) -> None:
    scale = max(1.0, float(np.abs(rows.upper).max(initial=0.0)))
    np.testing.assert_allclose(
        ours.matrix().toarray(), rows.matrix().toarray(), rtol=0, atol=1e-13 * scale
    )
    np.testing.assert_allclose(ours.gradient, rows.gradient, rtol=0, atol=1e-13 * scale)
    np.testing.assert_array_equal(ours.indices[ours.indptr[:-1]], np.arange(ours.n))
    for a in range(ours.n):
        assert (np.diff(ours.indices[ours.indptr[a] : ours.indptr[a + 1]]) > 0).all()


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from(FUNCTIONS), min_size=1, unique=True),
    st.sampled_from([0.0, 0.3]),
)
@settings(max_examples=40, deadline=None)
def test_agrees_with_sums_over_entries(seed, names, frozen):
    problem = random_problem(np.random.default_rng(seed), names, frozen)
    if problem.analysis().column_count == 0:
        return
    check(*equations(problem, BlockAssembly))


def widths_of(problem: ag.Problem) -> set[int]:
    return set(np.diff(problem.analysis().unknown_blocks.starts).tolist())


def test_components_stay_together_where_all_kernels_couple_them_alike():
    rng = np.random.default_rng(0)
    assert widths_of(random_problem(rng, ["difference"], 0.0)) == {1, 5}
    assert widths_of(springs_problem(1)) == {3}
    assert widths_of(bundle_problem(4, 20)) == {3, 9}
    # Positions couple with rotations coordinate by coordinate.
    assert widths_of(deformation_problem(1)) == {1, 3}


def test_separate_coordinates_are_not_filled_in():
    problem = random_problem(np.random.default_rng(0), ["difference"], 0.0)
    ours, rows = equations(problem, BlockAssembly)
    # Only the poses, which no residual has, get full squares on the diagonal.
    assert len(ours.indices) - len(rows.indices) == 4 * 10


def test_no_bit_depends_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr(host_assembly, "_SERIAL_WORK", 1)
    problem = bundle_problem(5, 200)
    analysis = problem.analysis()
    session = analysis.session(choose_backend("numpy", "float64", None, analysis.row_count))
    residuals, values = session.residual_jacobian(current_parameters(problem))
    blocks = analysis.unknown_blocks
    results = []
    for threads in (1, 2, 5):
        gram = BlockAssembly(blocks.starts, blocks.groups, threads)
        assert len(gram._ranges) == threads
        made = NormalEquations(gram)
        made.assemble(values, residuals)
        results.append((made.indptr, made.indices, made.upper, made.gradient))
        made.close()
    for other in results[1:]:
        for first, second in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("threads", [1, 3])
def test_shared_blocks_agree_with_sums_over_entries(threads, monkeypatch):
    monkeypatch.setattr(host_assembly, "_SERIAL_WORK", 1)
    problem = curve_problem(40_001)
    ours, rows = equations(problem, lambda *args: SharedAssembly(*args, threads=threads))
    assert isinstance(problem.analysis().normal_equations._gram, SharedAssembly)
    np.testing.assert_allclose(ours.upper, rows.upper, rtol=1e-12)
    np.testing.assert_allclose(ours.gradient, rows.gradient, rtol=1e-11)


def test_shared_blocks_may_be_frozen_or_gathered_twice():
    rng = np.random.default_rng(3)
    problem = ag.Problem()
    theta = problem.parameters("theta", rng.standard_normal((3, 3)))
    data = rng.standard_normal((50, 3))
    problem.add_residuals(
        lambda a, b, c, t: [ag.dot(a, t) * b[0], b[1] * c[2]],
        theta[0], theta[0], theta[2], data,
    )  # fmt: skip
    problem.freeze(theta, [2])
    ours, rows = equations(problem, SharedAssembly)
    check(ours, rows)


def test_an_element_may_gather_a_block_twice():
    rng = np.random.default_rng(5)
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((40, 6)))
    i, j = rng.integers(0, 40, (2, 60))
    j[7] = i[7]
    problem.add_residuals(
        lambda a, b: [a[k] * ag.dot(a, b) - b[5 - k] for k in range(6)], x[i], x[j]
    )
    analysis = problem.analysis()
    session = analysis.session(choose_backend("numpy", "float64", None, analysis.row_count))
    residuals, values = session.residual_jacobian(current_parameters(problem))
    normal = analysis.normal_equations
    assert isinstance(normal._gram, RowGram)
    normal.assemble(values, residuals)
    J = problem.evaluate(backend="numpy").jacobian.toarray()
    np.testing.assert_allclose(normal.matrix().toarray(), np.triu(J.T @ J), atol=1e-11)


def test_bundle_adjustment_is_solved_without_the_entries_of_its_jacobian():
    problem = bundle_problem(4, 60)
    problem.freeze(problem.arrays[0], [1])
    solution = ag.solve(problem, backend="numba", precision="float64")
    assert solution.cost < 0.5 * solution.initial_cost
    analysis = problem.analysis()
    assert isinstance(analysis.normal_equations._gram, BlockAssembly)
    assert "_pattern" not in vars(analysis)


def test_bad_arrays_are_named():
    analysis = bundle_problem(3, 10).analysis()
    normal = analysis.normal_equations
    rows = analysis.row_count
    with pytest.raises(ShapeError, match="values of J"):
        normal.assemble(np.ones(3), np.ones(rows))
    with pytest.raises(ShapeError, match="residuals"):
        normal.assemble(np.ones(12 * rows, np.float64), np.ones(3))
