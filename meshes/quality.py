"""Shape and regularity of a mesh in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from autograd_gpu.meshes.mesh import Mesh


@dataclass(frozen=True, kw_only=True)
class Quality:
    """What a solver on this mesh will meet.

    Attributes:
        vertices, edges, faces: counts.
        components: parts that are not connected by an edge; vertices without a face count.
        boundary_edges: edges with one face.
        euler_characteristic: vertices − edges + faces.
        edge_lengths, face_areas, valences, angles: (smallest, mean, largest); angles in degrees.
        radius_ratio: smallest and mean of 2 r/R over the faces, r and R the radii of the inscribed
            and the circumscribed circle: 1 for an equilateral triangle, 0 for a flat one.
        obtuse_faces: faces with an angle beyond 90 degrees.
        negative_weights: edges whose cotangent weight is below 0 (opposite angles sum to more
            than 180 degrees: not Delaunay).
    """

    vertices: int
    edges: int
    faces: int
    components: int
    boundary_edges: int
    euler_characteristic: int
    edge_lengths: tuple[float, float, float]
    face_areas: tuple[float, float, float]
    valences: tuple[float, float, float]
    angles: tuple[float, float, float]
    radius_ratio: tuple[float, float]
    obtuse_faces: int
    negative_weights: int

    def __str__(self) -> str:
        """A small table."""
        spread = {
            "edge length": self.edge_lengths,
            "face area": self.face_areas,
            "valence": self.valences,
            "angle, degrees": self.angles,
        }
        lines = [
            f"{self.vertices} vertices, {self.edges} edges, {self.faces} faces; "
            f"{self.components} component(s), {self.boundary_edges} boundary edges, "
            f"Euler characteristic {self.euler_characteristic}",
            *(f"{name:15} {a:.4g} … {c:.4g}, mean {b:.4g}" for name, (a, b, c) in spread.items()),
            f"radius ratio    from {self.radius_ratio[0]:.4g}, mean {self.radius_ratio[1]:.4g}",
            f"{self.obtuse_faces} obtuse faces, {self.negative_weights} negative cotangent weights",
        ]
        return "\n".join(lines)


def _spread(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> tuple[float, float, float]:
    return float(values.min()), float(values.mean()), float(values.max())


def measure_quality(mesh: Mesh) -> Quality:
    """Measure a mesh with at least one face.

    Raises:
        MeshError: a face has zero area.
    """
    mesh.require_nondegenerate()
    from scipy import sparse

    i, j = mesh.edges.T
    n = len(mesh.vertices)
    graph = sparse.coo_array((np.ones(len(i)), (i, j)), shape=(n, n))
    components = int(sparse.csgraph.connected_components(graph, directed=False)[0])
    corners = mesh.vertices[mesh.faces]
    a, b, c = (
        np.linalg.norm(corners[:, (k + 1) % 3] - corners[:, (k + 2) % 3], axis=1) for k in range(3)
    )
    # r = A / s and R = abc / 4A with the half perimeter s.
    ratio = 16.0 * mesh.face_areas**2 / ((a + b + c) * a * b * c)
    angles = np.degrees(mesh.corner_angles)
    used = np.unique(mesh.faces)
    return Quality(
        vertices=n,
        edges=len(mesh.edges),
        faces=len(mesh.faces),
        components=components,
        boundary_edges=int(np.sum(np.bincount(mesh.sides.edge, minlength=len(mesh.edges)) == 1)),
        euler_characteristic=mesh.euler_characteristic,
        edge_lengths=_spread(mesh.edge_lengths),
        face_areas=_spread(mesh.face_areas),
        valences=_spread(mesh.one_rings.lengths[used].astype(np.float64)),
        angles=_spread(angles.ravel()),
        radius_ratio=(float(ratio.min()), float(ratio.mean())),
        obtuse_faces=int(np.sum(angles.max(axis=1) > 90.0 * (1.0 + 1e-12))),
        negative_weights=int(np.sum(mesh.cotangent_weights < -1e-12)),
    )
