"""Parameters on manifolds in problems: columns, freezing, checks, covariance, every backend."""

from __future__ import annotations

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.charts import chart_of
from autograd_gpu.codegen.kernel import Product, make_kernel
from autograd_gpu.codegen.second_order import second_order
from autograd_gpu.manifolds import SE2, SE3, SO3, Positive, Subspace, UnitSphere
from autograd_gpu.runtime.batch import BoundGroup, ParameterBinding
from autograd_gpu.runtime.choice import choose_backend, open_session
from autograd_gpu.solvers.retraction import retraction_topology
from tolerances import GRAPH, tolerance

GROUP_OF = {"SE2": SE2, "SE3": SE3}
ADAPTERS = wgsl_adapters()


def between(x, y, measured):
    """Difference of the motion from x to y and what was measured, in tangent coordinates."""
    return (type(x).from_vector(measured).inverse() @ (x.inverse() @ y)).log()


def chain(group, count=12, noise=0.01, start=0.2, seed=0):
    """A walk with a few loops: poses, edges, measured motions, and a start beside the poses."""
    rng = np.random.default_rng(seed)
    poses = [group.identity()]
    for step in rng.normal(0.0, 0.4, (count - 1, group.tangent)):
        poses.append(poses[-1] @ group.exp(step))
    true = np.array([p.to_vector() for p in poses])
    i = np.concatenate([np.arange(count - 1), np.arange(count - 4)])
    j = np.concatenate([np.arange(1, count), np.arange(4, count)])
    motion = group.from_vector(true[i]).inverse() @ group.from_vector(true[j])
    measured = motion @ group.exp(noise * rng.standard_normal((len(i), group.tangent)))
    away = group.from_vector(true) @ group.exp(start * rng.standard_normal((count, group.tangent)))
    begun = away.to_vector()
    begun[0] = true[0]
    return begun, i, j, measured.to_vector()


def pose_graph(group, **options):
    begun, i, j, measured = chain(group, **options)
    problem = ag.Problem()
    x = problem.parameters("x", begun, manifold=group)
    problem.add_residuals(between, x[i], x[j], measured)
    problem.freeze(x, [0])
    return problem, x


@pytest.mark.parametrize("name", GROUP_OF)
def test_a_pose_graph(name):
    group = GROUP_OF[name]
    problem, x = pose_graph(group)
    assert problem.check_gradients().ok
    columns = problem.columns(x)
    assert columns.shape == (12, group.tangent)
    assert (columns[0] == -1).all()
    np.testing.assert_array_equal(columns[1:].ravel(), np.arange(11 * group.tangent))
    begun = problem.values_of(x)
    solution = ag.solve(problem, backend="numpy")
    assert solution.success and solution.cost < 1e-3 * solution.initial_cost
    found = solution.values["x"]
    assert found.shape == begun.shape
    np.testing.assert_array_equal(found[0], begun[0])
    if name == "SE3":
        np.testing.assert_allclose(np.linalg.norm(found[:, :4], axis=1), 1.0, rtol=0, atol=4e-16)
    problem.update(x=found)
    assert abs(problem.evaluate(backend="numpy").gradient).max() < 1e-6


def test_gradient_in_tangent_coordinates_is_that_of_the_cost():
    problem, x = pose_graph(SE3)
    begun = problem.values_of(x)
    a = problem.evaluate(backend="numpy")
    rng = np.random.default_rng(1)
    direction = rng.standard_normal(problem.columns(x).shape)
    direction[0] = 0.0
    ends = []
    for h in (1e-5, -1e-5):
        problem.update(x=(SE3.from_vector(begun) @ SE3.exp(h * direction)).to_vector())
        ends.append(problem.evaluate(backend="numpy").cost)
    slope = a.gradient @ direction[1:].ravel()
    np.testing.assert_allclose((ends[0] - ends[1]) / 2e-5, slope, rtol=1e-7)


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("numpy", "float32"), ("numba", "float64"), ("numba", "float32"), ("jax", "float64")],
)
def test_backends_agree(backend, precision):
    problem, _ = pose_graph(SE2)
    oracle = problem.evaluate(backend="numpy", precision="float64")
    found = problem.evaluate(backend=backend, precision=precision)
    bound = tolerance(precision, GRAPH)
    bound.check(found.residuals, oracle.residuals, "residuals")
    bound.check(found.jacobian.toarray(), oracle.jacobian.toarray(), "Jacobian")
    solution = ag.solve(problem, backend=backend, precision=precision)
    expected = ag.solve(problem, backend="numpy").cost
    assert solution.success
    np.testing.assert_allclose(
        solution.cost, expected, rtol=1e-4 if precision == "float32" else 1e-8
    )


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_wgsl_solves_a_pose_graph(adapter):
    problem, _ = pose_graph(SE3)
    audit = problem.audit(backend="wgsl", precision="float32", device=adapter)
    assert audit.ok, str(audit)
    solution = ag.solve(problem, backend="wgsl", device=adapter)
    assert solution.success and solution.backend == "wgsl"
    expected = ag.solve(problem, backend="numpy").cost
    np.testing.assert_allclose(solution.cost, expected, rtol=1e-4)


BACKENDS = [("numpy", None), ("numba", None), ("jax", None),
            *(pytest.param("wgsl", a, marks=pytest.mark.wgsl) for a in ADAPTERS)]  # fmt: skip


@pytest.mark.parametrize(("backend", "adapter"), BACKENDS)
@pytest.mark.parametrize("name", ["SE2", "SO3", "UnitSphere"])
def test_retraction_is_a_kernel_of_every_backend(backend, adapter, name):
    manifold = {"SE2": SE2, "SO3": SO3, "UnitSphere": UnitSphere(3)}[name]
    chart = chart_of(manifold, manifold.ambient, "x")
    rng = np.random.default_rng(3)
    x = rng.standard_normal((9, chart.ambient))
    x = x if name == "SE2" else x / np.linalg.norm(x, axis=1, keepdims=True)
    delta = rng.standard_normal((9, chart.tangent))
    delta[0] = 0.0
    topology = retraction_topology(chart)
    bases = (0, x.size)
    group = BoundGroup(
        name="retraction", topology=topology, count=9,
        bindings=tuple(ParameterBinding(base=bases[a], blocks=9) for a in topology.arguments),
    )  # fmt: skip
    precision = "float32" if backend == "wgsl" else "float64"
    device = ag.Device(adapter) if adapter else None
    choice = choose_backend(backend, precision, device, x.size)
    with open_session(choice, [group], x.size + delta.size) as session:
        moved = session.residuals(np.concatenate([x.ravel(), delta.ravel()])).reshape(x.shape)
    tolerance(precision, GRAPH).check(moved, chart.retraction(x, delta), name)


def test_kernels_are_shared_by_manifold():
    problem = ag.Problem()
    one = problem.parameters("one", np.eye(3), manifold=UnitSphere)
    two = problem.parameters("two", np.eye(3)[::-1], manifold=UnitSphere(3))
    plane = problem.parameters("plane", np.eye(3), manifold=Subspace.holding(3, [2]))
    line = problem.parameters("line", np.eye(3), manifold=Subspace.holding(3, [1]))
    plain = problem.parameters("plain", np.eye(3))
    for x in (one, two, plane, line, plain):
        problem.add_residuals(lambda x: x - 0.5, x)
    topologies = [g.topology for g in problem.groups]
    assert topologies[0].key == topologies[1].key
    # Equal residuals and widths, but other directions to move in.
    assert len({t.key for t in topologies}) == 4
    kernels = [make_kernel(t, Product.RESIDUAL_JACOBIAN) for t in topologies]
    assert [k.columns for k in kernels] == [2, 2, 2, 2, 3]
    assert {e.column for e in kernels[2].entries} == {0, 1}


def test_freezing_on_the_host():
    problem, x = pose_graph(SE3)
    begun = problem.values_of(x)
    problem.freeze(x, [3, 7])
    solution = ag.solve(problem, backend="numpy")
    np.testing.assert_array_equal(solution.values["x"][[0, 3, 7]], begun[[0, 3, 7]])
    assert (solution.values["x"][[1, 2, 4]] != begun[[1, 2, 4]]).any(axis=1).all()
    problem.freeze(x)
    assert problem.columns(x).max() == -1


def test_all_kinds_together():
    """Plain numbers, positive ones, a sphere and a subspace in one residual."""
    rng = np.random.default_rng(5)
    directions = rng.standard_normal((20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    normal, offset, scale = np.array([0.6, 0.0, 0.8]), 0.3, 2.0
    data = directions * 3.0
    heights = scale * (data @ normal) + offset

    def plane(n, o, s, held, p, h):
        return s * ag.dot(n, p) + o + held[0] + held[1] - h

    problem = ag.Problem()
    n = problem.parameters("n", [[0.0, 0.6, 0.8]], manifold=UnitSphere)
    o = problem.parameters("o", [0.0])
    s = problem.parameters("s", [1.0], manifold=Positive)
    held = problem.parameters("held", [[5.0, -5.0]], manifold=Subspace([1.0, -1.0]))
    problem.add_residuals(plane, n[0], o[0], s[0], held[0], data, heights)
    problem.add_residuals(lambda h: h[0] - 4.0, held[0])
    assert problem.check_gradients().ok
    solution = ag.solve(problem, backend="numpy")
    assert solution.cost < 1e-20
    np.testing.assert_allclose(solution.values["n"][0], normal, atol=1e-9)
    np.testing.assert_allclose(solution.values["s"], scale)
    np.testing.assert_allclose(solution.values["held"], [[4.0, -4.0]])
    assert [problem.columns(a).shape[1] for a in (n, o, s, held)] == [2, 1, 1, 1]


def test_a_positive_number_stays_positive():
    problem = ag.Problem()
    s = problem.parameters("s", [5.0], manifold=Positive)
    problem.add_residuals(lambda s: s + 1.0, s)
    solution = ag.solve(problem, backend="numpy")
    assert 0.0 < solution.values["s"][0] < 1e-3


class Turned:
    """A user's manifold with an element of its own: an angle, seen as a unit vector."""

    ambient = tangent = 1

    def plus(self, x, delta):
        return x + delta

    def element(self, x):
        return ag.cos(x), ag.sin(x)


def test_a_users_manifold():
    def aim(direction, target):
        c, s = direction
        return c * target[1] - s * target[0]

    problem = ag.Problem()
    x = problem.parameters("x", [0.1, 2.0], manifold=Turned)
    problem.add_residuals(aim, x, np.array([[1.0, 1.0], [-1.0, 1.0]]))
    assert problem.check_gradients().ok
    solution = ag.solve(problem, backend="numpy")
    np.testing.assert_allclose(solution.values["x"], [np.pi / 4, 3 * np.pi / 4], atol=1e-8)


def test_rings_of_poses():
    begun, *_ = chain(SE3, count=5)
    rings = ag.Ragged([0, 2, 5, 6], [1, 2, 0, 3, 4, 1])

    def together(x, ring):
        return ag.sum([(x.inverse() @ y).log() for y in ring])

    problem = ag.Problem()
    x = problem.parameters("x", begun, manifold=SE3)
    problem.add_residuals(together, x[[0, 1, 2]], x[rings])
    assert problem.check_gradients().ok
    assert problem.evaluate(backend="numpy").jacobian.shape == (18, 30)


def test_robust_losses_and_weights():
    begun, i, j, measured = chain(SE2, noise=0.0)
    measured[-1] += [0.5, 0.5, 0.0]
    weight = np.broadcast_to(np.diag([10.0, 10.0, 20.0]), (len(i), 3, 3))
    ends = []
    for loss in (None, ag.losses.Huber(0.1)):
        problem = ag.Problem()
        x = problem.parameters("x", begun, manifold=SE2)
        problem.add_residuals(between, x[i], x[j], measured, weight=weight, loss=loss)
        problem.freeze(x, [0])
        assert problem.check_gradients().ok
        problem.update(x=ag.solve(problem, backend="numpy").values["x"])
        residuals = problem.evaluate(backend="numpy").residuals.reshape(-1, 3)
        ends.append(np.abs(residuals[:-1]).max())
    # With the loss the wrong edge bends the others much less.
    assert ends[1] < 0.3 * ends[0]


def test_covariance_is_of_tangent_coordinates():
    # A sphere, where blocks and columns differ in width, beside rigid motions of the plane.
    problem, x = pose_graph(SE2)
    up = problem.parameters("up", np.eye(3), manifold=UnitSphere)
    problem.add_residuals(lambda u, v: u - v, up, np.eye(3)[::-1])
    problem.update(**ag.solve(problem, backend="numpy").values)
    found = problem.covariance(x, up)
    assert [b.shape for b in found.blocks] == [(12, 3, 3), (3, 2, 2)]
    jacobian = problem.evaluate(backend="numpy").jacobian.toarray()
    np.testing.assert_allclose(
        found.matrix[3:, 3:], np.linalg.inv(jacobian.T @ jacobian), rtol=1e-6, atol=1e-9
    )
    assert not found.blocks[0][0].any()
    problem.unfreeze(x, [0])
    with pytest.raises(ag.SolveError, match="null-space dimension 3"):
        problem.covariance(x)


def test_nan_is_named_through_an_element():
    def bad(r):
        return ag.log(r.log()[0] - 10.0)

    problem = ag.Problem()
    x = problem.parameters("x", [[1.0, 0.0, 0.0, 0.0]], manifold=SO3)
    problem.add_residuals(bad, x)
    report = str(ag.debug_nans(problem))
    assert "log" in report and "ag.log(r.log()[0] - 10.0)" in report


@pytest.mark.parametrize("linear_solver", ["sparse-cholesky", "dense-qr", "pcg", "schur"])
def test_linear_solvers(linear_solver):
    problem, _ = pose_graph(SE2)
    expected = ag.solve(problem, backend="numpy").cost
    found = ag.solve(problem, backend="numpy", linear_solver=linear_solver)
    assert found.success
    np.testing.assert_allclose(found.cost, expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["gauss-newton", "dogleg", "l-bfgs"])
def test_other_methods(method):
    problem, _ = pose_graph(SE2, start=0.05)
    expected = ag.solve(problem, backend="numpy").cost
    found = ag.solve(problem, method=method, backend="numpy")
    np.testing.assert_allclose(found.cost, expected, rtol=1e-4 if method == "l-bfgs" else 1e-6)


def test_weight_decay_leaves_manifolds_alone():
    problem = ag.Problem()
    up = problem.parameters("up", [[0.0, 0.0, 1.0]], manifold=UnitSphere)
    plain = problem.parameters("plain", [[3.0, 4.0]])
    problem.add_residuals(lambda u, v: u[0] + v[0] - 1.0, up, plain)
    moves = problem.analysis().retraction(choose_backend("numpy", "float64", None, 1))
    np.testing.assert_array_equal(moves.position(np.array([0, 0, 1, 3, 4.0])), [0, 0, 3, 4])
    options = ag.AdamWOptions(max_iterations=300, learning_rate=0.02, weight_decay=0.1)
    found = ag.solve(problem, method="adamw", options=options, backend="numpy")
    np.testing.assert_allclose(np.linalg.norm(found.values["up"]), 1.0, rtol=1e-15)
    assert found.cost < 1e-2 * found.initial_cost


@pytest.mark.parametrize("name", ["SO3", "UnitSphere"])
def test_energies_on_manifolds(name):
    """Newton's Hessian is that of E(x ⊞ δ) by δ, with the curvature of ⊞."""
    manifold = {"SO3": SO3, "UnitSphere": UnitSphere(3)}[name]
    chart = chart_of(manifold, manifold.ambient, "x")
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, chart.ambient))
    x /= np.linalg.norm(x)
    goal = rng.standard_normal(chart.ambient)

    def energy(x, g):
        v = x.to_vector() if name == "SO3" else x
        return ag.sum([(a - b) ** 2 + 0.1 * a**4 for a, b in zip(v, g, strict=True)])

    problem = ag.Problem()
    handle = problem.parameters("x", x, manifold=manifold)
    problem.add_energy(energy, handle, goal[None])
    assert problem.check_gradients().ok
    (group,) = problem.analysis().energies
    order = second_order(group.topology)
    block = [b for b in (x, goal[None])]
    rows = order.topology.graph(*(block[group.topology.arguments[a]]
                                  for a in order.topology.arguments))  # fmt: skip
    value, gradient, hessian = order.unpack(rows.reshape(1, -1))

    def at(delta):
        moved = chart.plus(x, delta[None])[0]
        return float(np.sum((moved - goal) ** 2 + 0.1 * moved**4))

    h, unit = 1e-4, np.eye(chart.tangent)
    np.testing.assert_allclose(value, at(0.0 * unit[0]), rtol=1e-14)
    for i in range(chart.tangent):
        slope = (at(h * unit[i]) - at(-h * unit[i])) / (2 * h)
        np.testing.assert_allclose(gradient[0, i], slope, rtol=1e-6, atol=1e-6)
        for j in range(chart.tangent):
            signs = [(1, 1), (1, -1), (-1, 1), (-1, -1)]
            ends = [p * q * at(h * (p * unit[i] + q * unit[j])) for p, q in signs]
            np.testing.assert_allclose(hessian[0, i, j], sum(ends) / (4 * h * h), atol=1e-5)
    solution = ag.solve(problem, backend="numpy")
    problem.update(x=solution.values["x"])
    assert solution.success and abs(problem.evaluate(backend="numpy").gradient).max() < 1e-6


class TestBadInput:
    """Named errors before anything runs."""

    def test_values_off_the_manifold(self):
        problem = ag.Problem()
        with pytest.raises(ag.InputError, match=r"parameters 'q': 1 of 2 rows .* SO3 .* row 1.*"
                                                r"SO3.nearest\(array\)"):  # fmt: skip
            problem.parameters("q", [[1.0, 0, 0, 0], [1.0, 0.1, 0, 0]], manifold=SO3)
        near = SO3.nearest(np.array([[1.0, 0, 0, 0], [1.0, 0.1, 0, 0]]))
        q = problem.parameters("q", near, manifold=SO3)
        with pytest.raises(ag.InputError, match=r"update, parameters 'q': 2 of 2 rows"):
            problem.update(q=2.0 * near)
        np.testing.assert_array_equal(problem.values_of(q), near)
        # What float32 rounds is on the manifold, and stays as it was given.
        rounded = near.astype(np.float32)
        problem.update(q=rounded)
        np.testing.assert_array_equal(problem.values_of(q), rounded)

    def test_not_positive(self):
        with pytest.raises(ag.InputError, match="row 1"):
            ag.Problem().parameters("s", [1.0, 0.0], manifold=Positive)

    def test_zero_quaternion(self):
        with pytest.raises(ag.InputError, match="row 0"):
            ag.Problem().parameters("q", np.zeros((1, 4)), manifold=SO3)

    @pytest.mark.parametrize(("array", "manifold", "error", "match"), [
        (np.eye(3), SO3, ag.ShapeError, "blocks of 3 numbers, expected 4 for the manifold SO3"),
        (np.ones((2, 3, 3)), SO3, ag.ShapeError, r"expected \(n, ambient\)"),
        (np.ones(2), "SO3", ag.InputError, "'SO3' is no manifold: its 'ambient' is None"),
        (np.eye(3), Subspace, ag.InputError, r"Subspace cannot be made without arguments"),
    ])  # fmt: skip
    def test_no_manifold(self, array, manifold, error, match):
        with pytest.raises(error, match=match):
            ag.Problem().parameters("x", array, manifold=manifold)

    def test_a_users_mistakes(self):
        class Base:
            ambient, tangent = 2, 1

        class Short(Base):
            def plus(self, x, delta):
                return x[0] + delta

        class Elsewhere(Base):
            def plus(self, x, delta):
                return [x[0] + 1.0, x[1] + delta]

        class Branching(Base):
            def plus(self, x, delta):
                return x if delta > 0 else -x

        for manifold, error, match in (
            (Base, ag.InputError, r"has no function plus\(x, delta\)"),
            (Short, ag.ShapeError, "returns 1 numbers, expected 2, the ambient width"),
            (Elsewhere, ag.InputError, r"plus\(x, 0\) must be x"),
            (Branching, ag.TraceError, r"manifold Branching, plus, at [\s\S]*ag\.where"),
        ):
            with pytest.raises(error, match=match):
                ag.Problem().parameters("x", np.ones((1, 2)), manifold=manifold)
