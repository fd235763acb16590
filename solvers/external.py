"""Residuals that a user's own NumPy function gives, with its Jacobian, beside traced ones.

Such a group takes part in everything (pattern, normal equations, frozen blocks) through a topology
with as many residuals and columns, r = Jx with J as data, whose Jacobian is full. No kernel of it
runs: `runtime.external_session` asks the function instead, on the host, whatever the backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from autograd_gpu.codegen.kernel import Product, Topology, make_kernel, topology_of
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.ragged_group import RaggedGroup
from autograd_gpu.solvers.residual_group import (
    DataRows,
    GroupArgument,
    LongDataRows,
    ResidualGroup,
    element_shape,
    parameter_binding,
    replaced_rows,
    slot_of,
)
from autograd_gpu.solvers.selection import Selection

ExternalFunction = Callable[..., tuple[ArrayLike, Sequence[ArrayLike]]]
"""Arrays over the batch -> residuals and, for each parameter argument, their derivative."""


@dataclass(frozen=True, slots=True)
class ExternalResiduals:
    """A user's function with what it gathers.

    Attributes:
        fn: the function.
        what: for messages.
        names: of its arguments.
        arguments: what they gather.
        count: elements.
        order: arguments by which columns of the Jacobian go, in order.
        size: residuals of an element; None before the first call.
    """

    fn: ExternalFunction
    what: str
    names: tuple[str, ...]
    arguments: tuple[GroupArgument, ...]
    count: int
    order: tuple[int, ...]
    size: int | None = None

    def evaluate(self, arrays: Sequence[FloatArray]) -> tuple[FloatArray, FloatArray]:
        """Residuals ``(count, m)`` and their derivatives ``(count, m, n)``, n in ``order``.

        Raises:
            InputError: the function did not return residuals and Jacobians.
            ShapeError: their shapes do not fit.
        """
        result = cast(Any, self.fn(*arrays))
        if not isinstance(result, tuple) or len(cast("tuple[Any, ...]", result)) != 2:
            raise InputError(
                f"{self.what}: returned {type(cast(object, result)).__name__}, expected a pair: "
                "residuals, and a list of their derivatives by each parameter argument"
            )
        given, derivatives = cast("tuple[Any, Any]", result)
        residuals = np.asarray(given, np.float64)
        if residuals.ndim == 1:
            residuals = residuals[:, None]
        wanted = (self.count, residuals.shape[-1] if self.size is None else self.size)
        if residuals.shape != wanted or residuals.shape[1] == 0:
            raise ShapeError(
                f"{self.what}: returned residuals of shape {residuals.shape}, expected "
                f"({self.count}, {'m' if self.size is None else self.size})"
            )
        wrt = sorted(self.order)
        if len(derivatives) != len(wrt):
            raise ShapeError(
                f"{self.what}: returned {len(derivatives)} Jacobians, expected {len(wrt)}, one "
                f"for each of {', '.join(repr(self.names[k]) for k in wrt)}"
            )
        blocks: dict[int, FloatArray] = {}
        for k, derivative in zip(wrt, derivatives, strict=True):
            block = np.asarray(derivative, np.float64)
            width = int(np.prod(element_shape(self.arguments[k]), dtype=int))
            shape = (*wanted, width)
            if block.size != np.prod(shape) or block.shape[:1] != shape[:1]:
                raise ShapeError(
                    f"{self.what}: the Jacobian by {self.names[k]!r} has shape {block.shape}, "
                    f"expected {shape}"
                )
            blocks[k] = block.reshape(shape)
        return residuals, np.concatenate([blocks[k] for k in self.order], axis=2)


@dataclass(frozen=True, slots=True)
class BoundExternal:
    """A user's function bound to the flat parameters of a problem.

    Attributes:
        residuals: the function.
        bases: by array name, position of its first number among all parameters.
    """

    residuals: ExternalResiduals
    bases: Mapping[str, int]

    def gathered(self, parameters: FloatArray) -> list[FloatArray]:
        """What the function is given at a point: ``(count, …)``, or what all elements share."""
        count = self.residuals.count
        arrays: list[FloatArray] = []
        for argument in self.residuals.arguments:
            if isinstance(argument, DataRows):
                rows = argument.values[0] if argument.shared else argument.values
                arrays.append(rows.copy())
                continue
            assert isinstance(argument, Selection)  # long rows are refused
            array = argument.array
            binding = parameter_binding(argument, self.bases[array.name])
            first = binding.base + binding.block_of(count) * array.width
            numbers = parameters[first[:, None] + np.arange(array.width)]
            arrays.append(numbers.reshape(count, *array.shape))
        return arrays

    def at(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Residuals and values of the Jacobian, element by element, flat."""
        residuals, derivatives = self.residuals.evaluate(self.gathered(parameters))
        return residuals.ravel(), derivatives.ravel()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalGroup(ResidualGroup):
    """A group whose residuals come from a user's function; the graph has only its structure."""

    external: ExternalResiduals

    def with_data(self, new: Mapping[str, ArrayLike] | ArrayLike) -> ExternalGroup:
        """The group with other numbers in its data arguments; see ``Problem.update``."""
        old = self.external
        named = {
            name: k
            for k, (name, argument) in enumerate(zip(old.names, old.arguments, strict=True))
            if isinstance(argument, DataRows)
        }
        if not isinstance(new, Mapping):
            if len(named) != 1:
                raise InputError(
                    f"update, {old.what}: has data arguments {sorted(named)}; pass "
                    "{argument: array}"
                )
            new = {next(iter(named)): new}
        arguments = list(old.arguments)
        for name, array in new.items():
            what = f"update, {old.what}, argument {name!r}"
            if name not in named:
                raise InputError(f"{what}: no such data argument; expected one of {sorted(named)}")
            rows = arguments[named[name]]
            assert isinstance(rows, DataRows)
            arguments[named[name]] = replaced_rows(rows, array, what)
        return replace(self, external=replace(old, arguments=tuple(arguments)))


def external_group(
    fn: ExternalFunction,
    names: Sequence[str],
    arguments: Sequence[GroupArgument],
    count: int,
    title: str,
    point: tuple[FloatArray, Mapping[str, int]],
) -> ExternalGroup:
    """A group of a user's function, which is called once for its number of residuals.

    Args:
        fn: the function.
        names: of its arguments.
        arguments: what they gather.
        count: elements.
        title: name of the group.
        point: all parameters, flat, and where each array begins; to call the function there.

    Raises:
        InputError: parameters on a manifold, or the function returns something else.
        ShapeError: what it returns does not fit.
    """
    what = f"external residuals {title!r}"
    for name, argument in zip(names, arguments, strict=True):
        if isinstance(argument, Selection) and argument.array.chart is not None:
            raise InputError(
                f"{what}, argument {name!r}: lives on a manifold; expected plain numbers"
            )
    wrt = [k for k, a in enumerate(arguments) if isinstance(a, Selection)]
    plain = ExternalResiduals(fn, what, tuple(names), tuple(arguments), count, tuple(wrt))
    parameters, bases = point
    residuals, _ = plain.evaluate(BoundExternal(plain, bases).gathered(parameters))
    graph, rows = _structure([arguments[k] for k in wrt], residuals.shape[1], title)
    inner = [*(arguments[k] for k in wrt), rows]
    topology = topology_of(graph, [slot_of(a) for a in inner])
    order = tuple(wrt[a] for a in topology.arguments if a < len(wrt))
    _check_full(topology)
    return ExternalGroup(
        name=title,
        graph=graph,
        topology=topology,
        arguments=tuple(inner),
        count=count,
        fn=cast("Callable[..., Any]", fn),
        external=replace(plain, order=order, size=residuals.shape[1]),
    )


def _structure(arguments: Sequence[GroupArgument], size: int, title: str) -> tuple[Graph, DataRows]:
    """The graph of r = Jx, J an argument of data, and zeros for it."""
    shapes = [element_shape(a) for a in arguments]
    widths = [int(np.prod(s, dtype=int)) for s in shapes]
    n = sum(widths)
    b = Builder()
    columns = [b.input(a, k) for a, width in enumerate(widths) for k in range(width)]
    outputs: list[int] = []
    for i in range(size):
        total = b.constant(0.0)
        for j, column in enumerate(columns):
            total = b.apply("add", total, b.apply("mul", b.input(len(shapes), i * n + j), column))
        outputs.append(total)
    described = [Argument(f"p{k}", shape) for k, shape in enumerate(shapes)]
    described.append(Argument("jacobian", (size * n,)))
    rows = DataRows(np.zeros((1, size * n)), True)
    return Graph.build(b, outputs, described, (size,), title), rows


def _check_full(topology: Topology) -> None:
    kernel = make_kernel(topology, Product.RESIDUAL_JACOBIAN)
    assert len(kernel.entries) == kernel.residual_size * kernel.columns


def same_data(before: ResidualGroup | RaggedGroup, after: ResidualGroup | RaggedGroup) -> bool:
    """Whether two states of a group have the same numbers in their data, bit for bit."""
    return all(
        np.array_equal(a.values, b.values)
        for old, new in zip(before.parts, after.parts, strict=True)
        for a, b in zip(_arguments(old), _arguments(new), strict=True)
        if isinstance(a, DataRows | LongDataRows) and isinstance(b, DataRows | LongDataRows)
    )


def _arguments(group: ResidualGroup) -> tuple[GroupArgument, ...]:
    return group.external.arguments if isinstance(group, ExternalGroup) else group.arguments
