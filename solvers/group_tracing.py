"""From a residual function and what it is given to the batches that a problem keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from numpy.typing import ArrayLike

from autograd_gpu.grids import SamplingBuilder
from autograd_gpu.ir import Graph
from autograd_gpu.losses import Loss, as_loss
from autograd_gpu.solvers.arguments import gather
from autograd_gpu.solvers.parameter_store import ParameterStore
from autograd_gpu.solvers.ragged_arguments import rows_of
from autograd_gpu.solvers.ragged_group import RaggedGroup, trace_ragged_group
from autograd_gpu.solvers.residual_group import (
    GroupArgument,
    ResidualGroup,
    trace_group,
    weighted,
)
from autograd_gpu.solvers.sampled_residuals import sampled_group, with_sample_arguments


def trace_for_batch(
    fn: Callable[..., Any],
    arguments: tuple[Any, ...],
    parameters: ParameterStore,
    title: str,
    what: str,
    *,
    weight: ArrayLike | None = None,
    loss: Loss | Callable[[Any], Any] | None = None,
    grids: bool = True,
) -> ResidualGroup | RaggedGroup:
    """Check what a function is given, and trace it for its batch.

    Args:
        fn: of one element; traced once.
        arguments: see ``Problem.add_residuals``, also for ``weight`` and ``loss``.
        parameters: those of the problem.
        title: name of the batch.
        what: for errors.
        weight: multiplies what the function returns.
        loss: acts on its square.
        grids: whether the function may sample grids.

    Raises:
        TraceError: the function cannot be traced.
        ShapeError, IndexRangeError, InputError: an argument does not fit.
    """
    names, gathered, count = gather(fn, arguments, parameters.owns, what)
    checked = None if loss is None else as_loss(loss, what)
    if any(rows_of(g) is not None for g in gathered):
        return trace_ragged_group(
            fn,
            names,
            gathered,
            count,
            weight,
            checked,
            title,
            parameters.values_of,
        )
    plain = cast("list[GroupArgument]", gathered)

    def sampled(graph: Graph, builder: SamplingBuilder) -> ResidualGroup:
        weights = (
            None
            if weight is None
            else weighted(with_sample_arguments(graph, builder), weight, count, what)
        )
        given = (names, plain, count, title)
        return sampled_group(graph, builder, weights, given, parameters.point())

    how = sampled if grids else None
    return trace_group(fn, names, plain, count, weight, checked, title, how)
