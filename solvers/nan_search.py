"""Where NaN or infinity comes from: residual group, element, first op, and the user's line.

The backend says which element is bad; the traced function is then replayed for that element alone,
op by op with NumPy in the backend's precision, and followed from the bad residual back through
operands that are bad too. For a Jacobian it is the sweep of reverse mode that is replayed. Arms of
``where`` that were not taken may be infinite and are not followed. The function is traced once more
to learn which line made which op, so nothing is recorded while nobody asks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd_gpu.codegen.kernel import Product
from autograd_gpu.ir import Node, evaluate_nodes
from autograd_gpu.long_rows import unroll
from autograd_gpu.ops import BOOL, NODE_OPS, NUMPY_ALGEBRA
from autograd_gpu.runtime.batch import BoundGroup, FloatArray
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.residual_group import LongDataRows, ResidualGroup, parameter_binding
from autograd_gpu.solvers.selection import RowSelection, Selection
from autograd_gpu.trace import function_name
from autograd_gpu.trace_lines import lines_of

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class NanFinding:
    """The first residual of a group, or entry of its Jacobian, that is not finite.

    Attributes:
        group: name of the residual group.
        element, component: whose residual.
        in_jacobian: the residual is finite, and its derivative is not.
        value: the number that the backend gave.
        op: name of the op where it began (``input`` for a number that came in as such), None where
            the replay is finite.
        operands, result: of that op; of its derivative ``result`` is the adjoint of an operand.
        line: ``file:line: code`` that made the op; empty where no line did (a weight).
    """

    group: str
    element: int
    component: int
    in_jacobian: bool
    value: float
    op: str | None
    operands: tuple[float, ...]
    result: float
    line: str

    def __str__(self) -> str:
        what = "the Jacobian of " if self.in_jacobian else ""
        where = f"residuals {self.group!r}, element {self.element}, component {self.component}"
        head = f"{what}{where} is {self.value}"
        if self.op is None:
            return f"{head}; replayed with NumPy it is {self.result:g}"
        operands = ", ".join(f"{v:.6g}" for v in self.operands)
        of = "the derivative of " if self.in_jacobian else ""
        line = f"\n    at {self.line}" if self.line else ""
        return f"{head}; it begins in {of}{self.op}({operands}), which is {self.result}{line}"


@dataclass(frozen=True, slots=True)
class NanSearch:
    """What ``debug_nans`` found; ``print`` it.

    Attributes:
        where: backend, precision and device.
        findings: at most one for each residual group.
    """

    where: str
    findings: tuple[NanFinding, ...]

    @property
    def ok(self) -> bool:
        """Whether every residual and every derivative is finite."""
        return not self.findings

    def __str__(self) -> str:
        if self.ok:
            return f"all residuals and derivatives are finite on {self.where}"
        return "\n".join([f"not finite on {self.where}:", *(f"  {f}" for f in self.findings)])


def debug_nans(
    problem: Problem,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> NanSearch:
    """Find the first op that gave NaN or infinity at the problem's current parameters.

    Args:
        problem: evaluated once, residuals and Jacobian; give it the point of interest by
            ``problem.update(x=solution.values["x"])``.
        backend: where to look, as for ``problem.evaluate``.
        precision: of the backend and of the replay.
        device: for WGSL, an ``ag.Device`` or a part of an adapter's name.

    Raises:
        InputError: unknown backend or precision, or a problem without residuals.
    """
    analysis = problem.analysis()
    choice = choose_backend(backend, precision, problem.device(device), analysis.row_count)
    session = analysis.session(choice)
    x = current_parameters(problem)
    with np.errstate(all="ignore"):
        residuals, jacobian = session.residual_jacobian(x)
        dtype = np.dtype(np.float32 if choice.precision == "float32" else np.float64)
        findings: list[NanFinding] = []
        row = entry = 0
        for group, bound in zip(problem.groups, analysis.groups, strict=True):
            kernel = bound.kernel(Product.RESIDUAL_JACOBIAN)
            starts = kernel.value_starts(bound.capacity)
            rows = slice(row, row + bound.count * bound.residual_size)
            values = slice(entry, entry + bound.count * starts[-1])
            row, entry = rows.stop, values.stop
            bad = _first_bad(residuals[rows], bound.residual_size)
            if bad is not None:
                found = float(residuals[rows][bad[0] * bound.residual_size + bad[1]])
                findings.append(_replay(analysis, group, bound, x, dtype, bad, found, False))
                continue
            bad = _first_bad(jacobian[values], starts[-1])
            if bad is not None:
                found = float(jacobian[values][bad[0] * starts[-1] + bad[1]])
                place = (bad[0], kernel.entries[bisect_right(starts, bad[1]) - 1].row)
                findings.append(_replay(analysis, group, bound, x, dtype, place, found, True))
    return NanSearch(
        f"{choice.backend} in {choice.precision} ({session.description})", tuple(findings)
    )


def _first_bad(values: FloatArray, per_element: int) -> tuple[int, int] | None:
    """Element, and position in it, of the first number that is not finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    return divmod(int(bad[0]), per_element) if len(bad) else None


def _replay(
    analysis: Analysis,
    group: ResidualGroup,
    bound: BoundGroup,
    x: FloatArray,
    dtype: np.dtype[Any],
    place: tuple[int, int],
    value: float,
    in_jacobian: bool,
) -> NanFinding:
    element, component = place
    if bound.external is not None:  # there is no graph to replay
        name = function_name(group.fn) if group.fn is not None else group.name
        return NanFinding(
            group=group.name,
            element=bound.element(element),
            component=component,
            in_jacobian=in_jacobian,
            value=value,
            op=f"external function {name}",
            operands=(),
            result=value,
            line="",
        )
    local = _arguments_of(analysis, group, x, element, dtype)
    graph, origin = group.graph, list(range(len(group.graph.nodes)))
    if group.lengths is not None:
        graph, origin = unroll(graph, int(group.lengths[element]))
    nodes = graph.nodes
    values = evaluate_nodes(nodes, lambda argument, k: local[argument][k], dtype)
    root = graph.outputs[component]
    culprit: int | None
    if in_jacobian:
        culprit, result = _bad_adjoint(nodes, values, root)
    else:
        culprit = _bad_value(nodes, values, root)
        result = float(values[root if culprit is None else culprit])
    return NanFinding(
        group=group.name,
        element=bound.element(element),
        component=component,
        in_jacobian=in_jacobian,
        value=value,
        op=None if culprit is None else nodes[culprit].op,
        operands=() if culprit is None else tuple(float(values[a]) for a in nodes[culprit].args),
        result=result,
        line="" if culprit is None else _lines(group).get(origin[culprit], ""),
    )


def _arguments_of(
    analysis: Analysis, group: ResidualGroup, x: FloatArray, element: int, dtype: np.dtype[Any]
) -> list[FloatArray]:
    """What one element sees, flat, an array for each argument or item of a long row."""
    local: list[FloatArray] = []
    length = 0 if group.lengths is None else int(group.lengths[element])
    for argument in group.arguments:
        if isinstance(argument, Selection | RowSelection):
            if isinstance(argument, Selection):
                blocks = parameter_binding(argument, 0).block_of(group.count)[element : element + 1]
            else:
                blocks = argument.table[element, :length]
            first = analysis.base[argument.array.name] + blocks * argument.array.width
            seen = x[first[:, None] + np.arange(argument.array.width)]
        else:
            values = argument.values[0 if argument.shared else element]
            row = isinstance(argument, LongDataRows)
            seen = values[:length].reshape(length, -1) if row else values.reshape(1, -1)
        local += list(seen.astype(dtype))
    return local


def _followed(node: Node, values: Sequence[Any]) -> tuple[int, ...]:
    """Operands that the value of a node comes from."""
    if node.op == "where":
        condition, x, y = node.args
        return (x,) if values[condition] else (y,)
    return node.args


def _bad_value(nodes: Sequence[Node], values: Sequence[Any], root: int) -> int | None:
    """The node below ``root`` that is not finite although all its operands are."""
    k = root
    if np.isfinite(values[k]):
        return None
    while True:
        bad = [a for a in _followed(nodes[k], values) if not np.isfinite(values[a])]
        if not bad:
            return k
        k = min(bad)


def _bad_adjoint(
    nodes: Sequence[Node], values: Sequence[Any], root: int
) -> tuple[int | None, float]:
    """The node through which an adjoint first becomes NaN or infinite, and that adjoint."""
    adjoints: dict[int, float] = {root: 1.0}
    for k in range(root, -1, -1):
        node = nodes[k]
        if k not in adjoints or not node.args or node.dtype == BOOL:
            continue
        if node.op == "where":
            partials = dict.fromkeys(_followed(node, values), 1.0)
        else:
            rules = NODE_OPS[node.op].partials
            operands = [values[a] for a in node.args]
            partials: dict[int, float] = {}
            for a, rule in zip(node.args, rules, strict=False):
                slope = float(rule(NUMPY_ALGEBRA, *operands, values[k]))
                partials[a] = partials.get(a, 0.0) + slope
        for a, slope in partials.items():
            product = adjoints[k] * slope
            if nodes[a].op != "const" and not np.isfinite(product):
                return k, product
            adjoints[a] = adjoints.get(a, 0.0) + product
    return None, 0.0


def _lines(group: ResidualGroup) -> dict[int, str]:
    """``file:line: code`` by node of the group's graph, from tracing the function once more."""
    assert group.fn is not None
    arguments = group.graph.arguments[: group.traced_arguments]
    return lines_of(group.fn, arguments, group.graph)
