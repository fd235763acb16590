"""Eager scalars: every operation gives a number at once and remembers how it was made.

A ``Value`` made by the user is a leaf and is itself its identity: two leaves of equal number and
name are two unknowns. Values and derivatives come from the op table alone.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from .errors import InputError, TraceError
from .ops import BOOL, NUMPY_ALGEBRA, OPS, REAL, DType, Op
from .scalar import (
    AbstractScalar,
    Scalar,
    is_scalar_like,
    python_number,
    user_line,
)


class Scope(Protocol):
    """What operations on ``Value``s make while it is entered, instead of eager graphs."""

    def applied(self, row: Op, operands: Sequence[Any]) -> Value:
        """Result of an op that is a node, that is, has no expansion."""
        ...

    def check_readable(self, kind: str) -> None:
        """Raise ``TraceError`` if no number may be read: for ``bool``, ``float`` or others."""
        ...


_SCOPE: ContextVar[Scope | None] = ContextVar("autograd_gpu_value_scope", default=None)
# ``Value.node`` of a value that belongs to no recording.
EAGER = -1


@contextmanager
def entered(scope: Scope) -> Generator[None]:
    """Let ``scope`` decide what operations on Values make."""
    outer = _SCOPE.get()
    if outer is not None:
        outer.check_readable("no_grad")
    token = _SCOPE.set(scope)
    try:
        yield
    finally:
        _SCOPE.reset(token)


class Value(AbstractScalar):
    """An eager scalar: a number, and the operation and operands that gave it.

    Args:
        data: the number.
        name: for people; two Values of one name stay two.
        requires_grad: whether ``backward`` reaches it.

    Attributes:
        grad: sum of the derivatives that ``backward`` calls brought here, since the last
            ``zero_grad``.
        name, requires_grad: as given; a result requires a gradient if an operand does.

    Operators, ``ag.*`` functions and NumPy ufuncs work on it; comparisons give conditions, which
    are Values too (``ag.where`` takes them). Eagerly, a Python ``if`` on a condition decides by
    the present number; inside ``CompiledResiduals.compile`` it raises ``TraceError``.

    Raises:
        InputError: not a finite number.
    """

    __slots__ = ("_data", "grad", "name", "node", "op", "operands", "recording", "requires_grad")

    # Identity, not equality, tells leaves apart: a Value can be a key although == compares numbers.
    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]

    def __init__(self, data: float, name: str = "", requires_grad: bool = True) -> None:
        self._data: float | bool = _finite(data, name)
        self.name = name
        self.requires_grad = requires_grad
        self.grad = 0.0
        self.op: Op | None = None
        self.operands: tuple[Any, ...] = ()
        self.node = EAGER
        self.recording: object | None = None

    @property
    def data(self) -> float | bool:
        """The number; ``bool`` for a condition. Only leaves can be given another."""
        return self._read("data")

    @data.setter
    def data(self, data: float) -> None:
        if self.op is not None or self.node != EAGER:
            raise InputError(
                f"{self!r} is the result of an operation; edit the leaves it was made of and "
                "compute it again"
            )
        self._data = _finite(data, self.name)

    @property
    def number(self) -> float | bool:
        """The number, in any scope.

        Raises:
            TraceError: the value belongs to a finished recording.
        """
        if self.node != EAGER:
            raise TraceError(
                f"{user_line()}\n  reads a Value that was made inside CompiledResiduals.compile; "
                "it has no number and cannot outlive that call"
            )
        return self._data

    @property
    def dtype(self) -> DType:
        """Real or boolean."""
        if self.op is not None:
            return self.op.result
        return BOOL if self.node == EAGER and isinstance(self._data, bool) else REAL

    def applied(self, row: Op, operands: Sequence[Any]) -> Value:
        """Result of an op of the table, in the scope that is entered."""
        if row.expand is not None:
            return row.expand(_ALGEBRA, *operands)
        scope = _SCOPE.get()
        return evaluated(row, operands, True) if scope is None else scope.applied(row, operands)

    def _binary(self, op: str, other: Any, reflected: bool = False) -> Any:
        # The hot path of building thousands of residuals: no detour over ``apply``.
        if other.__class__ not in _PLAIN_OPERANDS and not is_scalar_like(other):
            return NotImplemented
        operands = (other, self) if reflected else (self, other)
        scope = _SCOPE.get()
        if scope is None:
            return evaluated(OPS[op], operands, True)
        return scope.applied(OPS[op], operands)

    def _read(self, kind: str) -> float | bool:
        scope = _SCOPE.get()
        if scope is not None:
            scope.check_readable(kind)
        return self.number

    def __bool__(self) -> bool:
        return bool(self._read("bool"))

    def __format__(self, spec: str) -> str:
        return format(float(self), spec) if spec else repr(self)

    def __float__(self) -> float:
        return float(self._read("float"))

    def __int__(self) -> int:
        return int(self._read("int"))

    def __repr__(self) -> str:
        if self.node != EAGER:
            return "<recorded Value>"
        name = f", name={self.name!r}" if self.name else ""
        return f"Value({self._data!r}{name})"

    def backward(self, seed: float = 1.0) -> None:
        """Add ``seed`` times the derivative of this value to ``grad`` of all it was made of.

        A ``where`` passes it on to the arm taken alone. A loop, not a recursion: depth is no limit.

        Raises:
            TraceError: the value is a condition, or of a recording.
        """
        if isinstance(self.number, bool):
            raise TraceError(
                f"{user_line()}\n  differentiates a condition; use ag.where(condition, 1.0, 0.0)"
            )
        adjoints: dict[int, float] = {id(self): float(seed)}
        with np.errstate(all="ignore"):
            for value in reversed(_differentiable(self)):
                adjoint = adjoints.pop(id(value), 0.0)
                value.grad += adjoint
                if adjoint == 0.0:  # nothing arrives: 0 · ∞ must not make NaN of it
                    continue
                for operand, partial in _partials(value):
                    if isinstance(operand, Value) and operand.requires_grad and partial != 0.0:
                        key = id(operand)
                        adjoints[key] = adjoints.get(key, 0.0) + adjoint * partial

    def zero_grad(self) -> None:
        """Set ``grad`` to zero, here and in all that this value was made of."""
        self.grad = 0.0
        for value in _differentiable(self):
            value.grad = 0.0


_PLAIN_OPERANDS = frozenset({Value, float, int})


def _finite(data: Any, name: str) -> float:
    try:
        number = float(data)
    except (TypeError, ValueError) as error:
        raise InputError(f"Value {name!r}: got {data!r:.80}, expected a number") from error
    if not np.isfinite(number):
        raise InputError(f"Value {name!r}: got {number}, expected a finite number")
    return number


def made(data: float | bool, row: Op | None, operands: tuple[Any, ...], grad: bool) -> Value:
    """A result, without the checks that leaves get: it may be infinite."""
    value = object.__new__(Value)
    value._data = data  # pyright: ignore[reportPrivateUsage]
    value.name = ""
    value.grad = 0.0
    value.requires_grad = grad
    value.op = row
    value.operands = operands
    value.node = EAGER
    value.recording = None
    return value


def operand_of(row: Op, wanted: DType, given: Any) -> Any:
    """An operand as a Value of the dtype that the op takes, or a Python number.

    Raises:
        TraceError: a real given where a truth value is needed, NaN or infinity, a traced value.
    """
    if isinstance(given, Value):
        got = given.dtype
        if got == wanted:
            return given
        if got == BOOL and wanted == REAL:
            return given.applied(OPS["where"], (given, 1.0, 0.0))
        raise TraceError(
            f"{user_line()}\n  gives a {got.value} operand to {row.name!r}, which takes "
            f"{wanted.value}; compare it first (x > 0), or use ag.where"
        )
    if isinstance(given, Scalar):
        raise TraceError(
            f"{user_line()}\n  mixes an eager ag.Value with a traced value; pass its number to "
            "add_residuals as an argument"
        )
    return python_number(given[()] if isinstance(given, np.ndarray) else given, wanted)


def evaluated(row: Op, operands: Sequence[Any], remember: bool) -> Value:
    """Evaluate an op on numbers, by its row of the table."""
    if len(operands) != row.arity:
        raise TraceError(f"{user_line()}\n  {row.name} takes {row.arity} operands")
    lifted = tuple(operand_of(row, row.operands[k], v) for k, v in enumerate(operands))
    numbers = [v.number if isinstance(v, Value) else v for v in lifted]
    with np.errstate(all="ignore"):
        result = row.numpy(*numbers)
    if not remember:
        return made(bool(result) if row.result == BOOL else float(result), None, (), False)
    if row.result == BOOL:
        return made(bool(result), row, lifted, False)
    grad = any(isinstance(v, Value) and v.requires_grad for v in lifted)
    return made(float(result), row, lifted, grad)


class _ValueAlgebra:
    """The algebra of Values for expansions such as ``clip``; of numbers alone it gives numbers."""

    def constant(self, value: float) -> float:
        """Return the number itself."""
        return value

    def __getattr__(self, name: str) -> Any:
        if name not in OPS:
            raise AttributeError(name)

        def call(*operands: Any) -> Any:
            first = next((v for v in operands if isinstance(v, Value)), None)
            if first is None:
                return float(OPS[name].numpy(*operands))
            return first.applied(OPS[name], operands)

        return call


_ALGEBRA = _ValueAlgebra()


def _differentiable(root: Value) -> list[Value]:
    """``root`` and all below it that require a gradient, operands first."""
    order: list[Value] = []
    seen: set[int] = set()
    stack: list[tuple[Value, bool]] = [(root, False)]
    while stack:
        value, expanded = stack.pop()
        if expanded:
            order.append(value)
            continue
        if id(value) in seen or not value.requires_grad:
            continue
        seen.add(id(value))
        stack.append((value, True))
        stack.extend((v, False) for v in value.operands if isinstance(v, Value))
    return order


def _partials(value: Value) -> list[tuple[Any, float]]:
    """Operands of a result with its partial derivatives by them; nothing for a leaf."""
    row, operands = value.op, value.operands
    if row is None:
        return []
    if row.name == "where":
        condition, x, y = operands
        taken = condition.number if isinstance(condition, Value) else condition
        return [(x if taken else y, 1.0)]
    # float64 scalars divide by zero like arrays do; Python's floats raise.
    numbers = [np.float64(v.number if isinstance(v, Value) else v) for v in operands]
    y = np.float64(value.number)
    return [
        (operand, float(rule(NUMPY_ALGEBRA, *numbers, y)))
        for operand, rule in zip(operands, row.partials, strict=True)
    ]


class _NoGrad:
    """Results are numbers without a history."""

    def applied(self, row: Op, operands: Sequence[Any]) -> Value:
        """A leaf that requires no gradient."""
        return evaluated(row, operands, False)

    def check_readable(self, kind: str) -> None:
        """Numbers may be read."""


@contextmanager
def no_grad() -> Generator[None]:
    """Within it, operations on Values give leaves: no history, ``requires_grad`` False.

    Raises:
        TraceError: inside ``CompiledResiduals.compile``, where it would freeze numbers.
    """
    with entered(_NoGrad()):
        yield
