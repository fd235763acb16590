"""A solve inside a JAX program: derivatives of minima by data and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu import interop
from tolerances import Tolerance

jax = pytest.importorskip("jax")
jnp = jax.numpy

from autograd_gpu.runtime.jax_functions import double_precision  # noqa: E402 - after the skip

DIFFERENCES = Tolerance(1e-6, 1e-6, "central differences of minima, step 1e-4")
UNROLLED = Tolerance(1e-7, 1e-7, "Newton's iterations, run until they stand still")
COUNT = 4


def chain(loss: Any = None) -> tuple[ag.Problem, Any]:
    """A hanging chain with too long springs: its minimum has residuals, so JᵀJ is not H."""
    problem = ag.Problem()
    start = np.random.default_rng(0).normal(size=(COUNT, 2))
    x = problem.parameters("x", start)
    i = np.arange(COUNT - 1)
    problem.add_residuals(
        lambda p, q, rest: ag.norm(q - p) - rest, x[i], x[i + 1], np.full(COUNT - 1, 2.0),
        weight=np.full(COUNT - 1, 1.5), name="springs",
    )  # fmt: skip
    problem.add_residuals(
        lambda p, c: ag.sin(p - c), x, 0.3 * start + 0.1, loss=loss, name="anchor"
    )
    return problem, x


def given() -> tuple[Any, Any]:
    return jnp.linspace(1.0, 2.0, COUNT - 1), jnp.linspace(1.0, 1.5, COUNT - 1)


def as_data(rest: Any, weight: Any) -> Any:
    return {"springs": {"rest": rest, "weight": weight}}


def loss_of(minimum: Any) -> Any:
    """A number that hangs on the minimum, by data and weights."""
    return lambda rest, weight: jnp.sum(jnp.sin(3.0 * minimum(as_data(rest, weight))["x"]))


@pytest.mark.parametrize(
    ("loss", "frozen"), [(None, []), (ag.losses.Cauchy(0.5), [0, 2])], ids=["free", "frozen-robust"]
)
def test_gradients_are_central_differences_of_solves(loss: Any, frozen: list[int]) -> None:
    problem, x = chain(loss)
    problem.freeze(x, frozen)
    with double_precision():
        value = loss_of(interop.as_jax(ag.solve, problem))
        rest, weight = given()
        got = jax.jit(jax.grad(value, (0, 1)))(rest, weight)
        value = jax.jit(value)
        for which in (0, 1):
            for k in range(COUNT - 1):
                ends: list[float] = []
                for step in (1e-4, -1e-4):
                    moved = [rest, weight]
                    moved[which] = moved[which].at[k].add(step)
                    ends.append(float(value(*moved)))
                DIFFERENCES.check(got[which][k], (ends[0] - ends[1]) / 2e-4, f"{which}, {k}")


def test_gradients_are_those_of_unrolled_iterations() -> None:
    problem, _ = chain()
    with double_precision():
        residuals = interop.as_jax(problem)
        start = interop.as_jax(ag.solve, problem)(as_data(*given()))["x"]

        def unrolled(rest: Any, weight: Any) -> Any:
            data = as_data(rest, weight)

            def cost(flat: Any) -> Any:
                return residuals.cost({"x": flat.reshape(COUNT, 2)}, data)

            # Gauss-Newton contracts here by a fixed factor an iteration; each is differentiated.
            def iterate(_: int, flat: Any) -> Any:
                jacobian = jax.jacfwd(lambda v: residuals({"x": v.reshape(COUNT, 2)}, data))(flat)
                return flat - jnp.linalg.solve(jacobian.T @ jacobian, jax.grad(cost)(flat))

            flat = jax.lax.fori_loop(0, 50, iterate, jnp.ravel(start))
            return jnp.sum(jnp.sin(3.0 * flat))

        want = jax.jit(jax.jacfwd(unrolled, (0, 1)))(*given())
        got = jax.grad(loss_of(interop.as_jax(ag.solve, problem)), (0, 1))(*given())
        for which in (0, 1):
            UNROLLED.check(got[which], want[which], "rest" if which == 0 else "weight")


def quadratic() -> ag.Problem:
    """Minimum (a + w² b) / (1 + w²), so every derivative has a formula."""
    problem = ag.Problem()
    x = problem.parameters("x", [0.0])
    problem.add_residuals(lambda x, a: x - a, x, [1.0], name="first")
    problem.add_residuals(lambda x, b: x - b, x, [3.0], weight=2.0, name="second")
    return problem


def test_it_composes_with_jit_vmap_and_itself() -> None:
    minimum = interop.as_jax(ag.solve, quadratic())

    def at(w: Any) -> Any:
        return minimum({"second": {"weight": w}})["x"][0]

    def exact(w: Any) -> Any:
        return (1.0 + 3.0 * w**2) / (1.0 + w**2)

    weights = np.array([0.5, 1.0, 2.0])
    with double_precision():
        close = Tolerance(1e-8, 1e-8, "a few roundings, divided by small numbers")
        close.check(jax.jit(jax.vmap(at))(weights), exact(weights), "minima")
        slopes = jax.jit(jax.vmap(jax.grad(jax.jit(at))))(weights)
        close.check(slopes, jax.vmap(jax.grad(exact))(weights), "slopes")
        second = jax.jacrev(jax.grad(at))(2.0)
        close.check(second, jax.grad(jax.grad(exact))(2.0), "second derivative")


def test_float32_programs_get_float32() -> None:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        minimum = interop.as_jax(ag.solve, quadratic())
        slope = jax.grad(lambda w: minimum({"second": {"weight": w}})["x"][0])(2.0)
        assert slope.dtype == jnp.float32
        assert float(slope) == pytest.approx(8.0 / 25.0, rel=1e-5)
        assert minimum()["x"][0] == pytest.approx(2.6)
    finally:
        jax.config.update("jax_enable_x64", before)


def test_energies_count() -> None:
    problem = quadratic()
    (x,) = problem.arrays
    problem.add_energy(lambda x, k: k * ag.exp(x), x, [0.2], name="well")
    with double_precision():
        minimum = interop.as_jax(ag.solve, problem, method="newton")

        def at(k: Any) -> Any:
            return minimum({"well": {"k": k}})["x"][0]

        k = np.array([0.2])
        place = float(at(k))
        # (x - 1) + 4 (x - 3) + k exp(x) = 0
        assert 5 * place - 13 + 0.2 * np.exp(place) == pytest.approx(0, abs=1e-7)
        slope = -np.exp(place) / (5 + 0.2 * np.exp(place))
        assert float(jax.grad(at)(k)[0]) == pytest.approx(slope, rel=1e-6)


def test_the_users_problem_stays_as_it_is() -> None:
    problem, x = chain()
    before = problem.evaluate(backend="numpy").residuals
    start = problem.values_of(x)
    interop.as_jax(ag.solve, problem)(as_data(*given()))
    assert (problem.values_of(x) == start).all()
    assert (problem.evaluate(backend="numpy").residuals == before).all()


def test_what_has_no_derivative_says_so() -> None:
    problem, _ = chain()
    with pytest.raises(ag.InputError, match="cannot run inside a callback"):
        interop.as_jax(ag.solve, problem, backend="jax")
    with pytest.raises(ag.InputError, match=r"got NoneType, expected an ag\.Problem"):
        interop.as_jax(ag.solve, None)  # pyright: ignore[reportCallIssue, reportArgumentType]
    with pytest.raises(ag.InputError, match=r"go with ag\.solve"):
        interop.as_jax(problem, problem)  # pyright: ignore[reportCallIssue, reportArgumentType]
    turned = ag.Problem()
    angle = turned.parameters("q", [[1.0, 0.0, 0.0, 0.0]], manifold=ag.manifolds.SO3)
    turned.add_residuals(lambda q: q.act([1.0, 0.0, 0.0]), angle)
    with pytest.raises(ag.InputError, match="manifold"):
        interop.as_jax(ag.solve, turned)
    boxed = ag.Problem()
    boxed.add_residuals(lambda x: x - 3.0, boxed.parameters("x", [0.0], bounds=(-1.0, 1.0)))
    with pytest.raises(ag.InputError, match="have bounds"):
        interop.as_jax(ag.solve, boxed)
    held = ag.Problem()
    x = held.parameters("x", [0.0])
    held.add_residuals(lambda x: x - 3.0, x)
    held.add_constraint(lambda x: x - 1.0, x)
    assert len(held.copy().constraints) == 1
    with pytest.raises(ag.InputError, match="has constraints"):
        interop.as_jax(ag.solve, held)
    with pytest.raises(Exception, match="no minimum to differentiate"):
        interop.as_jax(ag.solve, problem, options=ag.LevenbergMarquardtOptions(max_iterations=1))()
    loose = ag.Problem()
    y = loose.parameters("y", [[1.0, 2.0]])
    loose.add_residuals(lambda p, c: p[0] - c, y, [3.0], name="only x")
    with pytest.raises(Exception, match="singular"):
        minimum = interop.as_jax(ag.solve, loose)
        jax.grad(lambda c: minimum({"only x": {"c": c}})["y"][0, 0])(jnp.array([3.0]))
