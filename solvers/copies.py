"""Independent copies of one problem: what a backend gathers for all of them at once.

Parameters of N copies lie array after array, copy after copy within an array; elements copy after
copy within a group. So a kernel of the problem serves all copies as one longer batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.kernel import JacobianEntry, Product
from autograd_gpu.errors import DeviceMemoryError
from autograd_gpu.runtime.batch import (
    Binding,
    BoundGroup,
    DataBinding,
    FloatArray,
    IndexArray,
    ParameterBinding,
    Session,
)
from autograd_gpu.runtime.choice import BackendChoice, open_session
from autograd_gpu.runtime.streamed_session import StreamedSession
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.retraction import Movable

DataOfCopies = Mapping[tuple[int, int], FloatArray]
"""(group, slot) -> rows of each copy: (copies, rows, size)."""


@dataclass(frozen=True, slots=True)
class GroupColumns:
    """How values of a group's Jacobian enter the normal equations of its copy.

    Attributes:
        elements, rows: of the group, in one copy; residuals of an element.
        columns: column of each local column, ``elements`` times, -1 where frozen; flat int32.
        entry_rows, entry_columns: of the Jacobian's entries, row-major.
    """

    elements: int
    rows: int
    columns: NDArray[np.int32]
    entry_rows: NDArray[np.int32]
    entry_columns: NDArray[np.int32]


def group_columns(analysis: Analysis) -> list[GroupColumns]:
    """For every group of the problem."""
    found: list[GroupColumns] = []
    for group in analysis.groups:
        entries: Sequence[JacobianEntry] = group.kernel(Product.RESIDUAL_JACOBIAN).entries
        found.append(
            GroupColumns(
                elements=group.count,
                rows=group.residual_size,
                columns=analysis.columns_of_elements(group).astype(np.int32).ravel(),
                entry_rows=np.array([e.row for e in entries], np.int32),
                entry_columns=np.array([e.column for e in entries], np.int32),
            )
        )
    return found


class Copies:
    """Some copies of a problem on one backend; owns the session until `close`.

    Args:
        analysis: of the problem; borrowed.
        choice: backend and precision.
        data: rows that differ by copy, for all copies of the solve.
        which: numbers of the copies here.

    Raises:
        MemoryError: they do not fit; fewer at a time may.

    Attributes:
        count: number of copies here.
        session: evaluates all of them.
        group_sizes: residuals of each group in one copy.
    """

    def __init__(
        self, analysis: Analysis, choice: BackendChoice, data: DataOfCopies, which: IndexArray
    ) -> None:
        self.analysis = analysis
        self.count = len(which)
        self.group_sizes = [g.count * g.residual_size for g in analysis.groups]
        groups = [
            replace(
                group,
                count=self.count * group.count,
                bindings=tuple(
                    self._binding(binding, group, data.get((k, slot)), which)
                    for slot, binding in enumerate(group.bindings)
                ),
                elements=None,
            )
            for k, group in enumerate(analysis.groups)
        ]
        self.session: Session = open_session(choice, groups, self.count * analysis.parameter_count)
        if isinstance(self.session, StreamedSession) and self.count > 1:
            self.session.close()
            raise DeviceMemoryError(f"{self.count} copies at a time do not fit")

    def _binding(
        self, binding: Binding, group: BoundGroup, rows: FloatArray | None, which: IndexArray
    ) -> Binding:
        if isinstance(binding, ParameterBinding):
            return self._parameters(binding, group.count)
        assert isinstance(binding, DataBinding)  # solve_batch takes no rows of varying length
        if rows is None:
            if binding.shared:
                return binding
            return DataBinding(values=np.tile(binding.values, (self.count, 1)), shared=False)
        own = rows[which]
        if binding.shared:
            own = np.repeat(own, group.count, axis=1)
        return DataBinding(values=own.reshape(-1, own.shape[-1]), shared=False)

    def _parameters(self, binding: ParameterBinding, count: int) -> ParameterBinding:
        blocks, copies = binding.blocks, self.count
        whole = replace(binding, base=binding.base * copies, blocks=blocks * copies, indices=None)
        if binding.indices is None and count == 1:
            return replace(whole, stride=blocks)
        if binding.indices is None and binding.offset == 0 and binding.stride * count == blocks:
            return whole
        first = blocks * np.arange(copies, dtype=np.int64)
        indices = (first[:, None] + binding.block_of(count)).ravel()
        return replace(whole, offset=0, stride=1, indices=indices)

    def flat(self, values: Sequence[FloatArray]) -> FloatArray:
        """Parameters of these copies as the session takes them, from ``(copies, …)`` arrays."""
        return np.concatenate([v.ravel() for v in values])

    def arrays(self, flat: FloatArray) -> list[FloatArray]:
        """The reverse: ``(copies, numbers of the array)`` for each array; views."""
        found: list[FloatArray] = []
        first = 0
        for array in self.analysis.arrays:
            size = array.blocks * array.width
            found.append(flat[first : first + self.count * size].reshape(self.count, size))
            first += self.count * size
        return found

    def movable(self) -> list[Movable]:
        """Blocks of all copies that are not frozen; columns copy after copy."""
        analysis, copies = self.analysis, np.arange(self.count, dtype=np.int64)
        found: list[Movable] = []
        first = 0
        for array, own in zip(analysis.arrays, analysis.movable, strict=True):
            size = array.blocks * array.width
            starts = (first + size * copies)[:, None, None]
            columns = (analysis.column_count * copies)[:, None, None]
            positions = starts + (own.positions - analysis.base[array.name])
            found.append(
                replace(
                    own,
                    positions=positions.reshape(-1, own.positions.shape[1]),
                    columns=(columns + own.columns).reshape(-1, own.columns.shape[1]),
                )
            )
            first += self.count * size
        return found

    def by_copy(self, residuals: FloatArray) -> list[FloatArray]:
        """Residuals of each group, ``(copies, residuals)``; views."""
        found: list[FloatArray] = []
        first = 0
        for size in self.group_sizes:
            found.append(residuals[first : first + self.count * size].reshape(self.count, size))
            first += self.count * size
        return found

    def close(self) -> None:
        """Free the session."""
        self.session.close()
