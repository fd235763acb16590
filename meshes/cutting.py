"""Cutting a mesh open along edges, and finding where to cut."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import IndexRangeError, InputError, MeshError
from autograd_gpu.meshes.connectivity import corner_fans, first_few

if TYPE_CHECKING:
    from autograd_gpu.meshes.mesh import Mesh

IntArray = npt.NDArray[np.int64]


def cut(mesh: Mesh, edges: npt.ArrayLike) -> tuple[Mesh, IntArray]:
    """Open a mesh along edges: both sides of the seam get their own vertices.

    Args:
        mesh: any mesh; it stays as it is. Edges that are not manifold are opened as well.
        edges: rows of ``mesh.edges``.

    Returns:
        The opened mesh, faces in the same order, and the vertex of ``mesh`` that each of its
        vertices is, (n,): every vertex keeps its number on one side, copies follow at the end.

    Raises:
        IndexRangeError: there is no edge of such a number.
        InputError: edges are no integers.
    """
    rows = np.asarray(edges)
    if rows.size and rows.dtype.kind not in "iu":
        raise InputError(f"cut: edges has dtype {rows.dtype}, expected rows of mesh.edges")
    bad = rows[(rows < 0) | (rows >= len(mesh.edges))]
    if len(bad):
        raise IndexRangeError(
            f"cut: {len(bad)} of {rows.size} edges are outside 0 to {len(mesh.edges) - 1}: "
            f"{first_few(bad)}; give rows of mesh.edges"
        )
    faces, vertex_rows = corner_fans(mesh.faces, len(mesh.vertices), rows.astype(np.int64))
    return type(mesh)(mesh.vertices[vertex_rows], faces), vertex_rows


def seam(mesh: Mesh, terminals: npt.ArrayLike) -> IntArray:
    """Edges of a short tree that joins vertices: where to cut a sphere-like mesh to a disk.

    Starts at the first terminal and joins the nearest of the others by a shortest path along
    edges, again and again. Rows of ``mesh.edges``, ascending. On a closed mesh of genus 0, ``cut``
    then leaves one boundary; longer seams that reach into limbs flatten with less distortion.

    Raises:
        IndexRangeError: there is no vertex of such a number.
        InputError: fewer than two different terminals.
        MeshError: no path of edges joins the terminals.
    """
    ends = np.unique(np.asarray(terminals, dtype=np.int64))
    if len(ends) < 2:
        raise InputError(f"seam: {len(ends)} terminal(s), expected two different vertices or more")
    if ends[0] < 0 or ends[-1] >= len(mesh.vertices):
        raise IndexRangeError(
            f"seam: terminals from {ends[0]} to {ends[-1]}, the mesh has vertices 0 to "
            f"{len(mesh.vertices) - 1}"
        )
    from scipy import sparse

    n = len(mesh.vertices)
    i, j = mesh.edges.T
    graph: Any = sparse.coo_array((mesh.edge_lengths, (i, j)), shape=(n, n)).tocsr()
    dijkstra: Any = sparse.csgraph.dijkstra
    tree, left = [int(ends[0])], set(ends[1:].tolist())
    pairs: list[tuple[int, int]] = []
    while left:
        distance, before, _ = dijkstra(
            graph, directed=False, indices=tree, min_only=True, return_predecessors=True
        )
        nearest = min(left, key=lambda v: distance[v])
        if not np.isfinite(distance[nearest]):
            raise MeshError(
                f"seam: no path of edges joins vertices {first_few(sorted(left))} to the others; "
                "give terminals of one component"
            )
        while before[nearest] >= 0:
            pairs.append((nearest, int(before[nearest])))
            tree.append(nearest)
            nearest = int(before[nearest])
        left -= set(tree)
    ordered = np.sort(np.array(pairs, dtype=np.int64), axis=1)
    return np.unique(np.searchsorted(i * n + j, ordered[:, 0] * n + ordered[:, 1]))
