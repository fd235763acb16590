"""One batch of residuals: the traced function and what its arguments gather."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from numpy.typing import ArrayLike

from autograd_gpu.charts import on_elements
from autograd_gpu.codegen.kernel import Slot, Topology, data_slot, parameter_slot, topology_of
from autograd_gpu.codegen.robust import LossBlocks
from autograd_gpu.errors import InputError, ShapeError, TraceError
from autograd_gpu.grids import SamplingBuilder
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.losses import Loss
from autograd_gpu.probes import ProbedGraph, probed_graph
from autograd_gpu.rewrite import RULES
from autograd_gpu.runtime.batch import (
    Binding,
    DataBinding,
    FloatArray,
    IndexArray,
    ParameterBinding,
    RowBinding,
    RowDataBinding,
)
from autograd_gpu.runtime.collection import no_collection
from autograd_gpu.scalar import Scalar
from autograd_gpu.solvers.selection import RowSelection, Selection, Shared, finite_array
from autograd_gpu.trace import trace_shapes, traced_argument
from autograd_gpu.vector import Matrix, Vector, vector


@dataclass(frozen=True, slots=True)
class DataRows:
    """Numbers of one argument: ``(count, *shape)``, or ``(1, *shape)`` if shared."""

    values: FloatArray
    shared: bool


@dataclass(frozen=True, slots=True)
class LongDataRows:
    """Long rows of values: ``(count, capacity, *shape)``, or ``(1, capacity, *shape)`` if shared.

    Beyond the end of a row stands its first value.
    """

    values: FloatArray
    shared: bool


GroupArgument = Selection | DataRows | RowSelection | LongDataRows


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualGroup:
    """Residuals of one function over a batch.

    Attributes:
        name: for reports and messages.
        graph: the traced function, weight and losses included.
        topology: its canonical form.
        arguments: what each argument of ``graph`` gathers.
        count: number of elements.
        elements: numbers of the elements among those that the user gave, where these are not all
            of them (one length of a ragged group).
        given_as: name of the group that the user gave, where it is not ``name``.
        loss_scale: which of ``arguments`` is the scale of the loss; None if there is none.
        fn: what was traced; called again only to name lines in messages.
        traced_arguments: how many of ``arguments``, from the first, are those of ``fn``.
        lengths: over long rows the number of items of each element, of which it has room for ...
        capacity: ... so many.
        probes: what ``ag.probe`` named in the function, if anything.
    """

    name: str
    graph: Graph
    topology: Topology
    arguments: tuple[GroupArgument, ...]
    count: int
    elements: IndexArray | None = None
    given_as: str | None = None
    loss_scale: int | None = None
    fn: Callable[..., Any] | None = None
    traced_arguments: int = 0
    lengths: IndexArray | None = None
    capacity: int = 0
    probes: ProbedGraph | None = None

    @property
    def parts(self) -> tuple[ResidualGroup, ...]:
        """The batches of one topology that it consists of: itself."""
        return (self,)

    @property
    def residual_size(self) -> int:
        """Residuals per element."""
        return self.topology.residual_size

    def with_data(self, new: Mapping[str, ArrayLike] | ArrayLike) -> ResidualGroup:
        """The group with other numbers in its data arguments; see ``Problem.update``.

        Raises:
            InputError: no such data argument, or NaN or infinity.
            ShapeError: another shape than before.
        """
        named = {
            argument.name: k
            for k, argument in enumerate(self.graph.arguments)
            if isinstance(self.arguments[k], DataRows)
        }
        if not isinstance(new, Mapping):
            if len(named) != 1:
                raise InputError(
                    f"update, residuals {self.name!r}: has data arguments {sorted(named)}; pass "
                    "{argument: array}"
                )
            new = {next(iter(named)): new}
        arguments = list(self.arguments)
        for name, array in new.items():
            what = f"update, residuals {self.name!r}, argument {name!r}"
            if name not in named:
                raise InputError(f"{what}: no such data argument; expected one of {sorted(named)}")
            old = arguments[named[name]]
            assert isinstance(old, DataRows)
            arguments[named[name]] = replaced_rows(old, array, what)
        return replace(self, arguments=tuple(arguments))


SampledGroup = Callable[[Graph, SamplingBuilder], ResidualGroup]
"""A traced function and the samples of grids in it -> its group."""


def replaced_rows(old: DataRows, array: ArrayLike, what: str) -> DataRows:
    """Other numbers in the place of ``old``.

    Raises:
        ShapeError: another shape than before.
    """
    values = finite_array(array, what, keep_mapped=True)
    values = values[None] if old.shared else values
    if values.shape != old.values.shape:
        first = 1 if old.shared else 0
        raise ShapeError(
            f"{what}: got shape {values.shape[first:]}, expected "
            f"{old.values.shape[first:]}; for another size, make another Problem"
        )
    return DataRows(values, old.shared)


def batch_length(argument: GroupArgument) -> int | None:
    """Number of elements that an argument has rows for; None if all elements share it."""
    if isinstance(argument, Selection):
        return argument.count
    if isinstance(argument, RowSelection):
        return len(argument.table)
    return None if argument.shared else len(argument.values)


def is_row(argument: GroupArgument) -> bool:
    """Whether an element sees a long row."""
    return isinstance(argument, RowSelection | LongDataRows)


def element_shape(argument: GroupArgument) -> tuple[int, ...]:
    """What the residual function sees of an argument, or of an item of a long row."""
    if isinstance(argument, Selection | RowSelection):
        return argument.array.shape
    return argument.values.shape[2:] if is_row(argument) else argument.values.shape[1:]


def slot_of(argument: GroupArgument) -> Slot:
    """How a kernel gathers an argument."""
    if isinstance(argument, Selection | RowSelection):
        array = argument.array
        return parameter_slot(array.shape, array.chart, is_row=is_row(argument))
    return data_slot(element_shape(argument), is_row=is_row(argument))


@no_collection()
def trace_group(
    fn: Callable[..., Any],
    names: Sequence[str],
    gathered: Sequence[GroupArgument],
    count: int,
    weight: ArrayLike | None,
    loss: Loss | None,
    title: str,
    sampled: SampledGroup | None = None,
) -> ResidualGroup:
    """Trace a residual function for a batch of ``count`` elements.

    Args:
        fn: takes one value per entry of ``gathered``.
        names: of its arguments.
        gathered: what the arguments gather.
        count: number of elements.
        weight: as in ``Problem.add_residuals``.
        loss: on the weighted residual of each element.
        title: name of the group.
        sampled: makes the group if the function samples grids; None where it must not.

    Raises:
        TraceError, ShapeError: the function cannot be traced; names the group and the line.
    """
    described = [Argument(n, element_shape(g)) for n, g in zip(names, gathered, strict=True)]
    fn = on_elements(fn, [g.array.chart if isinstance(g, Selection) else None for g in gathered])
    builder = SamplingBuilder(len(described))
    with named_group(title):
        graph = trace_shapes(fn, described, title, builder)
    if builder.samples:
        if sampled is None or loss is not None:
            raise TraceError(
                f"residuals {title!r}: samples a grid, which works in residuals without loss; "
                "apply the loss's weight in the function, or leave it out"
            )
        samples = [Argument(f"sample{k}", ()) for k in range(len(builder.samples))]
        probes = probed_graph(builder, builder.probes, [*described, *samples], title)
        return replace(sampled(graph, builder), probes=probes)
    group = group_of(graph, gathered, count, weight, loss, title)
    probes = probed_graph(builder, builder.probes, described, title)
    return replace(group, fn=fn, traced_arguments=len(gathered), probes=probes)


@contextmanager
def named_group(title: str) -> Generator[None]:
    """Name the group in what tracing refuses: there only the line is known."""
    try:
        yield
    except (ShapeError, TraceError) as error:
        message = str(error)
        what = f"residuals {title!r}"
        kind = ShapeError if isinstance(error, ShapeError) else TraceError
        raise kind(message if repr(title) in message else f"{what}, at {message}") from error


def group_of(
    graph: Graph,
    gathered: Sequence[GroupArgument],
    count: int,
    weight: ArrayLike | None,
    loss: Loss | None,
    title: str,
) -> ResidualGroup:
    """A batch of a graph that is traced already; arguments as for ``trace_group``."""
    what = f"residuals {title!r}"
    arguments = list(gathered)
    if weight is not None:
        graph, rows = weighted(graph, weight, count, what)
        arguments.append(rows)
    blocks, scale = None, None
    if loss is not None:
        graph, blocks, parameters = robust(graph, loss, count, what)
        if loss.scale is not None:
            scale = len(arguments) + list(loss.parameters).index(loss.scale)
        arguments += parameters
    return ResidualGroup(
        name=title,
        graph=graph,
        topology=topology_of(graph, [slot_of(g) for g in arguments], blocks),
        arguments=tuple(arguments),
        count=count,
        loss_scale=scale,
    )


def weighted(graph: Graph, weight: ArrayLike, count: int, what: str) -> tuple[Graph, DataRows]:
    """The graph with its residual multiplied by an extra argument, and that argument's rows."""
    m = len(graph.outputs)
    if isinstance(weight, Shared):
        weight = weight.values
    values = finite_array(weight, f"{what}, weight", keep_mapped=True)
    if values.shape in ((), (m, m)) and values.shape != (count,):
        rows = DataRows(values[None], True)
    elif values.shape in ((count,), (count, m, m)):
        rows = DataRows(values, False)
    else:
        raise ShapeError(
            f"{what}, weight: got shape {values.shape}, expected a number, ({count},), "
            f"({m}, {m}) or ({count}, {m}, {m})"
        )
    shape = rows.values.shape[1:]
    builder = Builder()
    ids = builder.absorb(graph.nodes)
    residual = vector([Scalar(builder, ids[o]) for o in graph.outputs])
    factor = traced_argument(builder, len(graph.arguments), shape)
    product = factor @ residual if isinstance(factor, Matrix) else residual * factor
    assert isinstance(product, Vector)
    arguments = (*graph.arguments, Argument(_free_name("weight", graph), shape))
    outputs = [cast(Scalar, item).node for item in product.items]
    return Graph.build(builder, outputs, arguments, graph.output_shape, graph.name), rows


def _free_name(wanted: str, graph: Graph) -> str:
    """``wanted``, or more words if the residual function has an argument of that name itself."""
    taken = {a.name for a in graph.arguments}
    return f"{wanted}_of_residual" if wanted in taken else wanted


def robust(
    graph: Graph, loss: Loss, count: int, what: str, *, per_residual: bool = False
) -> tuple[Graph, LossBlocks, list[DataRows]]:
    """The graph with the values of a loss after its residuals, and the loss's parameters as rows.

    Args:
        graph: residuals of an element, weight included.
        loss: acts on the squared norm of all of them ...
        count: elements.
        what: for messages.
        per_residual: ... or on the square of each by itself.
    """
    m = len(graph.outputs)
    rows = loss_rows(loss, count, what)
    arguments = list(graph.arguments)
    for name in loss.parameters:
        arguments.append(Argument(_free_name(f"loss_{name}", graph), ()))
    blocks = LossBlocks(m, m if per_residual else 1, 2 if loss.concave else 3)
    b = Builder(RULES)
    ids = b.absorb(graph.nodes)
    outputs = [ids[o] for o in graph.outputs]
    parameters = [b.input(len(graph.arguments) + k, 0) for k in range(len(rows))]
    values = loss.graph()
    for k in range(blocks.count):
        s = b.constant(0.0)
        for i in blocks.block(k):
            s = b.apply("add", s, b.apply("mul", outputs[i], outputs[i]))
        leaves = [s, *parameters]
        new = b.absorb(values.nodes, lambda node, leaves=leaves: leaves[node.leaf[0]])
        outputs += [new[o] for o in values.outputs[: blocks.orders]]
    return Graph.build(b, outputs, arguments, None, graph.name), blocks, rows


def loss_rows(loss: Loss, count: int, what: str) -> list[DataRows]:
    """The parameters of a loss as data of a batch, in order.

    Raises:
        ShapeError: other than a number or one per element.
    """
    rows: list[DataRows] = []
    for name, values in loss.parameters.items():
        if values.shape not in ((), (count,)):
            raise ShapeError(
                f"{what}, loss {loss.name}, {name}: got shape {values.shape}, expected a number "
                f"or ({count},)"
            )
        shared = values.ndim == 0
        rows.append(DataRows(values[None] if shared else values, shared))
    return rows


def parameter_binding(selection: Selection, base: int) -> ParameterBinding:
    """How a backend gathers a selection of the array that starts at ``base``."""
    return ParameterBinding(
        base=base,
        blocks=selection.array.blocks,
        offset=selection.offset,
        stride=selection.stride,
        indices=selection.indices,
    )


def data_binding(rows: DataRows) -> DataBinding:
    """How a backend reads rows of data."""
    return DataBinding(values=rows.values.reshape(len(rows.values), -1), shared=rows.shared)


def binding_of(argument: GroupArgument, base: Mapping[str, int]) -> Binding:
    """How a backend gathers an argument; ``base`` is where each parameter array starts."""
    if isinstance(argument, Selection):
        return parameter_binding(argument, base[argument.array.name])
    if isinstance(argument, RowSelection):
        return RowBinding(base=base[argument.array.name], indices=argument.table)
    if isinstance(argument, LongDataRows):
        values = argument.values.reshape(*argument.values.shape[:2], -1)
        return RowDataBinding(values=values, shared=argument.shared)
    return data_binding(argument)
