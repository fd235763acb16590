"""Determinant and inverse of small square matrices, by cofactors.

On traced matrices, on eager Values and on NumPy arrays, whose last two axes are the matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import ShapeError
from .scalar import user_line
from .vector import Matrix, as_traced, is_traced

LARGEST = 4
"""Cofactors grow as the factorial; beyond this, solve instead."""


def _rows(matrix: Any, what: str) -> tuple[tuple[Any, ...], ...]:
    m = as_traced(matrix)
    if not isinstance(m, Matrix) or m.shape[0] != m.shape[1] or m.shape[0] > LARGEST:
        shape = getattr(m, "shape", "of no matrix")
        raise ShapeError(
            f"{user_line()}\n  {what} of shape {shape}, expected a square of up to {LARGEST} rows"
        )
    return m.rows


def _minor(rows: Any, i: int, j: int) -> tuple[tuple[Any, ...], ...]:
    return tuple(
        tuple(entry for c, entry in enumerate(row) if c != j)
        for r, row in enumerate(rows)
        if r != i
    )


def _determinant(rows: Any) -> Any:
    if len(rows) == 1:
        return rows[0][0]
    if len(rows) == 2:
        return rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    total: Any = None
    for j, entry in enumerate(rows[0]):
        term = entry * _determinant(_minor(rows, 0, j))
        total = term if total is None else total - term if j % 2 else total + term
    return total


def determinant(matrix: Any) -> Any:
    """Determinant of a square matrix of up to 4 rows (arrays: of any size).

    Raises:
        ShapeError: not square, or a traced one of more than 4 rows.
    """
    if not is_traced(matrix):
        return np.linalg.det(np.asarray(matrix, np.float64))
    return _determinant(_rows(matrix, "determinant"))


def inverse(matrix: Any) -> Any:
    """Inverse of a square matrix of up to 4 rows (arrays: of any size).

    A traced singular matrix gives poles (infinity or NaN), an array NumPy's ``LinAlgError``.

    Raises:
        ShapeError: not square, or a traced one of more than 4 rows.
    """
    if not is_traced(matrix):
        return np.linalg.inv(np.asarray(matrix, np.float64))
    rows = _rows(matrix, "inverse")
    size = range(len(rows))
    if len(rows) == 1:
        return Matrix([[1.0 / rows[0][0]]])
    cofactors = [[(-1.0) ** (i + j) * _determinant(_minor(rows, i, j)) for j in size] for i in size]
    scale = 1.0 / _expansion(rows, cofactors)
    return Matrix([[cofactors[j][i] * scale for j in size] for i in size])


def _expansion(rows: Any, cofactors: Any) -> Any:
    """Determinant along the first row, from cofactors that exist already."""
    total: Any = rows[0][0] * cofactors[0][0]
    for entry, cofactor in zip(rows[0][1:], cofactors[0][1:], strict=True):
        total = total + entry * cofactor
    return total
