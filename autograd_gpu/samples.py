"""Traces over samples: a long array next to a traced value is a column of data, one row a sample.

So a function over whole arrays, as SciPy's interfaces take it, becomes a batch and not an unrolled
graph. What depends on a column differs from sample to sample and cannot be summed in the trace.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError, TraceError
from .ir import Builder, reachable
from .scalar import Scalar, user_line

LONGEST_UNROLLED = 64
"""Longer arrays become columns; up to here an array is a vector of constants."""


class SampleBuilder(Builder):
    """An arena with columns of samples; column k is argument k + 1."""

    __slots__ = ("columns",)

    def __init__(self) -> None:
        super().__init__()
        self.columns: list[NDArray[np.float64]] = []

    def column(self, array: NDArray[Any]) -> Scalar:
        """The traced value of a column; the same array, or an equal one, is one column.

        Raises:
            ShapeError: not one number per sample.
        """
        values = np.asarray(array, np.float64)
        if values.ndim != 1:
            raise ShapeError(
                f"{user_line()}\n  uses an array of shape {values.shape}; samples are arrays of "
                "one dimension"
            )
        if self.columns and len(values) != len(self.columns[0]):
            raise ShapeError(
                f"{user_line()}\n  uses {len(values)} samples next to {len(self.columns[0])}; "
                "all arrays must be equally long"
            )
        for k, known in enumerate(self.columns):
            if np.array_equal(known, values, equal_nan=True):
                return Scalar(self, self.input(k + 1, 0))
        self.columns.append(values.copy())
        return Scalar(self, self.input(len(self.columns), 0))

    def is_sampled(self, node: int) -> bool:
        """Whether a node differs from sample to sample."""
        nodes = self.nodes
        return any(
            nodes[k].op == "input" and nodes[k].leaf[0] > 0 for k in reachable(nodes, [node])
        )


def is_long(value: Any) -> bool:
    """Whether ``value`` is an array of numbers that is not unrolled."""
    if not isinstance(value, np.ndarray):
        return False
    array = cast("NDArray[Any]", value)
    return array.size > LONGEST_UNROLLED and array.dtype.kind in "fiub"


def with_columns(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Operands with long arrays made columns, in a trace over samples; else as they are."""
    for operand in operands:
        if isinstance(operand, Scalar) and isinstance(operand.builder, SampleBuilder):
            builder = operand.builder
            return tuple(builder.column(v) if is_long(v) else v for v in operands)
    return operands


def refuse_samples(value: Any) -> None:
    """Raise if a reduction over samples is asked for.

    Raises:
        TraceError: ``value`` differs from sample to sample.
    """
    if (
        isinstance(value, Scalar)
        and isinstance(value.builder, SampleBuilder)
        and value.builder.is_sampled(value.node)
    ):
        raise TraceError(
            f"{user_line()}\n  reduces over samples; return one residual per sample, and take "
            "sums of data outside the function"
        )
