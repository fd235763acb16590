"""What a backend gets: residual groups bound to parameters and data, and what it gives back.

A *session* holds everything that one problem needs on one backend: compiled kernels, uploaded
indices and data, output buffers. It is made once per problem and evaluated many times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..codegen.kernel import Kernel, Product, Topology, make_kernel
from ..codegen.render import Source
from .closing import Closing

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int64]

SOLVED = (Product.RESIDUAL, Product.RESIDUAL_JACOBIAN)
"""What a solve and an evaluation ask of a session."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterBinding:
    """Which block of a parameter array each element gathers.

    Attributes:
        base: position of the array's first number among all parameters.
        blocks: number of blocks in the array.
        offset, stride: element e gathers block ``offset + stride * e`` …
        indices: … unless this is given, ``(count,)``.
    """

    base: int
    blocks: int
    offset: int = 0
    stride: int = 1
    indices: IndexArray | None = None

    def block_of(self, count: int) -> IndexArray:
        """Block gathered by each of ``count`` elements."""
        if self.indices is not None:
            return self.indices
        return self.offset + self.stride * np.arange(count, dtype=np.int64)

    def part(self, start: int, stop: int) -> ParameterBinding:
        """The binding of elements ``start`` to ``stop``."""
        return ParameterBinding(
            base=self.base,
            blocks=self.blocks,
            offset=self.offset + self.stride * start,
            stride=self.stride,
            indices=None if self.indices is None else self.indices[start:stop],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataBinding:
    """Rows of data: ``(count, size)``, or ``(1, size)`` for a row that all elements share."""

    values: FloatArray
    shared: bool

    def part(self, start: int, stop: int) -> DataBinding:
        """The binding of elements ``start`` to ``stop``."""
        return self if self.shared else DataBinding(values=self.values[start:stop], shared=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBinding:
    """A long row of blocks of a parameter array for each element.

    Attributes:
        base: position of the array's first number among all parameters.
        indices: blocks, ``(count, capacity)``; beyond the length of a row any that exist.
    """

    base: int
    indices: IndexArray

    def part(self, start: int, stop: int) -> RowBinding:
        """The binding of elements ``start`` to ``stop``."""
        return RowBinding(base=self.base, indices=self.indices[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDataBinding:
    """A long row of values: ``(count, capacity, size)``, or ``(1, capacity, size)`` if shared."""

    values: FloatArray
    shared: bool

    def part(self, start: int, stop: int) -> RowDataBinding:
        """The binding of elements ``start`` to ``stop``."""
        if self.shared:
            return self
        return RowDataBinding(values=self.values[start:stop], shared=False)


Binding = ParameterBinding | DataBinding | RowBinding | RowDataBinding


class HostResiduals(Protocol):
    """Residuals of a group that no kernel gives."""

    def at(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Residuals, and the Jacobian's values in the order of the group's entries; flat."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundGroup:
    """A batch of elements of one topology; ``bindings`` are in slot order.

    ``elements`` are the numbers by which the user knows them, where these are not 0 to count - 1.
    ``loss_scale`` is the slot of the scale of a robust loss, where there is one. With ``external``
    the host gives the residuals, and the topology has nothing but their structure.
    Over long rows ``lengths`` are the numbers of items, ``(count,)``, of which an element has room
    for ``capacity``.
    """

    name: str
    topology: Topology
    count: int
    bindings: tuple[Binding, ...]
    elements: IndexArray | None = None
    loss_scale: int | None = None
    lengths: IndexArray | None = None
    capacity: int = 0
    external: HostResiduals | None = None

    def kernel(self, product: Product) -> Kernel:
        """Kernel of a product; groups of equal topology share it."""
        return make_kernel(self.topology, product)

    @property
    def residual_size(self) -> int:
        """Residuals per element."""
        return self.topology.residual_size

    def element(self, k: int) -> int:
        """The user's number of element k."""
        return k if self.elements is None else int(self.elements[k])

    def part(self, start: int, stop: int) -> BoundGroup:
        """Elements ``start`` to ``stop``."""
        return BoundGroup(
            name=self.name,
            topology=self.topology,
            count=stop - start,
            bindings=tuple(b.part(start, stop) for b in self.bindings),
            elements=None if self.elements is None else self.elements[start:stop],
            loss_scale=self.loss_scale,
            lengths=None if self.lengths is None else self.lengths[start:stop],
            capacity=self.capacity,
        )

    @property
    def value_count(self) -> int:
        """Jacobian values per element, room for items that a row does not have included."""
        return self.kernel(Product.RESIDUAL_JACOBIAN).value_starts(self.capacity)[-1]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which items of long rows exist, ``(count, capacity)``; of no width without them."""
        lengths = np.zeros(self.count) if self.lengths is None else self.lengths
        return np.arange(self.capacity) < lengths[:, None]


class Session(Protocol):
    """One problem on one backend.

    Parameters are all arrays of the problem, concatenated, float64. Residuals come group by
    group, element by element. Jacobian values come in the same order, row-major per element,
    structural zeros left out (``Kernel.entries`` says which is which). Returned arrays are the
    session's own and hold until the next call of the same method.
    """

    @property
    def description(self) -> str:
        """Device or processor, for reports."""
        ...

    def prepare(self) -> None:
        """Compile what a solve needs, if that is not done yet."""
        ...

    def warm_up(self) -> None:
        """Compile everything that a solve may need, now or later."""
        ...

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals; under a robust loss scaled so that ½‖·‖² is the cost."""
        ...

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖², under robust losses ½Σρ(‖r‖²), over all groups."""
        ...

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, and the Jacobian's values; under a robust loss the corrected pair."""
        ...

    def rebind(self, groups: Sequence[BoundGroup]) -> bool:
        """Go on with other numbers in the data of the same groups, in the memory that there is.

        False if the session cannot; it is of no use then but to be closed.
        """
        ...

    def sources(self) -> Sequence[Source]:
        """Generated text of each distinct kernel compiled so far."""
        ...

    def close(self) -> None:
        """Free what the session owns."""
        ...


class HostArrays:
    """Output arrays of a session on the host, allocated once; constants of J are filled in.

    Attributes:
        residuals: all residuals.
        jacobian: all Jacobian values, structural constants included.
        residual_offsets, jacobian_offsets: first position of each group, and the total.
    """

    def __init__(self, groups: Sequence[BoundGroup], real: np.dtype[np.floating]) -> None:
        rows = [g.count * g.residual_size for g in groups]
        kernels = [g.kernel(Product.RESIDUAL_JACOBIAN) for g in groups]
        values = [g.count * g.value_count for g in groups]
        self.residual_offsets = np.concatenate([[0], np.cumsum(rows)]).astype(int).tolist()
        self.jacobian_offsets = np.concatenate([[0], np.cumsum(values)]).astype(int).tolist()
        self.residuals = np.zeros(self.residual_offsets[-1], real)
        self.jacobian = np.zeros(self.jacobian_offsets[-1], real)
        for k, (group, kernel) in enumerate(zip(groups, kernels, strict=True)):
            if kernel.entries:
                widths = np.diff(kernel.value_starts(group.capacity))
                constants = np.repeat([e.constant for e in kernel.entries], widths)
                self.group_jacobian(k).reshape(group.count, -1)[:] = constants

    def group_residuals(self, k: int) -> NDArray[np.floating]:
        """Residuals of group k, flat."""
        return self.residuals[self.residual_offsets[k] : self.residual_offsets[k + 1]]

    def store_entries(self, k: int, group: BoundGroup, varying: Sequence[Any]) -> None:
        """Put the varying entries of group k in place: ``(count,)``, per item ``(count, items)``.

        Items that a row does not have get 0.
        """
        kernel, valid = group.kernel(Product.RESIDUAL_JACOBIAN), group.valid
        out = self.group_jacobian(k).reshape(group.count, group.value_count)
        starts = kernel.value_starts(group.capacity)
        for start, stop, entry in zip(starts[:-1], starts[1:], kernel.entries, strict=True):
            if entry.output is None:
                continue
            values = np.asarray(varying[entry.output])
            if entry.per_item:
                out[:, start:stop] = np.where(valid, values.reshape(len(values), -1), 0.0)
            else:
                out[:, start] = values.reshape(-1)

    def group_jacobian(self, k: int) -> NDArray[np.floating]:
        """Jacobian values of group k, flat."""
        return self.jacobian[self.jacobian_offsets[k] : self.jacobian_offsets[k + 1]]


class SessionContext(Closing):
    """What sessions share."""

    def prepare(self) -> None:
        """Compile what a solve needs; nothing by default."""

    def rebind(self, groups: Sequence[BoundGroup]) -> bool:
        """Not without being made again, by default."""
        return False

    def warm_up(self) -> None:
        """Compile everything that a solve may need; what every solve needs by default."""
        self.prepare()
