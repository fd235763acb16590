"""Levenberg-Marquardt with conjugate gradients wholly on JAX's device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from autograd_gpu.meshes import energies
from sessions import JAX, JAX32, JAX64, Backend
from tolerances import GRAPH, tolerance

pytest.importorskip("jax")

from autograd_gpu.runtime.jax_functions import compilations, double_precision
from autograd_gpu.runtime.jax_incidence import JaxTables, incidence_table
from autograd_gpu.runtime.jax_linearization import block_inverse_roots
from autograd_gpu.runtime.jax_solve import JaxSolve
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters

LONG_ONLY = [pytest.mark.long]
AT_MINIMUM = {"float64": 1e-6, "float32": 1e-4}


def solve(problem: ag.Problem, backend: Backend = JAX64, **options: Any) -> ag.Solution:
    return ag.solve(
        problem,
        backend="jax",
        precision=backend.precision,
        linear_solver="pcg",
        options=ag.LevenbergMarquardtOptions(**{"max_iterations": 200, **options}),
    )


def cases(*fast: tuple[str, Backend]) -> Any:
    """Every name in every precision; all but ``fast`` are long, since XLA compiles for seconds."""
    return pytest.mark.parametrize(
        ("name", "backend"),
        [
            pytest.param(name, b, id=f"{name}-{b}", marks=[] if (name, b) in fast else LONG_ONLY)
            for name in ("W1r_s3", "W2_s3", "W3", "W4_s3", "W4_s5", "W5")
            for b in JAX
        ],
    )


@cases(("W1r_s3", JAX64), ("W2_s3", JAX32), ("W5", JAX64))
def test_minima(name: str, backend: Backend) -> None:
    solution = solve(workloads.PROBLEMS[name](), backend)
    assert solution.success, solution.report()
    assert solution.cost == pytest.approx(workloads.MINIMA[name], rel=AT_MINIMUM[backend.precision])
    assert "pcg" in solution.linear_solver
    assert solution.kernels


@pytest.mark.long
@pytest.mark.parametrize("name", ["W1r_s3", "W2_s3", "W3", "W4_s3", "W4_s5", "W5"])
def test_minima_with_a_factorisation_on_the_host(name: str) -> None:
    options = ag.LevenbergMarquardtOptions(max_iterations=200)
    solution = ag.solve(
        workloads.PROBLEMS[name](), backend="jax", linear_solver="sparse-cholesky", options=options
    )
    assert solution.cost == pytest.approx(workloads.MINIMA[name], rel=AT_MINIMUM["float64"])


@pytest.mark.long
def test_a_small_bundle() -> None:
    backend, problem = JAX32, workloads.bundle_problem(12, 300)
    assert solve(problem, backend).cost == pytest.approx(
        ag.solve(problem, backend="numba").cost, rel=AT_MINIMUM[backend.precision]
    )


def every_form(seed: int = 0, scale: float = 1.0) -> ag.Problem:
    """Groups whose nodes see one element each, some, many unevenly, and all of them."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((40, 3))
    problem = ag.Problem()
    x = problem.parameters("x", points)
    s = problem.parameters("s", [1.1])
    # Other labels of the nodes, whatever the seed: tables keep their shape.
    others = rng.permutation(40)
    hub = others[[0] * 30 + [*range(1, 31)]]
    far = others[[*range(31, 40)] * 6 + [*range(31, 37)]]
    problem.add_residuals(energies.spring, x[hub], x[far], np.ones(60))
    problem.add_residuals(
        lambda p, q, k, d: k * ag.norm(q - p) - d, x[others], x[np.roll(others, 1)], s[0],
        scale * np.ones(40), name="chain",
    )  # fmt: skip
    problem.add_residuals(lambda p, t: 0.3 * (p - t), x, points + 0.1, name="anchor")
    problem.add_residuals(lambda p: 0.1 * ag.exp(p[0]), x[[3, 5]], name="few")
    problem.freeze(x, [7, 8])
    return problem


@pytest.mark.parametrize("backend", [JAX64, pytest.param(JAX32, marks=LONG_ONLY)], ids=str)
def test_gradient_cost_and_step(backend: Backend) -> None:
    problem = every_form()
    analysis = problem.analysis()
    x = current_parameters(problem)
    damping = ag.LevenbergMarquardtOptions().damping
    tables = JaxTables(array_layouts(analysis), analysis.groups, x, damping, backend.precision)
    forms = {i.form.value for kinds in tables.structure.incidences for i in kinds}
    assert forms == {"all", "direct", "table"}
    lists = [t["more_nodes"].size for kinds in tables.arrays_of_incidences for t in kinds if t]
    assert any(lists) and not all(lists)
    engine = JaxSolve(tables)
    engine.start(x, 1e-4, 1e-6, 1e-3)
    step = engine.step(200)
    oracle = problem.evaluate(backend="numpy")
    bounds = tolerance(backend.precision, GRAPH)
    bounds.check(step.cost_before / oracle.cost, 1.0, "cost")
    largest = np.abs(oracle.gradient).max()
    bounds.check(step.gradient_norm / largest, 1.0, "gradient")
    # The damped step of the oracle: (JᵀJ + λ (1 + column norm)²) δ = -Jᵀr.
    J = oracle.jacobian.toarray()
    normal = J.T @ J
    damped = normal + 1e-4 * np.diag((1 + np.sqrt(np.diag(normal))) ** 2)
    delta = -np.linalg.solve(damped, oracle.gradient)
    assert step.step_norm == pytest.approx(np.linalg.norm(delta), rel=1e-4)
    if step.accepted:
        moved = (engine.parameters() - x)[analysis.free_positions]
        np.testing.assert_allclose(moved, delta, atol=1e-4 * np.abs(delta).max())


def test_solves_compile_once_and_new_data_or_indices_nothing() -> None:
    before = compilations.total
    assert solve(every_form(), damping="identity", max_iterations=6).iterations == 6
    assert compilations.total == before + 1
    other = every_form(seed=1, scale=1.2)
    solve(other, damping="identity", max_iterations=3)
    other.freeze(other.arrays[0], [9])
    solve(other, damping="identity", max_iterations=3)
    assert compilations.total == before + 1


def test_frozen_vertices_keep_their_bits() -> None:
    problem = every_form()
    (x, _) = problem.arrays
    start = problem.values_of(x)
    end = solve(problem, max_iterations=5).values["x"]
    assert end[[7, 8]].tobytes() == start[[7, 8]].tobytes()
    assert (end[[1, 2]] != start[[1, 2]]).any()


@pytest.mark.parametrize("damping", ["diagonal", "one-plus-norm", "identity"])
def test_damping_forms(damping: str) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [[-1.2, 1.0]])
    problem.add_residuals(lambda p: [10 * (p[1] - p[0] ** 2), 1 - p[0]], x, name="rosenbrock")
    assert solve(problem, damping=damping).cost < 1e-12


@pytest.mark.parametrize(
    ("residual", "start"),
    [(lambda x: ag.exp(x) - 20.0, 0.0), (ag.log, 5.0)],
    ids=["overshoot", "nan"],
)
def test_steps_that_fail_are_rejected(residual: Callable[..., Any], start: float) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [start])
    problem.add_residuals(residual, x, name="r")
    solution = solve(problem)
    assert solution.success
    assert solution.rejected
    assert solution.cost < 1e-9


def test_a_start_that_is_not_finite_is_named() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, -1.0])
    problem.add_residuals(ag.log, x, name="logs")
    solution = solve(problem)
    assert solution.status is ag.Status.FAILED_NUMERICAL
    assert "residuals 'logs', element 1" in solution.message


def test_tables_hold_every_incidence_once() -> None:
    rng = np.random.default_rng(5)
    for count, elements in [(1, 7), (10, 100), (100, 30), (50, 60)]:
        nodes = np.sort(rng.integers(0, count, elements) ** 2 // max(1, count))
        table = incidence_table(nodes, count)
        seen = [set[int]() for _ in range(count)]
        for node in range(count):
            seen[node] |= set(table["elements"][: table["degree"][node], node].tolist())
        for element, node in zip(table["more_elements"], table["more_nodes"], strict=True):
            if node < count:
                assert element not in seen[node]
                seen[node].add(int(element))
        assert [sorted(s) for s in seen] == [
            np.flatnonzero(nodes == node).tolist() for node in range(count)
        ]


@pytest.mark.parametrize("width", [1, 3, 9])
def test_block_inverse(width: int) -> None:
    rng = np.random.default_rng(width)
    half = rng.standard_normal((width, width, 20))
    block = np.einsum("abn,cbn->acn", half, half) + np.eye(width)[:, :, None]
    scale = 10.0 ** rng.uniform(-3, 3, width)
    block *= scale[:, None, None] * scale[None, :, None]
    with double_precision():
        roots = np.asarray(block_inverse_roots(np_to_jax(block)))
    inverse = np.einsum("kin,kjn->ijn", roots, roots)
    product = np.einsum("abn,bcn->acn", block, inverse) / scale[:, None, None]
    want = np.eye(width)[:, :, None] / scale[:, None, None] * np.ones(20)
    np.testing.assert_allclose(product, want, atol=1e-9 * np.abs(want).max())


def np_to_jax(array: Any) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(array)
