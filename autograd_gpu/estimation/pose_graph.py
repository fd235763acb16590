"""Pose graphs: poses of a body, and motions between pairs of them as they were measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu.errors import IndexRangeError, InputError, ShapeError
from autograd_gpu.lie_groups import SE2, SE3
from autograd_gpu.losses import Loss
from autograd_gpu.quaternion import components_of, gathered
from autograd_gpu.solvers.problem import Problem

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Pose = type[SE2] | type[SE3]


def between(first: Any, second: Any, measured: Any) -> Any:
    """What the motion between two poses differs by from what was measured.

    With E = Z⁻¹ · X⁻¹ · Y, the difference as a motion: for SE3 the rotation vector of E (radians,
    3) and its translation (3), for SE2 (x, y, angle) of E. All are 0 where the poses agree.

    Args:
        first: X, where the motion begins; an ``SE2`` or ``SE3``.
        second: Y, where it ends.
        measured: numbers of Z, a vector of 3 or 7.

    Source: Kümmerle et al. 2011, "g2o: a general framework for graph optimization", §V; with the
    rotation vector in the place of the vector part of a quaternion.
    """
    group: Any = cast(Any, type(first))
    error: Any = group.from_vector(measured).inverse() @ (first.inverse() @ second)
    if isinstance(error, SE2):
        return gathered([error.x, error.y, error.rotation.log()])
    turn = components_of(error.rotation.log(), 3, "rotation")
    return gathered([*turn, *components_of(error.translation, 3, "translation")])


def square_roots(information: FloatArray) -> FloatArray:
    """Symmetric W with W W = Λ, for which ‖W r‖² = rᵀΛr; ``(count, k, k)``.

    Eigenvalues that rounding made negative are taken as 0, so Λ may be singular.
    """
    values, vectors = np.linalg.eigh(information)
    roots = np.sqrt(np.maximum(values, 0.0))
    return (vectors * roots[:, None, :]) @ vectors.transpose(0, 2, 1)


@dataclass(frozen=True, eq=False)
class PoseGraph:
    """Poses, and measured motions between pairs of them.

    Attributes:
        group: ``SE2`` or ``SE3``.
        poses: ``(n, ambient)``, the start of a solve.
        edges: ``(m, 2)``, positions in ``poses``: where a motion begins and where it ends.
        measurements: ``(m, ambient)``, the motions.
        information: ``(m, tangent, tangent)``, inverse covariances of ``between``, in its order.
        fixed: positions of poses that are held; none by default.
        ids: ``(n,)``, numbers of the poses in a file; their positions by default.

    Raises:
        ShapeError, IndexRangeError, InputError: arrays that do not fit together.
    """

    group: Pose
    poses: FloatArray
    edges: IntArray
    measurements: FloatArray
    information: FloatArray
    fixed: IntArray
    ids: IntArray

    def __init__(
        self,
        group: Pose,
        poses: ArrayLike,
        edges: ArrayLike,
        measurements: ArrayLike,
        information: ArrayLike | None = None,
        fixed: ArrayLike = (),
        ids: ArrayLike | None = None,
    ) -> None:
        numbers = np.array(poses, np.float64)
        pairs = np.array(edges, np.int64).reshape(-1, 2)
        count, width, tangent = len(pairs), group.ambient, group.tangent
        weights = (
            np.broadcast_to(np.eye(tangent), (count, tangent, tangent))
            if information is None
            else np.array(information, np.float64)
        )
        motions = np.array(measurements, np.float64)
        held = np.array(fixed, np.int64).reshape(-1)
        names = np.arange(len(numbers)) if ids is None else np.array(ids, np.int64)
        for what, array, shape in (
            ("poses", numbers, (len(numbers), width)),
            ("measurements", motions, (count, width)),
            ("information", weights, (count, tangent, tangent)),
            ("ids", names, (len(numbers),)),
        ):
            if array.shape != shape:
                raise ShapeError(f"PoseGraph, {what}: got shape {array.shape}, expected {shape}")
        for what, indices in (("edges", pairs), ("fixed", held)):
            if ((indices < 0) | (indices >= len(numbers))).any():
                raise IndexRangeError(
                    f"PoseGraph, {what}: positions of poses beyond 0 to {len(numbers) - 1}"
                )
        if len(np.unique(names)) != len(names):
            raise InputError("PoseGraph, ids: some occur twice; give every pose its own")
        for name, value in (
            ("group", group), ("poses", numbers), ("edges", pairs), ("measurements", motions),
            ("information", weights), ("fixed", held), ("ids", names),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def with_poses(self, poses: ArrayLike) -> PoseGraph:
        """The same graph from other poses, ``(n, ambient)``."""
        return PoseGraph(
            self.group, poses, self.edges, self.measurements, self.information, self.fixed, self.ids
        )

    def from_odometry(self) -> PoseGraph:
        """The same graph from poses that follow the edges (k, k + 1) from pose 0 on.

        Raises:
            InputError: not every pose but the first has such an edge.
        """
        i, j = self.edges.T
        step = {int(a): k for k, (a, b) in enumerate(zip(i, j, strict=True)) if b == a + 1}
        missing = set(range(len(self.poses) - 1)) - step.keys()
        if missing:
            raise InputError(
                f"from_odometry: no edge from pose {min(missing)} to {min(missing) + 1}; start "
                "from other poses"
            )
        motions = self.measurements[[step[k] for k in range(len(self.poses) - 1)]]
        place: Any = self.group.from_vector(self.poses[0])
        poses = [self.poses[0]]
        for motion in motions:
            place = self.group.from_vector(
                self.group.nearest((place @ self.group.from_vector(motion)).to_vector())
            )
            poses.append(place.to_vector())
        return self.with_poses(np.array(poses))

    def problem(self, loss: Loss | Callable[[Any], Any] | None = None) -> Problem:
        """Parameters ``poses`` on the manifold, residuals ``between`` under the information.

        Args:
            loss: as for ``Problem.add_residuals``.

        What is ``fixed`` is frozen; if nothing is, pose 0, without which the whole could move.
        """
        problem = Problem()
        x = problem.parameters("poses", self.poses, manifold=self.group)
        i, j = self.edges.T
        weight = square_roots(self.information)
        if (weight == weight[0]).all():
            weight = weight[0]
        problem.add_residuals(
            between, x[i], x[j], self.measurements, weight=weight, loss=loss, name="between"
        )
        problem.freeze(x, self.fixed if len(self.fixed) else [0])
        return problem
