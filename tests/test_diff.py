"""Derivatives: closed forms, forward against reverse, random graphs, second derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.diff import _jacobian, _wrt_components, value_and_jacobian
from autograd_gpu.errors import ShapeError, TraceError
from random_graphs import Recipe, random_arrays, recipes, smooth_points
from tolerances import Tolerance

EXACT = Tolerance(1e-12, 1e-12, "closed forms, a few float64 operations")
SAME = Tolerance(1e-10, 1e-10, "two orders of summation")
DIFFERENCE = Tolerance(2e-5, 2e-5, "central differences of graphs of tens of ops")


def jacobian_at(fn: Callable[..., Any], *point: Any, wrt: Any = None) -> Any:
    """Jacobian of ``fn`` at one point given as numbers and lists."""
    widths = [1 if np.ndim(p) == 0 else np.shape(p) for p in point]
    return ag.jacobian(ag.trace(fn, *widths), wrt)(*point)


def both_modes(graph: Graph) -> tuple[Graph, Graph]:
    """The Jacobian by forward and by reverse mode, whichever is cheaper."""
    components = _wrt_components(graph, None)
    return _jacobian(graph, components, forward=True), _jacobian(graph, components, forward=False)


# -- closed forms --------------------------------------------------------------------------------


def test_norm() -> None:
    v = np.array([3.0, -4.0, 12.0])
    EXACT.check(jacobian_at(ag.norm, v), [v / 13.0], "norm")
    EXACT.check(jacobian_at(ag.norm, np.zeros(3)), np.zeros((1, 3)), "norm at 0")
    two_ends = jacobian_at(lambda p, q: ag.norm(q - p) - 1.0, v, v)
    EXACT.check(two_ends, np.zeros((1, 6)), "spring of length 0")


def test_normalize() -> None:
    v = np.array([1.0, 2.0, -2.0])
    want = (np.eye(3) - np.outer(v, v) / 9.0) / 3.0
    EXACT.check(jacobian_at(ag.normalize, v), want, "normalize")
    EXACT.check(ag.trace(ag.normalize, 3)(np.zeros(3)), np.zeros(3), "value at 0")
    EXACT.check(jacobian_at(ag.normalize, np.zeros(3)), np.zeros((3, 3)), "normalize at 0")


def test_atan2() -> None:
    EXACT.check(jacobian_at(ag.atan2, 3.0, 4.0), [[4.0 / 25.0, -3.0 / 25.0]], "atan2")
    EXACT.check(jacobian_at(ag.atan2, 0.0, 0.0), [[0.0, 0.0]], "atan2 at the origin")


def test_cross_and_products() -> None:
    u, v = np.array([1.0, 2.0, 3.0]), np.array([-2.0, 0.5, 1.5])
    skew = lambda a: np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])  # noqa: E731
    EXACT.check(jacobian_at(ag.cross, u, v), np.hstack([-skew(v), skew(u)]), "cross")
    EXACT.check(jacobian_at(ag.dot, u, v), [[*v, *u]], "dot")
    M = np.arange(6.0).reshape(2, 3) + 1
    want = np.hstack([np.kron(np.eye(2), u), M])
    EXACT.check(jacobian_at(lambda m, w: m @ w, M, u), want, "matrix times vector")


@pytest.mark.parametrize("x", [-2.0, 0.0, 1e-9, 0.5, 3.0])
def test_untaken_arms_do_no_harm(x: float) -> None:
    taken = x > 0
    cases: list[tuple[str, Callable[..., Any], float]] = [
        ("log", lambda x: ag.where(x > 0, ag.log(x), 0.0), 1 / x if taken else 0.0),
        ("sqrt", lambda x: ag.where(x > 0, ag.sqrt(x), 0.0), 0.5 / x**0.5 if taken else 0.0),
        ("quotient", lambda x: ag.where(x > 0, 1.0 / x, x), -1 / x**2 if taken else 1.0),
        ("sqrt of where", lambda x: ag.sqrt(ag.where(x > 0, x, 0.0)),
         0.5 / x**0.5 if taken else 0.0),
        ("outer factor", lambda x: x * ag.where(x > 0, ag.log(x), 2.0),
         np.log(x) + 1 if taken else 2.0),
        ("both arms", lambda x: ag.where(x > 0, ag.log(x), ag.log(-x)),
         1 / x if x else -np.inf),
        ("nested", lambda x: ag.where(x > 0, ag.where(x > 1, ag.log(x - 1), ag.sqrt(1 - x)), x * x),
         1 / (x - 1) if x > 1 else -0.5 / (1 - x) ** 0.5 if taken else 2 * x),
        ("shared by arms", lambda x: _shared_root(x), 0.5 / x**0.5 if taken else -1.0),
        ("complement", lambda x: ag.where(~(x > 0), 3.0 * x, ag.log(x)), 1 / x if taken else 3.0),
    ]  # fmt: skip
    for name, fn, want in cases:
        if name == "both arms" and x == 0.0:
            continue  # a pole of the function itself
        for mode in both_modes(ag.trace(fn, 1)):
            EXACT.check(mode(x), [[want]], f"{name} at {x}")


def _shared_root(x: Any) -> Any:
    root = ag.sqrt(x)
    return ag.where(x > 0, root, ag.where(x > 5, root * root, -x))


def test_masks_of_both_arms_end_where_they_meet() -> None:
    """What both arms use is used always: no mask travels on below it."""

    def both(x: Any) -> Any:
        shared = ag.exp(ag.sin(ag.log(x)))
        return ag.where(x > 2.0, ag.sqrt(shared), shared * shared)

    counts = dict(ag.jacobian(ag.trace(both, 1)).stats.by_op)
    assert "logical_or" not in counts
    assert counts["where"] <= 2


def test_second_derivative_behind_a_where() -> None:
    graph = ag.trace(lambda x: ag.where(x > 0, x * ag.log(x), x * x), 1)
    second = ag.hessian(graph)
    x = np.array([-1.0, 0.0, 0.5, 2.0])
    EXACT.check(second(x)[:, 0, 0], [2.0, 2.0, 2.0, 0.5], "where(x > 0, x log x, x²)''")


def test_a_product_of_infinity_and_an_untaken_arm_stays_finite() -> None:
    """Second derivatives multiply adjoints of both arms: 0 · ∞ must not appear."""
    graph = ag.trace(lambda x, y: ag.where(x > 0, ag.sqrt(x) * y, y * y), 1, 1)
    hessian = ag.hessian(graph)(np.array([0.0, -1.0]), np.array([3.0, 3.0]))
    EXACT.check(hessian, np.broadcast_to([[0.0, 0.0], [0.0, 2.0]], (2, 2, 2)), "hessian")


# -- shapes, subsets, coincidences ---------------------------------------------------------------


def test_wrt_chooses_arguments_in_the_order_given() -> None:
    fn = lambda p, a, q: a * (q - p)  # noqa: E731
    p, a, q = np.array([1.0, 2.0]), 3.0, np.array([5.0, 7.0])
    full = jacobian_at(fn, p, a, q)
    EXACT.check(full, np.hstack([-3 * np.eye(2), (q - p)[:, None], 3 * np.eye(2)]), "all")
    EXACT.check(jacobian_at(fn, p, a, q, wrt=[1]), full[:, 2:3], "only a")
    EXACT.check(jacobian_at(fn, p, a, q, wrt=[2, 0]), full[:, [3, 4, 0, 1]], "q, then p")
    assert jacobian_at(fn, p, a, q, wrt=[]).shape == (2, 0)
    with pytest.raises(ShapeError, match="wrt names argument 3"):
        jacobian_at(fn, p, a, q, wrt=[3])


def test_unused_arguments_have_zero_columns() -> None:
    EXACT.check(jacobian_at(lambda p, q: p[0] * 2, np.ones(2), 4.0), [[2.0, 0.0, 0.0]], "unused")
    EXACT.check(jacobian_at(lambda p: [1.0, p], 2.0), [[0.0], [1.0]], "constant output")


def test_identical_outputs() -> None:
    graph = ag.trace(lambda x: [x * x, x, x * x, x], 1)
    for mode in both_modes(graph):
        EXACT.check(mode(3.0), [[6.0], [1.0], [6.0], [1.0]], "coinciding outputs")
    EXACT.check(ag.jvp(graph)(3.0, [0.5]), [3.0, 0.5, 3.0, 0.5], "jvp")
    EXACT.check(ag.vjp(graph)(3.0, [1.0, 1.0, 1.0, 1.0]), [14.0], "vjp adds both seeds")


def test_value_and_jacobian_shares_work() -> None:
    graph = ag.trace(lambda p, q: [ag.norm(q - p), ag.exp(p[0] * q[1])], 3, 3)
    both = value_and_jacobian(graph)
    arrays = random_arrays((3, 3), 10, 1)
    out = both(*arrays)
    EXACT.check(out[:, :2], graph(*arrays), "values")
    EXACT.check(out[:, 2:], ag.jacobian(graph)(*arrays).reshape(10, -1), "entries")
    assert dict(both.stats.by_op)["sqrt"] == dict(both.stats.by_op)["exp"] == 1


def test_what_has_no_derivative_says_so() -> None:
    graph = ag.trace(lambda x: [x, x * x], 1)
    with pytest.raises(ShapeError, match="one output, it has 2"):
        ag.hessian(graph)
    with pytest.raises(ShapeError, match="one output"):
        ag.hvp(graph)
    with pytest.raises(TraceError, match="truth value"):
        ag.trace(lambda x: x > 0, 1)


# -- against each other --------------------------------------------------------------------------


@given(recipes(), st.integers(0, 2**32))
def test_forward_reverse_jvp_and_vjp_agree(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    arrays = random_arrays(recipe.widths, 20, seed)
    forward, reverse = (mode(*arrays) for mode in both_modes(graph))
    finite = np.isfinite(forward) & np.isfinite(reverse)
    assert finite.mean() > 0.9
    SAME.check(forward[finite], reverse[finite], "forward and reverse")
    J = ag.jacobian(graph)(*arrays)
    SAME.check(J[finite], reverse[finite], "jacobian")
    rng = np.random.default_rng(seed)
    v, w = rng.normal(size=(20, J.shape[2])), rng.normal(size=(20, J.shape[1]))
    fair = np.isfinite(J).all(axis=(1, 2))
    assume(fair.any())
    with np.errstate(all="ignore"):
        pushed = ag.jvp(graph)(*arrays, v).reshape(20, -1)
        pulled = ag.vjp(graph)(*arrays, w)
    scale = 1 + np.abs(J[fair]).max()
    SAME.check(pushed[fair] / scale, np.einsum("bmn,bn->bm", J, v)[fair] / scale, "jvp")
    SAME.check(pulled[fair] / scale, np.einsum("bmn,bm->bn", J, w)[fair] / scale, "vjp")


def _central(graph: Graph, arrays: list[Any], step: float) -> Any:
    """Central differences ``(batch, m, n)``."""
    columns: list[Any] = []
    for k, array in enumerate(arrays):
        for j in range(graph.arguments[k].size):
            ends: list[Any] = []
            for sign in (1.0, -1.0):
                moved = [a.copy() for a in arrays]
                moved[k].reshape(len(array), -1)[:, j] += sign * step
                ends.append(graph(*moved).reshape(len(array), -1))
            columns.append((ends[0] - ends[1]) / (2 * step))
    return np.stack(columns, axis=2)


@given(recipes(max_steps=16), st.integers(0, 2**32))
def test_random_jacobians_agree_with_central_differences(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    arrays = random_arrays(recipe.widths, 40, seed)
    coarse, fine = _central(graph, arrays, 4e-5), _central(graph, arrays, 1e-5)
    # Where two steps disagree there is a kink between them, or the third derivative is large.
    settled = np.abs(coarse - fine) < 1e-6 * (1 + np.abs(fine))
    settled &= smooth_points(graph, arrays)[:, None, None]
    assume(settled.mean() > 0.3)
    DIFFERENCE.check(ag.jacobian(graph)(*arrays)[settled], fine[settled], str(graph))


@given(recipes(max_steps=10), st.integers(0, 2**32))
def test_hessians_are_symmetric_and_are_jacobians_of_gradients(recipe: Recipe, seed: int) -> None:
    def scalar(*arguments: Any) -> Any:
        return sum(r * r for r in recipe(*arguments))

    graph = ag.trace(scalar, *recipe.widths)
    arrays = random_arrays(recipe.widths, 20, seed)
    gradient, hessian = ag.jacobian(graph), ag.hessian(graph)
    H = hessian(*arrays)
    finite = np.isfinite(H).all(axis=(1, 2))
    assume(finite.mean() > 0.5)
    scale = 1 + np.abs(H[finite]).max(axis=(1, 2), keepdims=True)
    SAME.check(H[finite] / scale, H[finite].transpose(0, 2, 1) / scale, "symmetry")
    coarse, fine = _central(gradient, arrays, 4e-5), _central(gradient, arrays, 1e-5)
    settled = np.abs(coarse - fine) < 1e-6 * (1 + np.abs(fine))
    settled &= (smooth_points(graph, arrays) & finite)[:, None, None]
    if settled.any():
        DIFFERENCE.check(H[settled], fine[settled], str(graph))
    v = np.random.default_rng(seed).normal(size=(20, H.shape[1]))
    product = ag.hvp(graph)(*arrays, v)
    want = np.einsum("bij,bj->bi", H, v)
    SAME.check(product[finite] / scale[:, 0], want[finite] / scale[:, 0], "hvp")


def test_third_derivatives_are_ordinary_graphs() -> None:
    graph = ag.trace(lambda x: ag.sin(x) * x, 1)
    for _ in range(3):
        derivative = ag.jacobian(graph)
        graph = Graph(derivative.nodes, derivative.outputs, derivative.arguments, ())
    x = np.linspace(-2, 2, 9)
    EXACT.check(graph(x), -3 * np.sin(x) - x * np.cos(x), "(x sin x)'''")


def test_derivatives_cost_no_more_than_a_small_multiple() -> None:
    """Reverse mode: the gradient costs a bounded multiple of the function, whatever its width."""

    def chained(v: Any) -> Any:
        total = 0.0 * v[0]
        for k in range(len(v) - 1):
            total = total + ag.sin(v[k] * v[k + 1]) ** 2
        return total

    for width in (8, 64):
        graph = ag.simplify(ag.trace(chained, (width,)))
        assert ag.jacobian(graph).stats.cost < 5 * graph.stats.cost
