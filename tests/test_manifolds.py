"""Laws of the manifolds, in float32 and float64, from the identity up to π - 1e-6."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu import rotation_series
from autograd_gpu.charts import chart_of
from autograd_gpu.ir import evaluate_nodes
from autograd_gpu.manifolds import (
    SE2,
    SE3,
    SO2,
    SO3,
    Euclidean,
    Positive,
    Subspace,
    UnitSphere,
)
from tolerances import CENTRAL_DIFFERENCE, DERIVATIVE, GRAPH, Tolerance, tolerance

DTYPES = ("float32", "float64")
ROWS = 16


class Circle:
    """Unit vectors of the plane, as a user writes them."""

    ambient, tangent = 2, 1

    def plus(self, x, delta):
        c, s = ag.cos(delta), ag.sin(delta)
        return [c * x[0] - s * x[1], s * x[0] + c * x[1]]

    def minus(self, y, x):
        return ag.atan2(x[0] * y[1] - x[1] * y[0], x[0] * y[0] + x[1] * y[1])

    def nearest(self, x):
        return ag.normalize(x)


GROUPS = {"SO2": SO2, "SE2": SE2, "SO3": SO3, "SE3": SE3}
# Which tangent coordinates are an angle or axis times angle, for those that have a longest one.
TURNS = {"SO2": slice(0, 1), "SE2": slice(2, 3), "SO3": slice(0, 3), "SE3": slice(0, 3),
         "UnitSphere": slice(0, 2), "Circle": slice(0, 1)}  # fmt: skip
MANIFOLDS = {
    **GROUPS,
    "UnitSphere": UnitSphere(3),
    "Positive": Positive(2),
    "Euclidean": Euclidean(3),
    "Subspace": Subspace([[1.0, 0.0], [0.5, 2.0], [0.0, -1.0]]),
    "Circle": Circle(),
}

each_manifold = pytest.mark.parametrize("name", MANIFOLDS)
each_group = pytest.mark.parametrize("name", GROUPS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


def run(fn, dtype, *arrays):
    """A function traced and evaluated in ``dtype``, on arrays (rows, width)."""
    graph = ag.simplify(ag.trace(fn, *(a.shape[1] for a in arrays)))
    columns = [a.astype(dtype) for a in arrays]
    values = evaluate_nodes(graph.nodes, lambda a, k: columns[a][:, k], dtype)
    found = [np.broadcast_to(np.asarray(values[o], dtype), len(arrays[0])) for o in graph.outputs]
    return np.stack(found, axis=1).astype(np.float64)


def points(name, rng, dtype):
    """Random points, of ``dtype``'s numbers."""
    width = MANIFOLDS[name].ambient
    x = rng.uniform(-3.0, 3.0, (ROWS, width))
    if name in ("SO3", "SE3"):
        x[:, :4] /= np.linalg.norm(x[:, :4], axis=1, keepdims=True)
    elif name in ("UnitSphere", "Circle"):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    elif name == "Positive":
        x = np.exp(x)
    return x.astype(dtype).astype(np.float64)


def steps(name, rng, dtype, angle):
    """Random tangent coordinates whose turn is by ``angle``, of ``dtype``'s numbers."""
    delta = rng.uniform(-2.0, 2.0, (ROWS, MANIFOLDS[name].tangent))
    if name in TURNS:
        turn = delta[:, TURNS[name]]
        turn *= angle / np.linalg.norm(turn, axis=1, keepdims=True)
    return delta.astype(dtype).astype(np.float64)


# float32 cannot tell π - 1e-6 from what lies beyond π once two rotations are multiplied.
LARGEST = {"float32": math.pi - 1e-3, "float64": math.pi - 1e-6}
ANGLES = st.one_of(
    st.sampled_from([0.0, 1e-30, 1e-12, 1e-7, 1e-4, 0.2, 0.3162, 0.3163, 1.0, math.pi - 1e-6]),
    st.floats(0.0, math.pi - 1e-6),
    st.floats(0.0, 1.0).map(lambda t: math.pi - 1e-6 - 1e-3 * t),
)
SEEDS = st.integers(0, 2**32 - 1)


@each_dtype
@each_manifold
@given(angle=ANGLES, seed=SEEDS)
def test_what_is_added_comes_back(name, dtype, angle, seed):
    rng, m = np.random.default_rng(seed), MANIFOLDS[name]
    x = points(name, rng, dtype)
    delta = steps(name, rng, dtype, min(angle, LARGEST[dtype]))
    back = run(lambda x, d: m.minus(m.plus(x, d), x), dtype, x, delta)
    bound = tolerance(dtype, GRAPH)
    if name == "UnitSphere":
        # The direction of a step of almost π is known from what is left to π.
        left = max(math.pi - min(angle, LARGEST[dtype]), 1e-6)
        bound = Tolerance(bound.relative, np.finfo(dtype).eps * 20.0 / left + bound.absolute, "")
    bound.check(back, delta, f"{name}, angle {angle}")


@each_dtype
@each_manifold
@given(seed=SEEDS)
def test_adding_zero_changes_nothing(name, dtype, seed):
    m = MANIFOLDS[name]
    x = points(name, np.random.default_rng(seed), dtype)
    zero = np.zeros((ROWS, m.tangent))
    np.testing.assert_array_equal(run(m.plus, dtype, x, zero), x)
    tolerance(dtype, GRAPH).check(run(m.minus, dtype, x, x), zero, name)


@each_manifold
@given(seed=SEEDS)
def test_derivative_of_plus_at_zero(name, seed):
    m = MANIFOLDS[name]
    x = points(name, np.random.default_rng(seed), "float64")
    if name == "Euclidean":
        assert chart_of(m, 3, "x") is None
        return
    chart = chart_of(m, m.ambient, "x")
    assert chart is not None
    shaped = x if m.ambient > 1 else x[:, 0]
    basis = chart.basis(shaped).reshape(ROWS, m.ambient, m.tangent)
    for k in range(m.tangent):
        h = np.zeros((ROWS, m.tangent))
        h[:, k] = 1e-5
        ends = [run(m.plus, "float64", x, sign * h) for sign in (1.0, -1.0)]
        CENTRAL_DIFFERENCE.check(basis[:, :, k], (ends[0] - ends[1]) / 2e-5, f"{name}, {k}")
    # The point next to x ⊞ δ moves as x ⊞ δ does: nothing of the basis is off the manifold.
    retracted = ag.jacobian(chart.retraction, [1])
    at_zero = retracted(shaped, np.zeros((ROWS, m.tangent) if m.tangent > 1 else ROWS))
    tolerance("float64", DERIVATIVE).check(at_zero.reshape(basis.shape), basis, name)


@each_dtype
@each_group
@given(angle=ANGLES, seed=SEEDS)
def test_exponential_and_logarithm(name, dtype, angle, seed):
    group = GROUPS[name]
    delta = steps(name, np.random.default_rng(seed), dtype, angle)
    tolerance(dtype, GRAPH).check(
        run(lambda d: group.exp(d).log(), dtype, delta), delta, f"{name}, angle {angle}"
    )
    moved = run(lambda d: group.exp(d).to_vector(), dtype, delta)
    again = run(lambda x: group.exp(group.from_vector(x).log()).to_vector(), dtype, moved)
    tolerance(dtype, GRAPH).check(again, moved, f"{name}, angle {angle}")


@each_dtype
@each_group
@given(seed=SEEDS)
def test_group_laws(name, dtype, seed):
    group, rng = GROUPS[name], np.random.default_rng(seed)
    a, b, c = (points(name, rng, dtype) for _ in range(3))
    e, bound = group.from_vector, tolerance(dtype, GRAPH)

    def numbers(fn, *arrays):
        return run(lambda *x: fn(*(e(v) for v in x)).to_vector(), dtype, *arrays)

    left = numbers(lambda a, b, c: (a @ b) @ c, a, b, c)
    bound.check(left, numbers(lambda a, b, c: a @ (b @ c), a, b, c), "associativity")
    np.testing.assert_array_equal(numbers(lambda a: a @ group.identity(), a), a)
    np.testing.assert_array_equal(numbers(lambda a: group.identity() @ a, a), a)
    one = np.broadcast_to(np.zeros(1) + group.identity().to_vector(), a.shape)
    bound.check(numbers(lambda a: a @ a.inverse(), a), one, "inverse")
    bound.check(numbers(lambda a: a.inverse() @ a, a), one, "inverse")
    point = rng.uniform(-2.0, 2.0, (ROWS, 2 if name in ("SO2", "SE2") else 3))
    point = point.astype(dtype).astype(np.float64)
    one_by_one = run(lambda a, b, p: e(a).act(e(b).act(p)), dtype, a, b, point)
    bound.check(run(lambda a, b, p: (e(a) @ e(b)).act(p), dtype, a, b, point), one_by_one, "act")
    # Arrays, a row an element, give what traced numbers give.
    together = (e(_arrays(a)) @ e(_arrays(b))).act(point)
    bound.check(run(lambda a, b, p: (e(a) @ e(b)).act(p), dtype, a, b, point), together, "arrays")


def _arrays(x):
    return x[:, 0] if x.shape[1] == 1 else x


def right_jacobian_inverse(turn):
    """I + ½[ω] + (1/θ² - (1 + cos θ)/(2 θ sin θ)) [ω]², with 50 digits."""
    w = [mpmath.mpf(float(t)) for t in turn]
    theta = mpmath.sqrt(sum(t * t for t in w))
    cross = mpmath.matrix([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
    rest = mpmath.mpf(1) / 12
    if theta != 0:
        rest = 1 / theta**2 - (1 + mpmath.cos(theta)) / (2 * theta * mpmath.sin(theta))
    j = mpmath.eye(3) + cross / 2 + rest * cross * cross
    return np.array(j.tolist(), dtype=float)


@each_dtype
@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.19, 0.21, 1.0, 3.0, math.pi - 1e-6])
def test_gradient_of_a_logarithm_at_identity_and_near_pi(dtype, angle):
    """d log(x · exp δ) at δ = 0 is the inverse right Jacobian at log x."""
    rng = np.random.default_rng(7)
    delta = steps("SO3", rng, "float64", angle)
    x = SO3.exp(delta).to_vector()
    problem = ag.Problem()
    rotations = problem.parameters("x", x, manifold=SO3)
    problem.add_residuals(lambda r: r.log(), rotations)
    found = problem.evaluate("numba", dtype).jacobian.toarray()
    with mpmath.workdps(50):
        for k in range(ROWS):
            own = found[3 * k : 3 * k + 3, 3 * k : 3 * k + 3]
            tolerance(dtype, GRAPH).check(own, right_jacobian_inverse(delta[k]), f"row {k}")


@pytest.mark.parametrize("angle", [0.0, 1e-20, 1e-8, 1e-3, 0.2, 0.31, 0.32, 1.0, 2.5, 3.14159])
def test_series_agree_with_many_digits(angle):
    """Values and slopes by θ², on both sides of where the closed forms begin."""
    with mpmath.workdps(60):
        squared = mpmath.mpf(angle * angle)
        half = lambda u: mpmath.cos(mpmath.sqrt(u) / 2)  # noqa: E731

        def over(u):
            root = mpmath.sqrt(u)
            return mpmath.sin(root / 2) / root if u else mpmath.mpf(1) / 2

        def rest(u):
            root = mpmath.sqrt(u)
            return (root - mpmath.sin(root)) / root**3 if u else mpmath.mpf(1) / 6

        def cotangent(u):
            root = mpmath.sqrt(u)
            return (1 - root / 2 * mpmath.cot(root / 2)) / u if u else mpmath.mpf(1) / 12

        def series(u):
            c, k = rotation_series.half_angle(u)
            return [c, k, rotation_series.sine_rest(u, c, k),
                    rotation_series.cotangent_rest(u, c, 1.0 / k)]  # fmt: skip

        graph = ag.trace(series, 1)
        values = graph(np.array([angle * angle]))[0]
        slopes = ag.jacobian(graph)(np.array([angle * angle]))[0, :, 0]
        bound = Tolerance(2e-14, 1e-15, "a few operations; closed forms lose at most 1/θ²")
        for k, exact in enumerate((half, over, rest, cotangent)):
            bound.check(values[k], float(exact(squared)), f"value {k}")
            at = squared if angle > 1e-9 else mpmath.mpf("1e-40")
            slope = mpmath.diff(exact, at, h=at * mpmath.mpf("1e-15"), relative=False)
            Tolerance(1e-11, 1e-13, "").check(slopes[k], float(slope), f"slope {k}")


def test_elements_say_what_they_cannot_do():
    with pytest.raises(ag.TraceError, match=r"SE3 @ ndarray: @ composes .*\.act\(point\)"):
        SE3.identity() @ np.zeros(3)
    with pytest.raises(TypeError):
        np.zeros((3, 3)) @ SO3.identity()
    with pytest.raises(ag.ShapeError, match=r"SE3.from_vector: got 6 components, expected 7"):
        SE3.from_vector(np.zeros(6))
    with pytest.raises(ag.InputError, match="at least 2"):
        UnitSphere(1)
    with pytest.raises(ag.ShapeError, match=r"\(ambient, tangent\)"):
        Subspace(np.zeros((2, 3)))
    with pytest.raises(ag.InputError, match="independent"):
        Subspace(np.ones((3, 2)))
    with pytest.raises(ag.InputError, match="components"):
        Subspace.holding(3, [3])
    with pytest.raises(ag.InputError, match="freeze"):
        Subspace.holding(2, [0, 1])
