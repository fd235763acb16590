"""float64 on WGSL: native and double-float, forced, on every adapter that has them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bindings import bind

import autograd_gpu as ag
from autograd_gpu.codegen import render as render_module
from autograd_gpu.codegen.render import compile_to_wgsl, render, render_stages, wgsl_prelude
from autograd_gpu.disk_cache import FOLDER_VARIABLE
from autograd_gpu.errors import InputError, KernelError, PrecisionError
from autograd_gpu.ops import NODE_OPS
from autograd_gpu.runtime import self_test as self_test_module
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.runtime.number_formats import (
    FORMATS,
    LARGEST_LOSS,
    check_lossless,
    join_numbers,
    split_numbers,
)
from autograd_gpu.runtime.op_accuracy import (
    LIMITS,
    OPS,
    SPECIAL_NAME,
    available_precisions,
    full_self_test,
    op_error,
    special_errors,
)
from autograd_gpu.runtime.self_test import require_float64, self_test
from sessions import WGSL_FLOAT64, Backend, device_on, evaluate, parameters_of

EMULATED = [b for b in WGSL_FLOAT64 if b.precision == "float64-emulated"]
each_backend = pytest.mark.parametrize("backend", parameters_of(WGSL_FLOAT64))
each_emulated = pytest.mark.parametrize("backend", parameters_of(EMULATED))


def as_stored(precision: str, values: Any) -> Any:
    """The numbers that a device of this precision gets."""
    number = FORMATS[precision]
    return number.decode(number.encode(np.asarray(values, float), "values").reshape(-1)).reshape(
        np.shape(values)
    )


def spread(count: int, seed: int = 1) -> Any:
    """Numbers of magnitude 1e-3 to 1e3 and of both signs."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(count) * 10.0 ** rng.integers(-3, 4, count)


# -- storage -------------------------------------------------------------------------------------


def test_splitting_keeps_48_bits() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100_000) * 10.0 ** rng.uniform(-23, 37, 100_000)
    joined = join_numbers(split_numbers(values, "values").ravel())
    assert np.max(np.abs(joined - values) / np.abs(values)) <= LARGEST_LOSS
    check_lossless(values, "values", "float64-emulated")


@pytest.mark.parametrize("value", [1e300, -4e38])
def test_numbers_beyond_the_exponent_range_are_refused(value: float) -> None:
    with pytest.raises(InputError, match=r"values: the value .* beyond double-float"):
        split_numbers(np.array([1.0, value]), "values")


@pytest.mark.parametrize("value", [1e-40, 1e-30 / 3])
def test_data_that_would_lose_digits_are_refused(value: float) -> None:
    with pytest.raises(PrecisionError, match=r"data: the value .* loses digits.*rescale"):
        check_lossless(np.array([0.0, value]), "data", "float64-emulated")
    check_lossless(np.array([0.0, value]), "data", "float64-native")


@each_emulated
def test_data_are_checked_on_upload(backend: Backend) -> None:
    graph = ag.trace(lambda x, d: x - d, 1, 1)
    bound = bind(graph, [np.ones(2), np.array([1.0, 1e-35])], data=[1])
    with pytest.raises(PrecisionError, match="data slot"):
        backend.open([bound.group], 2)


def test_constants_beyond_the_range_are_refused() -> None:
    graph = ag.trace(lambda x: x * 1e100, 1)
    with pytest.raises(KernelError, match="does not fit float32"):
        compile_to_wgsl(graph, precision="float64-emulated")
    assert "1e+100lf" in compile_to_wgsl(graph, precision="float64-native").source


# -- arithmetic ----------------------------------------------------------------------------------


@each_backend
def test_arithmetic_residuals_jacobian_and_cost(backend: Backend) -> None:
    graph = ag.trace(lambda a, b: [a + b, a - b, a * b, a / b, ag.sqrt(a * a + b * b)], 1, 1)
    a, b = (as_stored(backend.precision, spread(4096, seed)) for seed in (1, 2))
    got = evaluate(backend, bind(graph, [a, b]))
    want = graph(a, b)
    bound = 5e-14 if backend.precision == "float64-emulated" else 5e-16
    scale = np.abs(want)
    scale[:, :2] = (np.abs(a) + np.abs(b))[:, None]
    assert np.max(np.abs(got.residuals - want) / scale) <= bound
    jacobian = ag.jacobian(graph)(a, b).reshape(got.jacobian.shape)
    assert np.max(np.abs(got.jacobian - jacobian) / (1.0 + np.abs(jacobian))) <= 2 * bound
    cost = 0.5 * float(np.sum(want**2))
    assert abs(got.cost - cost) <= 4 * bound * cost


@each_backend
def test_sums_that_cancel_keep_their_digits(backend: Backend) -> None:
    a = as_stored(backend.precision, spread(2048))
    b = as_stored(
        backend.precision, -a * (1.0 + np.random.default_rng(3).uniform(-1e-6, 1e-6, 2048))
    )
    graph = ag.trace(lambda a, b: a + b, 1, 1)
    got = evaluate(backend, bind(graph, [a, b])).residuals[:, 0]
    assert np.max(np.abs(got - (a + b)) / np.abs(a + b)) <= 2.0**-45


# -- choice and self-test ------------------------------------------------------------------------


@each_backend
def test_a_solve_in_float64_ends_where_the_cpu_ends(backend: Backend) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.array([[-1.2, 1.0]]))
    problem.add_residuals(lambda p: [10.0 * (p[1] - p[0] * p[0]), 1.0 - p[0]], x)
    assert backend.adapter is not None
    solution = ag.solve(
        problem, backend="wgsl", precision=backend.precision, device=device_on(backend.adapter)
    )
    assert solution.precision == backend.precision
    np.testing.assert_allclose(solution.values["x"], 1.0, atol=1e-10)


@pytest.mark.wgsl
def test_float64_is_native_where_the_device_has_it() -> None:
    for backend in EMULATED:
        assert backend.adapter is not None
        device = device_on(backend.adapter)
        choice = choose_backend("wgsl", "float64", device, 10)
        native = "shader-f64" in device.capabilities
        assert choice.precision == ("float64-native" if native else "float64-emulated")
        assert ("own arithmetic" if native else "double-float") in choice.reason
        if not native:
            with pytest.raises(PrecisionError, match="no native float64"):
                choose_backend("wgsl", "float64-native", device, 10)


@each_backend
def test_the_self_test_passes_and_is_run_once(backend: Backend) -> None:
    assert backend.adapter is not None
    device = device_on(backend.adapter)
    first = self_test(device, backend.precision)
    assert first.passed, first.describe()
    before = device.counters.snapshot()
    assert self_test(device, backend.precision) is first
    assert device.counters == before


@pytest.fixture
def fresh_verdicts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No verdict in memory, and a cache folder of its own: as in a new process."""
    monkeypatch.setattr(self_test_module, "_verdicts", {})
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.wgsl
def test_the_verdict_is_kept_on_disk(fresh_verdicts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = device_on("llvmpipe")
    first = self_test(device, "float64-emulated")
    monkeypatch.setattr(self_test_module, "_verdicts", {})
    before = device.counters.snapshot()
    assert self_test(device, "float64-emulated") == first
    assert device.counters == before, "measured again"

    (entry,) = (fresh_verdicts / "self_tests").iterdir()
    entry.write_bytes(entry.read_bytes()[:-5])
    monkeypatch.setattr(self_test_module, "_verdicts", {})
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert self_test(device, "float64-emulated") == first
    assert device.counters.dispatches > before.dispatches


@pytest.mark.parametrize("adapter", sorted({b.adapter for b in EMULATED if b.adapter}))
@pytest.mark.wgsl
def test_every_op_and_special_value_passes_the_full_self_test(adapter: str) -> None:
    device = device_on(adapter)
    for precision in available_precisions(device):
        verdict = full_self_test(device, precision)
        assert {m.operation for m in verdict.measurements} == {*OPS, SPECIAL_NAME}
        assert verdict.passed, [m for m in verdict.measurements if not m.passed]


@pytest.mark.wgsl
def test_the_full_self_test_finds_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = NODE_OPS["exp"].numpy
    wrong = replace(NODE_OPS["exp"], numpy=lambda x: exact(x) * (1.0 + 1e-12))
    monkeypatch.setitem(NODE_OPS, "exp", wrong)
    device = device_on("llvmpipe")
    assert op_error(device, "float64-emulated", "exp") > LIMITS["float64-emulated"]
    monkeypatch.setitem(NODE_OPS, "exp", replace(wrong, numpy=np.abs))
    # exp of -inf, -2, NaN and 1 is not |x|, nor is that of 0; each occurs six times.
    assert special_errors(device, "float64-emulated") >= 18


def forget_texts() -> None:
    for cached in (render, render_stages):
        cached.cache_clear()


@pytest.fixture
def naive_prelude(monkeypatch: pytest.MonkeyPatch) -> Generator[None]:
    """Double-float without the opaque identity, which some drivers destroy."""
    opaque = "bitcast<f32>(bitcast<u32>(x) ^ control[0].w)"
    assert opaque in wgsl_prelude("float64-emulated")

    def broken(precision: str) -> str:
        return wgsl_prelude(precision).replace(opaque, "x")

    forget_texts()
    # Texts on disk are found by what a kernel is made from: they have the prelude that works, and
    # must not get this one.
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.setattr(render_module, "wgsl_prelude", broken)
    monkeypatch.setattr("autograd_gpu.runtime.self_test.wgsl_prelude", broken)
    yield
    forget_texts()


@pytest.mark.wgsl
def test_a_driver_that_changes_the_arithmetic_is_refused(naive_prelude: None) -> None:
    """llvmpipe reassociates the textbook form; SwiftShader happens not to."""
    device = device_on("llvmpipe")
    with pytest.raises(PrecisionError, match=r"fails the self-test of float64-emulated.*changes"):
        require_float64(device, "float64-emulated")
