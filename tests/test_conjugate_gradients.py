"""Conjugate gradients: solutions, preconditioners, blocks and modes, and when to choose what."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

import autograd_gpu as ag
import workloads
from autograd_gpu.errors import InputError, MissingDependencyError, ShapeError, SolveError
from autograd_gpu.meshes import energies
from autograd_gpu.runtime import host_assembly
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.runtime.host_assembly import SymmetricMatrix
from autograd_gpu.solvers.block_structure import block_structure, scalar_blocks
from autograd_gpu.solvers.conjugate_gradients import (
    PRECONDITIONERS,
    AdaptiveChoice,
    ConjugateGradients,
)
from autograd_gpu.solvers.linear_solvers import choose_linear_solver
from autograd_gpu.solvers.preconditioners import aggregates
from autograd_gpu.solvers.sparse_cholesky import SuperLUCholesky

BUILT_IN = ("auto", "block-jacobi", "coarse-64", "coarse-16")


@pytest.fixture(params=[*BUILT_IN, "smoothed-aggregation"])
def name(request: pytest.FixtureRequest) -> str:
    try:
        ConjugateGradients(request.param)
    except MissingDependencyError as error:
        assert "autograd-gpu[amg]" in str(error)
        pytest.skip("pyamg is not installed")
    return request.param


class System:
    """Damped normal equations of a problem at its present parameters."""

    def __init__(self, problem: ag.Problem, damping: float) -> None:
        analysis = problem.analysis()
        x = np.concatenate([problem.values_of(a).ravel() for a in problem.arrays])
        session = analysis.session(choose_backend("numba", "float64", None, analysis.row_count))
        residuals, values = session.residual_jacobian(x)
        normal = analysis.normal_equations
        normal.assemble(values, residuals)
        self.rhs = -normal.gradient.copy()
        self.indptr, self.indices, self.n = normal.indptr, normal.indices, normal.n
        self.values = normal.damped(damping * (1.0 + np.sqrt(normal.diagonal)) ** 2).copy()
        self.undamped = normal.upper.copy()
        arrays = [problem.values_of(a).reshape(a.blocks, a.width) for a in problem.arrays]
        columns = [analysis.columns_of(a) for a in problem.arrays]
        self.blocks = block_structure(columns, lambda: arrays)

    def full(self, values: np.ndarray) -> sparse.csr_matrix:
        upper = sparse.csr_matrix((values, self.indices, self.indptr), shape=(self.n, self.n))
        return sparse.csr_matrix(upper + sparse.triu(upper, 1).T)

    def solver(self, name: str, tolerance: float, threads: int | None = None) -> ConjugateGradients:
        made = ConjugateGradients(name, tolerance, 2000, threads)
        made.describe_unknowns(self.blocks)
        made.analyze(self.indptr, self.indices, self.n)
        assert made.factorize(self.values)
        return made


@pytest.fixture(scope="module")
def deformation() -> System:
    """W2 on 642 vertices, with rotations far from the start."""
    problem = workloads.deformation_problem(3)
    options = ag.LevenbergMarquardtOptions(max_iterations=6)
    problem.update(**ag.solve(problem, backend="numba", options=options).values)
    return System(problem, 1e-4)


def random_system(n: int, seed: int) -> sparse.csr_matrix:
    """Upper triangle of a sparse positive definite matrix with diagonal entries over a range."""
    rng = np.random.default_rng(seed)
    J = sparse.random(3 * n, n, density=min(1.0, 4.0 / n), random_state=rng, format="csr")
    scale = sparse.diags(10.0 ** rng.uniform(-3.0, 3.0, n))
    A = scale @ (J.T @ J + sparse.eye(n)) @ scale
    upper = sparse.csr_matrix(sparse.triu(A))
    upper.sort_indices()
    return upper


def full(upper: sparse.csr_matrix) -> np.ndarray:
    return (upper + sparse.triu(upper, 1).T).toarray()


def prepared(upper: sparse.csr_matrix, name: str = "auto", **options: float) -> ConjugateGradients:
    solver = ConjugateGradients(name, **options)
    solver.analyze(upper.indptr, upper.indices, upper.shape[0])
    assert solver.factorize(upper.data)
    return solver


# -- solutions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 7, 60, 400])
def test_solves_random_systems(name: str, n: int) -> None:
    for seed in range(3):
        upper = random_system(n, seed)
        if name.startswith("coarse") and n < 60:
            # One mode an aggregate is a quarter of so few unknowns, or more.
            made = ConjugateGradients(name)
            made.analyze(upper.indptr, upper.indices, n)
            made.factorize(upper.data)
            continue
        solver = prepared(upper, name, tolerance=1e-12, max_iterations=5000)
        b = np.random.default_rng(seed).standard_normal(n)
        x = solver.solve(b)
        A = full(upper)
        exact = np.linalg.solve(A, b)
        error = x - exact
        assert error @ A @ error <= 1e-18 * (exact @ A @ exact)
        scale = np.linalg.norm(b)
        np.testing.assert_allclose(solver.residual, b - A @ x, atol=1e-8 * scale)
        solver.close()


def test_tolerance_is_the_residual_in_the_norm_of_the_preconditioner(deformation: System) -> None:
    A = deformation.full(deformation.values)
    for tolerance in (1e-1, 1e-3):
        solver = deformation.solver("block-jacobi", tolerance)
        x = solver.solve(deformation.rhs)
        r, z, z0 = deformation.rhs - A @ x, np.empty(deformation.n), np.empty(deformation.n)
        np.testing.assert_allclose(solver.residual, r, atol=1e-12 * np.abs(deformation.rhs).max())
        assert solver._active is not None
        solver._active.apply(r, z)
        solver._active.apply(deformation.rhs, z0)
        assert r @ z <= 1.0001 * tolerance**2 * (deformation.rhs @ z0)
        solver.max_iterations = solver.iterations - 1
        solver.solve(deformation.rhs)
        solver._active.apply(solver.residual, z)
        assert solver.residual @ z > tolerance**2 * (deformation.rhs @ z0)


def test_same_bits_on_any_number_of_threads(
    deformation: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_assembly, "_SERIAL_WORK", 1)
    for name in BUILT_IN:
        results = []
        for threads in (1, 2, 5):
            solver = deformation.solver(name, 1e-6, threads)
            results.append((solver.iterations, solver.solve(deformation.rhs).tobytes()))
            assert solver._matrix is not None
            assert len(solver._matrix._ranges) == threads
        assert results[0] == results[1] == results[2], name


def test_values_are_copied_and_matrices_follow_each_other() -> None:
    upper = random_system(200, 0)
    b = np.ones(200)
    solver = prepared(upper, "block-jacobi", tolerance=1e-10, max_iterations=2000)
    first = solver.solve(b)
    twice = upper.data * 2.0
    upper.data[:] = np.nan
    np.testing.assert_array_equal(solver.solve(b), first)
    assert solver.factorize(twice)
    np.testing.assert_allclose(solver.solve(b), 0.5 * first, rtol=1e-6)
    solver.close()
    with pytest.raises(SolveError, match="analyze"):
        solver.solve(b)


def test_truncated_solves(name: str) -> None:
    upper = random_system(300, 1)
    b = np.random.default_rng(0).standard_normal(300)
    solver = ConjugateGradients(name, 1e-12)
    solver.analyze(upper.indptr, upper.indices, 300)
    solver.factorize(upper.data)
    A = full(upper)
    energies_left = []
    for limit in (0, 1, 2):
        solver.max_iterations = limit
        x = solver.solve(b)
        assert solver.iterations == limit
        np.testing.assert_allclose(solver.residual, b - A @ x, atol=1e-9)
        energies_left.append(0.5 * x @ A @ x - b @ x)
    assert energies_left[0] == 0.0
    assert energies_left == sorted(energies_left, reverse=True)


def test_zero_right_hand_side(name: str) -> None:
    solver = prepared(random_system(300, 2), name)
    np.testing.assert_array_equal(solver.solve(np.zeros(300)), np.zeros(300))
    assert solver.iterations == 0


def test_singular_but_consistent_systems(name: str) -> None:
    """A ring of springs without anchor: constants are in the null space."""
    n = 240
    ring = sparse.eye(n) - sparse.csr_matrix(
        (np.ones(n), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n)
    )
    upper = sparse.csr_matrix(sparse.triu(ring.T @ ring))
    upper.sort_indices()
    b = np.random.default_rng(0).standard_normal(n)
    b -= b.mean()
    solver = ConjugateGradients(name, 1e-9, 2000)
    solver.analyze(upper.indptr, upper.indices, n)
    # The coarse matrix is as singular as the matrix: found, or lost in rounding.
    if solver.factorize(upper.data):
        x = solver.solve(b)
        assert np.isfinite(x).all()
        np.testing.assert_allclose(full(upper) @ x, b, atol=1e-5)
    else:
        assert name.startswith("coarse")


def test_dependent_columns_within_a_block() -> None:
    direction = np.array([1.0, 2.0, -1.0])
    square = np.outer(direction, direction)
    upper = sparse.csr_matrix(sparse.triu(sparse.block_diag([square] * 5)))
    solver = ConjugateGradients("block-jacobi", 1e-10)
    solver.describe_unknowns(
        block_structure([np.arange(15).reshape(5, 3)], lambda: [np.zeros((5, 3))])
    )
    solver.analyze(upper.indptr, upper.indices, 15)
    assert solver.factorize(upper.data)
    b = np.tile(3.0 * direction, 5)
    np.testing.assert_allclose(full(upper) @ solver.solve(b), b, atol=1e-6)


def test_matrices_that_are_not_definite() -> None:
    upper = random_system(50, 0)
    solver = prepared(upper)
    for bad in (0.0, -1.0, np.nan, np.inf):
        values = upper.data.copy()
        values[upper.indptr[20]] = bad
        assert not solver.factorize(values)
        with pytest.raises(SolveError, match="factorize"):
            solver.solve(np.ones(50))
    assert solver.factorize(upper.data)
    # Indefinite with a positive diagonal: ends where the curvature is not positive.
    coupled = sparse.csr_matrix(np.array([[1.0, 5.0], [0.0, 1.0]]))
    solver = prepared(coupled)
    assert np.isfinite(solver.solve(np.array([1.0, -1.0]))).all()


def test_errors() -> None:
    with pytest.raises(InputError, match="block-jacobi"):
        ConjugateGradients("ilu")
    upper = random_system(20, 0)
    solver = ConjugateGradients()
    with pytest.raises(SolveError, match="analyze"):
        solver.factorize(upper.data)
    with pytest.raises(ShapeError, match="row starts"):
        solver.analyze(upper.indptr, upper.indices, 19)
    with pytest.raises(ShapeError, match="diagonal"):
        solver.analyze(np.array([0, 1, 2]), np.array([1, 1]), 2)
    solver.analyze(upper.indptr, upper.indices, 20)
    with pytest.raises(ShapeError, match="values"):
        solver.factorize(upper.data[1:])
    assert solver.factorize(upper.data)
    with pytest.raises(ShapeError, match="right-hand side"):
        solver.solve(np.ones(19))
    solver.describe_unknowns(scalar_blocks(19))
    with pytest.raises(ShapeError, match="blocks"):
        solver.analyze(upper.indptr, upper.indices, 20)


def test_symmetric_matrix_is_both_triangles() -> None:
    upper = random_system(30, 3)
    matrix = SymmetricMatrix(upper.indptr, upper.indices)
    matrix.set(upper.data)
    square = sparse.csr_matrix((matrix.values, matrix.indices, matrix.indptr), shape=(30, 30))
    np.testing.assert_array_equal(square.toarray(), full(upper))
    x = np.random.default_rng(0).standard_normal(30)
    np.testing.assert_allclose(matrix.product(x, np.empty(30)), full(upper) @ x, rtol=1e-12)


# -- preconditioners ---------------------------------------------------------------------------


def test_preconditioner_is_symmetric_positive_definite(name: str, deformation: System) -> None:
    solver = deformation.solver(name, 1e-2)
    assert solver._active is not None
    rng = np.random.default_rng(0)
    r = rng.standard_normal((6, deformation.n))
    z = np.empty_like(r)
    for k in range(len(r)):
        solver._active.apply(r[k], z[k])
    products = r @ z.T
    np.testing.assert_allclose(products, products.T, atol=1e-8 * np.abs(products).max())
    assert np.linalg.eigvalsh(products).min() > 0.0


def test_coarse_spaces_lower_the_number_of_iterations() -> None:
    """Measured on W2_s4 after 8 steps, to 1e-6: 253 with blocks only, 126 and 59 with these."""
    problem = workloads.deformation_problem(4)
    options = ag.LevenbergMarquardtOptions(max_iterations=8)
    problem.update(**ag.solve(problem, backend="numba", options=options).values)
    system = System(problem, 2e-4)
    needed = {}
    for name in ("block-jacobi", "coarse-64", "coarse-16"):
        solver = system.solver(name, 1e-6)
        solver.solve(system.rhs)
        needed[name] = solver.iterations
    assert needed["coarse-64"] * 1.7 < needed["block-jacobi"], needed
    assert needed["coarse-16"] * 3.0 < needed["block-jacobi"], needed


def test_coarse_correction_is_exact_on_its_modes(deformation: System) -> None:
    """P(PᵀAP)⁻¹Pᵀ·A·P·c = P·c: what the coarse space can express is solved at once."""
    solver = deformation.solver("coarse-16", 1e-2)
    blocks = deformation.solver("block-jacobi", 1e-2)
    assert solver._active is not None
    assert blocks._active is not None
    modes = deformation.blocks.modes()
    A = deformation.full(deformation.values)
    for mode in modes.T:
        image, both, own = A @ mode, np.empty(deformation.n), np.empty(deformation.n)
        solver._active.apply(image, both)
        blocks._active.apply(image, own)
        np.testing.assert_allclose(both - own, mode, atol=1e-8 * np.abs(mode).max())


def test_aggregates_are_connected_and_of_the_size_asked_for() -> None:
    _, faces = workloads.icosphere(4)
    edges = workloads.edges_of(faces)
    n = int(faces.max()) + 1
    graph = sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(n, n))
    graph = sparse.csr_matrix(graph + graph.T)
    numbers = aggregates(graph.indptr, graph.indices, 16)
    counts = np.bincount(numbers)
    assert counts.min() >= 4
    assert 12 <= counts.mean() <= 20
    for k in range(len(counts)):
        inside = np.flatnonzero(numbers == k)
        parts, _ = sparse.csgraph.connected_components(graph[inside][:, inside])
        assert parts == 1
    np.testing.assert_array_equal(numbers, aggregates(graph.indptr, graph.indices, 16))


def test_adaptive_choice() -> None:
    choice = AdaptiveChoice(top=2)
    choice.record(60, 100.0)
    assert choice.rung == 0
    choice.record(61, 100.0)
    assert choice.rung == 1
    choice.record(40, 101.0)  # fewer iterations, but dearer
    assert choice.rung == 0
    choice.record(122, 200.0)
    assert choice.rung == 0
    choice.record(123, 200.0)
    assert choice.rung == 1
    choice.record(70, 150.0)
    assert choice.rung == 2
    choice.record(20, 90.0)
    assert choice.rung == 2
    choice.record(3, 20.0)  # so short that the lower rung will do
    assert choice.rung == 1
    choice.record(61, 120.0)  # it did not
    assert choice.rung == 2
    choice.record(3, 20.0)
    assert choice.rung == 2


# -- blocks and modes --------------------------------------------------------------------------


def test_blocks_fuse_arrays_and_leave_out_what_is_frozen() -> None:
    x = np.arange(6).reshape(2, 3)
    r = np.array([[6, 7, 8], [-1, -1, -1]])
    wide = np.arange(9, 9 + 70).reshape(1, 70)
    values = [np.zeros(a.shape) for a in (x, r, wide)]
    blocks = block_structure([x, r, wide], lambda: values)
    assert blocks.starts.tolist() == [0, 6, 9, 73, 79]
    assert blocks.unknowns[:9].tolist() == [0, 1, 2, 6, 7, 8, 3, 4, 5]
    assert blocks.block_of[:9].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert blocks.modes().shape == (79, 6)


def test_rigid_motions_cost_nothing() -> None:
    """JᵀJ is blind to them: springs at any shape, as-rigid-as-possible where rotations are 0."""
    rng = np.random.default_rng(0)
    p, faces = workloads.icosphere(1)
    i, j = workloads.edges_of(faces).T
    springs = ag.Problem()
    x = springs.parameters("x", p + 0.1 * rng.standard_normal(p.shape))
    springs.add_residuals(energies.spring, x[i], x[j], np.ones(len(i)))
    rigid = ag.Problem()
    x, r = rigid.parameters("x", p), rigid.parameters("r", np.zeros_like(p))
    rigid.add_residuals(energies.as_rigid_as_possible, x[i], x[j], r[i], p[j] - p[i])
    for problem in (springs, rigid):
        system = System(problem, 0.0)
        modes = system.blocks.modes()
        assert modes.shape == (system.n, 6)
        assert np.linalg.matrix_rank(modes) == 6
        np.testing.assert_allclose(system.full(system.undamped) @ modes, 0.0, atol=1e-12)


def test_other_arrays_get_constant_modes() -> None:
    cameras, points = np.arange(18).reshape(2, 9), np.arange(18, 48).reshape(10, 3)
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(a.shape) for a in (cameras, points)]
    modes = block_structure([cameras, points], lambda: values).modes()
    assert modes.shape == (48, 9 + 6)
    np.testing.assert_array_equal(modes[:18, :9], np.tile(np.eye(9), (2, 1)))
    assert not modes[:18, 9:].any()
    assert not modes[18:, :9].any()


# -- whole solves ------------------------------------------------------------------------------


@pytest.mark.parametrize("workload", ["W1r_s3", "W2_s3", "W3", "W4_s3"])
def test_minimum_of_workloads(workload: str) -> None:
    solution = ag.solve(
        workloads.PROBLEMS[workload](),
        linear_solver="pcg",
        backend="numba",
        options=ag.LevenbergMarquardtOptions(max_iterations=200),
    )
    assert solution.success, solution.report()
    assert solution.cost == pytest.approx(workloads.MINIMA[workload], rel=1e-6)
    assert solution.linear_solver.startswith("pcg")
    assert all(r.linear_iterations >= 1 for r in solution.history[1:])
    assert max(r.linear_iterations for r in solution.history) > 5


def test_same_bits_in_every_solve() -> None:
    costs = [
        [r.cost for r in ag.solve(
            workloads.springs_problem(3), linear_solver="pcg", backend="numba"
        ).history]
        for _ in range(2)
    ]  # fmt: skip
    assert costs[0] == costs[1]


@pytest.mark.parametrize("limit", [1, 3, 400])
def test_model_of_a_linear_problem_is_exact_for_any_step(limit: int) -> None:
    """Residuals are linear, so actual over predicted reduction is 1 however short the solve."""
    rng = np.random.default_rng(0)
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((40, 3)))
    problem.add_residuals(lambda a, b, c: a - 0.7 * b - c, x[:-1], x[1:], rng.random((39, 3)))
    problem.add_residuals(lambda a, c: 0.1 * (a - c), x, rng.standard_normal((40, 3)))
    solution = ag.solve(
        problem,
        linear_solver="pcg",
        backend="numba",
        options=ag.LevenbergMarquardtOptions(
            max_iterations=5, max_linear_iterations=limit, function_tolerance=0.0
        ),
    )
    tried = [r for r in solution.history[1:] if r.step_norm > 1e-6]
    assert tried
    for record in tried:
        assert record.gain_ratio == pytest.approx(1.0, rel=1e-6)
        assert record.linear_iterations <= limit


def test_frozen_blocks_stay() -> None:
    problem = workloads.deformation_problem(2)
    x, r = problem.arrays
    problem.freeze(x, np.arange(10))
    problem.freeze(r, np.arange(5, 20))
    start = problem.values_of(x)
    solution = ag.solve(problem, linear_solver="pcg", backend="numba")
    direct = ag.solve(problem, linear_solver="sparse-cholesky", backend="numba")
    assert solution.cost == pytest.approx(direct.cost, rel=1e-6)
    assert solution.values["x"][:10].tobytes() == start[:10].tobytes()


# -- choice ------------------------------------------------------------------------------------


def grid_pattern(*sides: int) -> tuple[np.ndarray, np.ndarray]:
    """Pattern of the upper triangle for a grid of vertices, 3 unknowns each."""
    upper = sparse.csr_matrix(np.ones((1, 1)))
    for side in sides:
        line = sparse.diags([np.ones(side - 1)] * 2, [-1, 1])
        upper = sparse.kron(upper, sparse.eye(side)) + sparse.kron(sparse.eye(upper.shape[0]), line)
    upper = sparse.csr_matrix(sparse.triu(sparse.kron(upper, np.ones((3, 3)))))
    upper.sort_indices()
    return upper.indptr, upper.indices


def test_auto_takes_conjugate_gradients_where_a_factor_would_be_dear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from autograd_gpu.solvers import linear_solvers

    monkeypatch.setattr(linear_solvers, "fastest_sparse_cholesky", SuperLUCholesky)
    chosen = {}
    for sides in ((10_000,), (20, 20), (400, 400), (30, 30, 30)):
        indptr, indices = grid_pattern(*sides)
        n = len(indptr) - 1
        solver, why = choose_linear_solver("auto", n, len(indices), (indptr, indices))
        chosen[sides] = solver.name
        assert ("a step" in why) == isinstance(solver, ConjugateGradients)
        assert choose_linear_solver("auto", n, len(indices))[0].name.startswith("sparse")
    assert [name == "pcg" for name in chosen.values()] == [False, False, True, True]


def test_auto_never_iterates_where_there_are_hubs(monkeypatch: pytest.MonkeyPatch) -> None:
    from autograd_gpu.solvers import linear_solvers

    normal = workloads.bundle_problem(10, 2000).analysis().normal_equations
    pattern = (normal.indptr, normal.indices)
    for fastest in (SuperLUCholesky, linear_solvers.fastest_sparse_cholesky):
        monkeypatch.setattr(linear_solvers, "fastest_sparse_cholesky", fastest)
        solver, _ = choose_linear_solver("auto", normal.n, len(normal.indices), pattern)
        assert not isinstance(solver, ConjugateGradients)
        solver.close()


def test_pcg_by_name_and_its_description() -> None:
    solver, why = choose_linear_solver("pcg", 10, 20)
    assert isinstance(solver, ConjugateGradients)
    assert "requested" in why
    assert "No system yet" in solver.describe()
    upper = random_system(40, 0)
    solver.analyze(upper.indptr, upper.indices, 40)
    assert solver.factorize(upper.data)
    solver.solve(np.ones(40))
    assert "block-Jacobi: 1 systems" in solver.describe()
    assert set(PRECONDITIONERS) == {*BUILT_IN[1:], "smoothed-aggregation"}
