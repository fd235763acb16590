"""Bad input is refused on entry: the named error says what, where, got, expected and remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import AutogradGpuError
from autograd_gpu.runtime import device as device_module
from autograd_gpu.solvers import analysis
from sessions import device_on

N = 6


@dataclass
class Setting:
    """A small problem with everything in order, and arrays to spoil."""

    problem: ag.Problem
    x: Any
    s: Any
    data: NDArray[np.float64]

    def add(self, *arguments: Any, fn: Any = None, **keywords: Any) -> None:
        """Add residuals named springs to the problem."""
        keywords.setdefault("name", "springs")
        self.problem.add_residuals(fn or (lambda *a: a[0]), *arguments, **keywords)


def make_setting() -> Setting:
    rng = np.random.default_rng(4)
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((N, 3)))
    s = problem.parameters("s", rng.standard_normal(N))
    problem.add_residuals(lambda p, d: p - d, x, rng.standard_normal((N, 3)), name="pull")
    problem.add_residuals(lambda a, u, v: u * a - v, s, 2.0, np.ones(N), name="line")
    return Setting(problem, x, s, rng.standard_normal((N, 3)))


def spoiled(value: float, shape: tuple[int, ...] = (N, 3)) -> NDArray[np.float64]:
    array = np.ones(shape)
    array[(2,) * len(shape)] = value
    return array


@pytest.fixture(autouse=True)
def no_device_work(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No session is opened, and no device asked for, by anything in this file."""

    def refuse(*_: Any, **__: Any) -> Any:
        pytest.fail("device work began before the input was refused")

    monkeypatch.setattr(analysis, "open_session", refuse)
    monkeypatch.setattr(device_module.Device, "_open", refuse)
    yield


def check(error: type[AutogradGpuError], texts: tuple[str, ...], act: Callable[[], Any]) -> str:
    """The very error class, with every text in its message."""
    with pytest.raises(AutogradGpuError) as caught:
        act()
    message = str(caught.value)
    assert type(caught.value) is error, message
    for text in texts:
        assert text in message, message
    return message


def branches(p: Any) -> Any:
    if p[0] > 0.0:
        return p
    return -p


def chained(p: Any) -> Any:
    return ag.where(0.0 < p[0] < 1.0, p[1], p[2])


def takes_max(p: Any) -> Any:
    return max(p[0], p[1])


def and_(p: Any) -> Any:
    return ag.where(p[0] > 0.0 and p[1] > 0.0, 1.0, 0.0)


def python_sine(p: Any) -> Any:
    return math.sin(p[0])


def makes_float(p: Any) -> Any:
    return float(p[0])


def returns_nothing(p: Any) -> None:
    p * 2.0


Case = tuple[type[AutogradGpuError], tuple[str, ...], Callable[[Setting], Any]]
INPUT, SHAPE, RANGE, TRACE = ag.InputError, ag.ShapeError, ag.IndexRangeError, ag.TraceError

CASES: dict[str, Case] = {
    # -- lengths and shapes
    "lengths of selections": (
        SHAPE, ("residuals 'springs'", "has 2 entries", "has 3", "one entry per element"),
        lambda t: t.add(t.x[[0, 1, 2]], t.x[[0, 1]], fn=lambda p, q: q - p),
    ),
    "length of data": (
        SHAPE, ("residuals 'springs', argument 'rest'", "has 5 entries", "argument 'p' has 6"),
        lambda t: t.add(t.x, np.ones(5), fn=lambda p, rest: ag.norm(p) - rest),
    ),
    "one row is not repeated": (
        SHAPE, ("has 1 entries", "one entry per element"),
        lambda t: t.add(t.x, np.ones((1, 3)), fn=lambda p, q: q - p),
    ),
    "data with four dimensions": (
        SHAPE, ("argument 'd'", "got shape (6, 2, 2, 2)", "expected (count,), (count, k)"),
        lambda t: t.add(t.x, np.ones((N, 2, 2, 2)), fn=lambda p, d: p),
    ),
    "shared value with three dimensions": (
        SHAPE, ("shared value", "(6, 2, 2)", "at most a matrix"),
        lambda t: ag.shared(np.ones((N, 2, 2))),
    ),
    "parameters without rows": (
        SHAPE, ("parameters 'y'", "got shape (0, 3)", "n > 0"),
        lambda t: t.problem.parameters("y", np.zeros((0, 3))),
    ),
    "parameters that are one number": (
        SHAPE, ("parameters 'y'", "got shape ()", "expected (n,)"),
        lambda t: t.problem.parameters("y", 3.0),
    ),
    "vectors of different widths": (
        SHAPE, ("residuals 'springs', at ", "shapes (2,), (3,)"),
        lambda t: t.add(t.x, np.ones((N, 2)), fn=lambda p, d: p - d),
    ),
    "weight of another length": (
        SHAPE, ("residuals 'springs', weight", "got shape (5,)", "a number, (6,), (3, 3) or"),
        lambda t: t.add(t.x, weight=np.ones(5)),
    ),
    "weight matrix of another size": (
        SHAPE, ("residuals 'springs', weight", "got shape (2, 2)", "(3, 3) or (6, 3, 3)"),
        lambda t: t.add(t.x, weight=np.ones((2, 2))),
    ),
    "weights as columns": (
        SHAPE, ("weight", "got shape (6, 1)"), lambda t: t.add(t.x, weight=np.ones((N, 1))),
    ),
    # -- indices
    "index past the end": (
        RANGE, ("selection of parameters 'x'", "1 of 3", "is 6 at position 1", "expected 0 to 5"),
        lambda t: t.x[[0, 6, 1]],
    ),
    "negative index": (
        RANGE, ("parameters 'x'", "is -1 at position 0", "do not count from the end"),
        lambda t: t.x[np.array([-1, 2])],
    ),
    "negative integer": (RANGE, ("parameters 'x'", "is -1"), lambda t: t.x[-1]),
    "integer past the end": (RANGE, ("parameters 'x'", "is 6", "0 to 5"), lambda t: t.x[6]),
    "index into a selection": (
        RANGE, ("parameters 'x'", "is 2", "expected 0 to 1"), lambda t: t.x[[4, 5]][[2]],
    ),
    "float index array": (
        SHAPE, ("dtype float64", "expected integers", ".astype(int)"), lambda t: t.x[np.ones(2)],
    ),
    "float index": (SHAPE, ("parameters 'x'",), lambda t: t.x[1.0]),
    "index by name": (SHAPE, ("parameters 'x'",), lambda t: t.x["a"]),
    "matrix of indices": (
        SHAPE, ("shape (2, 2)", "one-dimensional"), lambda t: t.x[np.zeros((2, 2), int)],
    ),
    "ragged list of indices": (SHAPE, ("no array",), lambda t: t.x[[[0], [0, 1]]]),
    "index of a component": (
        SHAPE, ("got 2 indices", "whole blocks", "inside the residual function"),
        lambda t: t.x[0, 1],
    ),
    "mask of another length": (
        SHAPE, ("mask of 5 entries", "one for each of 6"), lambda t: t.x[np.ones(5, bool)],
    ),
    "selection of one block": (INPUT, ("one block cannot be selected from",), lambda t: t.x[0][0]),
    "iterating over parameters": (INPUT, ("'x'", "x[index_array]"), lambda t: list(t.x)),
    "length of one block": (INPUT, ("no length",), lambda t: len(t.x[0])),
    "freezing past the end": (
        RANGE, ("freeze, parameters 'x'", "is 6", "0 to 5"),
        lambda t: t.problem.freeze(t.x, [0, 6]),
    ),
    "freezing a negative row": (
        RANGE, ("freeze, parameters 'x'", "is -1"), lambda t: t.problem.freeze(t.x, -1),
    ),
    "unfreezing by floats": (
        SHAPE, ("unfreeze, parameters 'x'", "float64"), lambda t: t.problem.unfreeze(t.x, [0.0]),
    ),
    "freezing by a mask too short": (
        SHAPE, ("mask of 2 entries",), lambda t: t.problem.freeze(t.x, [True, False]),
    ),
    "freezing a truth value": (SHAPE, ("freeze",), lambda t: t.problem.freeze(t.x, True)),
    # -- numbers
    "NaN in parameters": (
        INPUT, ("parameters 'y'", "1 of 18", "at (2, 2) is nan", "remove or replace"),
        lambda t: t.problem.parameters("y", spoiled(math.nan)),
    ),
    "infinity in parameters": (
        INPUT, ("parameters 'y'", "is -inf"),
        lambda t: t.problem.parameters("y", spoiled(-math.inf, (N,))),
    ),
    "NaN in data": (
        INPUT, ("residuals 'springs', argument 'd'", "1 of 18", "is nan"),
        lambda t: t.add(t.x, spoiled(math.nan), fn=lambda p, d: p - d),
    ),
    "infinity in a shared number": (
        INPUT, ("residuals 'springs', argument 'd'", "got inf", "finite number"),
        lambda t: t.add(t.x, math.inf, fn=lambda p, d: p - d),
    ),
    "NaN in a shared array": (INPUT, ("shared value", "nan"), lambda t: ag.shared([1.0, math.nan])),
    "NaN in weights": (
        INPUT, ("residuals 'springs', weight", "at (2,) is nan"),
        lambda t: t.add(t.x, weight=spoiled(math.nan, (N,))),
    ),
    "complex numbers": (
        INPUT, ("parameters 'y'", "real numbers", "complex128"),
        lambda t: t.problem.parameters("y", np.ones(3) * 1j),
    ),
    "text": (
        INPUT, ("argument 'd'", "real numbers"),
        lambda t: t.add(t.x, ["1"] * N, fn=lambda p, d: p * d),
    ),
    "lists of different lengths": (
        INPUT, ("parameters 'y'", "equal lengths"),
        lambda t: t.problem.parameters("y", [[1.0], [1.0, 2.0]]),
    ),
    "None as data": (
        INPUT, ("argument 'd'", "got None", "finite number"),
        lambda t: t.add(t.x, None, fn=lambda p, d: p * d),
    ),
    "an object as data": (
        INPUT, ("argument 'd'", "real numbers"),
        lambda t: t.add(t.x, object(), fn=lambda p, d: p * d),
    ),
    # -- residual functions
    "returns nothing": (
        TRACE, ("'springs'", "returned None", "return the residual"),
        lambda t: t.add(t.x, fn=returns_nothing),
    ),
    "returns an empty list": (
        TRACE, ("'springs'", "list"), lambda t: t.add(t.x, fn=lambda p: []),
    ),
    "returns text": (TRACE, ("'springs'", "str"), lambda t: t.add(t.x, fn=lambda p: "r")),
    "returns a condition": (
        TRACE, ("truth value", "ag.where"), lambda t: t.add(t.x, fn=lambda p: p[0] > 0.0),
    ),
    "returns infinity": (TRACE, ("constant inf",), lambda t: t.add(t.x, fn=lambda p: math.inf)),
    "branches": (
        TRACE, ("'springs', at ", "test_bad_input.py", "if p[0] > 0.0:", "ag.where"),
        lambda t: t.add(t.x, fn=branches),
    ),
    "chained comparison": (
        TRACE, ("0.0 < p[0] < 1.0", "ag.logical_and"), lambda t: t.add(t.x, fn=chained),
    ),
    "max": (
        TRACE, ("'springs'", "max(p[0], p[1])", "ag.maximum"),
        lambda t: t.add(t.x, fn=takes_max),
    ),
    "and": (TRACE, ("ag.logical_and",), lambda t: t.add(t.x, fn=and_)),
    "math.sin": (TRACE, ("ag.sin instead of math.sin",), lambda t: t.add(t.x, fn=python_sine)),
    "float()": (TRACE, ("float", "ag.*"), lambda t: t.add(t.x, fn=makes_float)),
    "an error of its own": (
        TRACE, ("'springs'", "KeyError", "{}['no']"), lambda t: t.add(t.x, fn=lambda p: {}["no"]),
    ),
    "no function": (
        INPUT, ("got ParameterArray as the residual function", "add_residuals(fn, argument"),
        lambda t: t.problem.add_residuals(t.x, t.x),
    ),
    "too many arguments": (
        INPUT, ("residuals 'springs'", "got 2 arguments for <lambda>(p)"),
        lambda t: t.add(t.x, 1.0, fn=lambda p: p),
    ),
    "too few arguments": (
        INPUT, ("residuals 'springs'", "got 1 arguments for <lambda>(p, q)", "missing"),
        lambda t: t.add(t.x, fn=lambda p, q: p),
    ),
    # -- problems
    "no arguments": (INPUT, ("residuals 'springs'", "no arguments"), lambda t: t.add()),
    "no parameter among the arguments": (
        INPUT, ("residuals 'springs'", "no argument is a parameter"), lambda t: t.add(np.ones(3)),
    ),
    "an empty batch": (
        INPUT, ("residuals 'springs'", "batch is empty", "leave the group out"),
        lambda t: t.add(t.x[[]]),
    ),
    "an empty slice": (INPUT, ("batch is empty",), lambda t: t.add(t.x[3:3])),
    "empty data": (
        SHAPE, ("argument", "0 entries"), lambda t: t.add(t.x, np.zeros((0, 3))),
    ),
    "another problem's parameters": (
        INPUT, ("residuals 'springs'", "'x'", "another problem's"),
        lambda t: t.add(make_setting().x),
    ),
    "freezing another problem's parameters": (
        INPUT, ("not a parameter array of this problem", "problem.parameters"),
        lambda t: t.problem.freeze(make_setting().x),
    ),
    "columns of a selection": (
        INPUT, ("not a parameter array",), lambda t: t.problem.columns(t.x[:2]),
    ),
    "a parameter name twice": (
        INPUT, ("parameters 'x'", "already"), lambda t: t.problem.parameters("x", np.ones(2)),
    ),
    "a parameter name forgotten": (
        INPUT, ("got ndarray as the name", "expected a string"),
        lambda t: t.problem.parameters(np.ones(2), None),
    ),
    "a group name twice": (
        INPUT, ("residuals 'pull'", "already"), lambda t: t.add(t.x, name="pull"),
    ),
    "an empty problem, solved": (
        INPUT, ("no residuals", "add_residuals"), lambda t: ag.solve(ag.Problem()),
    ),
    "an empty problem, evaluated": (
        INPUT, ("no residuals", "add_residuals"), lambda t: ag.Problem().evaluate(),
    ),
    "an empty problem, checked": (
        INPUT, ("no residuals",), lambda t: ag.Problem().check_gradients(),
    ),
    # -- updates
    "update of unknown parameters": (
        INPUT, ("no parameters 'z'", "'x', 's'"), lambda t: t.problem.update(z=np.ones(3)),
    ),
    "update of unknown residuals": (
        INPUT, ("no residuals 'push'", "'pull', 'line'"),
        lambda t: t.problem.update(data={"push": np.ones(3)}),
    ),
    "update of an unknown argument": (
        INPUT, ("residuals 'pull', argument 'q'", "no such data argument", "'d'"),
        lambda t: t.problem.update(data={"pull": {"q": t.data}}),
    ),
    "update of a parameter as data": (
        INPUT, ("argument 'p'", "no such data argument"),
        lambda t: t.problem.update(data={"pull": {"p": t.data}}),
    ),
    "update that leaves the argument open": (
        INPUT, ("residuals 'line'", "'u', 'v'"),
        lambda t: t.problem.update(data={"line": np.ones(N)}),
    ),
    "update with data that is no mapping": (
        INPUT, ("update, data", "got ndarray", "{residuals:"),
        lambda t: t.problem.update(data=np.ones(3)),
    ),
    "update with another shape of parameters": (
        SHAPE, ("update, parameters 'x'", "got shape (5, 3)", "expected (6, 3)", "another Problem"),
        lambda t: t.problem.update(x=np.ones((5, 3))),
    ),
    "update with another shape of data": (
        SHAPE, ("residuals 'pull', argument 'd'", "got shape (3,)", "expected (6, 3)"),
        lambda t: t.problem.update(data={"pull": np.ones(3)}),
    ),
    "update with NaN parameters": (
        INPUT, ("update, parameters 'x'", "is nan"),
        lambda t: t.problem.update(x=spoiled(math.nan)),
    ),
    "update with NaN data": (
        INPUT, ("update, residuals 'pull', argument 'd'", "is nan"),
        lambda t: t.problem.update(data={"pull": spoiled(math.nan)}),
    ),
    # -- solve and evaluate
    "unknown backend, solved": (
        INPUT, ("backend='cuda'", "numpy, numba, jax, wgsl", "cpu or gpu"),
        lambda t: ag.solve(t.problem, backend="cuda"),
    ),
    "unknown backend, evaluated": (
        INPUT, ("backend='cuda'",), lambda t: t.problem.evaluate(backend="cuda"),
    ),
    "unknown precision": (
        INPUT, ("precision='half'", "float32, float64"),
        lambda t: ag.solve(t.problem, precision="half"),
    ),
    "a precision of another backend": (
        INPUT, ("precision='mixed'", "wgsl", "float32 and float64"),
        lambda t: ag.solve(t.problem, backend="numba", precision="mixed"),
    ),
    "a device for the CPU": (
        INPUT, ("a device was given", "backend='cpu' runs on the CPU", "backend='wgsl'"),
        lambda t: ag.solve(t.problem, backend="cpu", device="llvmpipe"),
    ),
    "unknown method": (
        INPUT, ("method='nelder'", "levenberg-marquardt"), lambda t: ag.solve(t.problem, "nelder"),
    ),
    "unknown linear solver": (
        INPUT, ("linear_solver='lu'", "sparse-cholesky"),
        lambda t: ag.solve(t.problem, linear_solver="lu", backend="gpu"),
    ),
    "unknown damping": (
        INPUT, ("damping='none'", "one-plus-norm"),
        lambda t: ag.LevenbergMarquardtOptions(damping="none"),
    ),
    "options as a dict": (
        INPUT, ("got dict", "LevenbergMarquardtOptions"), lambda t: ag.solve(t.problem, options={}),
    ),
    "callback that is no function": (
        INPUT, ("callback", "got int"), lambda t: ag.solve(t.problem, callback=3),
    ),
    "no problem": (INPUT, ("got list", "ag.Problem"), lambda t: ag.solve([])),
    # -- meshes
    "a zero-area face": (
        ag.MeshError, ("1 of 2 faces have zero area", "faces 1;", "remove them"),
        lambda t: ag.meshes.Mesh(
            [[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]], [[0, 1, 2], [0, 1, 3]]
        ).require_nondegenerate(),
    ),
    "a face with a vertex that is not there": (
        RANGE, ("1 of 1 faces", "0 to 2", "[0, 1, 3]"),
        lambda t: ag.meshes.Mesh(np.eye(3), [[0, 1, 3]]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused_on_entry(name: str) -> None:
    error, texts, act = CASES[name]
    setting = make_setting()
    before = repr(setting.problem), [setting.problem.values_of(a) for a in setting.problem.arrays]
    message = check(error, texts, lambda: act(setting))
    assert len(message) < 600
    after = repr(setting.problem), [setting.problem.values_of(a) for a in setting.problem.arrays]
    assert after[0] == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(after[1], before[1], strict=True))


def test_errors_are_also_what_python_would_raise() -> None:
    assert issubclass(ag.InputError, ValueError)
    assert issubclass(ag.ShapeError, ValueError)
    assert issubclass(ag.IndexRangeError, IndexError)
    assert issubclass(ag.TraceError, TypeError)
    for error in (ag.InputError, ag.ShapeError, ag.IndexRangeError, ag.TraceError, ag.SolveError):
        assert issubclass(error, ag.AutogradGpuError)


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", wgsl_adapters() or ("none",))
def test_a_device_given_has_nothing_to_do(adapter: str) -> None:
    device = device_on(adapter)
    counters = device.counters.snapshot()
    setting = make_setting()
    for keywords in (
        {"linear_solver": "lu"}, {"method": "nelder"}, {"precision": "half"},
        {"options": {}}, {"backend": "cuda"}, {"backend": "numba"}, {"callback": 3},
    ):  # fmt: skip
        with pytest.raises(ag.InputError):
            ag.solve(setting.problem, **({"backend": "wgsl", "device": device} | keywords))
    with pytest.raises(ag.InputError):
        ag.solve(ag.Problem(), backend="wgsl", device=device)
    assert device.counters == counters


def test_bad_arrays_are_not_changed() -> None:
    bad = spoiled(math.nan)
    index = np.array([0, 9])
    copies = bad.copy(), index.copy()
    setting = make_setting()
    for act in (
        lambda: setting.problem.parameters("y", bad),
        lambda: setting.add(setting.x, bad),
        lambda: setting.add(setting.x, weight=bad),
        lambda: setting.problem.update(x=bad),
        lambda: setting.x[index],
        lambda: setting.problem.freeze(setting.x, index),
    ):
        with pytest.raises(AutogradGpuError):
            act()
    assert np.array_equal(bad, copies[0], equal_nan=True)
    assert np.array_equal(index, copies[1])
