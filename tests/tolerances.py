"""The one table of tolerances, by the precision of a backend.

A result passes if |got - oracle| <= absolute + relative · |oracle|. The oracle is NumPy in float64
on inputs that float32 represents exactly, so rounding of inputs is no part of the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Bound on an error, and why it is what it is."""

    relative: float
    absolute: float
    reason: str

    def bound(self, oracle: NDArray[np.float64]) -> NDArray[np.float64]:
        """Largest error allowed, by element."""
        return self.absolute + self.relative * np.abs(oracle)

    def check(self, got: Any, oracle: Any, what: str) -> None:
        """Fail with the worst element; equal infinities agree, and so do two NaN."""
        got, oracle = np.broadcast_arrays(np.asarray(got, float), np.asarray(oracle, float))
        assert got.size, f"{what}: nothing to compare"
        same = (got == oracle) | (np.isnan(got) & np.isnan(oracle))
        with np.errstate(invalid="ignore"):
            excess = np.where(same, -np.inf, np.abs(got - oracle) - self.bound(oracle))
        excess = np.where(np.isnan(excess), np.inf, excess)
        worst = np.unravel_index(int(np.argmax(excess)), got.shape)
        assert excess[worst] <= 0.0, (
            f"{what}: element {tuple(map(int, worst))} is {got[worst]!r}, the oracle says "
            f"{oracle[worst]!r}; {np.sum(excess > 0)} of {got.size} elements are off by more than "
            f"{self.absolute:g} + {self.relative:g} |oracle| ({self.reason})"
        )


VALUE, DERIVATIVE, GRAPH = "value", "derivative", "graph"

TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("float64", VALUE): Tolerance(1e-14, 1e-14, "C and NumPy libraries differ by a few ulp"),
    ("float64", DERIVATIVE): Tolerance(1e-13, 1e-13, "a few ops on values a few ulp apart"),
    ("float64", GRAPH): Tolerance(1e-10, 1e-10, "tens of ops, fused multiply-add on some targets"),
    **{
        ("float64-native", kind): Tolerance(bound, bound, "as for float64, functions of our own")
        for kind, bound in ((VALUE, 1e-14), (DERIVATIVE, 1e-13), (GRAPH, 1e-10))
    },
    ("float64-emulated", VALUE): Tolerance(1e-13, 1e-30, "48 bits: 4e-15 an operation"),
    ("float64-emulated", DERIVATIVE): Tolerance(4e-13, 4e-14, "a few such operations"),
    ("float64-emulated", GRAPH): Tolerance(1e-10, 1e-10, "tens of operations"),
    ("float32", VALUE): Tolerance(1e-6, 1e-6, "a few ulp (1.2e-7); worst measured 2.1e-7, sinh"),
    ("float32", DERIVATIVE): Tolerance(1e-6, 1e-6, "as for values; worst measured 3.6e-7, tan"),
    ("float32", GRAPH): Tolerance(5e-5, 5e-5, "tens of ops of 1.2e-7 each, cancellation excluded"),
}
"""By precision and kind: single ops (value, derivative), and whole graphs of tens of ops."""

_POW = Tolerance(2e-6, 2e-6, "exp(y log x) multiplies a rounding by |y log x|, up to 9")
OP_OVERRIDES: dict[tuple[str, str, str], Tolerance] = {
    ("pow", "float32", VALUE): _POW,
    ("pow", "float32", DERIVATIVE): _POW,
}
"""(op, precision, kind) where a single op needs more than the table gives."""

# Relative accuracy where the value is small or the operand large: no absolute part to hide in.
FAR = {
    "float64": Tolerance(1e-13, 0.0, "C libraries"),
    "float64-native": Tolerance(1e-13, 0.0, "functions of our own"),
    "float64-emulated": Tolerance(4e-13, 1e-37, "above 1e-23 of full accuracy, below as float32"),
    "float32": Tolerance(4e-6, 1e-37, "reduced arguments; subnormal float32 may flush to 0"),
}

# The slope of a central difference: truncation h² against rounding eps / h.
CENTRAL_DIFFERENCE = Tolerance(2e-6, 2e-6, "step 1e-5: truncation 1e-10, rounding 1e-11 · |f|")
MPMATH = Tolerance(2e-14, 1e-15, "the oracle is within a few ulp of the true value")
MPMATH_DERIVATIVE = Tolerance(1e-13, 1e-14, "partials are a few ops on such values")


def tolerance(precision: str, kind: str, op: str | None = None) -> Tolerance:
    """The tolerance for ``kind`` in ``precision``, of one op where an override names it."""
    override = OP_OVERRIDES.get((op, precision, kind)) if op else None
    return override or TOLERANCES[precision, kind]
