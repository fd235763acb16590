"""NIST's reference data sets of nonlinear regression: files, models, certified values.

The files in ``tests/nist`` are in the public domain (works of the United States government).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag

FOLDER = Path(__file__).parent / "nist"
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reference:
    """One data set; ``starts`` are (2, n), all else one row per parameter or sample."""

    starts: FloatArray
    certified: FloatArray
    deviations: FloatArray
    sum_of_squares: float
    x: FloatArray
    y: FloatArray


def read(name: str) -> Reference:
    """Parse a file by the line numbers that its head states."""
    lines = (FOLDER / f"{name}.dat").read_text(encoding="ascii").splitlines()
    head = "\n".join(lines[:40])

    def numbers(what: str) -> FloatArray:
        first, last = map(
            int, re.search(rf"{what}\s*\(lines\s+(\d+)\s+to\s+(\d+)\)", head).groups()
        )  # pyright: ignore[reportOptionalMemberAccess]
        rows = [line.split("=")[-1].split() for line in lines[first - 1 : last]]
        return np.array([[float(v) for v in row] for row in rows])

    values = numbers("Starting Values")
    data = numbers("Data")
    squares = next(line for line in lines if line.startswith("Residual Sum of Squares"))
    x = data[:, 1] if data.shape[1] == 2 else data[:, 1:].T
    return Reference(
        starts=values[:, :2].T,
        certified=values[:, 2],
        deviations=values[:, 3],
        sum_of_squares=float(squares.split()[-1]),
        x=x,
        y=data[:, 0],
    )


def _gauss(x: Any, b1: Any, b2: Any, b3: Any, b4: Any, b5: Any, b6: Any, b7: Any, b8: Any) -> Any:
    return (
        b1 * ag.exp(-b2 * x)
        + b3 * ag.exp(-(((x - b4) / b5) ** 2))
        + b6 * ag.exp(-(((x - b7) / b8) ** 2))
    )


def _cubics(x: Any, b1: Any, b2: Any, b3: Any, b4: Any, b5: Any, b6: Any, b7: Any) -> Any:
    return (b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)


def _lanczos(x: Any, b1: Any, b2: Any, b3: Any, b4: Any, b5: Any, b6: Any) -> Any:
    return b1 * ag.exp(-b2 * x) + b3 * ag.exp(-b4 * x) + b5 * ag.exp(-b6 * x)


MODELS: MappingProxyType[str, Callable[..., Any]] = MappingProxyType(
    {
        "BoxBOD": lambda x, a, b: a * (1 - ag.exp(-b * x)),
        "Chwirut2": lambda x, a, b, c: ag.exp(-a * x) / (b + c * x),
        "DanWood": lambda x, a, b: a * x**b,
        "Gauss1": _gauss,
        "Hahn1": _cubics,
        "Kirby2": lambda x, a, b, c, d, e: (a + b * x + c * x**2) / (1 + d * x + e * x**2),
        "Lanczos3": _lanczos,
        "MGH17": lambda x, a, b, c, d, e: a + b * ag.exp(-x * d) + c * ag.exp(-x * e),
        "Misra1a": lambda x, a, b: a * (1 - ag.exp(-b * x)),
        "Misra1b": lambda x, a, b: a * (1 - (1 + b * x / 2) ** (-2)),
        "Nelson": lambda x, a, b, c: a - b * x[0] * ag.exp(-c * x[1]),
        "Rat43": lambda x, a, b, c, d: a / (1 + ag.exp(b - c * x)) ** (1 / d),
        "Roszman1": lambda x, a, b, c, d: a - b * x - ag.atan(c / (x - d)) / np.pi,
        "Thurber": _cubics,
    }
)
"""Model of each file; Nelson's is of log y."""


def data_of(name: str) -> tuple[Reference, FloatArray]:
    """A data set, and the observations as its model sees them."""
    reference = read(name)
    return reference, np.log(reference.y) if name == "Nelson" else reference.y


def matching_digits(found: FloatArray, certified: FloatArray) -> float:
    """Matching decimal digits of the worst parameter (log relative error), at most 11."""
    error = float(np.max(np.abs(found - certified) / np.abs(certified)))
    return min(11.0, -np.log10(max(error, 1e-300)))
