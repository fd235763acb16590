"""What sees every iteration of a solve: the progress bar, and the user's callback.

A callback may look at the point and replace data of the problem that follow it, as closest points
do; the solve then goes on with the new data from where it is (`stale`, `follow`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.driver import Engine
from autograd_gpu.solvers.progress import SolveProgress
from autograd_gpu.solvers.solution import IterationRecord, NamedValues

if TYPE_CHECKING:
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem

Callback = (
    Callable[[IterationRecord], Any] | Callable[[IterationRecord, Mapping[str, FloatArray]], Any]
)


def named_values(
    problem: Problem, analysis: Analysis, parameters: FloatArray
) -> dict[str, FloatArray]:
    """Flat parameters by name, shaped as the user gave them; copies."""
    values = NamedValues()
    for array in problem.arrays:
        start = problem.values_of(array)
        base = analysis.base[array.name]
        values[array.name] = np.array(parameters[base : base + start.size]).reshape(start.shape)
    return values


class Watcher:
    """Observer of all stages of one solve.

    Args:
        problem: what is solved.
        analysis: of it, as the solve begins.
        callback: of the user; takes the record, or the record and the values.
        bar: progress bar, if one is shown.

    Attributes:
        engine: that runs now; set by whoever runs it.
        asked: whether the callback asked to stop.
    """

    def __init__(
        self,
        problem: Problem,
        analysis: Analysis,
        callback: Callback | None,
        bar: SolveProgress | None,
    ) -> None:
        self._problem = problem
        self._analysis = analysis
        self._revision = problem.revision
        self._callback = cast("Callable[..., Any] | None", callback)
        self._wants_values = callback is not None and _takes_two(callback)
        self._bar = bar
        self.engine: Engine | None = None
        self.asked = False

    def __call__(self, record: IterationRecord) -> bool:
        """Show and tell; whether the stage should end."""
        if self._bar is not None:
            self._bar.update(record)
        if self._callback is None:
            return False
        if self._wants_values:
            assert self.engine is not None
            values = named_values(self._problem, self._analysis, self.engine.parameters())
            self.asked = bool(self._callback(record, values))
        else:
            self.asked = bool(self._callback(record))
        return self.asked or self.stale

    @property
    def stale(self) -> bool:
        """Whether the callback changed the problem."""
        return self._problem.revision != self._revision

    def follow(self) -> Analysis:
        """The problem as the callback left it.

        Raises:
            InputError: it has other parameters now.
        """
        fresh = self._problem.analysis()
        if fresh.base != self._analysis.base or (
            fresh.parameter_count != self._analysis.parameter_count
        ):
            raise InputError(
                "the callback added parameters to the problem that is being solved; it may call "
                "problem.update(data=…)"
            )
        self._analysis, self._revision = fresh, self._problem.revision
        return fresh


def _takes_two(callback: Callable[..., Any]) -> bool:
    """Whether a callback has room for a second positional argument without a default."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(needed) == 2
