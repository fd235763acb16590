"""What is wrong with a mesh, counted and numbered; and repair, where it is asked for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import InputError
from autograd_gpu.meshes.connectivity import collapsed_faces, corner_fans, first_few

if TYPE_CHECKING:
    from autograd_gpu.meshes.mesh import Mesh

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_REMEDIES = {
    "collapsed_faces": ("faces that name a vertex twice", "remove"),
    "flat_faces": ("faces of zero area, corners distinct", "remove, or move their corners"),
    "duplicate_faces": ("faces with the corners of an earlier face", "remove"),
    "duplicate_vertices": ("vertices where an earlier vertex is", "merge"),
    "unreferenced_vertices": ("vertices without a face", "remove"),
    "crowded_edges": ("edges with three or more faces", "split"),
    "twisted_edges": ("edges whose two faces are oriented differently", "orient"),
    "touching_vertices": ("vertices where several fans of faces meet", "split"),
}
"""Field of ``Defects``: what it lists, and what ``repair`` can do about it."""


@dataclass(frozen=True, eq=False)
class Defects:
    """Rows of a mesh that residuals may stumble over; empty arrays where all is well.

    Attributes:
        collapsed_faces: faces that name a vertex twice.
        flat_faces: faces of zero area up to rounding, with three different corners.
        duplicate_faces: faces with the same three corners as an earlier one, in any order.
        duplicate_vertices: vertices at the position of an earlier one.
        unreferenced_vertices: vertices without a face.
        crowded_edges: (k, 2) vertex pairs of edges with three or more faces.
        twisted_edges: (k, 2) vertex pairs of edges whose two faces traverse them the same way.
        touching_vertices: vertices at manifold edges only, where several fans of faces meet.
    """

    collapsed_faces: IntArray
    flat_faces: IntArray
    duplicate_faces: IntArray
    duplicate_vertices: IntArray
    unreferenced_vertices: IntArray
    crowded_edges: IntArray
    twisted_edges: IntArray
    touching_vertices: IntArray

    @property
    def counts(self) -> dict[str, int]:
        """Number of entries of every kind."""
        return {field.name: len(getattr(self, field.name)) for field in fields(self)}

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not any(self.counts.values())

    def __str__(self) -> str:
        """One line for every kind that occurs: count, first numbers, remedy."""
        found = [name for name, count in self.counts.items() if count]
        if not found:
            return "no defects"
        return "\n".join(
            f"{len(getattr(self, name))} {_REMEDIES[name][0]}: {first_few(getattr(self, name))} "
            f"({_REMEDIES[name][1]})"
            for name in found
        )

    __repr__ = __str__


def _repeats(rows: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Rows equal to an earlier one, ascending, and for every row the first that equals it."""
    if len(rows) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, first, group = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    original = first[group.reshape(-1)]
    return np.flatnonzero(original != np.arange(len(rows))), original


def find_defects(mesh: Mesh) -> Defects:
    """Look for everything that ``Defects`` lists; changes nothing."""
    sides = mesh.sides
    collapsed = collapsed_faces(mesh.faces)
    used = np.zeros(len(mesh.vertices), dtype=np.bool_)
    used[mesh.faces] = True
    ahead = np.bincount(sides.edge[sides.forward], minlength=len(mesh.edges))
    uses = np.bincount(sides.edge, minlength=len(mesh.edges))
    crowded, twisted = uses > 2, (uses == 2) & (ahead != 1)
    fans = np.bincount(mesh.fans.origin[mesh.fans.place == 0], minlength=len(mesh.vertices))
    several = fans > 1
    several[mesh.edges[crowded | twisted]] = False
    return Defects(
        collapsed_faces=collapsed,
        flat_faces=np.setdiff1d(mesh.flat_faces, collapsed),
        duplicate_faces=_repeats(np.sort(mesh.faces, axis=1))[0],
        # Adding 0.0 makes -0.0 and 0.0 the same bits.
        duplicate_vertices=_repeats(mesh.vertices + 0.0)[0],
        unreferenced_vertices=np.flatnonzero(~used),
        crowded_edges=mesh.edges[crowded],
        twisted_edges=mesh.edges[twisted],
        touching_vertices=np.flatnonzero(several),
    )


@dataclass(frozen=True, eq=False)
class Repair:
    """A repaired mesh, and where its rows come from.

    Attributes:
        mesh: the new mesh.
        vertex_rows: (n,) the vertex of the old mesh that each vertex is.
        face_rows: (m,) the face of the old mesh that each face is.
    """

    mesh: Mesh
    vertex_rows: IntArray
    face_rows: IntArray


def repair(
    mesh: Mesh,
    *,
    merge: bool = False,
    remove: bool = False,
    orient: bool = False,
    split: bool = False,
) -> Repair:
    """Make a new mesh without the defects named; in this order, and nothing else is touched.

    Args:
        mesh: any mesh; it stays as it is.
        merge: vertices at exactly the same position become one.
        remove: collapsed, flat and duplicate faces go, then vertices without a face.
        orient: faces are flipped until neighbours agree (``trimesh.repair.fix_winding``).
        split: at crowded and twisted edges and where fans touch, every sheet gets its own vertices.

    Raises:
        InputError: nothing was asked for.
    """
    if not (merge or remove or orient or split):
        raise InputError(
            "repair: nothing asked for; pass merge=True, remove=True, orient=True or split=True "
            "(mesh.defects() says what each would do)"
        )
    make = type(mesh)
    vertex_rows, face_rows = np.arange(len(mesh.vertices)), np.arange(len(mesh.faces))
    vertices, faces = mesh.vertices, np.array(mesh.faces)
    if merge:
        faces = _repeats(vertices + 0.0)[1][faces]
    if remove:
        now = find_defects(make(vertices, faces))
        bad = np.concatenate([now.collapsed_faces, now.flat_faces, now.duplicate_faces])
        kept = np.setdiff1d(face_rows, bad)
        faces, face_rows = faces[kept], face_rows[kept]
    if orient:
        import trimesh

        solid: Any = make(vertices, faces).to_trimesh()
        trimesh.repair.fix_winding(solid)  # pyright: ignore[reportUnknownMemberType]
        faces = np.asarray(solid.faces, dtype=np.int64)
    if split:
        faces, vertex_rows = corner_fans(faces, len(vertices))
    if remove or merge:
        # Vertices that were merged away go in any case; others without a face only on request.
        used = np.zeros(len(vertex_rows), dtype=np.bool_)
        used[faces] = True
        if not remove:
            used |= _repeats(vertices + 0.0)[1][vertex_rows] == vertex_rows
        faces, vertex_rows = (np.cumsum(used) - 1)[faces], vertex_rows[used]
    return Repair(make(vertices[vertex_rows], faces), vertex_rows, face_rows)
