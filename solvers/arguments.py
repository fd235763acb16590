"""What a residual function is given: its arguments checked, named and gathered for a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.ragged import Ragged
from autograd_gpu.solvers.ragged_arguments import AnyArgument, length_of, ragged_argument
from autograd_gpu.solvers.residual_group import DataRows
from autograd_gpu.solvers.selection import (
    ParameterArray,
    RaggedSelection,
    Selection,
    Shared,
    common_length,
    finite_array,
)
from autograd_gpu.trace import argument_names, function_name


def gather(
    fn: Callable[..., Any],
    arguments: Sequence[Any],
    owns: Callable[[ParameterArray], bool],
    what: str,
) -> tuple[list[str], list[AnyArgument], int]:
    """Names of the arguments, what they gather, and the number of elements.

    Args:
        fn: the function, whose signature must take them.
        arguments: as given by the user.
        owns: whether a parameter array is the problem's.
        what: for errors.

    Raises:
        InputError: no function, no arguments, too many of them, none that is a parameter, another
            problem's, an empty batch, or no numbers.
        ShapeError: arguments of different lengths, or of too many dimensions.
    """
    if not arguments:
        raise InputError(f"{what}: has no arguments; pass the parameters it acts on")
    _check_signature(fn, len(arguments), what)
    names = argument_names(fn, len(arguments))
    gathered = [
        _argument(value, owns, f"{what}, argument {names[k]!r}")
        for k, value in enumerate(arguments)
    ]
    lengths = [(names[k], length_of(g)) for k, g in enumerate(gathered)]
    count = common_length(lengths, what)
    if not any(isinstance(g, Selection | RaggedSelection) for g in gathered):
        raise InputError(
            f"{what}: no argument is a parameter of this problem; pass what "
            "problem.parameters(...) returned, or a selection of it"
        )
    if count == 0:
        raise InputError(f"{what}: the batch is empty; leave the group out")
    return names, gathered, count


def _argument(value: Any, owns: Callable[[ParameterArray], bool], what: str) -> AnyArgument:
    if isinstance(value, ParameterArray):
        value = Selection(value, 0, 1, value.blocks, None)
    if isinstance(value, Selection | RaggedSelection):
        if not owns(value.array):
            raise InputError(
                f"{what}: parameters {value.array.name!r} are another problem's; pass what "
                "this problem's parameters(...) returned"
            )
        return value
    if isinstance(value, Ragged):
        return ragged_argument(value, what)
    if isinstance(value, Shared):
        return DataRows(value.values[None], True)
    values = finite_array(value, what, keep_mapped=True)
    if values.ndim == 0:
        return DataRows(values[None], True)
    if values.ndim > 3:
        raise ShapeError(
            f"{what}: got shape {values.shape}, expected (count,), (count, k) or "
            "(count, r, c); reshape it"
        )
    return DataRows(values, False)


def _check_signature(fn: Callable[..., Any], count: int, what: str) -> None:
    if not callable(fn):
        raise InputError(
            f"{what}: got {type(fn).__name__} as the residual function; call "
            "problem.add_residuals(fn, argument, …)"
        )
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise InputError(
            f"{what}: got {count} arguments for {function_name(fn)}{signature}: {error}"
        ) from error
