"""Kernels of the sparse assembly on the CPU, and the compilation of all such kernels by Numba.

They are plain Python functions; `kernel` compiles the ones that are used, once per process, with
explicit signatures. They release the GIL and take a range, so that a pool of threads can share the
work: that compiles several times faster than Numba's own `prange`. Indices and bounds are trusted.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.disk_cache import damaged
from autograd_gpu.events import report
from autograd_gpu.runtime.block_kernels import BLOCK_KERNELS
from autograd_gpu.runtime.iterative_kernels import ITERATIVE_KERNELS
from autograd_gpu.runtime.machine_code import hits
from autograd_gpu.runtime.small_matrix_kernels import SMALL_MATRIX_KERNELS

Float = NDArray[np.float64]
Index = NDArray[np.integer[Any]]


def _transpose(
    indptr: Index,
    indices: Index,
    column_start: Index,
    rows: Index,
    positions: Index,
) -> None:
    """Turn CSR into columns: starts (zero on entry), rows and positions of the entries."""
    for k in range(indices.size):
        column_start[indices[k] + 1] += 1
    for c in range(column_start.size - 1):
        column_start[c + 1] += column_start[c]
    for i in range(indptr.size - 1):
        for p in range(indptr[i], indptr[i + 1]):
            c = indices[p]
            rows[column_start[c]] = i
            positions[column_start[c]] = p
            column_start[c] += 1
    # Each start has moved to the start of the next column: shift back.
    for c in range(column_start.size - 1, 0, -1):
        column_start[c] = column_start[c - 1]
    column_start[0] = 0


def _count_upper(
    first: int, last: int, indptr: Index, indices: Index, column_start: Index, rows: Index,
    seen: Index, counts: Index,
) -> None:  # fmt: skip
    """Count the entries of rows first … last - 1 of the upper triangle of JᵀJ."""
    for a in range(first, last):
        seen[a] = a
        count = 1
        for t in range(column_start[a], column_start[a + 1]):
            i = rows[t]
            for p in range(indptr[i], indptr[i + 1]):
                b = indices[p]
                if b > a and seen[b] != a:
                    seen[b] = a
                    count += 1
        counts[a] = count


def _fill_upper(
    first: int, last: int, indptr: Index, indices: Index, column_start: Index, rows: Index,
    seen: Index, out_indptr: Index, out_indices: Index,
) -> None:  # fmt: skip
    """Write the columns of those rows, the diagonal first, the others as they are met."""
    for a in range(first, last):
        seen[a] = a
        end = out_indptr[a]
        out_indices[end] = a
        end += 1
        for t in range(column_start[a], column_start[a + 1]):
            i = rows[t]
            for p in range(indptr[i], indptr[i + 1]):
                b = indices[p]
                if b > a and seen[b] != a:
                    seen[b] = a
                    out_indices[end] = b
                    end += 1


def _upper_gram(
    first: int, last: int, indptr: Index, indices: Index, values: Float,
    column_start: Index, rows: Index, positions: Index, sorted_rows: bool, work: Float,
    out_indptr: Index, out_indices: Index, out: Float,
) -> None:  # fmt: skip
    """Sum rows of the upper triangle of JᵀJ in a dense work vector that is zero between rows."""
    for a in range(first, last):
        for t in range(column_start[a], column_start[a + 1]):
            i = rows[t]
            own = values[positions[t]]
            # In a sorted row without duplicates the columns b >= a begin at the entry itself.
            begin = positions[t] if sorted_rows else indptr[i]
            for p in range(begin, indptr[i + 1]):
                b = indices[p]
                if b >= a:
                    work[b] += own * values[p]
        for t in range(out_indptr[a], out_indptr[a + 1]):
            b = out_indices[t]
            out[t] = work[b]
            work[b] = 0.0


def _transposed_product(
    first: int, last: int, values: Float, column_start: Index, rows: Index,
    positions: Index, vector: Float, out: Float,
) -> None:  # fmt: skip
    """Sum entries first … last - 1 of Jᵀ·vector."""
    for a in range(first, last):
        total = 0.0
        for t in range(column_start[a], column_start[a + 1]):
            total += values[positions[t]] * vector[rows[t]]
        out[a] = total


def _product(
    first: int, last: int, indptr: Index, indices: Index, values: Float, vector: Float, out: Float
) -> None:  # fmt: skip
    """Sum entries first … last - 1 of J·vector."""
    for i in range(first, last):
        total = 0.0
        for p in range(indptr[i], indptr[i + 1]):
            total += values[p] * vector[indices[p]]
        out[i] = total


def _column_squared_norms(
    first: int, last: int, values: Float, column_start: Index, rows: Index,
    positions: Index, out: Float,
) -> None:  # fmt: skip
    """Sum the squared norms of columns first … last - 1 of J."""
    for a in range(first, last):
        total = 0.0
        t = column_start[a]
        while t < column_start[a + 1]:
            # Entries of one row stand together; duplicates add up before they are squared.
            row = rows[t]
            entry = 0.0
            while t < column_start[a + 1] and rows[t] == row:
                entry += values[positions[t]]
                t += 1
            total += entry * entry
        out[a] = total


def _expand_rows(
    first: int, last: int, offset: int, indptr: Index, indices: Index, values: Float, out: Float
) -> None:  # fmt: skip
    """Write rows first … last - 1 of J in full, row `offset` at the top of `out`."""
    for i in range(first, last):
        out[i - offset, :] = 0.0
        for p in range(indptr[i], indptr[i + 1]):
            out[i - offset, indices[p]] += values[p]


def _symmetric_pattern(
    indptr: Index, indices: Index, column_start: Index, rows: Index, positions: Index,
    full_indptr: Index, full_indices: Index, source: Index,
) -> None:  # fmt: skip
    """Join an upper triangle and its transpose to full rows; `source` is the entry to copy."""
    end = 0
    for i in range(indptr.size - 1):
        # The last entry of each column is the diagonal, with which the upper row begins.
        for t in range(column_start[i], column_start[i + 1] - 1):
            full_indices[end] = rows[t]
            source[end] = positions[t]
            end += 1
        for p in range(indptr[i], indptr[i + 1]):
            full_indices[end] = indices[p]
            source[end] = p
            end += 1
        full_indptr[i + 1] = end


def _eliminate(
    first: int, last: int, block_starts: Index, factor_starts: Index, row_starts: Index,
    row_source: Index, values: Float, factors: Float, rows: Float, failed: Index,
) -> None:  # fmt: skip
    """Factor blocks C = LLᵀ in place, turn their rows E into L⁻¹E; mark indefinite blocks.

    Entry k of E is ``values[row_source[k]]``.
    """
    for block in range(first, last):
        top = block_starts[block]
        width = block_starts[block + 1] - top
        square = factors[factor_starts[block] : factor_starts[block + 1]]
        length = row_starts[top + 1] - row_starts[top]
        begin = row_starts[top]
        coupled = rows[begin : begin + width * length]
        for t in range(width * length):
            coupled[t] = values[np.uint64(row_source[begin + t])]
        failed[block] = 0
        for i in range(width):
            own = coupled[i * length : (i + 1) * length]
            for j in range(i):
                total = square[i * width + j]
                for k in range(j):
                    total -= square[i * width + k] * square[j * width + k]
                factor = total / square[j * width + j]
                square[i * width + j] = factor
                other = coupled[j * length : (j + 1) * length]
                for t in range(length):
                    own[t] -= factor * other[t]
            pivot = square[i * width + i]
            for k in range(i):
                pivot -= square[i * width + k] * square[i * width + k]
            if not pivot > 0.0:
                failed[block] = 1
                break
            root = np.sqrt(pivot)
            square[i * width + i] = root
            for t in range(length):
                own[t] /= root


def _forward_blocks(
    first: int, last: int, block_starts: Index, factor_starts: Index, factors: Float, x: Float
) -> None:
    """Overwrite x with L⁻¹x in blocks first … last - 1."""
    for block in range(first, last):
        top = block_starts[block]
        width = block_starts[block + 1] - top
        square = factors[factor_starts[block] : factor_starts[block + 1]]
        for i in range(width):
            total = x[top + i]
            for k in range(i):
                total -= square[i * width + k] * x[top + k]
            x[top + i] = total / square[i * width + i]


def _backward_blocks(
    first: int, last: int, block_starts: Index, factor_starts: Index, factors: Float, x: Float
) -> None:
    """Overwrite x with L⁻ᵀx in blocks first … last - 1."""
    for block in range(first, last):
        top = block_starts[block]
        width = block_starts[block + 1] - top
        square = factors[factor_starts[block] : factor_starts[block + 1]]
        for i in range(width - 1, -1, -1):
            total = x[top + i]
            for k in range(i + 1, width):
                total -= square[k * width + i] * x[top + k]
            x[top + i] = total / square[i * width + i]


def _block_gram(
    first: int, last: int, block_starts: Index, row_starts: Index, columns: Index, rows: Float,
    ends: Index, out: Float,
) -> None:  # fmt: skip
    """Add YᵀY to the upper triangle of a square; the rows of a block share their columns.

    ``ends`` is for work, one number per column.
    """
    for block in range(first, last):
        top = block_starts[block]
        width = block_starts[block + 1] - top
        begin = row_starts[top]
        length = row_starts[top + 1] - begin
        shared = columns[begin : begin + length]
        coupled = rows[begin : begin + width * length]
        # Columns come in runs, at least as long as a kept block is wide: loops without look-up.
        for t in range(length - 1, -1, -1):
            goes_on = t + 1 < length and shared[t + 1] == shared[t] + 1
            ends[t] = ends[t + 1] if goes_on else t + 1
        for i in range(length):
            target = out[shared[i]]
            t = i
            while t < length:
                stop = ends[t]
                run = target[shared[t] : shared[t] + stop - t]
                if width == 3:  # points: a third of the loads and stores
                    a, b, c = coupled[i], coupled[length + i], coupled[2 * length + i]
                    x = coupled[t:stop]
                    y = coupled[length + t : length + stop]
                    z = coupled[2 * length + t : 2 * length + stop]
                    for k in range(stop - t):
                        run[k] += a * x[k] + b * y[k] + c * z[k]
                else:
                    for r in range(width):
                        own = coupled[r * length + i]
                        row = coupled[r * length + t : r * length + stop]
                        for k in range(stop - t):
                            run[k] += own * row[k]
                t = stop


# Argument types: n integer, f float, b boolean, I/K index arrays of J and of JᵀJ, F float array,
# M matrix, T stack of matrices, V booleans; "+" marks arrays that the kernel writes. The others are
# declared read-only, which takes both.
_KERNELS: dict[str, tuple[Callable[..., None], str]] = {
    "transpose": (_transpose, "I I I+ I+ I+"),
    "count_upper": (_count_upper, "n n I I I I I+ L+"),
    "fill_upper": (_fill_upper, "n n I I I I I+ K K+"),
    "upper_gram": (_upper_gram, "n n I I F I I I b F+ K K F+"),
    "transposed_product": (_transposed_product, "n n F I I I F F+"),
    "product": (_product, "n n I I F F F+"),
    "column_squared_norms": (_column_squared_norms, "n n F I I I F+"),
    "expand_rows": (_expand_rows, "n n n I I F M+"),
    "symmetric_pattern": (_symmetric_pattern, "I I I I I I+ I+ I+"),
    "eliminate": (_eliminate, "n n I I I K F F+ F+ I+"),
    "block_gram": (_block_gram, "n n I I I F I+ M+"),
    "forward_blocks": (_forward_blocks, "n n I I F F+"),
    "backward_blocks": (_backward_blocks, "n n I I F F+"),
    **BLOCK_KERNELS,
    **ITERATIVE_KERNELS,
    **SMALL_MATRIX_KERNELS,
}


def _calling_compiled(
    function: Callable[..., None], compiled: Callable[[FunctionType], Any]
) -> Callable[..., None]:
    """The function with compiled forms of the functions of its module that it calls."""
    assert isinstance(function, FunctionType)
    names = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    parts = {n: compiled(part) for n, part in names.items() if isinstance(part, FunctionType)}
    if not parts:
        return function
    return FunctionType(function.__code__, {**function.__globals__, **parts}, function.__name__)


@functools.cache
def kernel(name: str, index_type: str, gram_index_type: str = "int32") -> Callable[..., None]:
    """Compile one of the kernels for the given index widths ("int32" or "int64")."""
    numba: Any = importlib.import_module("numba")
    types: Any = numba.types
    element = {
        "I": getattr(types, index_type),
        "K": getattr(types, gram_index_type),
        "L": types.int64,
        "F": types.float64,
        "M": types.float64,
        "T": types.float64,
        "V": types.boolean,
    }
    ranks = {"M": 2, "T": 3}

    def argument(code: str) -> Any:
        if code == "n":
            return types.int64
        if code == "f":
            return types.float64
        if code == "b":
            return types.boolean
        return types.Array(
            element[code[0]], ranks.get(code[0], 1), "C", readonly=not code.endswith("+")
        )

    function, codes = _KERNELS[name]
    function = _calling_compiled(function, numba.njit(nogil=True))
    signature = types.void(*(argument(code) for code in codes.split()))
    start = time.perf_counter()
    compiled = _compiled(function, signature)
    kind = "load" if hits(compiled) else "compile"
    report(kind, name, start=start, seconds=time.perf_counter() - start, target="numba")
    return compiled


def _compiled(function: Callable[..., None], signature: Any) -> Callable[..., None]:
    """Machine code, kept by Numba beside this module or where it keeps that of other packages."""
    numba: Any = importlib.import_module("numba")
    try:
        made = numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that a cache could be written to
        return numba.njit(signature, nogil=True)(function)
    try:
        made.compile(signature)
    except Exception:  # Numba unpickles its index whatever became of the file
        folder = Path(made.stats.cache_path)
        for file in folder.glob(f"*.{function.__qualname__}-*.nb[ic]"):
            file.unlink(missing_ok=True)
        damaged(folder / function.__qualname__)
        made = numba.njit(nogil=True, cache=True)(function)
        made.compile(signature)
    made.disable_compile()
    return made
