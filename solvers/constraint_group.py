"""Constraints l ≤ c(x) ≤ u over a batch, as the residuals that an augmented Lagrangian minimises.

With multipliers λ and a penalty μ an element's residual is √μ (t - P(t)), t = c + λ/μ, P the
projection onto [l, u]: half its square is λᵀ(c - P) + μ/2 ‖c - P‖² but for a constant. λ/μ and √μ
are data of the group, so new ones compile nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from autograd_gpu.codegen.kernel import topology_of
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.rewrite import RULES
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.scalar import Scalar, SymbolicAlgebra
from autograd_gpu.solvers.residual_group import DataRows, ResidualGroup, slot_of

UNBOUNDED = 1e30
"""Stands for no bound in kernels: WGSL promises nothing about infinity."""

KINDS: Mapping[str, tuple[float, float]] = {"equality": (0.0, 0.0), "inequality": (0.0, np.inf)}
"""Bounds by kind: c = 0, and c ≥ 0 as in SciPy."""

_SHIFT, _ROOT = "multipliers_by_penalty", "root_penalty"


@dataclass(frozen=True, slots=True)
class Constraint:
    """Constraints of one function over a batch.

    Attributes:
        group: its augmented residuals, one a component of c; the last two arguments are λ/μ and √μ.
        shape: of multipliers: ``(count,)`` for a scalar function, ``(count, m)`` otherwise.
    """

    group: ResidualGroup
    shape: tuple[int, ...]

    def with_data(self, new: Mapping[str, ArrayLike] | ArrayLike) -> Constraint:
        """The constraint with other numbers in its data arguments; see ``Problem.update``."""
        return replace(self, group=self.group.with_data(new))


def constraint_bounds(
    kind: str | None, lower: ArrayLike | None, upper: ArrayLike | None, what: str
) -> tuple[ArrayLike, ArrayLike]:
    """L and u of what a user says: a kind, or bounds, or nothing for an equality.

    Raises:
        InputError: an unknown kind, or both.
    """
    if lower is None and upper is None:
        if kind is not None and kind not in KINDS:
            raise InputError(
                f"{what}: kind={kind!r} is unknown; expected one of {', '.join(KINDS)}"
            )
        return KINDS[kind or "equality"]
    if kind is not None:
        raise InputError(
            f"{what}: got kind={kind!r} and bounds; leave kind out (equal bounds are an equality)"
        )
    return (-np.inf if lower is None else lower), (np.inf if upper is None else upper)


def make_constraint(plain: ResidualGroup, bounds: tuple[ArrayLike, ArrayLike]) -> Constraint:
    """The augmented residuals of a batch of functions c.

    Args:
        plain: c, traced and bound like residuals without weight and loss.
        bounds: l and u, each a number, ``(m,)``, ``(count,)`` or ``(count, m)``.

    Raises:
        ShapeError, InputError: the bounds do not fit.
    """
    what, count = f"constraint {plain.name!r}", plain.count
    m = plain.residual_size
    lower, upper = (
        _bound(b, side, (count, m), what)
        for b, side in zip(bounds, ("lower", "upper"), strict=True)
    )
    equal = lower == upper
    if (lower > upper).any():
        raise InputError(f"{what}: a lower bound is above its upper one; exchange them")
    if equal.any() and not equal.all():
        raise InputError(
            f"{what}: {int(equal.sum())} of {equal.size} components are equalities and the others "
            "are not; add them as two constraints"
        )
    rows = (
        DataRows(np.clip(lower, -UNBOUNDED, UNBOUNDED), False),
        DataRows(np.clip(upper, -UNBOUNDED, UNBOUNDED), False),
        DataRows(np.zeros((count, m)), False),
        DataRows(np.ones(1), True),
    )
    graph = _augmented(plain.graph, bool(equal.all()))
    arguments = (*plain.arguments, *rows)
    group = replace(
        plain,
        graph=graph,
        topology=topology_of(graph, [slot_of(a) for a in arguments]),
        arguments=arguments,
    )
    return Constraint(group, (count, m) if plain.graph.output_shape else (count,))


def _bound(given: ArrayLike, side: str, shape: tuple[int, int], what: str) -> FloatArray:
    try:
        values = np.array(given, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}, {side}: got {given!r:.80}, expected numbers") from error
    never = np.inf if side == "lower" else -np.inf
    if np.isnan(values).any() or (values == never).any():
        raise InputError(f"{what}, {side}: got NaN or {never}, which nothing meets")
    count, m = shape
    if values.shape == (count,) and values.shape != (m,):
        values = values[:, None]
    try:
        return np.broadcast_to(values, shape).copy()
    except ValueError as error:
        raise ShapeError(
            f"{what}, {side}: got shape {values.shape}, expected a number, ({m},), ({count},) or "
            f"{shape}"
        ) from error


def _augmented(graph: Graph, equality: bool) -> Graph:
    """The graph of √μ (t - P(t)) with four more arguments: l, u, λ/μ and √μ."""
    m, first = len(graph.outputs), len(graph.arguments)
    b = Builder(RULES)
    ids = b.absorb(graph.nodes)
    algebra = SymbolicAlgebra(b)
    root = Scalar(b, b.input(first + 3, 0))
    outputs: list[int] = []
    for i, node in enumerate(graph.outputs):
        lower, upper, shift = (Scalar(b, b.input(first + k, i)) for k in range(3))
        t = Scalar(b, ids[node]) + shift
        # An equality has no kink: at c = l a maximum would have half a slope, or none.
        nearest = lower if equality else algebra.minimum(algebra.maximum(t, lower), upper)
        outputs.append((root * (t - nearest)).node)
    taken = {a.name for a in graph.arguments}
    extra = [
        Argument(name if name not in taken else f"{name}_of_constraint", shape)
        for name, shape in (("lower", (m,)), ("upper", (m,)), (_SHIFT, (m,)), (_ROOT, ()))
    ]
    return Graph.build(b, outputs, (*graph.arguments, *extra), None, graph.name)
