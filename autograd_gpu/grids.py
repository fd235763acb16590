"""Sampled grids, such as images and distance fields, interpolated between their samples.

Called with traced coordinates inside a residual function of a problem, a grid gives a traced
number; called with arrays it gives numbers. Both are differentiable in the coordinates.

Source of the cubic: Catmull, Rom 1974, "A class of local interpolating splines"; Keys 1981, "Cubic
convolution interpolation for digital image processing", a = -1/2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError, ShapeError, TraceError
from .ir import Builder
from .scalar import Scalar, user_line

if TYPE_CHECKING:
    from .probes import Probe

FloatArray = NDArray[np.float64]

METHODS = ("bilinear", "bicubic")


class SamplingBuilder(Builder):
    """An arena in which grids may be sampled; sample k is argument ``first + k`` of the graph.

    Args:
        first: number of the function's own arguments.

    Attributes:
        probes: what ``ag.probe`` named, by name.
    """

    __slots__ = ("first", "probes", "samples")

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.probes: dict[str, Probe] = {}
        self.samples: list[tuple[_Grid, tuple[int, ...]]] = []

    def sample(self, grid: _Grid, coordinates: tuple[int, ...]) -> Scalar:
        """The traced value of a grid at traced coordinates; the same twice is one sample."""
        for k, (known, where) in enumerate(self.samples):
            if known is grid and where == coordinates:
                return Scalar(self, self.input(self.first + k, 0))
        self.samples.append((grid, coordinates))
        return Scalar(self, self.input(self.first + len(self.samples) - 1, 0))


class _Grid:
    """Samples on a regular grid, the last axis of the array being x."""

    dimensions = 0

    def __init__(
        self,
        values: ArrayLike,
        origin: ArrayLike | None = None,
        spacing: ArrayLike = 1.0,
        method: str = "bilinear",
    ) -> None:
        name, d = type(self).__name__, self.dimensions
        array = np.array(values, np.float64)
        if array.ndim != d or min(array.shape) < 2:
            raise ShapeError(
                f"{name}: got values of shape {array.shape}, expected {d} axes of at least 2 "
                "samples"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name}: {np.sum(~np.isfinite(array))} values are not finite")
        if method not in METHODS:
            raise InputError(f"{name}: method={method!r}, expected {' or '.join(METHODS)}")
        self.values: FloatArray = array
        self.values.flags.writeable = False
        self.origin = self._per_axis("origin", 0.0 if origin is None else origin)
        self.spacing = self._per_axis("spacing", spacing)
        if (self.spacing <= 0.0).any():
            raise InputError(f"{name}: spacing is {self.spacing}, expected positive numbers")
        self.method = method

    def _per_axis(self, what: str, given: ArrayLike) -> FloatArray:
        numbers = np.array(given, np.float64)
        if numbers.shape not in ((), (self.dimensions,)) or not np.isfinite(numbers).all():
            raise ShapeError(
                f"{type(self).__name__}: {what} is {given!r}, expected a finite number or "
                f"{self.dimensions} of them, x first"
            )
        return np.broadcast_to(numbers, self.dimensions).copy()

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.values.shape))
        return f"{type(self).__name__}({shape}, {self.method})"

    def __call__(self, *coordinates: Any) -> Any:
        """Value at x, y (, z), or at one vector or array of them; clamped to the grid's edge.

        Raises:
            ShapeError: another number of coordinates.
            TraceError: traced outside of a problem's residual function.
        """
        items: Sequence[Any] = coordinates
        if len(coordinates) == 1:
            # A traced vector has a shape too; its items are no numbers.
            if len(getattr(coordinates[0], "shape", ())) > 1:
                return self.interpolate(coordinates[0])[0]
            items = list(coordinates[0])
        if len(items) != self.dimensions:
            raise ShapeError(
                f"{type(self).__name__}: got {len(items)} coordinates, expected {self.dimensions}"
            )
        traced = [c for c in items if isinstance(c, Scalar)]
        if not traced:
            arrays = np.broadcast_arrays(*[np.asarray(c, np.float64) for c in items])
            return self.interpolate(np.stack(arrays, axis=-1))[0]
        builder = traced[0].builder
        if not isinstance(builder, SamplingBuilder):
            raise TraceError(
                f"{user_line()}\n  samples a grid; that works in residual functions given to "
                "problem.add_residuals, without loss and sequences"
            )
        nodes = tuple(c.node if isinstance(c, Scalar) else builder.constant(c) for c in items)
        return builder.sample(self, nodes)

    def interpolate(self, points: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Values ``(…)`` and gradients ``(…, d)`` at points ``(…, d)``, x first.

        Beyond the edge the grid goes on as it is there, with gradient 0 across it. Between cells
        of a bilinear grid the gradient is that of the cell above.
        """
        p = np.asarray(points, np.float64)
        d = self.dimensions
        if p.ndim == 0 or p.shape[-1] != d:
            raise ShapeError(f"{type(self).__name__}: points of shape {p.shape}, expected (…, {d})")
        flat = p.reshape(-1, d)
        stencils = [self._stencil(flat[:, k], k) for k in range(d)]
        samples: list[NDArray[np.int64]] = []
        for axis in range(d):  # the array's axes are z, y, x
            own = stencils[d - 1 - axis][0]
            samples.append(
                own.reshape(len(own), *(own.shape[1] if a == axis else 1 for a in range(d)))
            )
        values = self.values[tuple(samples)]
        result = [self._contract(values, stencils, k) for k in (None, *range(d))]
        gradient = np.stack(result[1:], axis=-1) / self.spacing
        return result[0].reshape(p.shape[:-1]), gradient.reshape(p.shape)

    def _contract(self, values: FloatArray, stencils: Sequence[Any], by: int | None) -> FloatArray:
        """Sum over the taps of every axis, with the derivative's weights on axis ``by``."""
        for k in range(self.dimensions):  # x is the last axis, and the first to go
            weights = stencils[k][2 if k == by else 1]
            values = np.einsum("p...t,pt->p...", values, weights)
        return values

    def _stencil(self, x: FloatArray, k: int) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
        """Samples ``(points, taps)`` along axis k, their weights, and the weights' derivatives."""
        size = self.values.shape[self.dimensions - 1 - k]
        given = (x - self.origin[k]) / self.spacing[k]
        place = np.clip(given, 0.0, size - 1.0)
        cell = np.minimum(np.floor(np.nan_to_num(place)), size - 2.0)
        t = place - cell
        inside = ((given >= 0.0) & (given <= size - 1.0)).astype(np.float64)
        if self.method == "bilinear":
            taps = np.array([0, 1])
            weights = [1.0 - t, t]
            slopes = [np.full_like(t, -1.0), np.ones_like(t)]
        else:
            taps = np.array([-1, 0, 1, 2])
            weights = [
                0.5 * t * (t * (2.0 - t) - 1.0),
                0.5 * (t * t * (3.0 * t - 5.0) + 2.0),
                0.5 * t * (t * (4.0 - 3.0 * t) + 1.0),
                0.5 * t * t * (t - 1.0),
            ]
            slopes = [
                0.5 * (t * (4.0 - 3.0 * t) - 1.0),
                0.5 * t * (9.0 * t - 10.0),
                0.5 * (t * (8.0 - 9.0 * t) + 1.0),
                0.5 * t * (3.0 * t - 2.0),
            ]
        samples = np.clip(cell.astype(np.int64)[:, None] + taps, 0, size - 1)
        return samples, np.stack(weights, 1), np.stack(slopes, 1) * inside[:, None]


class Grid2D(_Grid):
    """An image or field sampled at ``origin + spacing · (column, row)``.

    Args:
        values: ``(rows, columns)``, copied; rows along y, columns along x.
        origin: x and y of ``values[0, 0]``, or one number for both.
        spacing: distance of samples along x and y, or one number for both.
        method: ``bilinear``, or ``bicubic`` (Catmull-Rom), which has continuous gradients.

    Raises:
        ShapeError: not two axes of at least 2 samples.
        InputError: values that are not finite, or an unknown method.
    """

    dimensions = 2


class Grid3D(_Grid):
    """A volume sampled at ``origin + spacing · (column, row, slice)``.

    ``values[slice, row, column]``: slices along z, rows along y, columns along x. Arguments and
    errors as for ``Grid2D``, with three axes; the methods are tri-linear and tri-cubic.
    """

    dimensions = 3
