"""Sequences of varying length in two arrays (CSR): one-rings, tracks, sample lists."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import IndexRangeError, InputError, ShapeError

IntArray = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ragged:
    """Rows of varying length: row k is ``values[indptr[k]:indptr[k + 1]]``.

    As an index (``x[Ragged(indptr, indices)]``) a row lists the blocks that element k sees; as an
    argument of ``add_residuals`` it lists the values that element k sees.

    Attributes:
        indptr: (n + 1,) int64, starts at 0, never decreases, ends at ``len(values)``.
        values: (total, …) int64, float64 or bool; the rows one after another.
        unroll: make a kernel for every length of row, however long. By default rows of more than
            32 items share a kernel with a loop, which a function can only reduce.

    Both are read-only copies, so the arrays passed in are never shared or modified.

    Raises:
        ShapeError: ``indptr`` is not one-dimensional, is empty, or does not end at ``len(values)``.
        InputError: ``indptr`` is not of integers, does not start at 0 or decreases; ``values`` is
            not numeric, or holds NaN or infinity.
    """

    indptr: IntArray
    values: AnyArray
    unroll: bool = False

    def __post_init__(self) -> None:
        values = _checked_values(np.asarray(self.values))
        object.__setattr__(self, "indptr", _checked_indptr(np.asarray(self.indptr), len(values)))
        object.__setattr__(self, "values", values)

    @property
    def lengths(self) -> IntArray:
        """Number of values in each row, (n,) int64."""
        return np.diff(self.indptr)

    def take(self, rows: IntArray) -> Ragged:
        """The rows of the given numbers, in that order, (k,) int64, each from 0 to n - 1."""
        lengths = self.lengths[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        shift = np.repeat(self.indptr[:-1][rows] - starts[:-1], lengths)
        return Ragged(starts, self.values[np.arange(starts[-1]) + shift], self.unroll)

    def of_length(self, rows: IntArray, length: int) -> AnyArray:
        """Rows that all have ``length`` values, as one array (rows, length, …)."""
        return self.values[self.indptr[:-1][rows][:, None] + np.arange(length)]

    def padded(self, rows: IntArray, capacity: int) -> AnyArray:
        """Rows of at least one and at most ``capacity`` values, as one array (rows, capacity, …).

        Beyond its end a row is filled with its first value.
        """
        lengths = self.lengths[rows]
        places = np.arange(capacity)
        places = np.where(places < lengths[:, None], places, 0)
        return self.values[self.indptr[:-1][rows][:, None] + places]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.indptr) - 1

    def __getitem__(self, k: int) -> AnyArray:
        """Return row k, a read-only view of ``values``.

        Raises:
            IndexRangeError: k is negative or not below ``len(self)``.
            InputError: k is not an integer.
        """
        try:
            row = operator.index(k)
        except TypeError as error:
            raise InputError(
                f"Ragged: a row number is an integer, got {type(k).__name__}; "
                "index the rows one at a time"
            ) from error
        if not 0 <= row < len(self):
            raise IndexRangeError(
                f"Ragged: row {row} does not exist, rows are 0 to {len(self) - 1} "
                "(negative numbers do not count from the end)"
            )
        return self.values[self.indptr[row] : self.indptr[row + 1]]

    def __iter__(self) -> Iterator[AnyArray]:
        """Iterate over the rows."""
        return (self[k] for k in range(len(self)))

    def __repr__(self) -> str:
        """Say the counts, not the contents."""
        return f"Ragged({len(self)} rows, {len(self.values)} values)"


def _checked_indptr(indptr: AnyArray, total: int) -> IntArray:
    """Read-only int64 copy of row pointers that fit ``total`` values."""
    if indptr.ndim != 1 or len(indptr) == 0:
        raise ShapeError(
            f"Ragged: indptr has shape {indptr.shape}, expected (n + 1,): where each row starts, "
            "and the end"
        )
    if indptr.dtype.kind not in "iu":
        raise InputError(f"Ragged: indptr has dtype {indptr.dtype}, expected integers")
    pointers = np.array(indptr, dtype=np.int64)
    if pointers[0] != 0:
        raise InputError(f"Ragged: indptr starts at {pointers[0]}, expected 0")
    falling = np.flatnonzero(np.diff(pointers) < 0)
    if len(falling):
        k = int(falling[0])
        raise InputError(
            f"Ragged: indptr decreases after entry {k} ({pointers[k]} to {pointers[k + 1]}; "
            f"{len(falling)} such places); build it by cumsum of the row lengths"
        )
    if pointers[-1] != total:
        raise ShapeError(
            f"Ragged: indptr ends at {pointers[-1]}, but there are {total} values; the last entry "
            "of indptr is len(values)"
        )
    pointers.setflags(write=False)
    return pointers


def _checked_values(values: AnyArray) -> AnyArray:
    """Read-only copy of the values as int64, float64 or bool."""
    if values.ndim == 0:
        raise ShapeError("Ragged: values is a single number, expected an array (total, …)")
    # np.asarray([]) is float64, which is what an empty list of values means best anyway.
    dtypes: dict[str, type[Any]] = {"b": np.bool_, "i": np.int64, "u": np.int64, "f": np.float64}
    if values.dtype.kind not in dtypes:
        raise InputError(f"Ragged: values has dtype {values.dtype}, expected real numbers")
    copy: AnyArray = np.array(values, dtype=dtypes[values.dtype.kind])
    if copy.dtype.kind == "f" and not np.isfinite(copy).all():
        bad = np.argwhere(~np.isfinite(copy))
        raise InputError(
            f"Ragged: values has {len(bad)} entries that are NaN or infinite, the first at "
            f"{tuple(int(k) for k in bad[0])}"
        )
    copy.setflags(write=False)
    return copy
