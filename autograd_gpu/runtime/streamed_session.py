"""Batches that are larger than the memory for them: evaluated piece by piece.

A piece is a range of elements of one group. A session on it is opened, evaluated and closed; its
arrays, and on a device its buffers, are then there for the next one. Data and indices may be
memory-mapped files: of those only a piece is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import cached_property

import numpy as np

from ..codegen.kernel import Product
from ..codegen.render import Source, render_stages
from ..errors import DeviceMemoryError
from .batch import (
    BoundGroup,
    FloatArray,
    HostArrays,
    ParameterBinding,
    RowBinding,
    Session,
    SessionContext,
)

WORD = 4

MAPPED_BUDGET = 1 << 28
"""Bytes of arrays at a time where data are memory-mapped and nobody set a budget."""

SMALLEST_PIECE = 256
"""Elements that are not halved any more when a device, or the host, runs out of memory."""

BESIDE = 4096
"""Bytes of control blocks and partial sums of a piece, and of what alignment wastes."""

OpenPiece = Callable[[Sequence[BoundGroup]], Session]


def is_mapped(group: BoundGroup) -> bool:
    """Whether an array of the group is a memory-mapped file."""
    for binding in group.bindings:
        arrays = (
            binding.indices
            if isinstance(binding, ParameterBinding | RowBinding)
            else binding.values
        )
        if isinstance(arrays, np.memmap):
            return True
    return False


def numbers_per_element(group: BoundGroup) -> tuple[int, int]:
    """Indices and data that each element has for itself."""
    indices = 0 if group.lengths is None else 1
    data = 0
    for binding in group.bindings:
        if isinstance(binding, RowBinding):
            indices += group.capacity
        elif isinstance(binding, ParameterBinding):
            indices += binding.indices is not None
        elif not binding.shared:
            data += binding.values[0].size
    return indices, data


def bytes_per_element(
    group: BoundGroup, target: str, real: str, number: int, products: Sequence[Product]
) -> int:
    """Bytes that an element takes in a session: what is gathered, computed and read back.

    Args:
        group: it.
        target: backend.
        real: precision of its kernels.
        number: bytes of a number.
        products: that the session has.
    """
    indices, data = numbers_per_element(group)
    outputs = group.residual_size
    if Product.RESIDUAL_JACOBIAN in products:
        outputs += group.value_count
    if target == "wgsl":
        texts = [render_stages(group.kernel(p), "wgsl", real) for p in products]
        cells = max(stages[0].cells for stages in texts)
        # What is read back lies in a staging buffer as well; a partial sum serves 256 elements.
        return WORD * indices + number * (data + 2 * outputs + cells + 1)
    if target == "numpy":  # every operation has a column of its own
        nodes = len(group.kernel(products[-1]).graph.nodes)
        return 8 * indices + number * (data + outputs + nodes)
    return WORD * indices + number * (data + outputs)


class StreamedSession(SessionContext):
    """One problem whose batches pass piece by piece through sessions of ``open_piece``.

    Args:
        groups: what to evaluate.
        sizes: bytes of an element of each group.
        room: bytes for a piece.
        open_piece: opens a session on one piece.
        description: device or processor.

    Raises:
        DeviceMemoryError: there is not room for one element.
    """

    def __init__(
        self,
        groups: Sequence[BoundGroup],
        sizes: Sequence[int],
        room: int,
        open_piece: OpenPiece,
        description: str,
    ) -> None:
        self._groups = list(groups)
        self._open = open_piece
        self._description = description
        self._sources: dict[str, Source] = {}
        self._steps: list[int] = []
        for group, size in zip(groups, sizes, strict=True):
            if size > room:
                raise DeviceMemoryError(
                    f"residuals {group.name!r}: one element needs {size} bytes, the memory budget "
                    f"leaves {max(room, 0)} beside the parameters; raise it"
                )
            # Evenly cut, so that pieces can take each other's buffers.
            even = math.ceil(group.count / math.ceil(group.count * size / room))
            self._steps.append(min(even, room // size))

    @property
    def description(self) -> str:
        """Device or processor, and that it works in pieces."""
        return f"{self._description}, in {self.pieces} pieces"

    @property
    def pieces(self) -> int:
        """How many pieces there are."""
        return sum(
            -(-group.count // step) for group, step in zip(self._groups, self._steps, strict=True)
        )

    @cached_property
    def _host(self) -> HostArrays:
        return HostArrays(self._groups, np.dtype(np.float64))

    @cached_property
    def _residuals(self) -> FloatArray:
        return np.zeros(sum(g.count * g.residual_size for g in self._groups))

    def each(self) -> Generator[tuple[int, slice, BoundGroup, Session]]:
        """Group, elements, piece and an open session for each piece, in order.

        Where memory runs out the piece is halved, and those that follow are too.

        Raises:
            MemoryError: even the smallest piece does not fit; DeviceMemoryError on a device.
        """
        for k, group in enumerate(self._groups):
            start = 0
            while start < group.count:
                stop = min(start + self._steps[k], group.count)
                piece = group.part(start, stop)
                try:
                    session = self._open([piece])
                except MemoryError:
                    if stop - start <= SMALLEST_PIECE:
                        raise
                    self._steps[k] = (stop - start + 1) // 2
                    continue
                with closing(session):
                    yield k, slice(start, stop), piece, session
                    self._sources.update({source.key: source for source in session.sources()})
                start = stop

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals."""
        begin = 0
        for _, _, _, session in self.each():
            found = session.residuals(parameters)
            self._residuals[begin : begin + found.size] = found
            begin += found.size
        return self._residuals

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖² over all groups."""
        return float(sum(session.cost(parameters) for _, _, _, session in self.each()))

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, and the Jacobian's values."""
        host = self._host
        row = entry = 0
        for _, _, _, session in self.each():
            residuals, values = session.residual_jacobian(parameters)
            host.residuals[row : row + residuals.size] = residuals
            host.jacobian[entry : entry + values.size] = values
            row, entry = row + residuals.size, entry + values.size
        return host.residuals.astype(np.float64, copy=False), host.jacobian.astype(
            np.float64, copy=False
        )

    def rebind(self, groups: Sequence[BoundGroup]) -> bool:
        """Take other data: they are read when their piece comes."""
        self._groups = list(groups)
        return True

    def sources(self) -> Sequence[Source]:
        """Generated text of each distinct kernel so far."""
        return tuple(self._sources.values())


def within_budget(
    groups: Sequence[BoundGroup],
    sizes: Sequence[int],
    beside: int,
    budget: int | None,
    open_piece: OpenPiece,
    description: str,
) -> Session:
    """A session on whole groups if they fit into the budget, or else one that takes pieces.

    Args:
        groups: what to evaluate.
        sizes: bytes of an element of each group.
        beside: bytes of what every session holds besides, such as the parameters.
        budget: bytes; None for no limit, where groups are whole unless the device runs out.
        open_piece: opens a session on some groups.
        description: device or processor.

    Raises:
        DeviceMemoryError: there is not room for one element.
    """
    needed = sum(group.count * size for group, size in zip(groups, sizes, strict=True))
    if budget is None and any(map(is_mapped, groups)):
        budget = max(MAPPED_BUDGET, 2 * beside)
    if budget is None or needed + beside + len(groups) * BESIDE <= budget:
        try:
            return open_piece(groups)
        except MemoryError:
            if max((g.count for g in groups), default=0) <= SMALLEST_PIECE:
                raise
            budget = beside + BESIDE + max(needed // 2, *sizes)
    room = budget - beside - BESIDE
    return StreamedSession(groups, sizes, room, open_piece, description)
