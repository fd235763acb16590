"""Triangle mesh with the connectivity and weights that residuals are indexed by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import IndexRangeError, InputError, MeshError, ShapeError
from autograd_gpu.meshes import connectivity
from autograd_gpu.meshes.connectivity import first_few
from autograd_gpu.meshes.defects import Defects, find_defects, repair
from autograd_gpu.meshes.quality import Quality, measure_quality
from autograd_gpu.meshes.refinement import refine, subdivide_loop
from autograd_gpu.ragged import Ragged

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Mesh:
    """Triangles over shared vertices; what follows from them is computed when first asked for.

    All arrays, those passed in (copied) and those computed, are read-only.

    Attributes:
        vertices: (n, 3) float64 positions.
        faces: (m, 3) int64 vertex numbers, counter-clockwise seen from outside.

    Raises:
        ShapeError: an array has another shape.
        IndexRangeError: a face names a vertex that does not exist.
        InputError: a vertex is NaN or infinite, or an array has an unfit dtype.

    Faces of zero area are allowed; what needs a normal or an angle of theirs raises ``MeshError``.
    """

    vertices: FloatArray
    faces: IntArray

    def __post_init__(self) -> None:
        vertices = _checked_vertices(np.asarray(self.vertices))
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "faces", _checked_faces(np.asarray(self.faces), len(vertices)))

    def __repr__(self) -> str:
        """Say the counts, not the contents."""
        return f"Mesh({len(self.vertices)} vertices, {len(self.faces)} faces)"

    @cached_property
    def sides(self) -> connectivity.HalfEdges:
        """The directed sides of all faces: what everything else about connectivity is made of."""
        return connectivity.half_edges(self.faces, len(self.vertices))

    @cached_property
    def fans(self) -> connectivity.Fans:
        """Neighbours of every vertex, chained counter-clockwise."""
        return connectivity.vertex_fans(self.sides, self.directed_edges, len(self.vertices))

    @cached_property
    def edges(self) -> IntArray:
        """Vertex pairs i < j of all edges, (k, 2), in lexicographic order."""
        return _read_only(self.sides.edges)

    @cached_property
    def edge_lengths(self) -> FloatArray:
        """Length of every edge, (k,), in the units of the vertices, in the order of ``edges``."""
        i, j = self.edges.T
        return _read_only(np.linalg.norm(self.vertices[j] - self.vertices[i], axis=1))

    @cached_property
    def directed_edges(self) -> IntArray:
        """Both directions (i, j) and (j, i) of every edge, (2k, 2), in lexicographic order."""
        return _read_only(connectivity.directed_edges(self.edges))

    @cached_property
    def face_edges(self) -> IntArray:
        """Edge from corner k to corner k + 1 of every face, (m, 3), rows of ``edges``.

        Raises:
            MeshError: a face names a vertex twice.
        """
        connectivity.require_distinct_corners(self.faces, "Mesh.face_edges")
        return _read_only(np.ascontiguousarray(self.sides.edge.reshape(3, -1).T))

    @cached_property
    def dihedral_stencils(self) -> IntArray:
        """Vertices (a, b, c, d) of every interior edge a < b, (q, 4), sorted by (a, b).

        The edge's faces are (a, b, c) and (b, a, d): the arguments of
        ``energies.dihedral_angle``. Edges on the boundary are left out.

        Raises:
            MeshError: an edge has three or more faces, faces of an edge are oriented differently,
                or a face names a vertex twice.
        """
        connectivity.require_manifold_edges(self.sides, self.faces, "Mesh.dihedral_stencils")
        return _read_only(connectivity.dihedral_stencils(self.sides))

    @cached_property
    def one_rings(self) -> Ragged:
        """Neighbours of every vertex, counter-clockwise seen from outside.

        An interior vertex starts at its smallest neighbour; a boundary vertex starts and ends on
        the boundary; where several fans of faces meet in a vertex, they follow one another.
        Around a vertex at a non-manifold edge, neighbours come in ascending order.
        """
        return connectivity.one_rings(self.fans, len(self.vertices))

    @cached_property
    def boundary_vertices(self) -> IntArray:
        """Vertices of edges that have one face only, ascending."""
        uses = np.bincount(self.sides.edge, minlength=len(self.edges))
        return _read_only(np.unique(self.edges[uses == 1]))

    @cached_property
    def interior_vertices(self) -> IntArray:
        """Vertices whose faces close to one fan, ascending: one-ring k, k + 1 is always a face.

        Left out are vertices on the boundary, at a non-manifold edge, where several fans meet, or
        without faces.
        """
        fans = np.bincount(self.fans.origin[self.fans.place == 0], minlength=len(self.vertices))
        fans[self.boundary_vertices] = 0
        return _read_only(np.flatnonzero(fans == 1))

    @cached_property
    def boundary_loops(self) -> tuple[IntArray, ...]:
        """Vertices of every closed boundary curve in order, faces to the left.

        Raises:
            MeshError: as for ``dihedral_stencils``.
        """
        connectivity.require_manifold_edges(self.sides, self.faces, "Mesh.boundary_loops")
        return connectivity.boundary_loops(self.sides, self.fans, len(self.vertices))

    @cached_property
    def _area_vectors(self) -> FloatArray:
        """(m, 3) normal of every face, twice as long as its area."""
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        return np.cross(b - a, c - a)

    @cached_property
    def face_areas(self) -> FloatArray:
        """Area of every face, (m,)."""
        return _read_only(0.5 * np.linalg.norm(self._area_vectors, axis=1))

    @cached_property
    def vertex_areas(self) -> FloatArray:
        """Barycentric area of every vertex, (n,): a third of the faces around it."""
        shares = np.repeat(self.face_areas / 3.0, 3)
        sums = np.bincount(self.faces.ravel(), shares, minlength=len(self.vertices))
        return _read_only(sums)

    @cached_property
    def face_normals(self) -> FloatArray:
        """Unit normal of every face, (m, 3), pointing outside.

        Raises:
            MeshError: a face has zero area.
        """
        self._require_area("Mesh.face_normals")
        return _read_only(self._area_vectors / (2.0 * self.face_areas)[:, None])

    @cached_property
    def cotangent_weights(self) -> FloatArray:
        """½(cot α + cot β) of every edge, (k,), in the order of ``edges``; no unit.

        α and β are the angles opposite the edge; an edge on the boundary has one of them. A weight
        is negative where the angles sum to more than π.

        Raises:
            MeshError: a face has zero area.

        Source: Pinkall and Polthier 1993, Computing discrete minimal surfaces, §2.
        """
        self._require_area("Mesh.cotangent_weights")
        sides = self.sides
        corner = self.vertices[sides.opposite]
        u, v = self.vertices[sides.origin] - corner, self.vertices[sides.target] - corner
        cotangents = np.einsum("ij,ij->i", u, v) / np.linalg.norm(np.cross(u, v), axis=1)
        return _read_only(0.5 * np.bincount(sides.edge, cotangents, minlength=len(self.edges)))

    @cached_property
    def corner_angles(self) -> FloatArray:
        """Angle at every corner of every face, (m, 3), radians in [0, π]; 0 between no lengths."""
        corners = self.vertices[self.faces]
        u = np.roll(corners, -1, axis=1) - corners
        v = np.roll(corners, 1, axis=1) - corners
        crossed = np.linalg.norm(np.cross(u, v), axis=2)
        return _read_only(np.arctan2(crossed, np.einsum("ijk,ijk->ij", u, v)))

    @cached_property
    def angle_defects(self) -> FloatArray:
        """2π less the angles at every vertex, (n,), on the boundary π less; 0 without faces.

        The integral of Gaussian curvature over the vertex's cell, geodesic on the boundary: over a
        mesh without defects they sum to 2π times the Euler characteristic (Gauss–Bonnet).
        """
        n = len(self.vertices)
        around = np.bincount(self.faces.ravel(), self.corner_angles.ravel(), minlength=n)
        full = np.where(np.bincount(self.faces.ravel(), minlength=n) > 0, 2.0 * np.pi, 0.0)
        full[self.boundary_vertices] = np.pi
        return _read_only(full - around)

    @cached_property
    def mean_value_weights(self) -> FloatArray:
        """(tan ½α + tan ½β) / ‖x_j − x_i‖ of every directed edge (i, j), (2k,), 1 / length.

        α and β are the angles at i beside the edge, on the boundary one of them; in the order of
        ``directed_edges``. Positive, unlike cotangent weights, and not symmetric.

        Raises:
            MeshError: a face has zero area.

        Source: Floater 2003, Mean value coordinates, eq. 2.1.
        """
        self._require_area("Mesh.mean_value_weights")
        half = np.tan(0.5 * self.corner_angles)
        n = len(self.vertices)
        keys = self.directed_edges[:, 0] * n + self.directed_edges[:, 1]
        sums = np.zeros(len(keys))
        for k in range(3):
            for side in (1, 2):
                pair = self.faces[:, k] * n + self.faces[:, (k + side) % 3]
                np.add.at(sums, np.searchsorted(keys, pair), half[:, k])
        i, j = self.directed_edges.T
        return _read_only(sums / np.linalg.norm(self.vertices[j] - self.vertices[i], axis=1))

    @cached_property
    def face_gradients(self) -> FloatArray:
        """What makes gradients over every face of values at its corners, (m, 2, 2), 1 / length.

        Values u at the corners (a, b, c) have the gradient [u_b − u_a, u_c − u_a] G in the face's
        own frame, whose first axis runs along ab; for a map to the plane that is its Jacobian.

        Raises:
            MeshError: a face has zero area.
        """
        self._require_area("Mesh.face_gradients")
        a, b, c = (self.vertices[self.faces[:, k]] for k in range(3))
        length = np.linalg.norm(b - a, axis=1)
        along = np.einsum("ij,ij->i", c - a, b - a) / length
        across = 2.0 * self.face_areas / length
        zero = np.zeros_like(length)
        rows = [[1.0 / length, -along / (length * across)], [zero, 1.0 / across]]
        return _read_only(np.moveaxis(np.array(rows), -1, 0).copy())

    @cached_property
    def euler_characteristic(self) -> int:
        """Vertices − edges + faces; 2 for a sphere. Vertices without a face do not count."""
        used = np.zeros(len(self.vertices), dtype=np.bool_)
        used[self.faces] = True
        return int(used.sum()) - len(self.edges) + len(self.faces)

    @cached_property
    def flat_faces(self) -> IntArray:
        """Faces of zero area up to rounding, ascending."""
        corners = self.vertices[self.faces]
        sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
        longest = np.max(sides, axis=1, initial=0.0)
        # Rounding of the cross product, and of the vertices themselves far from the origin.
        size = longest + np.abs(corners).max(axis=(1, 2), initial=0.0)
        rounding = 4.0 * float(np.finfo(np.float64).eps) * longest * size
        return _read_only(np.flatnonzero(self.face_areas <= rounding))

    def require_manifold(self) -> None:
        """Raise unless every edge has one face, or two that are oriented alike.

        Raises:
            MeshError: names the edges or faces.
        """
        connectivity.require_manifold_edges(self.sides, self.faces, "Mesh.require_manifold")

    def defects(self) -> Defects:
        """Degenerate, duplicated, non-manifold and unreferenced parts, with counts and numbers."""
        return find_defects(self)

    def repaired(
        self,
        *,
        merge: bool = False,
        remove: bool = False,
        orient: bool = False,
        split: bool = False,
    ) -> Mesh:
        """A new mesh without the defects that are named; see ``meshes.repair``."""
        return repair(self, merge=merge, remove=remove, orient=orient, split=split).mesh

    def quality(self) -> Quality:
        """Sizes, angles, valences and regularity; prints as a small table.

        Raises:
            MeshError: a face has zero area.
        """
        return measure_quality(self)

    def refined(self, times: int = 1) -> Mesh:
        """Every face split in four at edge midpoints, ``times`` times; old vertices come first.

        Raises:
            InputError: ``times`` is not an integer of at least 0.
        """
        return refine(self, times)

    def loop_subdivided(self, times: int = 1) -> Mesh:
        """Refine by Loop's scheme, which smooths.

        Raises:
            InputError: ``times`` is not an integer of at least 0.
            MeshError: edges are not manifold.
        """
        return subdivide_loop(self, times)

    def require_nondegenerate(self) -> None:
        """Raise if a face has zero area (up to rounding).

        Raises:
            MeshError: names the faces.
        """
        self._require_area("Mesh.require_nondegenerate")

    def _require_area(self, operation: str) -> None:
        flat = self.flat_faces
        if len(flat):
            raise MeshError(
                f"{operation}: {len(flat)} of {len(self.faces)} faces have zero area: faces "
                f"{first_few(flat)}; remove them (mesh.repaired(remove=True)), or move their "
                "vertices apart"
            )

    def to_trimesh(self) -> Any:
        """Return the same vertices and faces as a ``trimesh.Trimesh``, unprocessed copies."""
        import trimesh

        return trimesh.Trimesh(
            vertices=self.vertices.copy(), faces=self.faces.copy(), process=False, validate=False
        )

    @classmethod
    def from_trimesh(cls, mesh: Any) -> Mesh:
        """Take vertices and faces of a ``trimesh.Trimesh``, in its order.

        Raises:
            InputError: the object has no vertices or faces.
        """
        vertices, faces = getattr(mesh, "vertices", None), getattr(mesh, "faces", None)
        if vertices is None or faces is None:
            raise InputError(
                f"from_trimesh: got {type(mesh).__name__}, expected a trimesh.Trimesh (with "
                "vertices and faces); of a trimesh.Scene, pass scene.to_mesh()"
            )
        return cls(np.asarray(vertices), np.asarray(faces))

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mesh to an obj, ply, stl, off or gltf file (see ``meshes.save``)."""
        from autograd_gpu.meshes import files

        files.save(self, path)


def _read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    array.setflags(write=False)
    return array


def _checked_vertices(vertices: npt.NDArray[Any]) -> FloatArray:
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise ShapeError(
            f"Mesh: vertices has shape {vertices.shape}, expected (n, 3); for a flat mesh, pass "
            "z = 0"
        )
    if vertices.dtype.kind not in "iuf":
        raise InputError(f"Mesh: vertices has dtype {vertices.dtype}, expected real numbers")
    copy = np.array(vertices, dtype=np.float64, order="C")
    bad = np.flatnonzero(~np.isfinite(copy).all(axis=1))
    if len(bad):
        raise InputError(
            f"Mesh: {len(bad)} of {len(copy)} vertices are NaN or infinite: vertices "
            f"{first_few(bad)}; remove or repair them"
        )
    return _read_only(copy)


def _checked_faces(faces: npt.NDArray[Any], vertex_count: int) -> IntArray:
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ShapeError(
            f"Mesh: faces has shape {faces.shape}, expected (m, 3); split larger polygons into "
            "triangles"
        )
    if faces.dtype.kind not in "iu":
        raise InputError(f"Mesh: faces has dtype {faces.dtype}, expected integers")
    bad = np.flatnonzero(((faces < 0) | (faces >= vertex_count)).any(axis=1))
    if len(bad):
        raise IndexRangeError(
            f"Mesh: {len(bad)} of {len(faces)} faces name a vertex outside 0 to "
            f"{vertex_count - 1}: faces {first_few(bad)}, the first is {faces[bad[0]].tolist()}; "
            "vertices count from 0"
        )
    return _read_only(np.array(faces, dtype=np.int64, order="C"))
