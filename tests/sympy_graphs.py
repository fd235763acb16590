"""SymPy as a yardstick of derivatives: the same residuals, differentiated and shared by SymPy.

Both sides are counted in the same unit, nodes of our IR: what SymPy's ``cse`` returns is written
as a graph without any rewriting, in the cheapest spelling (integer powers by repeated squaring, a
negative power as one division, a negative term as a subtraction), and its ops are counted as those
of any other graph. SymPy gets the singular points for nothing: its derivative of a square root has
no guard at 0, ours has a comparison and a ``where``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sympy

import autograd_gpu as ag
from autograd_gpu import Graph, interop
from autograd_gpu.interop.sympy_writer import SympyWriter
from autograd_gpu.meshes import energies
from autograd_gpu.ops import BOOL
from workloads import reprojection_error

LENGTHS = (0.4, 0.35, 0.3, 0.25, 0.15, 0.1)
# Cosine and sine of the Denavit–Hartenberg twists, which are right angles or none.
_TWISTS = ((0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (0.0, -1.0), (1.0, 0.0))


def arm(q: Any, target: Any) -> Any:
    """Offset of the tool of an arm of 6 revolute joints from a target, 3 residuals, metres.

    Source: Denavit and Hartenberg 1955; joint k turns about z by q[k], then moves by ``LENGTHS[k]``
    along x and twists about x.
    """
    x, y, z = 0.0, 0.0, 0.0
    for k in reversed(range(6)):
        cos_twist, sin_twist = _TWISTS[k]
        x, y, z = x + LENGTHS[k], cos_twist * y - sin_twist * z, sin_twist * y + cos_twist * z
        c, s = ag.cos(q[k]), ag.sin(q[k])
        x, y = c * x - s * y, s * x + c * y
    return [x - target[0], y - target[1], z - target[2]]


@dataclass(frozen=True, slots=True)
class Yardstick:
    """A residual with the widths of its arguments and those that it is differentiated by."""

    residual: Callable[..., Any]
    widths: tuple[int, ...]
    wrt: tuple[int, ...]

    def trace(self) -> Graph:
        """The graph as written."""
        return ag.trace(self.residual, *self.widths)


YARDSTICKS = MappingProxyType(
    {
        "as-rigid-as-possible": Yardstick(energies.as_rigid_as_possible, (3, 3, 3, 3), (0, 1, 2)),
        "dihedral angle": Yardstick(energies.dihedral_angle, (3, 3, 3, 3), (0, 1, 2, 3)),
        "Snavely reprojection": Yardstick(reprojection_error, (9, 3, 2), (0, 1)),
        "arm of 6 joints": Yardstick(arm, (6, 3), (0,)),
    }
)


def sympy_jacobian(yardstick: Yardstick) -> Callable[[], Any]:
    """Differentiation and ``cse`` of a residual, ready to be timed; returns ``cse``'s result."""
    symbolic = interop.to_sympy(yardstick.trace())
    columns = [sympy.flatten([s]) for s in symbolic.arguments.values()]
    symbols = [s for a in yardstick.wrt for s in columns[a]]
    outputs = sympy.flatten([symbolic.expressions])

    def run() -> Any:
        return sympy.cse([o.diff(s) for o in outputs for s in symbols])

    return run


def as_graph(yardstick: Yardstick, shared: Any) -> Graph:
    """What ``cse`` returned, op for op, as a graph."""
    graph = yardstick.trace()
    arguments = interop.to_sympy(graph).arguments.values()
    writer = SympyWriter(
        {
            s: (k, c)
            for k, given in enumerate(arguments)
            for c, s in enumerate(sympy.flatten([given]))
        }
    )
    replacements, reduced = shared
    for symbol, expression in replacements:
        writer.known[symbol] = writer.write(expression)
    outputs = [writer.write(e) for e in reduced]
    assert all(writer.builder.nodes[o].dtype != BOOL for o in outputs)
    return Graph.build(writer.builder, outputs, graph.arguments)
