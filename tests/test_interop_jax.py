"""``as_jax`` and ``from_jax``: pure functions both ways, on every backend."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import autograd_gpu as ag
import workloads
from autograd_gpu import interop
from autograd_gpu.meshes import energies
from random_graphs import Recipe, random_arrays, recipes, smooth_points
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import GRAPH, Tolerance, tolerance

jax = pytest.importorskip("jax")
jnp = jax.numpy

from autograd_gpu.runtime.jax_functions import double_precision  # noqa: E402 - after the skip

SAME = Tolerance(1e-9, 1e-9, "two spellings of tens of float64 operations")
RNG = np.random.default_rng(0)


def spring(p: Any, q: Any, rest: Any) -> Any:
    return ag.norm(q - p) - rest


# -- graphs as JAX functions ---------------------------------------------------------------------


def test_a_graph_composes_with_jit_grad_and_vmap() -> None:
    graph = ag.trace(lambda p, M, k: [k * (M @ p), p], 2, (2, 2), 1)
    p, M, k = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 2, 2)), RNG.normal(size=5)
    with double_precision():
        f = interop.as_jax(graph)
        values = jax.jit(jax.vmap(f))(p, M, k)
        SAME.check(values, graph(p, M, k), "values")
        J = ag.jacobian(graph)(p, M, k).reshape(5, 2, 2, 7)
        for mode in (jax.jacfwd, jax.jacrev):
            parts = jax.vmap(mode(f, (0, 1, 2)))(p, M, k)
            flat = np.concatenate([np.reshape(a, (5, 2, 2, -1)) for a in parts], axis=3)
            SAME.check(flat, J, mode.__name__)
        shared = jax.vmap(f, (0, None, None))(p, M[0], k[0])
        SAME.check(shared, graph(p, M[0], k[0]), "one matrix for all")


def test_derivatives_follow_the_op_table_to_any_order() -> None:
    f = interop.as_jax(ag.trace(spring, 3, 3, 1))
    p, q = np.zeros(3), np.array([1.0, 2.0, -2.0])
    assert np.isfinite(jax.grad(f)(p, p, 1.0)).all(), "a spring of length 0 has gradient 0"
    assert not np.any(jax.grad(f)(p, p, 1.0))
    with double_precision():
        third = jax.jacfwd(jax.hessian(lambda v: interop.as_jax(ag.trace(ag.sin, 1))(v)))(0.3)
        assert float(third) == pytest.approx(-np.cos(0.3))
        graph = ag.trace(spring, 3, 3, 1)
        want = ag.hessian(graph)(p, q, 1.0)[:3, :3]
        SAME.check(jax.hessian(interop.as_jax(graph))(p, q, 1.0), want, "hessian")
        SAME.check(jax.jacrev(jax.grad(interop.as_jax(graph)))(p, q, 1.0), want, "reverse twice")


@settings(max_examples=6)
@given(recipes(max_steps=8), st.integers(0, 2**32))
def test_random_graphs_and_their_derivatives(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    arrays = random_arrays(recipe.widths, 20, seed)
    fair = smooth_points(graph, arrays)
    assume(fair.any())
    given_ = tuple(range(len(arrays)))
    with double_precision():
        f = interop.as_jax(graph)
        values = jax.vmap(f)(*arrays)
        parts = jax.vmap(jax.jacrev(f, given_))(*arrays)
    SAME.check(np.asarray(values)[fair], graph(*arrays)[fair], "values")
    m = len(graph.outputs)
    J = np.concatenate([np.reshape(a, (20, m, -1)) for a in parts], axis=2)
    with np.errstate(all="ignore"):
        want = ag.jacobian(graph)(*arrays).reshape(J.shape)
    finite = fair[:, None, None] & np.isfinite(want)
    scale = 1.0 + np.abs(want[finite]).max(initial=0.0)
    SAME.check(J[finite] / scale, want[finite] / scale, "Jacobian")


def test_the_type_follows_what_is_given() -> None:
    f = interop.as_jax(ag.trace(spring, 3, 3, 1))
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        assert f(np.ones(3), np.zeros(3), 1).dtype == jnp.float32
        half = jnp.ones(3, jnp.bfloat16)
        assert f(half, half, jnp.bfloat16(1)).dtype == jnp.bfloat16
        assert jax.config.jax_enable_x64 is False
    finally:
        jax.config.update("jax_enable_x64", before)
    with double_precision():
        assert f(np.ones(3), np.zeros(3), 1.0).dtype == jnp.float64


def test_what_does_not_fit_is_refused() -> None:
    f = interop.as_jax(ag.trace(spring, 3, 3, 1))
    with pytest.raises(ag.ShapeError, match=r"argument 'q': got shape \(4, 3\).*use jax.vmap"):
        f(np.ones(3), np.ones((4, 3)), 1.0)
    with pytest.raises(ag.ShapeError, match="got 1 arrays"):
        f(np.ones(3))
    with pytest.raises(ag.InputError, match="got function, expected a graph"):
        interop.as_jax(spring)  # pyright: ignore[reportCallIssue, reportArgumentType]


# -- problems as JAX functions -------------------------------------------------------------------


def rich_problem() -> tuple[ag.Problem, Any]:
    """Gathers by index, slice and sharing, weights, a loss, rows of varying length."""
    problem = ag.Problem()
    points = np.random.default_rng(1).normal(size=(9, 3))
    x = problem.parameters("x", points)
    s = problem.parameters("s", [1.3])
    i = np.arange(9)
    problem.add_residuals(spring, x[i], x[(i + 1) % 9], np.ones(9), weight=2.0, name="ring")
    problem.add_residuals(
        lambda p, k, c: k * p - c, x[::2], s[0], points[::2] + 0.3, loss=ag.losses.Huber(0.2),
        name="robust",
    )  # fmt: skip
    rows = ag.Ragged(np.array([0, 2, 5, 6, 8]), np.array([1, 2, 3, 4, 5, 6, 7, 8]))
    problem.add_residuals(lambda r: ag.sum([ag.norm(p) for p in r]), x[rows], name="stars")
    problem.add_energy(lambda p: 0.1 * ag.exp(p[0]), x, name="well")
    problem.freeze(x, [0])
    return problem, x


def test_a_problem_is_its_residuals() -> None:
    problem, x = rich_problem()
    oracle = problem.evaluate(backend="numpy")
    f = interop.as_jax(problem)
    with double_precision():
        values = {"x": jnp.asarray(problem.values_of(x))}
        wells = np.sum(0.1 * np.exp(problem.values_of(x)[:, 0]))
        halves = 0.5 * jnp.sum(f(values) ** 2)
        assert float(halves) + wells == pytest.approx(oracle.cost, rel=1e-12)
        assert float(f.cost(values)) == pytest.approx(oracle.cost, rel=1e-12)
        gradient = jax.jit(jax.grad(f.cost))(values)["x"]
        columns = problem.columns(x)
        SAME.check(
            np.asarray(gradient)[columns >= 0], oracle.gradient[columns[columns >= 0]], "gradient"
        )
    # Without the loss, residuals themselves are those of evaluate, in the given order.
    calm = ag.Problem()
    y = calm.parameters("x", problem.values_of(x))
    rows = ag.Ragged(np.array([0, 2, 5, 6, 8]), np.array([1, 2, 3, 4, 5, 6, 7, 8]))
    calm.add_residuals(lambda r: ag.sum([ag.norm(p) for p in r]), y[rows], name="stars")
    with double_precision():
        SAME.check(interop.as_jax(calm)({}), calm.evaluate(backend="numpy").residuals, "order")


def test_data_are_arguments_too() -> None:
    problem, x = rich_problem()
    f = interop.as_jax(problem)
    assert set(f.data_shapes) == {
        ("ring", "rest"), ("ring", "weight"), ("robust", "c"), ("robust", "loss_delta"),
    }  # fmt: skip
    rest = np.linspace(0.5, 1.5, 9)

    def cost(rest: Any, weight: Any) -> Any:
        return 0.5 * jnp.sum(f({}, {"ring": {"rest": rest, "weight": weight}}) ** 2)

    with double_precision():
        by_rest, by_weight = jax.grad(cost, (0, 1))(rest, 3.0)
        for k in range(2):
            moved = rest.copy()
            step = 1e-6
            moved[k] += step
            slope = (float(cost(moved, 3.0)) - float(cost(rest, 3.0))) / step
            assert float(by_rest[k]) == pytest.approx(slope, rel=1e-4)
        slope = (float(cost(rest, 3.0 + 1e-6)) - float(cost(rest, 3.0))) / 1e-6
        assert float(by_weight) == pytest.approx(slope, rel=1e-4)
    problem.update(data={"ring": {"rest": rest + 9.0}})
    problem.update(x=problem.values_of(x) + 1.0)
    with double_precision():
        assert float(cost(rest, 2.0)) == float(cost(rest, 2.0)), "a later update is not seen"
        f2 = interop.as_jax(problem)
        assert float(jnp.sum(f2({}))) != float(jnp.sum(f({})))


@pytest.mark.parametrize(
    ("values", "data", "error", "message"),
    [
        ({"y": [1.0]}, {}, ag.InputError, "no 'y'; the problem has 'x', 's'"),
        ({"s": [1.0, 2.0]}, {}, ag.ShapeError, r"'s': got shape \(2,\), expected \(1,\)"),
        ({}, {"ring": {"p": 1.0}}, ag.InputError, r"no \('ring', 'p'\)"),
        ({}, {"ring": {"rest": 1.0}}, ag.ShapeError, r"got shape \(\), expected \(9,\)"),
    ],
)
def test_values_and_data_are_checked(values: Any, data: Any, error: Any, message: str) -> None:
    f = interop.as_jax(rich_problem()[0])
    with pytest.raises(error, match=message):
        f(values, data)


def test_loops_over_long_rows_are_refused() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones((50, 3)))
    rows = ag.Ragged(np.array([0, 40, 80]), np.arange(80) % 50)
    problem.add_residuals(lambda r: ag.sum([ag.norm(p) for p in r]), x[rows], name="long")
    with pytest.raises(ag.InputError, match="residuals 'long' loop over long rows"):
        interop.as_jax(problem)


def test_a_copy_of_a_problem_stays_as_it_is() -> None:
    problem, x = rich_problem()
    copy = problem.copy()
    cost = copy.evaluate(backend="numpy").cost
    problem.update(x=problem.values_of(x) + 1.0, data={"ring": {"rest": np.zeros(9)}})
    problem.unfreeze(x)
    problem.add_residuals(lambda p: p, x)
    assert copy.evaluate(backend="numpy").cost == cost
    assert copy.frozen_of(x)[0]
    copy.update(x=np.zeros((9, 3)))
    assert problem.values_of(x).any()
    with pytest.raises(ag.InputError, match="another problem's"):
        ag.Problem().add_residuals(lambda p: p, x)


# -- JAX functions as graphs ---------------------------------------------------------------------


def jax_rotated(r: Any, v: Any) -> Any:
    """Rodrigues' formula, as one writes it in JAX."""
    squared = r @ r
    small = squared < 1e-12
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    a = jnp.where(small, 1.0, jnp.sin(angle) / angle)
    b = jnp.where(small, 0.5, (1 - jnp.cos(angle)) / angle**2)
    return v + a * jnp.cross(r, v) + b * jnp.cross(r, jnp.cross(r, v))


def jax_as_rigid_as_possible(p: Any, q: Any, r: Any, edge: Any) -> Any:
    return (q - p) - jax_rotated(r, edge)


def jax_reprojection(c: Any, X: Any, seen: Any) -> Any:
    P = jax_rotated(c[:3], X) + c[3:6]
    u = -P[:2] / P[2]
    r2 = u @ u
    return c[6] * (1 + c[7] * r2 + c[8] * r2 * r2) * u - seen


@pytest.mark.parametrize(
    ("mine", "theirs", "widths"),
    [
        (energies.as_rigid_as_possible, jax_as_rigid_as_possible, (3, 3, 3, 3)),
        (workloads.reprojection_error, jax_reprojection, (9, 3, 2)),
        (spring, lambda p, q, rest: jnp.linalg.norm(q - p) - rest, (3, 3, 1)),
    ],
    ids=["as-rigid-as-possible", "reprojection", "spring"],
)
def test_residuals_written_in_jax(mine: Any, theirs: Any, widths: tuple[int, ...]) -> None:
    graph = interop.from_jax(theirs, widths)
    want = ag.trace(mine, *widths)
    assert graph.output_shape == want.output_shape
    arrays = [RNG.uniform(0.2, 1.0, (20, w) if w > 1 else 20) for w in widths]
    SAME.check(graph(*arrays), want(*arrays), "values")
    scale = 1.0 + np.abs(ag.jacobian(want)(*arrays)).max()
    SAME.check(ag.jacobian(graph)(*arrays) / scale, ag.jacobian(want)(*arrays) / scale, "Jacobian")
    ops = ag.jacobian(graph).stats.simplified_ops
    assert ops <= 1.1 * ag.jacobian(want).stats.simplified_ops


def activations(x: Any, M: Any) -> Any:
    return [
        jax.nn.softplus(x), jax.nn.sigmoid(x), jax.nn.relu(x), jax.nn.elu(x), jax.nn.gelu(x),
        jax.nn.silu(x), jnp.logaddexp(x[0], x[1]), jax.nn.log_sigmoid(x),
    ]  # fmt: skip


def elementary(x: Any, M: Any) -> Any:
    return [
        x**3, x**-2, x**0, jnp.abs(x) ** 1.5, 2.0**x, jnp.arctan2(x, 1 + x * x), jnp.round(3 * x),
        jnp.sign(x), jnp.mod(x, 0.7), jnp.fmod(x, 0.7), jnp.arcsinh(x), jnp.arccosh(1.1 + x * x),
        jnp.arctanh(0.9 * jnp.sin(x)), jnp.cbrt(x), jnp.exp2(x), jnp.sinc(x), jnp.tan(x),
        jnp.arcsin(0.9 * jnp.sin(x)), jnp.arccos(0.9 * jnp.sin(x)), jnp.floor(x), jnp.ceil(x),
        jnp.expm1(x), jnp.log1p(jnp.abs(x)), jax.scipy.special.erf(x), jax.scipy.special.erfc(x),
        jax.lax.rsqrt(1 + x * x), jnp.clip(x, -0.5, 0.5), jnp.hypot(x, 2.0), jnp.reciprocal(3 + x),
        jnp.trunc(4 * x), jax.lax.round(2.2 * x), jnp.square(x), jnp.heaviside(x, 0.5),
        jnp.polyval(jnp.array([1.0, 2.0, 3.0]), x), jnp.sinh(x), jnp.cosh(x), jnp.tanh(x),
    ]  # fmt: skip


def shapes(x: Any, M: Any) -> Any:
    return [
        M @ x, M.T @ M, jnp.outer(x, x), jnp.einsum("ij,j,i->", M, x, x[:2]), jnp.dot(x, x),
        jnp.linalg.norm(M, axis=0), jnp.concatenate([x, x[::-1]]), jnp.stack([x, 2 * x]).T,
        x.at[1].set(5.0), jnp.roll(x, 1), jnp.tile(x, 2), jnp.split(x, 3)[1], jnp.pad(x, 1),
        jnp.linspace(0, 1, 3) * x, jnp.max(M), jnp.min(M, axis=1), jnp.mean(M), jnp.var(x),
        jnp.prod(M, axis=0), jnp.cumsum(x), jnp.cumsum(x[::-1])[::-1], jnp.cumprod(x),
        jnp.diff(x), jnp.trace(M @ M.T), x[jnp.array([2, 0])], x[:, None] * M[0], x.reshape(3, 1),
        jnp.take(x, 1), jnp.ravel(M), jnp.repeat(x, 2), jnp.flip(M), jax.lax.cummax(x),
        jnp.vdot(x, x), jnp.tril(M.T @ M),
        jax.vmap(lambda row: row @ x)(M), jnp.sum(jnp.sort(jnp.arange(3.0))[::-1] * x),
    ]  # fmt: skip


def choices(x: Any, M: Any) -> Any:
    inside = (x > -0.5) & (x < 0.5) | (x == 2.0)
    return [
        jnp.where(inside, x, -x), jnp.where(~inside, 1.0, x), jnp.sum(inside) * 1.0,
        jnp.all(x > -9) * x, jnp.any(x > 0.5) * x, jnp.where(inside ^ (x > 0), x, 2.0),
        jax.lax.cond(x[0] > 0, lambda v: v[1] * 2, lambda v: jnp.sin(v[2]), x),
        jnp.where(jnp.isnan(x), 0.0, x), jnp.where(jnp.isfinite(x), x, 0.0),
        jax.lax.select(x > 0, x, M[0]), jnp.nan_to_num(x), jnp.maximum(x, -jnp.inf),
        jnp.select([x > 0.5, x > 0.0], [x, 2 * x], 3 * x), jnp.argmax(x) * x,
        jnp.argmin(M, 1) * 1.0,
        jax.lax.switch(jnp.argmax(x), [jnp.sin, jnp.cos, lambda v: v], x),
    ]  # fmt: skip


def loops(x: Any, M: Any) -> Any:
    total = jax.lax.fori_loop(0, 4, lambda k, s: 0.5 * s + jnp.sin(x[k % 3] * k), 0.0)
    last, trail = jax.lax.scan(lambda c, v: (c + v * v, c * v), 0.0, x)
    back, _ = jax.lax.scan(lambda c, v: (0.5 * c + v, None), x[0], x, reverse=True)
    turns = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, s[1] * x), (0, x))
    inner = jax.jit(lambda v: jax.checkpoint(jnp.sin)(v))(x)
    return [total, last, trail, back, turns[1], inner, jax.grad(lambda v: jnp.sum(v**3))(x)]


FAMILIES: tuple[Callable[..., Any], ...] = (activations, elementary, shapes, choices, loops)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_functions_of_jax(family: Callable[..., Any]) -> None:
    graph = interop.from_jax(family, (3, (2, 3)))
    rng = np.random.default_rng(5)
    for _ in range(8):
        x, M = rng.uniform(-1.0, 1.0, 3), rng.uniform(-1.0, 1.0, (2, 3))
        with double_precision():
            leaves = jax.tree.leaves(family(jnp.asarray(x), jnp.asarray(M)))
            want = np.concatenate([np.ravel(v) for v in leaves])
        SAME.check(np.ravel(graph(x, M)), want, family.__name__)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: jnp.sort(x) + jax.scipy.special.gammaln(x[0]),
         "'sort', which has no scalar form; all .*: lgamma, sort"),
        (lambda x: x[jnp.argmax(x)], "at a traced position"),
        (lambda x: jax.lax.stop_gradient(x), "'stop_gradient'"),
        (lambda x: jax.lax.while_loop(lambda v: v < 1, lambda v: 2 * v, x[0]),
         "'while', which has no scalar form unless its number of turns is known"),
        (lambda x: jax.lax.fori_loop(0, 10**6, lambda k, s: s + x, x), "at 1000000 turns"),
        (lambda x: float(x[0]) * x, "JAX could not trace.*Concretization"),
        (lambda x: x > 0, "truth value"),
        (lambda x: x[jnp.floor(x[0]).astype(int)], "at a traced position"),
    ],
)  # fmt: skip
def test_what_has_no_scalar_form_is_named(function: Any, named: str) -> None:
    with pytest.raises(ag.TraceError, match="(?s)" + named):
        interop.from_jax(function, (3,))


@settings(max_examples=10)
@given(recipes(max_steps=10), st.integers(0, 2**32))
def test_there_and_back(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    back = interop.from_jax(interop.as_jax(graph), recipe.widths)
    arrays = random_arrays(recipe.widths, 20, seed)
    fair = smooth_points(graph, arrays)
    assume(fair.any())
    SAME.check(back(*arrays)[fair], graph(*arrays)[fair], str(graph))


@pytest.mark.parametrize("backend", parameters_of([NUMPY, NUMBA, *JAX, *WGSL]))
def test_a_residual_of_jax_runs_on_every_backend(backend: Backend) -> None:
    mesh = ag.meshes.icosphere(1)
    noise = 0.05 * np.random.default_rng(0).standard_normal(mesh.vertices.shape)

    def problem(edge: Any, anchor: Any) -> ag.Problem:
        made = ag.Problem()
        x = made.parameters("x", mesh.vertices + noise)
        r = made.parameters("r", noise)
        i, j = mesh.edges.T
        made.add_residuals(edge, x[i], x[j], r[i], mesh.vertices[j] - mesh.vertices[i])
        made.add_residuals(anchor, x, mesh.vertices, 0.1)
        return made

    theirs = problem(
        interop.from_jax(jax_as_rigid_as_possible, (3, 3, 3, 3)),
        interop.from_jax(lambda p, c, w: w * (p - c), (3, 3, 1)),
    )
    mine = problem(energies.as_rigid_as_possible, energies.anchor).evaluate(backend="numpy")
    got = theirs.evaluate(
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )
    bounds = tolerance(backend.precision, GRAPH)
    bounds.check(got.residuals, mine.residuals, "residuals")
    bounds.check(got.jacobian.toarray(), mine.jacobian.toarray(), "Jacobian")


def test_without_jax_the_extra_is_named() -> None:
    script = """
import sys
sys.modules["jax"] = None
import autograd_gpu as ag
graph = ag.trace(lambda x: x * x, 1)
problem = ag.Problem()
problem.add_residuals(graph, problem.parameters("x", [1.0]))
for call in (
    lambda: ag.interop.as_jax(graph),
    lambda: ag.interop.as_jax(problem),
    lambda: ag.interop.from_jax(lambda x: x, (1,)),
    lambda: ag.solve(problem, backend="jax"),
):
    try:
        call()
    except ag.MissingDependencyError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install autograd-gpu[jax]") == 4
