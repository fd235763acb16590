"""How float64 arrays of the host become numbers on a device, and back, by precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.printer import FLOAT32_MAX
from ..codegen.wgsl_reals import FLOAT32, FLOAT32_SMALLEST_NORMAL, WGSL_REALS
from ..errors import InputError, PrecisionError
from .batch import FloatArray

LARGEST_LOSS = 2.0**-48
"""Relative error that splitting into two float32 may make; above, the number is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """Numbers of one precision in a buffer.

    Attributes:
        words: 32-bit words per number.
        dtype: of what is uploaded and downloaded.
        encode: (values, what they are, for the error) -> array of ``dtype``; C order.
        decode: downloaded flat array -> float64.
    """

    words: int
    dtype: type[np.floating[Any]]
    encode: Callable[[FloatArray, str], NDArray[Any]]
    decode: Callable[[NDArray[Any]], FloatArray]


def _check_range(values: FloatArray, what: str, precision: str) -> None:
    if values.size and np.max(np.abs(values)) > FLOAT32_MAX:
        raise InputError(
            f"{what}: the value {np.max(np.abs(values)):.4g} is beyond {precision} (largest "
            f"{FLOAT32_MAX:.4g}); rescale it, or use a float64 backend"
        )


def to_float32(values: FloatArray, what: str) -> NDArray[np.float32]:
    """Round to float32.

    Raises:
        InputError: a value is beyond float32's range.
    """
    _check_range(values, what, "float32")
    return values.astype(np.float32)


def split_numbers(values: FloatArray, what: str) -> NDArray[np.float32]:
    """Double-floats ``(..., 2)``: the nearest float32, then the nearest to what is left.

    Low parts that are subnormal in float32 become 0, since devices flush them.

    Raises:
        InputError: a value is beyond float32's range, which double-float shares.
    """
    _check_range(values, what, "double-float")
    high = values.astype(np.float32)
    high[np.abs(high) < FLOAT32_SMALLEST_NORMAL] = 0.0
    low = (values - high).astype(np.float32)
    low[np.abs(low) < FLOAT32_SMALLEST_NORMAL] = 0.0
    return np.stack([high, low], axis=-1)


def join_numbers(parts: NDArray[np.float32]) -> FloatArray:
    """The float64 numbers of flat double-floats, exactly."""
    pairs = parts.reshape(-1, 2).astype(np.float64)
    return pairs[:, 0] + pairs[:, 1]


def check_lossless(values: FloatArray, what: str, precision: str) -> None:
    """Refuse numbers of which ``precision`` would keep fewer than 48 bits.

    For data, which never change. Parameters are not checked: one that converges to zero passes
    through every magnitude, and what is lost of it is below 1e-37.

    Raises:
        PrecisionError: names the first such value.
    """
    if precision != "float64-emulated":
        return
    joined = join_numbers(split_numbers(values, what).reshape(-1))
    flat = values.ravel()
    lost = np.abs(flat - joined) > LARGEST_LOSS * np.abs(flat)
    if lost.any():
        worst = float(flat[np.argmax(lost)])
        raise PrecisionError(
            f"{what}: the value {worst!r} loses digits in float64-emulated, whose numbers keep "
            "48 bits from 3.3e-24 to 3.4e38; rescale it, set it to 0, or use "
            "precision='float64-native' or backend='numba'"
        )


FORMATS: dict[str, NumberFormat] = {
    "float32": NumberFormat(
        words=FLOAT32.words,
        dtype=np.float32,
        encode=to_float32,
        decode=lambda a: a.astype(np.float64),
    ),
    "float64-native": NumberFormat(
        words=WGSL_REALS["float64-native"].words,
        dtype=np.float64,
        encode=lambda values, _: values,
        decode=lambda a: a,
    ),
    "float64-emulated": NumberFormat(
        words=WGSL_REALS["float64-emulated"].words,
        dtype=np.float32,
        encode=split_numbers,
        decode=join_numbers,
    ),
}
"""By precision."""
