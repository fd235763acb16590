"""Traced vectors and matrices: short, fixed-length tuples of traced scalars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray

from .errors import ShapeError, TraceError
from .ops import OPS
from .samples import LONGEST_UNROLLED, with_columns
from .scalar import (
    UFUNC_OPS,
    AbstractScalar,
    apply,
    attribute_error,
    format_error,
    is_scalar_like,
    user_line,
)

# Longer NumPy arrays in an expression are almost surely data that should be an argument.
LONGEST_ARRAY_CONSTANT = LONGEST_UNROLLED


class _Elementwise:
    """Operators shared by vectors and matrices."""

    __slots__ = ()
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __add__(self, other: Any) -> Any:
        return elementwise("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return elementwise("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return elementwise("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return elementwise("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return elementwise("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return elementwise("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return elementwise("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return elementwise("div", other, self)

    def __pow__(self, other: Any) -> Any:
        return elementwise("pow", self, other)

    def __rpow__(self, other: Any) -> Any:
        return elementwise("pow", other, self)

    def __mod__(self, other: Any) -> Any:
        return elementwise("mod", self, other)

    def __rmod__(self, other: Any) -> Any:
        return elementwise("mod", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return elementwise("floor", elementwise("div", self, other))

    def __rfloordiv__(self, other: Any) -> Any:
        return elementwise("floor", elementwise("div", other, self))

    def __neg__(self) -> Any:
        return elementwise("neg", self)

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return elementwise("abs", self)

    def __lt__(self, other: Any) -> Any:
        return elementwise("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return elementwise("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return elementwise("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return elementwise("ge", self, other)

    def __eq__(self, other: object) -> Any:
        return elementwise("eq", self, other)

    def __ne__(self, other: object) -> Any:
        return elementwise("ne", self, other)

    def __and__(self, other: Any) -> Any:
        return elementwise("logical_and", self, other)

    __rand__ = __and__

    def __or__(self, other: Any) -> Any:
        return elementwise("logical_or", self, other)

    __ror__ = __or__

    def __invert__(self) -> Any:
        return elementwise("logical_not", self)

    def __bool__(self) -> bool:
        raise TraceError(
            f"{user_line()}\n  asks for the truth of a traced vector; "
            "use ag.where on its components"
        )

    def __getattr__(self, name: str) -> Any:
        raise attribute_error("a traced vector", name)

    def __format__(self, spec: str) -> str:
        if spec:
            format_error()
        return repr(self)

    def __array__(self, *_: Any, **__: Any) -> Any:
        """Refuse to become an array of numbers."""
        raise TraceError(
            f"{user_line()}\n  makes a NumPy array of traced values; use ag.* functions on them"
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """NumPy ufuncs trace elementwise; ``np.matmul`` multiplies."""
        return trace_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Common NumPy functions trace, such as ``np.cross``, ``np.dot``, ``np.linalg.norm``."""
        from .functions import trace_numpy_function

        return trace_numpy_function(func, args, kwargs)

    def __matmul__(self, other: Any) -> Any:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul(other, self)


class PerItem(_Elementwise):
    """A traced value whose operators act on each of its items (``sequence.TracedSequence``)."""

    __slots__ = ()

    def per_item(self, name: str, operands: Sequence[Any]) -> Any:
        """Apply an op to the items, one after another."""
        raise NotImplementedError

    def as_array(self) -> Any:
        """The items as one vector or matrix."""
        raise NotImplementedError


class Vector(_Elementwise):
    """A traced vector. ``v[0]``, ``v.x``, unpacking, slices, elementwise operators, ``u @ v``."""

    __slots__ = ("items",)

    def __init__(self, items: Sequence[AbstractScalar]) -> None:
        self.items = tuple(items)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(length,)``."""
        return (len(self.items),)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[AbstractScalar]:
        return iter(self.items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, AbstractScalar):
            raise TraceError(f"{user_line()}\n  indexes by a traced value; use ag.where to choose")
        if isinstance(index, slice):
            return vector(self.items[index])
        if isinstance(index, list | tuple | np.ndarray):
            return vector([self.items[int(k)] for k in np.asarray(cast(Any, index))])
        try:
            return self.items[cast(int, index)]
        except IndexError as error:
            count = len(self.items)
            raise IndexError(
                f"component {index} of a vector of {count}; components are 0 to {count - 1}"
            ) from error

    def _component(self, k: int, name: str) -> AbstractScalar:
        if k >= len(self.items):
            raise TraceError(
                f"{user_line()}\n  asks for component {name} of a vector of {len(self.items)}"
            )
        return self.items[k]

    @property
    def x(self) -> AbstractScalar:
        """First component."""
        return self._component(0, "x")

    @property
    def y(self) -> AbstractScalar:
        """Second component."""
        return self._component(1, "y")

    @property
    def z(self) -> AbstractScalar:
        """Third component."""
        return self._component(2, "z")

    @property
    def w(self) -> AbstractScalar:
        """Fourth component."""
        return self._component(3, "w")

    def __repr__(self) -> str:
        return f"<traced vector of {len(self.items)}>"


class Vec2(Vector):
    """A traced vector of two components."""

    __slots__ = ()


class Vec3(Vector):
    """A traced vector of three components."""

    __slots__ = ()


class Vec4(Vector):
    """A traced vector of four components."""

    __slots__ = ()


_BY_LENGTH: dict[int, type[Vector]] = {2: Vec2, 3: Vec3, 4: Vec4}


def vector(items: Sequence[AbstractScalar]) -> Vector:
    """A vector of the class that fits its length."""
    return _BY_LENGTH.get(len(items), Vector)(items)


class Matrix(_Elementwise):
    """A traced matrix, rows of traced scalars. ``M @ v``, ``M @ N``, ``M.T``, ``M[i, j]``.

    Square ones of two to four rows are ``Mat2``, ``Mat3``, ``Mat4``.
    """

    __slots__ = ("rows",)

    def __new__(cls, rows: Sequence[Sequence[Any]]) -> Matrix:
        """A matrix of the class that fits its shape."""
        size = len(rows)
        square = all(len(row) == size for row in rows)
        chosen = _BY_SIZE.get(size, cls) if cls is Matrix and square else cls
        return super().__new__(chosen)

    def __init__(self, rows: Sequence[Sequence[AbstractScalar]]) -> None:
        self.rows = tuple(tuple(row) for row in rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(rows, columns)``."""
        return (len(self.rows), len(self.rows[0]))

    @property
    def T(self) -> Matrix:  # noqa: N802 - NumPy's name
        """The transpose."""
        return Matrix(list(zip(*self.rows, strict=True)))

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Vector]:
        return (vector(row) for row in self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, tuple):
            i, j = cast("tuple[int | slice, int | slice]", index)
            if isinstance(i, slice):
                rows = self.rows[i]
                if isinstance(j, slice):
                    return Matrix([row[j] for row in rows])
                return vector([row[j] for row in rows])
            row = self.rows[i]
            return vector(row[j]) if isinstance(j, slice) else row[j]
        if isinstance(index, slice):
            return Matrix(self.rows[index])
        return vector(self.rows[cast(int, index)])

    def __repr__(self) -> str:
        return f"<traced matrix of {self.shape}>"

    def determinant(self) -> Any:
        """Determinant; see ``ag.determinant``."""
        from .matrices import determinant

        return determinant(self)

    def inverse(self) -> Any:
        """Inverse; see ``ag.inverse``."""
        from .matrices import inverse

        return inverse(self)

    def trace(self) -> Any:
        """Sum of the diagonal."""
        return sum_of([row[k] for k, row in enumerate(self.rows)])

    def transpose(self) -> Matrix:
        """The transpose, as ``T``."""
        return self.T


class _SquareMatrix(Matrix):
    """A square matrix of known size, with constructors; entries are scalars or numbers."""

    __slots__ = ()
    size: ClassVar[int]

    def __init__(self, rows: Sequence[Sequence[Any]]) -> None:
        super().__init__(rows)
        if self.shape != (self.size, self.size) or any(len(r) != self.size for r in self.rows):
            raise ShapeError(
                f"{user_line()}\n  {type(self).__name__} of shape {self.shape}, expected "
                f"({self.size}, {self.size})"
            )

    @classmethod
    def identity(cls) -> Self:
        """Ones on the diagonal."""
        return cls.diagonal([1.0] * cls.size)

    @classmethod
    def diagonal(cls, entries: Sequence[Any]) -> Self:
        """The given diagonal, zeros elsewhere."""
        size = range(len(entries))
        return cls([[entries[i] if i == j else 0.0 for j in size] for i in size])

    @classmethod
    def from_columns(cls, columns: Sequence[Any]) -> Self:
        """Vectors side by side."""
        return cls(list(zip(*(tuple(c) for c in columns), strict=True)))


class Mat2(_SquareMatrix):
    """A 2 x 2 matrix."""

    __slots__ = ()
    size = 2


class Mat3(_SquareMatrix):
    """A 3 x 3 matrix."""

    __slots__ = ()
    size = 3


class Mat4(_SquareMatrix):
    """A 4 x 4 matrix."""

    __slots__ = ()
    size = 4


_BY_SIZE: dict[int, type[Matrix]] = {2: Mat2, 3: Mat3, 4: Mat4}


Traced = AbstractScalar | Vector | Matrix


def is_traced(value: Any) -> bool:
    """Whether ``value`` is traced, or a list, tuple or object array with a traced value in it."""
    if isinstance(value, AbstractScalar | _Elementwise):
        return True
    if isinstance(value, list | tuple):
        return any(is_traced(v) for v in cast("list[Any]", value))
    return isinstance(value, np.ndarray) and cast("NDArray[Any]", value).dtype == object


def as_traced(value: Any) -> Any:
    """Turn nested lists and arrays into Vector or Matrix of scalars and numbers; pass others on."""
    if isinstance(value, PerItem):
        return value.as_array()
    if isinstance(value, AbstractScalar | _Elementwise) or is_scalar_like(value):
        return value
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, Any]", value)
        if array.size > LONGEST_ARRAY_CONSTANT:
            raise TraceError(
                f"{user_line()}\n  combines an array of {array.size} numbers with a traced value; "
                "pass it to add_residuals as an argument, one row per element"
            )
        value = array.tolist()
    if isinstance(value, list | tuple):
        rows = [as_traced(v) for v in cast("list[Any]", value)]
        if rows and all(isinstance(r, Vector) for r in rows):
            return Matrix([r.items for r in rows])
        if all(is_scalar_like(r) for r in rows):
            return vector(rows)
    kind = type(cast(object, value)).__name__
    raise TraceError(f"{user_line()}\n  cannot trace a value of type {kind}")


def _combine(name: str, operands: Sequence[Any]) -> Any:
    """Apply to scalars; pure numbers (constant rows of a mixed matrix) are evaluated."""
    if any(isinstance(v, AbstractScalar) for v in operands):
        return apply(name, *operands)
    result: Any = OPS[name].numpy(*operands)
    return cast("np.generic[Any]", result).item() if isinstance(result, np.generic) else result


def elementwise(name: str, *operands: Any) -> Any:
    """Apply an op elementwise; scalars spread over vectors and matrices.

    Raises:
        ShapeError: vectors of different lengths.
    """
    for v in operands:
        if isinstance(v, PerItem):
            return v.per_item(name, operands)
    lifted = [as_traced(v) for v in with_columns(operands)]
    shapes = {v.shape for v in lifted if isinstance(v, Vector | Matrix)}
    if not shapes:
        return _combine(name, lifted)
    shape = max(shapes, key=len)
    if shapes != {shape} and shapes != {shape, shape[1:]}:
        raise ShapeError(
            f"{user_line()}\n  {name} of shapes {', '.join(map(str, sorted(shapes)))}; "
            "they must be equal (or one a row of the other)"
        )
    if len(shape) == 2:
        rows: list[Sequence[AbstractScalar]] = []
        for i in range(shape[0]):
            parts = [v[i] if isinstance(v, Matrix) else v for v in lifted]
            rows.append(elementwise(name, *parts).items)
        return Matrix(rows)
    return vector(
        [
            _combine(name, [v.items[k] if isinstance(v, Vector) else v for v in lifted])
            for k in range(shape[0])
        ]
    )


def sum_of(items: Sequence[Any]) -> Any:
    """Left-to-right sum of scalars or vectors."""
    if not items:
        raise ShapeError(f"{user_line()}\n  sums nothing; give at least one value")
    total = items[0]
    for item in items[1:]:
        total = elementwise("add", total, item)
    return total


def inner(u: Vector, v: Vector) -> Any:
    """Dot product of equally long vectors."""
    if len(u) != len(v):
        raise ShapeError(f"{user_line()}\n  dot product of lengths {len(u)} and {len(v)}")
    return sum_of([_combine("mul", pair) for pair in zip(u.items, v.items, strict=True)])


def matmul(left: Any, right: Any) -> Any:
    """``left @ right`` for vectors and matrices, NumPy's rules."""
    a, b = as_traced(left), as_traced(right)
    if isinstance(a, Vector) and isinstance(b, Vector):
        return inner(a, b)
    if isinstance(a, Matrix) and isinstance(b, Vector):
        return vector([inner(row, b) for row in a])
    if isinstance(a, Vector) and isinstance(b, Matrix):
        return vector([inner(a, column) for column in b.T])
    if isinstance(a, Matrix) and isinstance(b, Matrix):
        columns = list(b.T)
        return Matrix([[inner(row, column) for column in columns] for row in a])
    raise TraceError(f"{user_line()}\n  @ needs vectors or matrices, got a scalar; use *")


def trace_ufunc(ufunc: Any, method: str, inputs: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Record a NumPy ufunc call."""
    name: str = ufunc.__name__
    if method != "__call__" or any(v is not None for v in kwargs.values()):
        raise TraceError(
            f"{user_line()}\n  np.{name}.{method} with {sorted(kwargs) or 'no'} options cannot be "
            "traced; use ag.sum, ag.max, … or a plain call"
        )
    if name == "matmul":
        return matmul(*inputs)
    if name == "positive":
        return inputs[0]
    if name == "floor_divide":
        return elementwise("floor", elementwise("div", *inputs))
    op = UFUNC_OPS.get(name, name)
    if op not in OPS:
        raise TraceError(
            f"{user_line()}\n  np.{name} cannot be traced; see the list of ops in the documentation"
        )
    return elementwise(op, *inputs)
