"""Graduated non-convexity: robust losses that begin as squares and bend stage by stage.

A loss of scale δ with ρ(s) = δ² φ(s/δ²), s = ‖r‖², is solved with δ² multiplied by μ, for μ from
where the largest residual still counts as small down to 1. At first the cost is that of least
squares, with few minima or one, and every stage begins where the one before ended, so outliers lose
their pull before they can hold the parameters in a minimum of their own. With Geman-McClure this is
the surrogate of the first source, with μ as there.

As φ is concave, ρ falls with μ at every s: so the cost falls from stage to stage as well.

Sources: Yang, Antonante, Tzoumas, Carlone 2020, "Graduated non-convexity for robust spatial
perception", §4 (μ₀ = 2 max s/δ², factor 1.4); Black, Rangarajan 1996, "On the unification of line
processes, outlier rejection, and robust statistics"; Blake, Zisserman 1987, "Visual
reconstruction".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import BoundGroup, DataBinding, FloatArray
from autograd_gpu.runtime.choice import BackendChoice
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.stages import StageRun, Stages

WIDE = 1e20
"""A μ at which every loss here is the square, to all digits of float64."""


@dataclass(frozen=True, slots=True)
class Graduated:
    """How a graduated solve ended.

    Attributes:
        run: the last stage.
        finished: whether that had the losses as given.
    """

    run: StageRun
    finished: bool


def solve_graduated(
    analysis: Analysis,
    choice: BackendChoice,
    start: FloatArray,
    options: SolverOptions,
    stages: Stages,
) -> Graduated:
    """Stages with losses of falling scale, the last one with those given.

    Args:
        analysis: the problem; borrowed.
        choice: where the residuals of the start are evaluated.
        start: all parameters, flat.
        options: of every stage.
        stages: runs them.

    Raises:
        InputError: no group has a loss with a scale.
    """
    graduation = options.graduation
    assert graduation is not None
    if all(g.loss_scale is None for g in analysis.groups):
        raise InputError(
            "graduation: no residuals have a loss with a scale; pass one of ag.losses.Huber, "
            "SoftL1, Cauchy, Arctan, Tukey, GemanMcClure or Welsch to add_residuals"
        )
    mu = graduation.start or 2.0 * _largest_share(analysis, choice, start)
    x = start
    while 1.0 < mu < math.inf:
        bent = _bent(analysis, mu)
        try:
            run = stages.run(bent, x, options, graduation.iterations)
        finally:
            bent.close()
        x = run.outcome.parameters
        if run.stopped or stages.spent:
            return Graduated(run, finished=False)
        mu /= graduation.factor
    return Graduated(stages.run(analysis, x, options), finished=True)


def _bent(analysis: Analysis, mu: float) -> Analysis:
    """The problem with δ√μ for every scale δ."""
    return analysis.rebound([_scaled(g, math.sqrt(mu)) for g in analysis.groups])


def _scaled(group: BoundGroup, factor: float) -> BoundGroup:
    if group.loss_scale is None:
        return group
    bindings = list(group.bindings)
    given = _scales(group)
    bindings[group.loss_scale] = DataBinding(values=factor * given.values, shared=given.shared)
    return replace(group, bindings=tuple(bindings))


def _scales(group: BoundGroup) -> DataBinding:
    """δ, ``(count, 1)`` or ``(1, 1)``."""
    assert group.loss_scale is not None
    binding = group.bindings[group.loss_scale]
    assert isinstance(binding, DataBinding)
    return binding


def _largest_share(analysis: Analysis, choice: BackendChoice, start: FloatArray) -> float:
    """The largest s/δ² over all elements with such a loss; infinite or NaN if a residual is."""
    squares = _bent(analysis, WIDE)
    try:
        residuals = squares.session(choice).residuals(start).astype(np.float64)
    finally:
        squares.close()
    shares, first = [0.0], 0
    for group in analysis.groups:
        last = first + group.count * group.residual_size
        if group.loss_scale is not None:
            norms = np.square(residuals[first:last]).reshape(group.count, -1).sum(1)
            shares.append(float(np.max(norms / np.square(_scales(group).values[:, 0]))))
        first = last
    return max(shares)
