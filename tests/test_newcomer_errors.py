"""What goes wrong in the first hour: each mistake is refused by a message that says what to do."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.errors import UnknownNameError


def spring(p: Any, q: Any, rest: Any) -> Any:
    return ag.norm(q - p) - rest


class Scene:
    """The quick start's chain, before its residuals."""

    def __init__(self) -> None:
        self.problem = ag.Problem()
        points = np.array([[0.0, 0.0], [1.0, 0.1], [2.1, 0.0], [2.9, -0.1]])
        self.x = self.problem.parameters("x", points)
        self.i, self.j = np.array([0, 1, 2]), np.array([1, 2, 3])

    def add(self, fn: Any, *arguments: Any, **options: Any) -> None:
        self.problem.add_residuals(fn, *arguments, **options)

    def solved(self) -> ag.Solution:
        self.add(spring, self.x[self.i], self.x[self.j], 1.5)
        return ag.solve(self.problem, backend="numpy")


# What was done -> what the message must say.
MISTAKES: dict[str, tuple[Callable[[Scene], Any], type[Exception], str]] = {
    "calls the residual": (
        lambda s: s.add(spring(s.x[s.i], s.x[s.j], 1.5)), ag.InputError, "add_residuals(fn, x[i]"),
    "computes with parameters": (lambda s: 2.0 * s.x, ag.InputError, "no numbers to compute with"),
    "subtracts them from an array": (
        lambda s: np.ones(4) - s.x[:], ag.InputError, "no numbers to compute with"),
    "multiplies a matrix by them": (
        lambda s: np.eye(4) @ s.x, ag.InputError, "no numbers to compute with"),
    "takes their norm": (lambda s: ag.norm(s.x[s.i]), ag.InputError, "compute inside fn"),
    "makes an array of them": (lambda s: np.asarray(s.x), ag.InputError, "problem.values_of(x)"),
    "branches": (
        lambda s: s.add(lambda p: p[0] if p[0] > 0 else 0.0, s.x), ag.TraceError, "ag.where"),
    "uses math": (
        lambda s: s.add(lambda p: (math.sqrt(p[0]), ")"), s.x), ag.TraceError,
        "use ag.sqrt instead"),
    "calls a method": (
        lambda s: s.add(lambda p: (p - 1.0).norm(), s.x), ag.TraceError, "call ag.norm("),
    "calls a method of a number": (
        lambda s: s.add(lambda p: p[0].sqrt(), s.x), ag.TraceError, "call ag.sqrt("),
    "formats a value": (
        lambda s: s.add(lambda p: p * len(f"{p[0]:.2f}"), s.x), ag.TraceError, "has no number yet"),
    "takes a third component": (
        lambda s: s.add(lambda p: p[2], s.x), ag.TraceError, "components are 0 to 1"),
    "forgets to return": (lambda s: s.add(lambda p: None, s.x), ag.TraceError, "return the"),
    "forgets an argument": (
        lambda s: s.add(spring, s.x[s.i], s.x[s.j]), ag.InputError, "argument: 'rest'"),
    "passes arrays only": (
        lambda s: s.add(spring, np.ones((3, 2)), np.ones((3, 2)), 1.0), ag.InputError,
        "pass what problem.parameters(...) returned"),
    "mixes lengths": (
        lambda s: s.add(spring, s.x, s.x[s.j], 1.0), ag.ShapeError, "one entry per element"),
    "counts from the end": (lambda s: s.x[[-1]], ag.IndexRangeError, "expected 0 to 3"),
    "indexes by floats": (lambda s: s.x[np.array([0.0, 1.0])], ag.ShapeError, ".astype(int)"),
    "gives NaN": (
        lambda s: s.add(spring, s.x[s.i], s.x[s.j], [1.0, math.nan, 1.0]), ag.InputError,
        "remove or replace"),
    "freezes by name": (
        lambda s: s.problem.freeze("x", [0]), ag.InputError, "freeze(x, [0, 1])"),
    "freezes a selection": (lambda s: s.problem.freeze(s.x[[0]]), ag.InputError, "freeze(x, [0"),
    "solves nothing": (lambda s: ag.solve(s.problem), ag.InputError, "add_residuals(fn"),
    "solves a function": (lambda s: ag.solve(spring), ag.InputError, "expected an ag.Problem"),
    "misspells an option": (
        lambda s: ag.LevenbergMarquardtOptions(max_iter=5), ag.InputError, "mean max_iterations?"),
    "misspells a method": (
        lambda s: ag.solve(s.problem, method="lm"), ag.InputError, "levenberg-marquardt"),
    "names a loss": (
        lambda s: s.add(spring, s.x[s.i], s.x[s.j], 1.0, loss="huber"), ag.InputError,
        "ag.losses.Huber"),
    "asks for another name": (
        lambda s: s.solved().values["points"], UnknownNameError, "it has 'x'"),
    "asks by the handle": (lambda s: s.solved().values[s.x], UnknownNameError, "it has 'x'"),
    "thinks of SciPy": (
        lambda s: s.solved().x, AttributeError, "solution.values['x']"),
    "misspells a function": (lambda s: ag.sqroot, AttributeError, "did you mean ag.sqrt?"),
    "loads what is not there": (
        lambda s: ag.meshes.load("bunny.obj"), ag.InputError, "check the name and the working"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_is_answered_by_what_to_do(what: str) -> None:
    mistake, kind, remedy = MISTAKES[what]
    with pytest.raises(kind) as caught:
        mistake(Scene())
    assert remedy in str(caught.value)


def test_a_start_that_is_no_number_leads_to_debug_nans() -> None:
    scene = Scene()
    scene.add(lambda p: ag.log(p[1]), scene.x)
    solution = ag.solve(scene.problem, backend="numpy")
    assert not solution.success and "ag.debug_nans(problem)" in solution.report()
    assert "debug_nans" not in Scene().solved().report()


def test_what_answers_stays_an_ordinary_object() -> None:
    solution = Scene().solved()
    assert isinstance(solution.values, dict) and solution.values.get("y") is None
    again = copy.copy(solution)
    assert again.cost == solution.cost and set(again.values) == {"x"}
    options = ag.LevenbergMarquardtOptions(max_iterations=7)
    assert pickle.loads(pickle.dumps(options)) == options == copy.deepcopy(options)
    assert f"{ag.Value(1.25):.1f}" == "1.2" and f"{ag.Value(1.25)}" == repr(ag.Value(1.25))
