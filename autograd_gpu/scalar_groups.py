"""Recorded residuals sorted into batches of one structure, exactly and in linear time.

Each residual is walked once, rows numbered as they are first met. The list of (op, operand
numbers) that this gives decides equality: two residuals in one group are the same function of
their leaves. Numbers are left out of it: one that is the same in all residuals of a group is a
literal of the graph, one that differs is a column of data.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .ir import Argument, Builder, Graph
from .recording import ARITY, FIRST_OP, LITERAL, OP_OF, PARAMETER, Recording

IntArray = NDArray[np.int64]


@dataclass(slots=True)
class _Members:
    """Residuals of one signature, as they are found."""

    example: list[int]
    residuals: array[int] = field(default_factory=lambda: array("q"))
    parameters: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarGroup:
    """Residuals of one structure.

    Attributes:
        graph: one scalar residual; its arguments are scalars, parameters first, then data.
        residuals: positions among all residuals, (count,), increasing.
        parameters: number of the parameter that each element has as each argument, (count, p).
        data: position in ``numbers_of(recording)`` of the other arguments, (count, d).
    """

    graph: Graph
    residuals: IntArray
    parameters: IntArray
    data: IntArray


def numbers_of(recording: Recording) -> NDArray[np.float64]:
    """Present numbers of the leaves that are no parameters, then the constants."""
    leaves = [float(leaf.number) for leaf in recording.leaves]
    return np.concatenate([np.array(leaves, np.float64), np.array(recording.constants, np.float64)])


def _signatures(recording: Recording, roots: Sequence[int]) -> dict[bytes, _Members]:
    codes, first, second = recording.codes, recording.first, recording.second
    third, arity = recording.third, ARITY
    groups: dict[bytes, _Members] = {}
    for residual, root in enumerate(roots):
        order = [root]
        met = {root: 0}
        signature: list[int] = []
        parameters: list[int] = []
        numbers: list[int] = []
        for row in order:  # grows while it is walked
            code = codes[row]
            signature.append(code)
            if code >= FIRST_OP:
                operands = [first[row]]
                if arity[code] > 1:
                    operands.append(second[row])
                    if arity[code] > 2:
                        operands.append(third[row])
                for operand in operands:
                    number = met.get(operand)
                    if number is None:
                        number = met[operand] = len(order)
                        order.append(operand)
                    signature.append(number)
            elif code == PARAMETER:
                parameters.append(first[row])
            elif code == LITERAL:
                signature.append(first[row])
            else:
                # Constants count from -1 downwards until the number of leaves is known.
                numbers.append(first[row] if code == 1 else -1 - first[row])
        key = array("i", signature).tobytes()
        members = groups.get(key)
        if members is None:
            members = groups[key] = _Members(order)
        members.residuals.append(residual)
        members.parameters.extend(parameters)
        members.numbers.extend(numbers)
    return groups


def group_residuals(recording: Recording, roots: Sequence[int]) -> list[ScalarGroup]:
    """Groups in the order of their first residuals.

    Args:
        recording: what was recorded.
        roots: row of each residual.
    """
    numbers = numbers_of(recording)
    return [
        _group(recording, members, numbers) for members in _signatures(recording, roots).values()
    ]


def _group(recording: Recording, members: _Members, numbers: NDArray[np.float64]) -> ScalarGroup:
    count = len(members.residuals)
    parameters = np.array(members.parameters, np.int64).reshape(count, -1)
    data = np.array(members.numbers, np.int64).reshape(count, -1)
    constant = data[0] < 0
    data = np.where(data < 0, len(recording.leaves) - 1 - data, data)
    # Bits are compared: -0.0 is not 0.0 for atan2 and division.
    bits = numbers.view(np.int64)
    equal = np.array([np.ptp(bits[column]) == 0 for column in data.T], dtype=bool)
    fixed = constant & equal
    literals = {k: float(numbers[data[0, k]]) for k in range(len(fixed)) if fixed[k]}
    graph = _graph(recording, members.example, parameters.shape[1], literals)
    return ScalarGroup(
        graph=graph,
        residuals=np.array(members.residuals, np.int64),
        parameters=parameters,
        data=data[:, ~fixed],
    )


def _graph(
    recording: Recording, order: Sequence[int], parameters: int, literals: dict[int, float]
) -> Graph:
    """Graph of one residual; ``literals`` says which of its numbers are known."""
    codes, first, second = recording.codes, recording.first, recording.second
    builder = Builder()
    ids: dict[int, int] = {}
    unknowns = data = numbers = 0
    for row in order:
        code = codes[row]
        if code == PARAMETER:
            ids[row] = builder.input(unknowns, 0)
            unknowns += 1
        elif code == LITERAL:
            ids[row] = builder.constant(recording.literals[first[row]])
        elif code < FIRST_OP:
            if numbers in literals:
                ids[row] = builder.constant(literals[numbers])
            else:
                ids[row] = builder.input(parameters + data, 0)
                data += 1
            numbers += 1
    # Rows are recorded operands first, so that their order is a topological one.
    for row in sorted(order):
        op = OP_OF[codes[row]]
        if op is not None:
            operands = (first[row], second[row], recording.third.get(row, 0))[: op.arity]
            ids[row] = builder.apply(op.name, *(ids[k] for k in operands))
    names = [f"p{k}" for k in range(unknowns)] + [f"d{k}" for k in range(data)]
    arguments = [Argument(name, ()) for name in names]
    return Graph.build(builder, [ids[order[0]]], arguments, (), "residual")
