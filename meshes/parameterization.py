"""Maps of disks to the plane: Tutte's embedding to start from, and how far a step may go."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import MeshError, ShapeError
from autograd_gpu.meshes.mesh import Mesh

FloatArray = npt.NDArray[np.float64]


def tutte_embedding(mesh: Mesh) -> FloatArray:
    """Map a disk to a circle of the same area so that no face is flipped.

    The boundary goes around the circle by its lengths, and every other vertex is the mean of its
    neighbours.

    Returns:
        positions (n, 2), units of the mesh; all faces counter-clockwise. Where the mesh is much
        finer in its middle than circles are, faces get small, down to rounding.

    Raises:
        MeshError: the mesh is not a disk: one boundary, Euler characteristic 1, and every vertex
            in a face.

    Source: Tutte 1963, How to draw a graph; Floater 1997, Parametrization and smooth
    approximation of surface triangulations.
    """
    loops, count = mesh.boundary_loops, len(mesh.vertices)
    unused = count - len(np.unique(mesh.faces))
    if len(loops) != 1 or mesh.euler_characteristic != 1 or unused:
        raise MeshError(
            f"tutte_embedding: the mesh has {len(loops)} boundaries, Euler characteristic "
            f"{mesh.euler_characteristic} and {unused} vertices without a face; expected a disk: "
            "1, 1 and 0"
        )
    sparse: Any = importlib.import_module("scipy.sparse")
    linalg: Any = importlib.import_module("scipy.sparse.linalg")
    loop = loops[0]
    corners = mesh.vertices[loop]
    lengths = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    angles = 2.0 * np.pi * np.concatenate([[0.0], np.cumsum(lengths)[:-1]]) / lengths.sum()
    placed = np.zeros((count, 2))
    radius = np.sqrt(mesh.face_areas.sum() / np.pi)
    placed[loop] = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    inner = np.ones(count, np.bool_)
    inner[loop] = False
    if not inner.any():
        return placed
    i, j = np.concatenate([mesh.edges, mesh.edges[:, ::-1]]).T
    adjacency: Any = sparse.csr_array((np.ones(len(i)), (i, j)), shape=(count, count))
    laplacian: Any = sparse.csr_array(
        (adjacency.sum(axis=1), (np.arange(count), np.arange(count))), shape=(count, count)
    )
    laplacian = (laplacian - adjacency)[inner]
    solver: Any = linalg.splu(laplacian[:, inner].tocsc())
    placed[inner] = solver.solve(-(laplacian[:, ~inner] @ placed[~inner]))
    return placed


def longest_step_without_flips(
    faces: npt.ArrayLike, positions: npt.ArrayLike, directions: npt.ArrayLike
) -> float:
    """Length at which the first face of a map to the plane loses its area; infinite if none does.

    Args:
        faces: (m, 3), all counter-clockwise in ``positions``.
        positions: (n, 2).
        directions: (n, 2).

    Source: Smith and Schaefer 2015, Bijective parameterization with free boundaries, §3.3: the
    signed area is a quadratic in the length, and its smallest positive root is wanted.
    """
    f = np.asarray(faces)
    u, d = np.asarray(positions, np.float64), np.asarray(directions, np.float64)
    if u.ndim != 2 or u.shape[1] != 2 or u.shape != d.shape:
        raise ShapeError(
            f"longest_step_without_flips: positions {u.shape} and directions {d.shape}, expected "
            "both (n, 2)"
        )
    s, t = u[f[:, 1]] - u[f[:, 0]], u[f[:, 2]] - u[f[:, 0]]
    ds, dt = d[f[:, 1]] - d[f[:, 0]], d[f[:, 2]] - d[f[:, 0]]
    c = s[:, 0] * t[:, 1] - s[:, 1] * t[:, 0]
    b = ds[:, 0] * t[:, 1] - ds[:, 1] * t[:, 0] + s[:, 0] * dt[:, 1] - s[:, 1] * dt[:, 0]
    a = ds[:, 0] * dt[:, 1] - ds[:, 1] * dt[:, 0]
    # c > 0: the smallest positive root of aα² + bα + c is 2c / (-b + √(b² - 4ac)) if that is one.
    inside = b * b - 4.0 * a * c
    below = np.sqrt(np.where(inside > 0.0, inside, 0.0)) - b
    roots = np.where(
        (inside >= 0.0) & (below > 0.0), 2.0 * c / np.where(below > 0.0, below, 1.0), np.inf
    )
    return float(np.min(roots, initial=np.inf))
