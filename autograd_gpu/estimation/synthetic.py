"""Pose graphs made up, with known truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError
from autograd_gpu.estimation.pose_graph import PoseGraph
from autograd_gpu.lie_groups import SE3

FloatArray = NDArray[np.float64]


def sphere_of_poses(
    laps: int = 50,
    poses_per_lap: int = 50,
    radius: float = 10.0,
    rotation_noise: float = 0.01,
    translation_noise: float = 0.02,
    outliers: float = 0.0,
    seed: int = 0,
) -> tuple[PoseGraph, FloatArray]:
    """A body that climbs a sphere in laps, and sees on every lap where it was on the one before.

    Edges are the steps from pose to pose (odometry), and one from every pose to the one next to it
    on the next lap (loop closures). Every motion is measured with noise on the right: axis times
    angle and translation with the given standard deviations, by whose inverse squares it is
    weighted.

    Args:
        laps: how often the body goes around, from pole to pole.
        poses_per_lap: poses in all are the product of both.
        radius: of the sphere.
        rotation_noise: radians.
        translation_noise: in the unit of the radius.
        outliers: share of the loop closures that lead to a pose drawn at random instead.
        seed: of NumPy's generator.

    Returns:
        the graph, its poses being those that odometry leads to, and the true poses.

    Raises:
        InputError: fewer than 2 laps or 3 poses a lap, or noise that is not positive.

    Source: the data set ``sphere`` of Kümmerle et al. 2011, by its generator in g2o.
    """
    if laps < 2 or poses_per_lap < 3 or not min(rotation_noise, translation_noise, radius) > 0.0:
        raise InputError(
            f"sphere_of_poses: laps={laps}, poses_per_lap={poses_per_lap}, radius={radius}, noise "
            f"{rotation_noise} and {translation_noise}; expected at least 2 and 3, and positive "
            "lengths"
        )
    rng = np.random.default_rng(seed)
    count = laps * poses_per_lap
    true = _climb(count, poses_per_lap, radius)
    start = np.concatenate([np.arange(count - 1), np.arange(count - poses_per_lap)])
    end = np.concatenate([np.arange(1, count), np.arange(poses_per_lap, count)])
    deviation = np.repeat([rotation_noise, translation_noise], 3)
    noise = SE3.exp(deviation * rng.standard_normal((len(start), 6)))
    exact = SE3.from_vector(true[start]).inverse() @ SE3.from_vector(true[end])
    measured = SE3.nearest((exact @ noise).to_vector())
    closures = np.arange(count - 1, len(start))
    wrong = rng.choice(closures, round(outliers * len(closures)), replace=False)
    elsewhere = SE3.from_vector(true[rng.integers(0, count, len(wrong))])
    measured[wrong] = (SE3.from_vector(true[start[wrong]]).inverse() @ elsewhere).to_vector()
    information = np.broadcast_to(np.diag(deviation**-2.0), (len(start), 6, 6))
    graph = PoseGraph(SE3, true, np.stack([start, end], 1), measured, information)
    return graph.from_odometry(), true


def _climb(count: int, per_lap: int, radius: float) -> FloatArray:
    """Poses on a spiral from pole to pole that look along their way, up being outwards."""
    t = (np.arange(count) + 0.5) / count
    height, around = np.pi * (t - 0.5), 2.0 * np.pi * np.arange(count) / per_lap
    zero = np.zeros(count)
    # First up to the height, then around the axis: both turns move the pose with them.
    turn = SE3.exp(np.stack([zero, zero, around, zero, zero, zero], 1))
    tilt = SE3.exp(np.stack([zero, -height, zero, zero, zero, zero], 1))
    out = SE3.exp(np.stack([zero, zero, zero, zero + radius, zero, zero], 1))
    return SE3.nearest((turn @ tilt @ out).to_vector())
