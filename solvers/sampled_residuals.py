"""Residual functions that sample grids: graphs around a look-up, evaluated on the host.

With samples s_k = grid_k(c_k(x)) of coordinates c_k, the residual is G(x, s). G and c are graphs
like any others; the look-up between them needs memory by a computed index, which no kernel does
yet, so the group is an external one, whose function evaluates both graphs with NumPy:

    r = G(x, s(c(x))),   J = ∂G/∂x + Σ_k ∂G/∂s_k · ∇grid_k · ∂c_k/∂x
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autograd_gpu.diff import value_and_jacobian
from autograd_gpu.errors import TraceError
from autograd_gpu.grids import SamplingBuilder
from autograd_gpu.ir import Argument, Graph, reachable
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.external import ExternalGroup, external_group
from autograd_gpu.solvers.residual_group import DataRows, GroupArgument
from autograd_gpu.solvers.selection import Selection


@dataclass(frozen=True, slots=True)
class SampledFunction:
    """A traced function with grids, as an external function of arrays over the batch.

    Attributes:
        around: residuals and their derivatives by parameters and samples.
        coordinates: of all samples, and their derivatives by parameters.
        grids: one a sample.
        wrt: arguments that are parameters.
        size: residuals of an element.
        before: arguments of the function; samples stand after them, and a weight after those.
    """

    around: Graph
    coordinates: Graph
    grids: tuple[Any, ...]
    wrt: tuple[int, ...]
    size: int
    before: int

    def __call__(self, *arrays: FloatArray) -> tuple[FloatArray, list[FloatArray]]:
        """Residuals ``(count, m)``, and derivatives by each parameter ``(count, m, width)``."""
        own, rest = arrays[: self.before], arrays[self.before :]
        count = max(len(arrays[k]) for k in self.wrt)
        widths = [self.coordinates.arguments[k].size for k in self.wrt]
        n, samples, d = sum(widths), len(self.grids), self.grids[0].dimensions
        found = _batch(self.coordinates, own, count)
        places = found[:, : samples * d].reshape(count, samples, d)
        moves = found[:, samples * d :].reshape(count, samples, d, n)
        looked_up = [g.interpolate(places[:, k]) for k, g in enumerate(self.grids)]
        values = [value for value, _ in looked_up]
        slopes = np.stack([gradient for _, gradient in looked_up], axis=1)
        both = _batch(self.around, (*own, *values, *rest), count)
        derivatives = both[:, self.size :].reshape(count, self.size, n + samples)
        jacobian = derivatives[:, :, :n] + np.einsum(
            "emk,ekd,ekdn->emn", derivatives[:, :, n:], slopes, moves
        )
        return both[:, : self.size], np.split(jacobian, np.cumsum(widths)[:-1], axis=2)

    def samples(self, own: Sequence[FloatArray], count: int) -> list[FloatArray]:
        """What the grids give at the function's own arguments, ``(count,)`` for each sample."""
        found = _batch(self.coordinates, own, count)
        d = self.grids[0].dimensions
        places = found[:, : len(self.grids) * d].reshape(count, len(self.grids), d)
        return [g.interpolate(places[:, k])[0] for k, g in enumerate(self.grids)]


def _batch(graph: Graph, arrays: Sequence[FloatArray], count: int) -> FloatArray:
    """Outputs ``(count, outputs)``; arguments are given by element, or one for all."""
    full = [
        a if a.ndim > len(g.shape) else np.broadcast_to(a, (count, *a.shape))
        for a, g in zip(arrays, graph.arguments, strict=True)
    ]
    return graph(*full).reshape(count, -1)


def with_sample_arguments(graph: Graph, builder: SamplingBuilder) -> Graph:
    """A graph traced in ``builder`` with its samples as further arguments."""
    more = [Argument(f"sample{k}", ()) for k in range(len(builder.samples))]
    return Graph(
        graph.nodes, graph.outputs, (*graph.arguments, *more), graph.output_shape, graph.name
    )


def coordinates_of(builder: SamplingBuilder, arguments: Sequence[Argument], name: str) -> Graph:
    """The coordinates of all samples, as a graph of the function's own arguments.

    Raises:
        TraceError: coordinates that come from a sample, or grids of two and three dimensions.
    """
    outputs = [node for _, nodes in builder.samples for node in nodes]
    if len({grid.dimensions for grid, _ in builder.samples}) > 1:
        raise TraceError(f"{name}: samples grids of two and of three dimensions; split the group")
    for k in reachable(builder.nodes, outputs):
        node = builder.nodes[k]
        if node.op == "input" and node.leaf[0] >= builder.first:
            raise TraceError(
                f"{name}: samples a grid at coordinates that come from a sample of a grid"
            )
    return Graph.build(builder, outputs, arguments, None, f"{name}_coordinates")


def sampled_group(
    graph: Graph,
    builder: SamplingBuilder,
    weight: tuple[Graph, DataRows] | None,
    given: tuple[Sequence[str], Sequence[GroupArgument], int, str],
    point: tuple[FloatArray, Mapping[str, int]],
) -> ExternalGroup:
    """The group of a residual function that samples grids.

    Args:
        graph: residuals, of the function's own arguments.
        builder: that it was traced in.
        weight: residuals times a weight, of arguments, samples and weight, and the weight's rows.
        given: names of the arguments, what they gather, elements, and the group's name.
        point: as for ``external_group``.

    Raises:
        TraceError: coordinates that come from a sample, or grids of two and three dimensions.
        InputError: parameters on a manifold.
    """
    names, gathered, count, title = given
    arguments, all_names = list(gathered), list(names)
    around = with_sample_arguments(graph, builder)
    if weight is not None:
        around, rows = weight
        arguments.append(rows)
        all_names.append(around.arguments[-1].name)
    wrt = tuple(k for k, a in enumerate(gathered) if isinstance(a, Selection))
    coordinates = coordinates_of(builder, graph.arguments, title)
    first = builder.first
    samples = range(first, first + len(builder.samples))
    function = SampledFunction(
        around=value_and_jacobian(around, [*wrt, *samples]),
        coordinates=value_and_jacobian(coordinates, wrt),
        grids=tuple(grid for grid, _ in builder.samples),
        wrt=wrt,
        size=len(around.outputs),
        before=first,
    )
    return external_group(function, all_names, arguments, count, title, point)
