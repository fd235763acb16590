"""Meshes from and to the classes of other libraries, which load when first asked for."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import InputError, MeshError, MissingDependencyError
from autograd_gpu.meshes.mesh import Mesh

from_trimesh = Mesh.from_trimesh


def to_trimesh(mesh: Mesh) -> Any:
    """Vertices and faces as a ``trimesh.Trimesh``, unprocessed copies."""
    return mesh.to_trimesh()


def from_meshio(mesh: Any) -> Mesh:
    """Take the points, triangles and quads of a ``meshio.Mesh``; quads are split along corner 0–2.

    Points in the plane get z = 0. Points without a face stay; other kinds of cells are refused,
    as leaving them out would change the model.

    Raises:
        InputError: the object has no points or cells, or cells that are no surface.
        MeshError: there is neither a triangle nor a quad.
    """
    points, cells = getattr(mesh, "points", None), getattr(mesh, "cells", None)
    if points is None or cells is None:
        raise InputError(
            f"from_meshio: got {type(mesh).__name__}, expected a meshio.Mesh (with points and "
            "cells)"
        )
    kinds = sorted({str(block.type) for block in cells} - {"triangle", "quad", "vertex", "line"})
    if kinds:
        raise InputError(
            f"from_meshio: cells of type {', '.join(kinds)}, expected triangles and quads; pass "
            "the boundary surface, or remove these cells"
        )
    faces = [_triangles(np.asarray(b.data)) for b in cells if b.type in ("triangle", "quad")]
    if not faces:
        raise MeshError(
            f"from_meshio: {len(points)} points but no triangles or quads; a mesh needs them"
        )
    return Mesh(_spatial(np.asarray(points)), np.concatenate(faces))


def to_meshio(mesh: Mesh) -> Any:
    """Vertices and faces as a ``meshio.Mesh`` of triangles, copies.

    Raises:
        MissingDependencyError: meshio is not installed.
    """
    meshio: Any = library("meshio", "autograd-gpu[meshes]")
    return meshio.Mesh(mesh.vertices.copy(), [("triangle", mesh.faces.copy())])


def from_pyvista(surface: Any) -> Mesh:
    """Take the points and polygons of a ``pyvista.PolyData``; polygons become fans of corner 0.

    Raises:
        InputError: the object has no points or faces.
    """
    points, padded = getattr(surface, "points", None), getattr(surface, "faces", None)
    if points is None or padded is None or np.ndim(padded) != 1:
        raise InputError(
            f"from_pyvista: got {type(surface).__name__}, expected a pyvista.PolyData (with points "
            "and faces); of another data set, pass its extract_surface()"
        )
    # Every face is its number of corners, followed by them.
    entries, faces, k = np.asarray(padded, dtype=np.int64), list[npt.NDArray[np.int64]](), 0
    if len(entries) % 4 == 0 and (entries[::4] == 3).all():
        return Mesh(np.asarray(points), entries.reshape(-1, 4)[:, 1:])
    while k < len(entries):
        faces.append(_triangles(entries[None, k + 1 : k + 1 + entries[k]]))
        k += 1 + int(entries[k])
    return Mesh(np.asarray(points), np.concatenate(faces))


def to_pyvista(mesh: Mesh) -> Any:
    """Vertices and faces as a ``pyvista.PolyData``, copies.

    Raises:
        MissingDependencyError: pyvista is not installed.
    """
    pyvista: Any = library("pyvista", "pyvista")
    corners = np.full((len(mesh.faces), 1), 3)
    return pyvista.PolyData(mesh.vertices.copy(), np.hstack([corners, mesh.faces]).ravel())


def to_polyscope(mesh: Mesh, name: str = "mesh", **options: Any) -> Any:
    """Register the mesh with polyscope under a name; ``polyscope.show()`` then opens the window.

    Args:
        mesh: what to show.
        name: a mesh of the same name is replaced.
        options: passed on to ``polyscope.register_surface_mesh`` (color, smooth_shade, …).

    Returns:
        The ``polyscope.SurfaceMesh``, to add quantities to. (Its positions cannot be read back, so
        there is no way from polyscope.)

    Raises:
        MissingDependencyError: polyscope is not installed.
    """
    polyscope = require_polyscope()
    polyscope.init()
    return polyscope.register_surface_mesh(name, mesh.vertices, mesh.faces, **options)


def require_polyscope() -> Any:
    """The module polyscope.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return library("polyscope", "autograd-gpu[show]")


def library(name: str, requirement: str) -> Any:
    """Import an optional library, or say how to install it.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"this needs {name}, which cannot be imported ({error}); pip install '{requirement}'"
        ) from error


def _triangles(polygons: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    """Split (m, k) polygons into fans around their first corner, (m (k − 2), 3)."""
    width = polygons.shape[1]
    fans = [polygons[:, [0, k, k + 1]] for k in range(1, width - 1)]
    return np.stack(fans, axis=1).reshape(-1, 3).astype(np.int64)


def _spatial(points: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Points of the plane get z = 0."""
    if points.ndim == 2 and points.shape[1] == 2:
        return np.column_stack([points, np.zeros(len(points))])
    return points
