"""Derivatives in tangent coordinates, for residuals and energies of blocks on manifolds.

A function of blocks x becomes one of x and of their tangent coordinates δ, which come as further
arguments. It is differentiated by δ, and then δ is 0, where nearly all that δ brought folds away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from autograd_gpu.charts import Chart
from autograd_gpu.diff import jacobian, value_and_jacobian
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.rewrite import RULES, simplify

Leaf = Callable[[int], int]
Move = Callable[[Builder, Chart, Leaf, Leaf], list[int]]
"""(arena, chart, leaves of x, leaves of δ) -> the numbers of the moved block."""


def value_and_tangent_jacobian(
    graph: Graph, wrt: Sequence[int], charts: Sequence[Chart | None]
) -> Graph:
    """Outputs and Jacobian as one graph: m + m·n outputs, flat.

    To first order x ⊞ δ is x + Bδ, B being the chart's basis; so that is what goes in, and
    nothing of the curvature of ⊞ is left in the result.

    Args:
        graph: residuals, m outputs.
        wrt: arguments to differentiate by, in the order of the columns.
        charts: of each argument of the graph; None for plain numbers.
    """
    if all(charts[k] is None for k in wrt):
        return value_and_jacobian(graph, wrt)
    moved, along = _moved(graph, wrt, charts, _shifted)
    derivative = at_rest(jacobian(moved, along), len(graph.arguments))
    b = Builder(RULES)
    values, entries = b.absorb(graph.nodes), b.absorb(derivative.nodes)
    outputs = [values[o] for o in graph.outputs] + [entries[o] for o in derivative.outputs]
    return simplify(Graph.build(b, outputs, graph.arguments, None, f"{graph.name}_with_jacobian"))


def retracted(
    graph: Graph, wrt: Sequence[int], charts: Sequence[Chart | None]
) -> tuple[Graph, list[int]]:
    """The graph at x ⊞ δ, curvature and all, and the arguments to differentiate by.

    Arguments as for ``value_and_tangent_jacobian``.
    """
    if all(charts[k] is None for k in wrt):
        return graph, list(wrt)
    return _moved(graph, wrt, charts, _added)


def at_rest(derivative: Graph, arguments: int) -> Graph:
    """A derivative at δ = 0: of its arguments the first ``arguments`` are left."""
    if len(derivative.arguments) == arguments:
        return derivative
    b = Builder(RULES)
    zero = b.constant(0.0)
    ids = b.absorb(
        derivative.nodes, lambda node: zero if node.leaf[0] >= arguments else b.leaf(node)
    )
    outputs = [ids[o] for o in derivative.outputs]
    kept = derivative.arguments[:arguments]
    return simplify(Graph.build(b, outputs, kept, derivative.output_shape, derivative.name))


def _shifted(b: Builder, chart: Chart, x: Leaf, delta: Leaf) -> list[int]:
    """Numbers of x + Bδ."""
    ids = b.absorb(chart.basis.nodes, lambda node: x(node.leaf[1]))
    basis = [ids[o] for o in chart.basis.outputs]
    numbers: list[int] = []
    for i in range(chart.ambient):
        total = x(i)
        for j in range(chart.tangent):
            step = b.apply("mul", basis[i * chart.tangent + j], delta(j))
            total = b.apply("add", total, step)
        numbers.append(total)
    return numbers


def _added(b: Builder, chart: Chart, x: Leaf, delta: Leaf) -> list[int]:
    """Numbers of x ⊞ δ."""
    ids = b.absorb(chart.plus.nodes, lambda node: (x, delta)[node.leaf[0]](node.leaf[1]))
    return [ids[o] for o in chart.plus.outputs]


def _moved(
    graph: Graph, wrt: Sequence[int], charts: Sequence[Chart | None], move: Move
) -> tuple[Graph, list[int]]:
    """The graph with blocks moved along δ, and what to differentiate by, in the order of wrt."""
    b = Builder(RULES)
    numbers: dict[tuple[int, int], int] = {}
    arguments = list(graph.arguments)
    along: list[int] = []
    for k in wrt:
        chart = charts[k]
        if chart is None:
            along.append(k)
            continue
        along.append(len(arguments))
        is_row = graph.arguments[k].is_row
        make = b.item if is_row else b.input
        moved = move(b, chart, partial(make, k), partial(make, len(arguments)))
        numbers.update({(k, i): node for i, node in enumerate(moved)})
        arguments.append(Argument(f"delta{k}", (chart.tangent,), is_row))
    ids = b.absorb(graph.nodes, lambda node: numbers.get(node.leaf, b.leaf(node)))
    return Graph.build(b, [ids[o] for o in graph.outputs], arguments, None, graph.name), along
