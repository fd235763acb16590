"""Finer meshes from coarse ones."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from autograd_gpu.errors import InputError

if TYPE_CHECKING:
    from autograd_gpu.meshes.mesh import Mesh


def refine(mesh: Mesh, times: int) -> Mesh:
    """Split every face in four at the midpoints of its edges.

    The old vertices come first, then the midpoint of edge k as vertex n + k; face 4f + c has
    corner c of face f, and 4f + 3 is the middle one. The surface stays as it is.

    Raises:
        InputError: ``times`` is not an integer of at least 0.
        MeshError: a face names a vertex twice.
    """
    for _ in range(_times(times, "refined")):
        n = len(mesh.vertices)
        i, j = mesh.edges.T
        vertices = np.concatenate([mesh.vertices, 0.5 * (mesh.vertices[i] + mesh.vertices[j])])
        (a, b, c), (ab, bc, ca) = mesh.faces.T, n + mesh.face_edges.T
        corners = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
        faces = np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)
        mesh = type(mesh)(vertices, faces.reshape(-1, 3))
    return mesh


def subdivide_loop(mesh: Mesh, times: int) -> Mesh:
    """Refine by Loop's scheme, which smooths the surface; by trimesh.

    Raises:
        InputError: ``times`` is not an integer of at least 0.
        MeshError: edges are not manifold.

    Source: Loop 1987, Smooth subdivision surfaces based on triangles.
    """
    count = _times(times, "loop_subdivided")
    if count == 0:
        return mesh
    mesh.require_manifold()
    import trimesh

    remesh: Any = trimesh.remesh
    vertices, faces = remesh.subdivide_loop(
        mesh.vertices.copy(), mesh.faces.copy(), iterations=count
    )
    return type(mesh)(vertices, faces)


def _times(times: int, operation: str) -> int:
    try:
        count = operator.index(times)
    except TypeError as error:
        raise InputError(
            f"Mesh.{operation}: times is {times!r}, expected an integer of at least 0"
        ) from error
    if count < 0:
        raise InputError(f"Mesh.{operation}: times is {count}, expected at least 0")
    return count
