"""Parameter arrays, and which of their blocks the elements of a batch see.

``x`` is a whole array (element k sees block k); ``x[i]`` with an index array, a slice or a mask
gathers; ``x[7]`` is one block shared by all elements; ``x[Ragged(indptr, indices)]`` is a row of
blocks for each element. Selections can be selected again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.charts import Chart
from autograd_gpu.errors import IndexRangeError, InputError, ShapeError
from autograd_gpu.ir import Shape
from autograd_gpu.ragged import Ragged
from autograd_gpu.runtime.batch import FloatArray, IndexArray

MAPPED_ROWS = 1 << 18
"""Rows of a memory-mapped array that are looked at together."""


def _mapped(value: Any, dtype: type) -> NDArray[Any] | None:
    """A memory-mapped array of that type as it is, but read-only; None for anything else."""
    if not isinstance(value, np.memmap):
        return None
    given = cast("NDArray[Any]", value)
    if given.dtype != dtype or given.ndim == 0:
        return None
    view = given.view()
    view.flags.writeable = False
    return view


def finite_array(value: Any, what: str, *, keep_mapped: bool = False) -> FloatArray:
    """A float64 copy of ``value``; with ``keep_mapped`` a memory-mapped one stays on its file.

    Raises:
        InputError: not numbers, or NaN or infinity in it; the message counts and names the first.
    """
    mapped = _mapped(value, np.float64) if keep_mapped else None
    if mapped is not None:
        for first in range(0, len(mapped), MAPPED_ROWS):
            finite_array(mapped[first : first + MAPPED_ROWS], f"{what}, rows from {first} on")
        return mapped
    try:
        given: NDArray[Any] = np.asarray(value)
        # NumPy would drop imaginary parts and read numbers out of text.
        if given.dtype.kind not in "biufO":
            raise TypeError(f"dtype {given.dtype}")
        array = np.array(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{what}: expected an array of real numbers, got {value!r:.80} ({error}); pass a "
            "NumPy array or nested lists of equal lengths"
        ) from error
    bad = ~np.isfinite(array)
    if bad.any():
        if array.ndim == 0:
            raise InputError(f"{what}: got {value!r:.80}, expected a finite number")
        first = tuple(int(k) for k in np.argwhere(bad)[0])
        raise InputError(
            f"{what}: {int(bad.sum())} of {array.size} entries are NaN or infinite, the first at "
            f"{first} is {array[first]}; remove or replace them"
        )
    return array


def index_array(index: Any, length: int, what: str) -> IndexArray:
    """Checked positions into something of ``length`` entries, from an index list or a mask.

    A memory-mapped array of 64-bit integers stays on its file.

    Raises:
        IndexRangeError: negative or too large.
        ShapeError: not one-dimensional, a mask of another length, or not integers.
    """
    mapped = _mapped(index, np.int64)
    if mapped is not None and mapped.ndim == 1:
        for first in range(0, len(mapped), MAPPED_ROWS):
            rows = np.array(mapped[first : first + MAPPED_ROWS])
            index_array(rows, length, f"{what}, indices from position {first} on")
        return mapped
    try:
        array: NDArray[Any] = np.asarray(index)
    except ValueError as error:
        raise ShapeError(
            f"{what}: got the index {index!r:.80}, which is no array; expected an integer, a "
            "slice, a mask, or a one-dimensional array of integers"
        ) from error
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, np.int64)
    if array.ndim != 1:
        raise ShapeError(
            f"{what}: got the index {index!r:.80} of shape {array.shape}, expected an integer, a "
            "slice, a mask, or a one-dimensional array of integers"
        )
    if array.dtype == np.bool_:
        if len(array) != length:
            raise ShapeError(
                f"{what}: got a mask of {len(array)} entries, expected one for each of {length}"
            )
        return np.flatnonzero(array).astype(np.int64)
    if array.dtype.kind not in "iu":
        raise ShapeError(
            f"{what}: got an index of dtype {array.dtype}, expected integers; use .astype(int)"
        )
    bad = (array < 0) | (array >= length)
    if bad.any():
        k = int(np.argmax(bad))
        raise IndexRangeError(
            f"{what}: {int(bad.sum())} of {len(array)} indices are out of range, the first is "
            f"{int(array[k])} at position {k}; expected 0 to {length - 1} (negative indices do "
            "not count from the end)"
        )
    return array.astype(np.int64)


class _Unknowns:
    """What stands for unknowns refuses arithmetic: numbers are not known before the solve."""

    __slots__ = ()
    __array_ufunc__ = None  # so that NumPy leaves its operators to these

    def _refuse(self, *_: object, **__: object) -> Any:
        raise InputError(
            f"{self!r} stands for unknowns and has no numbers to compute with; hand the function "
            "and what it sees over one by one, problem.add_residuals(fn, x[i], x[j]), and compute "
            "inside fn; numbers are in problem.values_of(x) and solution.values"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __pow__ = __rpow__ = _refuse
    __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = __array__ = _refuse


class ParameterArray(_Unknowns):
    """Blocks of parameters of one problem, made by ``Problem.parameters``.

    Attributes:
        name: unique in the problem.
        shape: shape of one block as a residual function sees it.
        blocks: number of blocks.
        chart: of the manifold that blocks live on; None for plain numbers.
    """

    __slots__ = ("blocks", "chart", "name", "shape")

    def __init__(self, name: str, shape: Shape, blocks: int, chart: Chart | None = None) -> None:
        self.name = name
        self.shape = shape
        self.blocks = blocks
        self.chart = chart

    @property
    def width(self) -> int:
        """Numbers per block."""
        return int(np.prod(self.shape, dtype=int))

    @property
    def tangent(self) -> int:
        """Directions in which a block can move: Jacobian columns of one that is not frozen."""
        return self.width if self.chart is None else self.chart.tangent

    def __len__(self) -> int:
        return self.blocks

    @overload
    def __getitem__(  # pyright: ignore[reportOverlappingOverload] - Any takes the rest
        self, index: Ragged
    ) -> RaggedSelection: ...
    @overload
    def __getitem__(self, index: Any) -> Selection: ...
    def __getitem__(self, index: Any) -> Selection | RaggedSelection:
        whole = Selection(self, 0, 1, self.blocks, None)
        return cast("Selection | RaggedSelection", whole[index])

    def __iter__(self) -> Any:
        raise InputError(
            f"parameters {self.name!r} cannot be iterated; select blocks with "
            f"{self.name}[index_array]"
        )

    def __repr__(self) -> str:
        where = "" if self.chart is None else f" on {self.chart.name}"
        shape = self.shape or "scalar"
        return f"<parameters {self.name!r}: {self.blocks} blocks of shape {shape}{where}>"


class Selection(_Unknowns):
    """Blocks of a parameter array, one per element; ``count`` None is one block for all."""

    __slots__ = ("array", "count", "indices", "offset", "stride")

    def __init__(
        self,
        array: ParameterArray,
        offset: int,
        stride: int,
        count: int | None,
        indices: IndexArray | None,
    ) -> None:
        self.array = array
        self.offset = offset
        self.stride = stride
        self.count = count
        self.indices = indices

    def __len__(self) -> int:
        if self.count is None:
            raise InputError(f"{self!r} is one block and has no length")
        return self.count

    @overload
    def __getitem__(  # pyright: ignore[reportOverlappingOverload] - Any takes the rest
        self, index: Ragged
    ) -> RaggedSelection: ...
    @overload
    def __getitem__(self, index: Any) -> Selection: ...
    def __getitem__(self, index: Any) -> Selection | RaggedSelection:
        what = f"selection of parameters {self.array.name!r}"
        if self.count is None:
            raise InputError(f"{what}: one block cannot be selected from; components are .x, [0]")
        if isinstance(index, Ragged):
            flat = index_array(index.values, self.count, what)
            rows = Ragged(index.indptr, self._blocks(flat), index.unroll)
            return RaggedSelection(self.array, rows)
        if isinstance(index, tuple):
            indices = cast("tuple[Any, ...]", index)
            raise ShapeError(
                f"{what}: got {len(indices)} indices; select whole blocks with one index, and take "
                "components inside the residual function"
            )
        if isinstance(index, int | np.integer) and not isinstance(index, bool):
            block = index_array([int(cast(int, index))], self.count, what)[0]
            return Selection(self.array, int(self._blocks(block)), 0, None, None)
        if isinstance(index, slice):
            start, stop, step = index.indices(self.count)
            length = len(range(start, stop, step))
            if self.indices is not None:
                return Selection(self.array, 0, 1, length, self.indices[index])
            first = self.offset + self.stride * start
            return Selection(self.array, first, self.stride * step, length, None)
        chosen = index_array(index, self.count, what)
        return Selection(self.array, 0, 1, len(chosen), self._blocks(chosen))

    def _blocks(self, positions: Any) -> Any:
        if self.indices is not None:
            return self.indices[positions]
        if self.offset == 0 and self.stride == 1:
            return positions  # a memory-mapped index stays on its file
        return self.offset + self.stride * positions

    def __repr__(self) -> str:
        what = "one block" if self.count is None else f"{self.count} blocks"
        return f"<{what} of parameters {self.array.name!r}>"


class RaggedSelection(_Unknowns):
    """A row of blocks of a parameter array for each element.

    Attributes:
        array: whose blocks.
        rows: their numbers, int64.
    """

    __slots__ = ("array", "rows")

    def __init__(self, array: ParameterArray, rows: Ragged) -> None:
        self.array = array
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> RaggedSelection:
        """Choose rows, by an index array, a slice or a mask."""
        what = f"ragged selection of parameters {self.array.name!r}"
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        return RaggedSelection(self.array, self.rows.take(index_array(index, len(self), what)))

    def __repr__(self) -> str:
        return f"<{len(self)} rows of blocks of parameters {self.array.name!r}>"


@dataclass(frozen=True, slots=True)
class RowSelection:
    """Long rows of blocks of a parameter array, one for each element of a batch.

    Attributes:
        array: whose blocks.
        table: their numbers, ``(count, capacity)``; beyond the end of a row its first block.
    """

    array: ParameterArray
    table: IndexArray


class Shared:
    """A value that all elements of a batch see alike; made by ``ag.shared``."""

    __slots__ = ("values",)

    def __init__(self, values: FloatArray) -> None:
        self.values = values


def shared(array: Any) -> Shared:
    """Mark an array as one value for all elements, instead of one row each.

    Args:
        array: number, ``(k,)`` or ``(r, c)``; copied.

    Raises:
        InputError: NaN or infinity in it.
        ShapeError: more than two dimensions.
    """
    values = finite_array(array, "shared value")
    if values.ndim > 2:
        raise ShapeError(f"shared value: got shape {values.shape}, expected at most a matrix")
    return Shared(values)


def common_length(lengths: Sequence[tuple[str, int | None]], what: str) -> int:
    """The batch length on which all arguments agree; 1 if every argument is shared.

    Raises:
        ShapeError: lengths differ.
    """
    known = [(name, length) for name, length in lengths if length is not None]
    if not known:
        return 1
    first_name, first = known[0]
    for name, length in known[1:]:
        if length != first:
            raise ShapeError(
                f"{what}, argument {name!r}: has {length} entries, argument {first_name!r} has "
                f"{first}; pass one entry per element"
            )
    return first
