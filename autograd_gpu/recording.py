"""Residuals built one by one, recorded without numbers: integers in flat arrays.

While a recording is entered, an operation on ``Value``s appends one row (op, operands) and gives
a handle on it. Leaves are known by object. Python numbers are rows of their own, so that a
number that differs from residual to residual can become data of one kernel.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import isfinite
from typing import Any

from .errors import TraceError
from .ops import BOOL, NODE_OPS, Op
from .scalar import branch_error, number_error, user_line
from .value import EAGER, Value, operand_of

PARAMETER, DATA, CONSTANT, LITERAL = range(4)
"""Codes of leaves: an unknown, another leaf Value, a number, a number that is structure."""

FIRST_OP = 4
"""Code of the first op; the others follow in the order of the table."""

CODE_OF: dict[str, int] = {name: FIRST_OP + k for k, name in enumerate(NODE_OPS)}
OP_OF: list[Op | None] = [None] * FIRST_OP + list(NODE_OPS.values())
ARITY: list[int] = [0 if op is None else op.arity for op in OP_OF]
OP_REAL, OP_TRUTH = NODE_OPS["neg"], NODE_OPS["logical_not"]
_TAKES_CONDITIONS = {CODE_OF[name] for name, op in NODE_OPS.items() if BOOL in op.operands}


class Recording:
    """A growing arena; a scope of ``Value`` operations.

    Args:
        parameters: the unknowns, each once.

    Attributes:
        codes: what each row is, see ``PARAMETER`` … ``FIRST_OP``.
        first, second: operand rows; of a leaf, ``first`` is its number among those of its code.
        third: operand row of the few ops that have three.
        leaves: Values that are no parameters and were made by no operation.
        constants, literals: Python numbers.
    """

    def __init__(self, parameters: Sequence[Value]) -> None:
        self.codes = bytearray()
        self.first = array("i")
        self.second = array("i")
        self.third: dict[int, int] = {}
        self.leaves: list[Value] = []
        self.constants = array("d")
        self.literals: list[float | bool] = []
        self._literal_of: dict[tuple[type, float | bool], int] = {}
        self._rows: dict[int, int] = {}
        self._conditions: set[int] = set()
        # Identity is by address, so whatever was met stays alive as long as the recording.
        self._kept: list[Value] = list(parameters)
        for k, value in enumerate(parameters):
            self._rows[id(value)] = self._append(PARAMETER, k, 0)

    def _append(self, code: int, first: int, second: int) -> int:
        row = len(self.codes)
        self.codes.append(code)
        self.first.append(first)
        self.second.append(second)
        return row

    def applied(self, row: Op, operands: Sequence[Any]) -> Value:
        """Record an op that is a node; a scope's method."""
        code = CODE_OF[row.name]
        rows = [
            # Handles of this recording first: they are most operands, and this is the hot path.
            v.node if v.__class__ is Value and v.recording is self else self._row(v, row, k)
            for k, v in enumerate(operands)
        ]
        if code in _TAKES_CONDITIONS or not self._conditions.isdisjoint(rows):
            rows = self._converted(row, operands, rows)
        node = len(self.codes)
        self.codes.append(code)
        self.first.append(rows[0])
        if row.result == BOOL:
            self._conditions.add(node)
        if len(rows) == 2:
            self.second.append(rows[1])
        elif len(rows) == 1:
            self.second.append(0)
        else:
            self.second.append(rows[1])
            self.third[node] = rows[2]
        return self._handle(node, row)

    def _converted(self, row: Op, operands: Sequence[Any], rows: Sequence[int]) -> list[int]:
        """Rows of operands of the right dtypes: conditions as 0 or 1 where a real is taken."""
        lifted = [operand_of(row, row.operands[k], v) for k, v in enumerate(operands)]
        return [
            old if new is given or not isinstance(new, Value) else self.row_of(new)
            for old, new, given in zip(rows, lifted, operands, strict=True)
        ]

    def _row(self, given: Any, row: Op, position: int) -> int:
        if given.__class__ is Value:
            found = self._rows.get(id(given))
            return self.row_of(given) if found is None else found
        return self.number_row(given, row, position)

    def _handle(self, node: int, row: Op) -> Value:
        value = object.__new__(Value)
        value.name = ""
        value.grad = 0.0
        value.requires_grad = True
        value.op = row
        value.operands = ()
        value.recording = self
        value.node = node
        return value

    def number_row(self, given: Any, row: Op = OP_REAL, position: int = 0) -> int:
        """Row of a Python number; exponents and truth values are structure, others may vary."""
        if given.__class__ is float and isfinite(given):
            number: float | bool = given
        else:
            number = operand_of(row, row.operands[position], given)
        if isinstance(number, bool) or (row.name == "pow" and position == 1):
            key = (type(number), number)
            if key not in self._literal_of:
                self._literal_of[key] = len(self.literals)
                self.literals.append(number)
            return self._append(LITERAL, self._literal_of[key], 0)
        self.constants.append(number)
        return self._append(CONSTANT, len(self.constants) - 1, 0)

    def row_of(self, value: Value) -> int:
        """Row of a Value; one that was made eagerly is recorded with all that it was made of.

        Raises:
            TraceError: it was made in another recording.
        """
        if value.recording is self:
            return value.node
        stack = [value]
        while stack:
            top = stack[-1]
            if id(top) in self._rows or top.recording is self:
                stack.pop()
                continue
            if top.node != EAGER:
                raise TraceError(
                    f"{user_line()}\n  uses a Value of another CompiledResiduals.compile; it "
                    "cannot outlive that call"
                )
            waiting = [
                v for v in top.operands
                if isinstance(v, Value) and v.recording is not self and id(v) not in self._rows
            ]  # fmt: skip
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            self._kept.append(top)
            self._rows[id(top)] = self._leaf(top) if top.op is None else self._replayed(top)
        return self._rows[id(value)]

    def _leaf(self, value: Value) -> int:
        if isinstance(value.number, bool):  # a condition without a history
            return self.number_row(value.number, OP_TRUTH)
        self.leaves.append(value)
        return self._append(DATA, len(self.leaves) - 1, 0)

    def _replayed(self, value: Value) -> int:
        assert value.op is not None
        return self.applied(value.op, value.operands).node

    def check_readable(self, kind: str) -> None:
        """Refuse to give numbers: they would be frozen at the time of compiling.

        Raises:
            TraceError: always; names the line and what to write instead.
        """
        if kind == "bool":
            branch_error()
        if kind == "no_grad":
            raise TraceError(
                f"{user_line()}\n  enters ag.no_grad() or another compile inside "
                "CompiledResiduals.compile, which would freeze numbers; use "
                "ag.Value(…, requires_grad=False) for data"
            )
        number_error(kind)
