"""What is particular to JAX: compilations, the user's 64-bit flag, doing without the package."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from bindings import Rows, bind

import autograd_gpu as ag
from sessions import JAX, Backend, float32_exact, parameters_of

jax = pytest.importorskip("jax")
jnp = jax.numpy

from autograd_gpu.runtime.jax_functions import compilations  # noqa: E402 - after the skip

each_precision = pytest.mark.parametrize("backend", parameters_of(JAX))
RNG = np.random.default_rng(0)
POINTS = float32_exact(RNG.normal(size=(50, 3)))
COUNT = 120


def stretched(p: Any, q: Any, rest: Any, w: Any) -> Any:
    return w * (ag.norm(q - p) - rest)


def bound_springs(seed: int, count: int = COUNT) -> Any:
    rng = np.random.default_rng(seed)
    graph = ag.trace(stretched, 3, 3, 1, 1)
    rows = {
        0: Rows(indices=rng.integers(0, 50, count)),
        1: Rows(indices=rng.integers(0, 50, count)),
        3: Rows(0, 0),
    }
    arrays = [POINTS, POINTS + 1.0, rng.uniform(0.5, 1, count), rng.uniform(1, 2, 1)]
    return bind(graph, arrays, (2, 3), rows=rows, count=count)


def products(backend: Backend, bound: Any) -> None:
    with backend.open([bound.group], bound.parameters.size) as session:
        session.residuals(bound.parameters)
        session.residual_jacobian(bound.parameters)
        session.cost(bound.parameters)


@each_precision
def test_new_indices_and_data_compile_nothing(backend: Backend) -> None:
    products(backend, bound_springs(1))
    before = compilations.total
    products(backend, bound_springs(2))
    assert compilations.total == before
    products(backend, bound_springs(2, COUNT + 1))
    assert compilations.total == before + 3, "another length is another shape"


@each_precision
def test_a_solve_compiles_each_product_once(backend: Backend) -> None:
    def problem(seed: int) -> ag.Problem:
        mesh = ag.meshes.icosphere(1)
        noise = 0.05 * np.random.default_rng(seed).standard_normal(mesh.vertices.shape)
        i, j = mesh.edges.T
        made = ag.Problem()
        x = made.parameters("x", mesh.vertices + noise)
        # A function of this test alone, so that nobody compiled it before.
        made.add_residuals(lambda p, q, d: ag.norm(q - p) ** 1.5 - d, x[i], x[j], mesh.edge_lengths)
        made.add_residuals(lambda p, c: 0.1 * ag.sin(p - c), x, mesh.vertices)
        return made

    def solve(given: ag.Problem) -> ag.Solution:
        return ag.solve(
            given,
            backend="jax",
            precision=backend.precision,
            linear_solver="sparse-cholesky",
        )

    before = compilations.total
    solution = solve(problem(1))
    assert solution.iterations > 1
    assert solution.backend == "jax"
    assert compilations.total == before + 4, "two groups, residuals and Jacobians"
    again = problem(2)
    solve(again)
    again.update(x=again.values_of(again.arrays[0]) * 1.1)
    solve(again)
    assert compilations.total == before + 4


@pytest.mark.parametrize("flag", [False, True])
def test_the_users_precision_flag_stays(flag: bool) -> None:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", flag)
    try:
        for backend in JAX:
            products(backend, bound_springs(3))
        assert jax.config.jax_enable_x64 is flag
        assert jnp.asarray([1.0]).dtype == (jnp.float64 if flag else jnp.float32)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_generated_text_is_a_function_of_columns() -> None:
    graph = ag.trace(stretched, 3, 3, 1, 1)
    source = ag.compile_to_jax(graph, data=(2, 3))
    assert source.target == "jax"
    namespace: dict[str, Any] = {}
    exec(source.source, namespace)
    # Slots come in the order of the topology.
    values = [np.array([0.3, 0.1, 0.2]), np.array([1.0, 2.0, 3.0]), np.array([0.5]), np.ones(1)]
    order = bind(graph, [v[None] for v in values], (2, 3)).group.topology.arguments
    residuals, jacobian = namespace[source.entry_point]([values[a] for a in order])
    assert float(residuals[0]) == pytest.approx(float(graph(*values[:2], 0.5, 1.0)), rel=1e-6)
    assert len(jacobian) == 6


def test_a_constant_beyond_float32_is_refused_by_name() -> None:
    graph = ag.trace(lambda x: x * 1e39, 1)
    with pytest.raises(ag.KernelError, match=r"1e\+39 does not fit float32"):
        ag.compile_to_jax(graph, precision="float32")


def test_without_jax_everything_else_works() -> None:
    script = """
import sys
sys.modules["jax"] = None
import numpy as np
import autograd_gpu as ag
problem = ag.Problem()
x = problem.parameters("x", np.ones(3))
problem.add_residuals(lambda p: p - 3.0, x)
assert ag.solve(problem).success
assert "jnp.sin" in ag.compile_to_jax(ag.trace(ag.sin, 1)).source
try:
    ag.solve(problem, backend="jax")
except ag.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "pip install autograd-gpu[jax]" in done.stdout
