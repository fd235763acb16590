"""Long rows of a ragged group: batches of about equal length, and one trace for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.charts import Chart, on_elements
from autograd_gpu.errors import ShapeError
from autograd_gpu.ir import Argument, Graph
from autograd_gpu.long_rows import (
    LONGEST_UNROLLED_ROW,
    LongRow,
    RowBuilder,
    check_agreement,
    trace_rows,
)
from autograd_gpu.probes import ProbedGraph, probed_graph
from autograd_gpu.ragged import Ragged
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.sequence import unrolled
from autograd_gpu.solvers.ragged_arguments import (
    AnyArgument,
    RaggedRows,
    item_names,
    items_of,
    rows_of,
)
from autograd_gpu.solvers.residual_group import (
    DataRows,
    element_shape,
    named_group,
    parameter_binding,
)
from autograd_gpu.solvers.selection import ParameterArray, RaggedSelection, Selection
from autograd_gpu.trace import trace_shapes


def classes_of(lengths: IndexArray, long: NDArray[np.bool_]) -> list[tuple[int, IndexArray]]:
    """Elements with long rows by the capacity of their batch, at most a fifth of it unused.

    Capacities have three significant bits, so a thousandfold range of lengths is 40 batches.
    """
    bits = np.frexp(np.maximum(lengths, 1).astype(float))[1]
    unit = 1 << np.maximum(bits - 3, 0)
    capacity = -(-lengths // unit) * unit
    return [(int(c), np.flatnonzero(long & (capacity == c))) for c in np.unique(capacity[long])]


_COMPARED = 3
"""Elements at which a folded graph is compared with the function itself."""


def traced_fold(
    fn: Callable[..., Any],
    names: Sequence[str],
    gathered: Sequence[AnyArgument],
    long: IndexArray,
    title: str,
    current: Callable[[ParameterArray], FloatArray],
) -> tuple[Graph, ProbedGraph | None]:
    """The function traced for long rows of any length, compared with itself item by item.

    And what ``ag.probe`` named in it.

    ``long`` are the elements with such rows; other arguments as for ``trace_ragged_group``.
    """
    rows = [r for a in gathered if (r := rows_of(a)) is not None]
    lengths = np.stack([r.lengths for r in rows], axis=1)
    uneven = long[(lengths[long] != lengths[long, :1]).any(axis=1)]
    if len(uneven):
        raise ShapeError(
            f"residuals {title!r}, element {uneven[0]}: its rows have lengths "
            f"{', '.join(map(str, lengths[uneven[0]]))}; rows of more than {LONGEST_UNROLLED_ROW} "
            "items go through one loop and must be equally long (or use ag.Ragged(…, unroll=True))"
        )
    some = long[:_COMPARED]
    # Rows cut to the shortest that are long: what is compared does not grow with the rows.
    gathered = [_cut_short(given) for given in gathered]
    arguments = [
        Argument(name, element_shape(_item), rows_of(given) is not None)
        for name, given in zip(names, gathered, strict=True)
        for _item in items_of([given], some)[1][:1]
    ]
    items, plain = items_of(gathered, some)
    described = [
        Argument(name, element_shape(item))
        for name, item in zip(item_names(names, items), plain, strict=True)
    ]
    whole = on_elements(unrolled(fn, items), [_chart(item) for item in plain])
    with named_group(title):
        builder = RowBuilder(len(arguments))
        builder.probes = {}
        graph = trace_rows(on_rows(fn, gathered), arguments, title, builder)
        generator = np.random.default_rng(0)
        samples = [_sample(given, some, generator, current) for given in gathered]
        check_agreement(graph, trace_shapes(whole, described, title), samples)
    return graph, probed_graph(builder, builder.probes, graph.arguments, title)


def on_rows(fn: Callable[..., Any], gathered: Sequence[AnyArgument]) -> Callable[..., Any]:
    """``fn`` as a function of plain blocks and of long rows of them; see ``on_elements``."""
    charts = [_chart(argument) for argument in gathered]

    def element(value: Any, chart: Chart) -> Any:
        return (
            LongRow(chart.element(value.item))
            if isinstance(value, LongRow)
            else (chart.element(value))
        )

    def call(*values: Any) -> Any:
        pairs = zip(values, charts, strict=True)
        return fn(*(v if c is None else element(v, c) for v, c in pairs))

    return fn if all(c is None for c in charts) else call


def _chart(argument: AnyArgument) -> Chart | None:
    return argument.array.chart if isinstance(argument, Selection | RaggedSelection) else None


def _cut_short(argument: AnyArgument) -> AnyArgument:
    """At most ``LONGEST_UNROLLED_ROW`` + 1 items of each row."""
    rows = rows_of(argument)
    if rows is None:
        return argument
    lengths = np.minimum(rows.lengths, LONGEST_UNROLLED_ROW + 1)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    shift = np.repeat(rows.indptr[:-1] - starts[:-1], lengths)
    shorter = Ragged(starts, rows.values[np.arange(starts[-1]) + shift])
    if isinstance(argument, RaggedSelection):
        return RaggedSelection(argument.array, shorter)
    return RaggedRows(shorter)


def _sample(
    argument: AnyArgument,
    elements: IndexArray,
    generator: np.random.Generator,
    current: Callable[[ParameterArray], FloatArray],
) -> FloatArray:
    """What elements see of an argument now, parameters moved a little; rows of one length."""
    if isinstance(argument, RaggedRows):
        return argument.rows.of_length(elements, int(argument.rows.lengths[elements[0]]))
    if isinstance(argument, RaggedSelection):
        rows = argument.rows
        blocks = rows.of_length(elements, int(rows.lengths[elements[0]]))
    elif isinstance(argument, Selection):
        blocks = parameter_binding(argument, 0).block_of(int(elements.max()) + 1)[elements]
    else:
        assert isinstance(argument, DataRows)
        values = argument.values if argument.shared else argument.values[elements]
        return np.broadcast_to(values, (len(elements), *values.shape[1:]))
    values = current(argument.array)
    if argument.array.chart is not None:
        return values[blocks]
    spread = 0.1 * (float(np.std(values)) or 1.0)
    seen = values[blocks]
    return seen + spread * generator.standard_normal(seen.shape)
