"""Inverse kinematics of six-joint arms: a small problem that comes in thousands of copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag

FloatArray = NDArray[np.float64]

# Denavit-Hartenberg parameters of a Universal Robots UR5 (maker's data sheet): link lengths and
# offsets in metres, twists in radians.
LENGTH = (0.0, -0.425, -0.39225, 0.0, 0.0, 0.0)
OFFSET = (0.089159, 0.0, 0.0, 0.10915, 0.09465, 0.0823)
TWIST = (np.pi / 2, 0.0, 0.0, np.pi / 2, -np.pi / 2, 0.0)


def pose(q: Any, sine: Any = ag.sin, cosine: Any = ag.cos) -> tuple[list[Any], list[Any]]:
    """Position (3) and orientation (9, row by row) of the hand for joint angles q, radians."""
    rotation: list[list[Any]] = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    position: list[Any] = [0.0, 0.0, 0.0]
    for k in range(6):
        c, s = cosine(q[k]), sine(q[k])
        ct, st = float(np.cos(TWIST[k])), float(np.sin(TWIST[k]))
        link = [[c, -s * ct, s * st], [s, c * ct, -c * st], [0.0, st, ct]]
        offset = [LENGTH[k] * c, LENGTH[k] * s, OFFSET[k]]
        position = [
            position[i] + sum(rotation[i][j] * offset[j] for j in range(3)) for i in range(3)
        ]
        rotation = [
            [sum(rotation[i][m] * link[m][j] for m in range(3)) for j in range(3)] for i in range(3)
        ]
    return position, [entry for row in rotation for entry in row]


def reach(q: Any, target: Any, orientation: Any) -> list[Any]:
    """Distance of the hand from its target: 3 of position, 9 of orientation (times 0.2 m)."""
    position, rotation = pose(q)
    return [position[i] - target[i] for i in range(3)] + [
        0.2 * (rotation[i] - orientation[i]) for i in range(9)
    ]


def arms(count: int, seed: int = 0) -> dict[str, FloatArray]:
    """Reachable targets (position, orientation) and starts up to 0.5 rad away from a solution."""
    rng = np.random.default_rng(seed)
    solution = rng.uniform(-np.pi, np.pi, (count, 6))
    position, rotation = pose(solution.T, np.sin, np.cos)
    return {
        "start": solution + rng.uniform(-0.5, 0.5, (count, 6)),
        "target": np.stack([np.broadcast_to(p, count) for p in position], axis=1),
        "orientation": np.stack([np.broadcast_to(r, count) for r in rotation], axis=1),
    }


def arm_problem() -> ag.Problem:
    """One arm, with room for its target."""
    problem = ag.Problem()
    q = problem.parameters("q", np.zeros((1, 6)))
    problem.add_residuals(reach, q, np.zeros((1, 3)), np.zeros((1, 9)), name="reach")
    return problem
