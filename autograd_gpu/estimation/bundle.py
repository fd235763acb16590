"""Bundle adjustment: cameras, points, and where the ones see the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.lie_groups import SO3
from autograd_gpu.losses import Loss
from autograd_gpu.solvers.problem import Problem

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def reprojection_error(camera: Any, point: Any, observed: Any) -> Any:
    """Pixels between where a camera should see a point and where it does.

    The point P = R X + t is seen at -f (1 + k₁ρ² + k₂ρ⁴) p, p = (P.x, P.y)/P.z, ρ = ‖p‖: the camera
    looks along its negative z axis.

    Args:
        camera: axis times angle of R (3), t (3), focal length f in pixels, k₁, k₂.
        point: X, 3.
        observed: pixels from the centre of the picture, 2.

    Source: Agarwal et al. 2010, "Bundle adjustment in the large".
    """
    seen = SO3.exp(camera[0:3]).act(point) + camera[3:6]
    p = -seen[0:2] / seen[2]
    squared = p[0] * p[0] + p[1] * p[1]
    return camera[6] * (1.0 + squared * (camera[7] + camera[8] * squared)) * p - observed


@dataclass(frozen=True, eq=False)
class Bundle:
    """Cameras, points and sightings.

    Attributes:
        cameras: ``(cameras, 9)``, as ``reprojection_error`` takes them.
        points: ``(points, 3)``.
        camera_of, point_of: ``(sightings,)``, who saw what.
        observed: ``(sightings, 2)``, pixels.
    """

    cameras: FloatArray
    points: FloatArray
    camera_of: IntArray
    point_of: IntArray
    observed: FloatArray

    def problem(self, loss: Loss | Callable[[Any], Any] | None = None) -> Problem:
        """Parameters ``cameras`` and ``points``, residuals of two pixels a sighting.

        Args:
            loss: as for ``Problem.add_residuals``.
        """
        problem = Problem()
        camera = problem.parameters("cameras", self.cameras)
        point = problem.parameters("points", self.points)
        problem.add_residuals(
            reprojection_error, camera[self.camera_of], point[self.point_of], self.observed,
            loss=loss, name="sightings",
        )  # fmt: skip
        return problem
