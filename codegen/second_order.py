"""Energies of elements with gradient and Hessian, as topologies that any session evaluates.

An energy is one output E of the parameters that an element gathers. What a Newton step needs of
it, E, ∂E and the upper triangle of ∂²E, are the outputs of a second topology: for a session they
are residuals like any others, so every backend has them. Parameters enter it as slots without
tangent, by which no session differentiates once more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.kernel import SlotKind, Topology, topology_of
from autograd_gpu.codegen.tangent import at_rest, retracted
from autograd_gpu.diff import hessian, jacobian
from autograd_gpu.errors import ShapeError
from autograd_gpu.ir import Builder, Graph
from autograd_gpu.rewrite import RULES, simplify

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Entries:
    """Entries of a gradient or Hessian: computed ones by output, the rest constant."""

    positions: NDArray[np.int64]
    outputs: NDArray[np.int64]
    constants: FloatArray

    def read(self, outputs: FloatArray) -> FloatArray:
        """Entries of a batch, ``(count, entries)``, from outputs ``(count, size)``."""
        values = np.repeat(self.constants[None], len(outputs), axis=0)
        values[:, self.positions] = outputs[:, self.outputs]
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondOrder:
    """What belongs to one energy.

    Attributes:
        topology: of the derivatives; its ``arguments`` are slots of the energy's own topology.
        columns: tangent coordinates n of the parameters that an element gathers, slot after slot.
    """

    topology: Topology
    columns: int
    _gradient: _Entries
    _upper: _Entries

    @property
    def output_size(self) -> int:
        """Numbers computed per element."""
        return len(self.topology.graph.outputs)

    def unpack(self, outputs: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Energies ``(count,)``, gradients ``(count, n)``, Hessians ``(count, n, n)``.

        Args:
            outputs: of the topology, ``(count, output_size)``.
        """
        n = self.columns
        hessians = np.empty((len(outputs), n, n))
        rows, columns = np.triu_indices(n)
        upper = self._upper.read(outputs)
        hessians[:, rows, columns] = upper
        hessians[:, columns, rows] = upper
        return outputs[:, 0], self._gradient.read(outputs), hessians


def second_order(energy: Topology) -> SecondOrder:
    """Derivatives of an energy, by the tangent coordinates of its parameter slots in order.

    Raises:
        ShapeError: the topology has more than one output.
    """
    graph = energy.graph
    if len(graph.outputs) != 1:
        raise ShapeError(f"energy {graph.name!r}: has {len(graph.outputs)} outputs, expected one")
    wrt = [k for k, s in enumerate(energy.slots) if s.kind is SlotKind.PARAMETER]
    n = sum(energy.slots[k].tangent for k in wrt)
    moved, along = retracted(graph, wrt, [s.chart for s in energy.slots])
    rest = len(graph.arguments)
    gradient, full = (at_rest(d(moved, along), rest) for d in (jacobian, hessian))
    b = Builder(RULES)
    own, first, second = (b.absorb(g.nodes) for g in (graph, gradient, full))
    entries = [first[o] for o in gradient.outputs]
    entries += [second[full.outputs[i * n + j]] for i in range(n) for j in range(i, n)]
    values = Graph.build(
        b, [own[graph.outputs[0]], *entries], graph.arguments, None, f"{graph.name}_second_order"
    )
    merged = simplify(values)
    # Equal entries (a spring's blocks repeat four times) are computed and stored once.
    outputs = [merged.outputs[0]]
    places = [_place(merged, node, outputs) for node in merged.outputs[1:]]
    distinct = Graph(
        merged.nodes, tuple(outputs), merged.arguments, (len(outputs),), f"{graph.name}_newton"
    )
    held = [replace(s, tangent=0) for s in energy.slots]
    return SecondOrder(
        topology=topology_of(distinct, held),
        columns=n,
        _gradient=_entries(places[:n]),
        _upper=_entries(places[n:]),
    )


def _place(graph: Graph, node: int, outputs: list[int]) -> int | float:
    """Position of a node among the outputs, which it may join; its value if it is constant."""
    row = graph.nodes[node]
    if row.op == "const":
        return float(cast(float, row.payload))
    if node in outputs[1:]:
        return outputs.index(node, 1)
    outputs.append(node)
    return len(outputs) - 1


def _entries(places: list[int | float]) -> _Entries:
    computed = [k for k, place in enumerate(places) if isinstance(place, int)]
    return _Entries(
        positions=np.array(computed, np.int64),
        outputs=np.array([places[k] for k in computed], np.int64),
        constants=np.array([0.0 if isinstance(p, int) else p for p in places], np.float64),
    )
