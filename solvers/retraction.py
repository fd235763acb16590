"""Steps in tangent coordinates: x ⊞ δ, which is x + δ for plain numbers.

Blocks on manifolds are moved by kernels like those of residuals, through a session of their own
whose parameters are the blocks and their steps. The point of a solve on the host is float64, so
that session is float64, whatever precision residuals have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autograd_gpu.charts import Chart
from autograd_gpu.codegen.kernel import Topology, parameter_slot, topology_of
from autograd_gpu.runtime.batch import (
    BoundGroup,
    FloatArray,
    IndexArray,
    ParameterBinding,
    Session,
)
from autograd_gpu.runtime.choice import BackendChoice, choose_backend, open_session


@dataclass(frozen=True, slots=True, kw_only=True)
class Movable:
    """Blocks of one parameter array that are not frozen.

    Attributes:
        name: of the array.
        positions: of their numbers among all parameters, ``(blocks, ambient)``.
        columns: of the step, ``(blocks, tangent)``.
        chart: of their manifold; None for plain numbers.
    """

    name: str
    positions: IndexArray
    columns: IndexArray
    chart: Chart | None


def retraction_topology(chart: Chart) -> Topology:
    """The kernel's topology of x ⊞ δ: slots x and δ, and new blocks as residuals."""
    graph = chart.retraction
    return topology_of(graph, [parameter_slot(a.shape) for a in graph.arguments])


class Retraction:
    """Moves all parameters of a problem by a step.

    Args:
        arrays: what moves.
        choice: of the backend; its own where that computes in float64, else that of the CPU.
    """

    def __init__(self, arrays: Sequence[Movable], choice: BackendChoice) -> None:
        flat = [a for a in arrays if a.chart is None]
        self._curved = [a for a in arrays if a.chart is not None and len(a.positions)]
        self._positions = _joined([a.positions for a in flat])
        self._columns = _joined([a.columns for a in flat])
        self._curved_positions = _joined([a.positions for a in self._curved])
        self._curved_columns = _joined([a.columns for a in self._curved])
        self._session: Session | None = None
        if self._curved:
            self._session = self._open(choice)

    def _open(self, choice: BackendChoice) -> Session:
        steps = len(self._curved_positions)
        block = 0
        groups: list[BoundGroup] = []
        for array in self._curved:
            assert array.chart is not None
            count = len(array.positions)
            topology = retraction_topology(array.chart)
            starts = (block, steps)
            groups.append(
                BoundGroup(
                    name=f"retraction of {array.name}",
                    topology=topology,
                    count=count,
                    bindings=tuple(
                        ParameterBinding(base=starts[a], blocks=count) for a in topology.arguments
                    ),
                )
            )
            block += array.positions.size
            steps += array.columns.size
        if choice.precision != "float64" or choice.backend == "wgsl":
            choice = choose_backend("auto", "float64", None, block)
        return open_session(choice, groups, steps)

    def warm_up(self) -> None:
        """Compile its kernels."""
        if self._session is not None:
            self._session.warm_up()

    def __call__(self, x: FloatArray, step: FloatArray) -> FloatArray:
        """The point that ``step`` leads to from ``x``; a new array.

        Args:
            x: all parameters, flat; blocks that are frozen stay bit for bit.
            step: one number a column of the Jacobian.
        """
        moved = x.copy()
        moved[self._positions] += step[self._columns]
        if self._session is not None:
            both = np.concatenate([x[self._curved_positions], step[self._curved_columns]])
            moved[self._curved_positions] = self._session.residuals(both)
        return moved

    def position(self, x: FloatArray) -> FloatArray:
        """Plain numbers of a point, one a column; 0 on manifolds, which have no coordinates."""
        found = np.zeros(len(self._columns) + len(self._curved_columns))
        found[self._columns] = x[self._positions]
        return found

    def close(self) -> None:
        """Free the session."""
        if self._session is not None:
            self._session.close()
            self._session = None


def _joined(parts: Sequence[IndexArray]) -> IndexArray:
    return np.concatenate([p.ravel() for p in parts]) if parts else np.zeros(0, np.int64)
