"""Residuals built one by one: grouping, live data, order, fallback, errors, solving."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu.ops import NODE_OPS
from autograd_gpu.recording import Recording
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.value import entered
from random_graphs import Recipe, recipes, smooth_points
from sessions import WGSL, Backend, parameters_of
from tolerances import GRAPH, tolerance


def compiled_of(params: Any, residuals: Any, **options: Any) -> ag.CompiledResiduals:
    """Compiled for NumPy unless told otherwise: nothing to wait for."""
    options.setdefault("backend", "numpy")
    return ag.CompiledResiduals.compile(params, residuals, **options)


def eager_jacobian(params: list[ag.Value], residuals: Any) -> tuple[Any, Any]:
    """The oracle: residuals and gradients one by one, by reverse mode."""
    values, rows = [], []
    for r in residuals(params):
        for p in params:
            p.grad = 0.0
        r.backward()
        values.append(r.data)
        rows.append([p.grad for p in params])
    return np.array(values), np.array(rows)


def check_against_eager(params: list[ag.Value], residuals: Any, precision: str = "float64",
                        **options: Any) -> Any:  # fmt: skip
    compiled = compiled_of(params, residuals, **options)
    found = compiled.evaluate(params)
    values, jacobian = eager_jacobian(params, residuals)
    limit = tolerance(precision, GRAPH)
    limit.check(found.residuals, values, "residuals")
    limit.check(found.jacobian.toarray(), jacobian, "jacobian")
    limit.check(found.cost, 0.5 * values @ values, "cost")
    limit.check(found.gradient, jacobian.T @ values, "gradient")
    return compiled


def springs(count: int) -> tuple[list[ag.Value], Any]:
    """Springs between points of a plane with rest lengths, and two anchors in between."""
    rng = np.random.default_rng(0)
    params = [ag.Value(x) for x in rng.uniform(-1.0, 1.0, 2 * count)]
    rest = rng.uniform(0.5, 1.5, count)

    def residuals(p: Any) -> list[Any]:
        out: list[Any] = []
        for k in range(count - 1):
            a, b = p[2 * k : 2 * k + 2], p[2 * k + 2 : 2 * k + 4]
            out.append(ag.norm([b[0] - a[0], b[1] - a[1]]) - rest[k])
            if k in (3, 7):
                out.append(0.5 * (a[0] - 1.0))
        return out

    return params, residuals


def test_the_example_of_the_documentation() -> None:
    params = [ag.Value(0.5), ag.Value(-1.0), ag.Value(1.0)]

    def residuals(p: Any) -> list[Any]:
        return [p[0] * 2 + p[2], p[0] - p[1]]

    compiled = check_against_eager(params, residuals, backend="auto")
    assert compiled.kernel_count == 2
    assert compiled.kernel_reuse_factor == 1.0
    assert "fallback_threshold=10" in compiled.reason
    assert compiled.kernels[0].source
    solution = ag.NonlinearLeastSquares(params, residuals).solve()
    assert solution.success
    assert [v.data for v in params] == list(solution.values["x"])
    assert max(abs(r.data) for r in residuals(params)) < 1e-9


@pytest.mark.parametrize("batch_size", [1024, 5])
def test_one_kernel_a_topology_in_the_order_given(batch_size: int) -> None:
    params, residuals = springs(20)
    compiled = check_against_eager(
        params, residuals, backend="numba", batch_size=batch_size, fallback_threshold=10
    )
    assert compiled.kernel_count == 2  # rest lengths are data
    assert compiled.kernel_reuse_factor == 21 / 2
    assert [k.target for k in compiled.kernels] == ["numba", "numpy"]
    assert "19 residuals on numba" in compiled.reason
    assert "2 residuals of 1 topologies on the CPU by NumPy" in compiled.reason
    assert len(compiled.executor.sources()) == 2  # residual_jacobian and cost of one topology


@pytest.mark.parametrize("backend", parameters_of(WGSL))
def test_on_a_gpu(backend: Backend) -> None:
    params, residuals = springs(30)
    compiled = check_against_eager(
        params, residuals, "float32", backend="wgsl", device=backend.adapter, batch_size=8
    )
    assert compiled.evaluate().backend == "wgsl"
    assert [k.target for k in compiled.kernels] == ["wgsl", "numpy"]


def test_isomorphic_residuals_written_differently_share_a_kernel() -> None:
    params = [ag.Value(0.3 * k + 0.1) for k in range(6)]

    def residuals(p: Any) -> list[Any]:
        first = p[0] * p[1] + ag.sin(p[0])
        y = ag.sin(p[4])
        return [first, y + p[3] * p[4], p[5] * p[5] + ag.sin(p[5])]

    compiled = check_against_eager(params, residuals)
    assert compiled.kernel_count == 2  # the third has one leaf, not two


def test_different_functions_never_share_a_kernel() -> None:
    params = [ag.Value(0.3), ag.Value(-0.4)]

    def residuals(p: Any) -> list[Any]:
        x, y = p
        return [
            ag.sin(ag.abs(x)), ag.abs(ag.sin(x)), ag.exp(ag.sin(x)), x - y, y - x,
            x * y, x * x, x**2.0, ag.abs(x) ** 3.0,
            ag.where(x > 0, y, 1.0), ag.where(x < 0, y, 1.0),
        ]  # fmt: skip

    compiled = check_against_eager(params, residuals)
    # x - y and y - x are one function of differently ordered leaves, x * x and x ** 2 are equal
    assert compiled.kernel_count == 9


@settings(max_examples=25)
@given(st.lists(recipes(widths=(1, 1, 1), max_steps=10), min_size=1, max_size=4),
       st.lists(st.integers(0, 3), min_size=2, max_size=8), st.integers(0, 10**6))  # fmt: skip
def test_grouping_is_sound(pool: list[Recipe], picks: list[int], seed: int) -> None:
    """Residuals drawn from few functions over shuffled leaves, against the traced oracle."""
    rng = np.random.default_rng(seed)
    numbers = rng.uniform(-2.0, 2.0, 5)
    params = [ag.Value(x) for x in numbers]
    chosen = [(pool[k % len(pool)], rng.permutation(5)[:3]) for k in picks]

    def residuals(p: Any) -> list[Any]:
        return [r for recipe, at in chosen for r in recipe(*(p[j] for j in at))]

    compiled = compiled_of(params, residuals)
    found = compiled.evaluate()
    dense = found.jacobian.toarray()
    row = 0
    for recipe, at in chosen:
        graph = recipe.trace()
        arrays = [numbers[j : j + 1] for j in at]
        want = graph(*arrays)[0]
        rows = slice(row, row + len(want))
        row += len(want)
        tolerance("float64", GRAPH).check(found.residuals[rows], want, "residuals")
        oracle = ag.jacobian(graph)(*arrays)[0]
        if smooth_points(graph, arrays)[0] and np.isfinite(oracle).all():
            tolerance("float64", GRAPH).check(dense[rows][:, at], oracle, "jacobian")
    assert row == len(found.residuals)
    used = {recipe for recipe, _ in chosen}
    assert compiled.kernel_count <= sum(len(recipe.trace().outputs) for recipe in used)


def test_leaves_are_identified_by_object() -> None:
    params = [ag.Value(1.0, name="x"), ag.Value(1.0, name="x")]
    twins = [ag.Value(2.0, name="d", requires_grad=False) for _ in range(2)]

    def residuals(p: Any) -> list[Any]:
        return [p[0] * twins[0], p[1] * twins[1], p[0] * p[1], p[0] * p[0]]

    compiled = check_against_eager(params, residuals)
    assert compiled.kernel_count == 3
    twins[1].data = 5.0
    params[1].data = 3.0
    assert compiled.evaluate().residuals.tolist() == [2.0, 15.0, 3.0, 1.0]


def test_values_edited_after_compilation_are_seen() -> None:
    target = ag.Value(1.0, requires_grad=False)
    shift = 0.5 * target  # made eagerly, before: its history is compiled, not its number
    params = [ag.Value(2.0), ag.Value(3.0)]
    compiled = compiled_of(params, lambda p: [v - shift for v in p])
    assert compiled.evaluate(params).residuals.tolist() == [1.5, 2.5]
    target.data = 4.0
    params[0].data = 10.0
    assert compiled.evaluate(params).residuals.tolist() == [8.0, 1.0]
    assert compiled.evaluate([0.0, 0.0]).residuals.tolist() == [-2.0, -2.0]
    assert params[0].data == 10.0


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_nothing_is_frozen_at_compile_time(backend: str) -> None:
    """where, comparisons, clip bounds, sum, mean, min and mod follow the numbers."""
    params = [ag.Value(x) for x in (-1.0, 2.0, 0.5)]
    low = ag.Value(0.0, requires_grad=False)

    def residuals(p: Any) -> list[Any]:
        one = [
            ag.where(p[0] > low, p[1], -p[2]), ag.clip(p[0], low, p[2]), ag.sum(p), ag.mean(p),
            ag.min(p), ag.max([p[0], p[1]]), (p[0] > p[1]) * 2.0 + p[2], ag.mod(p[1], p[2]),
            ag.where(ag.logical_and(p[0] > low, ~(p[1] <= p[2])), p[0], p[1]),
        ]  # fmt: skip
        return one if backend == "numpy" else [one[0] + one[1] + one[6], one[8]]

    compiled = compiled_of(params, residuals, backend=backend, fallback_threshold=0)
    for numbers in ([-1.0, 2.0, 0.5], [3.0, -2.0, 0.7], [0.3, 0.2, 0.9]):
        for value, number in zip(params, numbers, strict=True):
            value.data = number
        low.data = numbers[2] - 0.6
        want, jacobian = eager_jacobian(params, residuals)
        found = compiled.evaluate(params)
        tolerance("float64", GRAPH).check(found.residuals, want, "residuals")
        tolerance("float64", GRAPH).check(found.jacobian.toarray(), jacobian, "jacobian")


def test_a_branch_or_a_number_inside_compile_is_refused() -> None:
    params = [ag.Value(1.0), ag.Value(2.0)]

    def branches(p: Any) -> list[Any]:
        return [p[0] if p[0] > p[1] else p[1]]

    def largest(p: Any) -> list[Any]:
        return [max(p[0], p[1])]

    with pytest.raises(ag.TraceError, match=r"ag\.where"):
        compiled_of(params, branches)
    with pytest.raises(ag.TraceError, match=r"ag\.maximum"):
        compiled_of(params, largest)
    with pytest.raises(ag.TraceError, match="number behind"):
        compiled_of(params, lambda p: [p[0] * float(p[1])])
    with pytest.raises(ag.TraceError, match="number behind"):
        compiled_of(params, lambda p: [p[0] * p[1].data])

    def detached(p: Any) -> list[Any]:
        with ag.no_grad():
            return [p[0] * 2.0]

    with pytest.raises(ag.TraceError, match="would freeze numbers"):
        compiled_of(params, detached)
    assert branches(params)[0] is params[1]  # eagerly it decides, also after the errors


def test_recorded_values_do_not_outlive_the_call() -> None:
    params, kept = [ag.Value(1.0)], []

    def residuals(p: Any) -> list[Any]:
        kept.append(p[0] * 2.0)
        return [kept[-1]]

    compiled_of(params, residuals)
    with pytest.raises(ag.TraceError, match="cannot outlive"):
        _ = kept[0].data
    with pytest.raises(ag.TraceError, match="cannot outlive"):
        compiled_of(params, lambda p: [kept[0] + p[0]])


def test_leaves_made_while_recording_stay_apart() -> None:
    """Addresses of dead objects are reused; identities are not."""

    def residuals(p: Any) -> list[Any]:
        out = []
        for k in range(50):
            out.append(p[0] * ag.Value(float(k), requires_grad=False))
            gc.collect(0)
        return out

    found = compiled_of([ag.Value(1.0)], residuals).evaluate()
    assert found.residuals.tolist() == [float(k) for k in range(50)]


def test_numbers_that_differ_are_data_and_exponents_are_structure() -> None:
    params = [ag.Value(0.5 + 0.1 * k) for k in range(8)]

    def residuals(p: Any) -> list[Any]:
        return [2.0 * v + 0.1 * k for k, v in enumerate(p)] + [
            v ** (2 + k % 2) for k, v in enumerate(p)
        ]

    compiled = check_against_eager(params, residuals)
    assert compiled.kernel_count == 3
    serials = {group.topology.serial for group in compiled.groups}
    assert len(serials) == 3


def test_constant_residuals_and_parameters_held() -> None:
    params = [ag.Value(2.0), ag.Value(3.0, requires_grad=False), ag.Value(4.0)]
    found = compiled_of(params, lambda p: [p[0] * p[1], 7.0, p[1], p[2]]).evaluate()
    assert found.residuals.tolist() == [6.0, 7.0, 3.0, 4.0]
    want = [[3.0, 0.0, 0.0], [0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0]]
    assert found.jacobian.toarray().tolist() == want


def test_nested_results_and_residuals_built_before() -> None:
    params = [ag.Value(1.0), ag.Value(2.0), ag.Value(3.0)]
    nested = compiled_of(params, lambda p: [[p[0]], (p[1], [p[2] * 2.0]), ag.Vec3(p)])
    assert nested.evaluate().residuals.tolist() == [1.0, 2.0, 6.0, 1.0, 2.0, 3.0]
    built = [params[0] * params[1], params[2] - params[0]]
    assert compiled_of(params, built).evaluate().residuals.tolist() == [2.0, 2.0]


def test_a_chain_of_100_000_compiles() -> None:
    params = [ag.Value(0.5)]

    def residuals(p: Any) -> list[Any]:
        y = p[0]
        for k in range(100_000):
            y = y + p[0] if k % 50_000 == 0 else y * 1.00001
        return [y]

    recording = Recording(params)
    with entered(recording):
        (root,) = residuals(params)
    assert recording.row_of(root) == len(recording.codes) - 1
    from autograd_gpu.scalar_groups import group_residuals

    (group,) = group_residuals(recording, [root.node])
    assert group.graph.stats.depth == 100_000
    want = residuals(params)[0].data
    assert group.graph(0.5) == pytest.approx(want, rel=1e-12)


def test_an_op_without_a_spelling_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NODE_OPS, "cosh", dataclasses.replace(NODE_OPS["cosh"], numba=""))
    params = [ag.Value(0.1 * k) for k in range(12)]
    compiled = compiled_of(params, lambda p: [ag.cosh(ag.tanh(v)) for v in p], backend="numba")
    assert "numba has no 'cosh'" in compiled.reason
    want = np.cosh(np.tanh([v.data for v in params]))
    tolerance("float64", GRAPH).check(compiled.evaluate().residuals, want, "cosh")


def test_no_gpu_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> Any:
        raise ag.DeviceError("no adapter was found")

    monkeypatch.setattr("autograd_gpu.runtime.device.default_device", none)
    params = [ag.Value(0.1 * k) for k in range(12)]
    compiled = ag.CompiledResidualsGPU.compile(params, lambda p: [v * 2.0 for v in p])
    assert "fell back to the CPU: no adapter was found" in compiled.reason
    assert compiled.evaluate().residuals[3] == pytest.approx(0.6)
    executor = ag.GPUBatchExecutor(compiled.groups, 12)
    assert "fell back to the CPU" in executor.reason
    assert executor.residuals(np.ones(12)).tolist() == [2.0] * 12


def test_enable_gpu_is_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    class Adapter:
        is_software = False
        name = "a card"

    monkeypatch.setattr("autograd_gpu.runtime.adapters.devices", lambda: [Adapter()])
    monkeypatch.setattr(
        "autograd_gpu.runtime.device.default_device",
        lambda: type("D", (), {"adapter": Adapter()})(),
    )
    try:
        ag.enable_gpu(True, min_batch=100)
        assert choose_backend("auto", "auto", None, 100).backend == "wgsl"
        assert "enable_gpu" in choose_backend("auto", "auto", None, 100).reason
        assert choose_backend("auto", "auto", None, 99).backend == "numba"
        assert choose_backend("auto", "float64", None, 100).backend == "numba"
        ag.enable_gpu(False)
        assert choose_backend("auto", "float32", None, 10**6).backend == "numba"
    finally:
        ag.enable_gpu(None)
    assert choose_backend("auto", "float32", None, 10**6).backend == "wgsl"
    with pytest.raises(ag.InputError, match="min_batch"):
        ag.enable_gpu(True, min_batch=0)


def test_solving_writes_back_and_respects_held_values() -> None:
    params, residuals = springs(12)
    params[0].requires_grad = False
    held = params[0].data
    start = 0.5 * sum(r.data**2 for r in residuals(params))
    solution = ag.NonlinearLeastSquares(params, residuals, backend="numba").solve()
    end = 0.5 * sum(r.data**2 for r in residuals(params))
    assert solution.success
    assert params[0].data == held
    assert end == pytest.approx(solution.cost, rel=1e-9, abs=1e-20)
    assert end < 1e-3 * start


@pytest.mark.parametrize(
    ("params", "residuals", "options", "match"),
    [
        ([], lambda p: p, {}, "expected at least one unknown"),
        ([1.0], lambda p: p, {}, r"expected an ag\.Value"),
        ("twice", lambda p: p, {}, "are the same Value"),
        ("one", lambda p: [], {}, "returned no residuals"),
        ("one", lambda p: [p[0]], {"batch_size": 0}, "batch_size=0"),
        ("one", lambda p: [p[0]], {"fallback_threshold": -1}, "fallback_threshold=-1"),
        ("one", lambda p: [p[0]], {"backend": "cuda"}, "unknown"),
        ("result", lambda p: [p[0]], {}, "result of an operation"),
    ],
)
def test_bad_input_is_named(params: Any, residuals: Any, options: Any, match: str) -> None:
    a = ag.Value(1.0)
    given = {"twice": [a, a], "one": [a], "result": [a * 2.0]}.get(params, params) if isinstance(
        params, str
    ) else params  # fmt: skip
    with pytest.raises(ag.InputError, match=match):
        compiled_of(given, residuals, **options)


def test_lengths_and_numbers_of_params_are_checked() -> None:
    compiled = compiled_of([ag.Value(1.0), ag.Value(2.0)], lambda p: [p[0] * p[1]])
    with pytest.raises(ag.ShapeError, match="one for"):
        compiled.evaluate([1.0])
    with pytest.raises(ag.InputError, match="NaN"):
        compiled.evaluate([1.0, np.nan])


def test_work_is_linear_in_the_number_of_residuals() -> None:
    """Rows recorded for each residual, and kernels, do not grow with the problem."""

    def recorded(count: int) -> tuple[int, int]:
        params, residuals = springs(count)
        compiled = compiled_of(params, residuals)
        recording: Recording = compiled._recording
        return len(recording.codes) - len(params), compiled.kernel_count

    small, kernels = recorded(50)
    large, more = recorded(500)
    assert kernels == more == 2
    per_spring = 8 + 1  # two differences, two squares, sum, root, difference; and numbers
    assert large - small <= 450 * per_spring
