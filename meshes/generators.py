"""Meshes made from a formula."""

from __future__ import annotations

import math
import operator

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import InputError
from autograd_gpu.meshes.mesh import Mesh

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LARGEST_ICOSPHERE = 10


def icosphere(subdivisions: int = 3) -> Mesh:
    """Make a unit sphere of an icosahedron, each face split in four ``subdivisions`` times.

    10·4ˢ + 2 vertices, 30·4ˢ edges and 20·4ˢ faces, counter-clockwise seen from outside.

    Raises:
        InputError: ``subdivisions`` is not an integer from 0 to 10 (10 makes 21 million faces).
    """
    count = _count("icosphere", "subdivisions", subdivisions, 0)
    if count > LARGEST_ICOSPHERE:
        raise InputError(
            f"icosphere: subdivisions is {count}, expected at most {LARGEST_ICOSPHERE}; "
            f"{count} would make {20 * 4**count} faces"
        )
    # trimesh has one as well, with the same numbering, but takes half a second to import.
    a, b = _ICOSAHEDRON
    vertices = np.array(
        [[-a, b, 0], [a, b, 0], [-a, -b, 0], [a, -b, 0], [0, -a, b], [0, a, b],
         [0, -a, -b], [0, a, -b], [b, 0, -a], [b, 0, a], [-b, 0, -a], [-b, 0, a]]
    )  # fmt: skip
    faces: IntArray = np.array(
        [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4],
         [11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8],
         [3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]],
        np.int64,
    )  # fmt: skip
    vertices = _on_the_unit_sphere(vertices)
    for _ in range(count):
        vertices, faces = _split_in_four(vertices, faces)
        vertices = _on_the_unit_sphere(vertices)
    return Mesh(vertices, faces)


_ICOSAHEDRON = (0.5257311121191336, 0.85065080835204)
"""Coordinates of the vertices: 1/√(1 + φ²) and φ times it, φ the golden ratio."""


def _on_the_unit_sphere(vertices: FloatArray) -> FloatArray:
    lengths = np.sqrt(np.dot(vertices**2, [1.0, 1.0, 1.0]))[:, None]
    return vertices + vertices / lengths * (1.0 - lengths)


def _split_in_four(vertices: FloatArray, faces: IntArray) -> tuple[FloatArray, IntArray]:
    """Each triangle in four; a new vertex in the middle of each edge, ordered by its later end."""
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    keys = edges[:, 1] * len(vertices) + edges[:, 0]
    _, first, edge_of = np.unique(keys, return_index=True, return_inverse=True)
    middles = edge_of.reshape(-1, 3) + len(vertices)
    a, b, c = faces.T
    ab, bc, ca = middles.T
    split = np.stack([a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca], axis=1).reshape(-1, 3)
    return np.vstack([vertices, vertices[edges[first]].mean(axis=1)]), split


def grid(rows: int, columns: int, width: float = 1.0, height: float = 1.0) -> Mesh:
    """Rectangle [0, width] × [0, height] in the plane z = 0, each cell split in two triangles.

    ``rows`` × ``columns`` cells (rows along y, columns along x), (rows + 1)·(columns + 1)
    vertices; vertex (r, c) has number r·(columns + 1) + c. Normals point to +z.

    Raises:
        InputError: a count is not an integer of at least 1, or a size not positive and finite.
    """
    rows = _count("grid", "rows", rows, 1)
    columns = _count("grid", "columns", columns, 1)
    _require_lengths("grid", width=width, height=height)
    y, x = np.meshgrid(
        np.linspace(0.0, height, rows + 1), np.linspace(0.0, width, columns + 1), indexing="ij"
    )
    vertices = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    number = np.arange(len(vertices)).reshape(rows + 1, columns + 1)
    a, b = number[:-1, :-1], number[:-1, 1:]
    c, d = number[1:, 1:], number[1:, :-1]
    faces = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    return Mesh(vertices, faces)


def disk(rings: int, radius: float = 1.0) -> Mesh:
    """Disk around the origin in the plane z = 0, of nearly equilateral triangles.

    Ring k of 1 … ``rings`` has 6k vertices at distance k/rings of the radius, so there are
    1 + 3 rings (rings + 1) vertices, the centre first, and 6 rings² faces. Normals point to +z.

    Raises:
        InputError: ``rings`` is not an integer of at least 1, or the radius not positive.
    """
    rings = _count("disk", "rings", rings, 1)
    _require_lengths("disk", radius=radius)
    points, faces = [np.zeros((1, 3))], list[IntArray]()
    for k in range(1, rings + 1):
        angle = 2.0 * np.pi * np.arange(6 * k) / (6 * k)
        circle = np.column_stack([np.cos(angle), np.sin(angle), np.zeros(6 * k)])
        points.append(radius * k / rings * circle)
        # In each of six sectors, k edges of this ring face k - 1 edges of the one inside.
        sector, step = np.divmod(np.arange(6 * k), k)
        outer, inner = 1 + 3 * k * (k - 1), 1 + 3 * (k - 1) * (k - 2)
        around = max(6 * (k - 1), 1)
        first = (0 if k == 1 else inner) + (sector * (k - 1) + step) % around
        here, after = outer + np.arange(6 * k), outer + (np.arange(6 * k) + 1) % (6 * k)
        faces.append(np.column_stack([here, after, first]))
        between = step < k - 1
        second = inner + (sector * (k - 1) + step + 1) % around
        faces.append(np.column_stack([after, second, first])[between])
    return Mesh(np.concatenate(points), np.concatenate(faces))


def cylinder(
    around: int, along: int, radius: float = 1.0, height: float = 1.0, caps: bool = True
) -> Mesh:
    """Cylinder about the z axis, from z = 0 to ``height``, normals outward.

    Args:
        around: vertices of every circle, at least 3.
        along: bands between bottom and top.
        radius: units of length.
        height: units of length.
        caps: close bottom and top by a fan around a vertex on the axis. Vertex (c, r) of the wall
            has number c·around + r, c counting upwards; then come the centres, bottom and top.

    Raises:
        InputError: a count is not an integer or too small, or a size not positive and finite.
    """
    around, along = _count("cylinder", "around", around, 3), _count("cylinder", "along", along, 1)
    _require_lengths("cylinder", radius=radius, height=height)
    angle = 2.0 * np.pi * np.arange(around) / around
    z, phi = np.meshgrid(np.linspace(0.0, height, along + 1), angle, indexing="ij")
    wall = np.stack([radius * np.cos(phi), radius * np.sin(phi), z], axis=-1).reshape(-1, 3)
    faces = _band(along, around)
    if not caps:
        return Mesh(wall, faces)
    r, n = np.arange(around), len(wall)
    following, top = (r + 1) % around, n - around
    bottom_fan = np.column_stack([np.full(around, n), following, r])
    top_fan = np.column_stack([np.full(around, n + 1), top + r, top + following])
    centres = [[0.0, 0.0, 0.0], [0.0, 0.0, height]]
    return Mesh(np.concatenate([wall, centres]), np.concatenate([faces, bottom_fan, top_fan]))


def torus(around: int, across: int, radius: float = 1.0, thickness: float = 0.4) -> Mesh:
    """Torus about the z axis, normals outward.

    Args:
        around: vertices along the axis circle, at least 3.
        across: vertices of the tube's circle, at least 3.
        radius: of the axis circle.
        thickness: radius of the tube, below ``radius``.

    Raises:
        InputError: a count is not an integer or too small, a size not positive and finite, or the
            tube meets itself.
    """
    around, across = _count("torus", "around", around, 3), _count("torus", "across", across, 3)
    _require_lengths("torus", radius=radius, thickness=thickness)
    if thickness >= radius:
        raise InputError(
            f"torus: thickness is {thickness}, expected less than the radius {radius}: the tube "
            "would meet itself"
        )
    v, u = np.meshgrid(
        2.0 * np.pi * np.arange(across) / across,
        2.0 * np.pi * np.arange(around) / around,
        indexing="ij",
    )
    distance = radius + thickness * np.cos(v)
    points = np.stack([distance * np.cos(u), distance * np.sin(u), thickness * np.sin(v)], axis=-1)
    return Mesh(points.reshape(-1, 3), _band(across, around) % (across * around))


def box(cells: int = 1, size: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Mesh:
    """Axis-parallel box around the origin, ``cells`` × ``cells`` squares a side, normals outward.

    6 cells² + 2 vertices, 12 cells² faces. Corners and edges are shared, so the mesh is closed.

    Raises:
        InputError: ``cells`` is not an integer of at least 1, or a size not positive and finite.
    """
    cells = _count("box", "cells", cells, 1)
    if len(size) != 3:
        raise InputError(f"box: size is {size}, expected three lengths")
    _require_lengths("box", **dict(zip("xyz", size, strict=True)))
    plate = grid(cells, cells, float(cells), float(cells))
    flat, at = np.rint(plate.vertices).astype(np.int64), np.arange(3)
    places, faces = list[IntArray](), list[IntArray]()
    for axis in range(3):
        for top in (False, True):
            place = np.roll(
                np.column_stack([flat[:, :2], np.full(len(flat), cells * top)]), axis, 1
            )
            places.append(place)
            turned = plate.faces[:, at if top else at[::-1]]
            faces.append(turned + len(flat) * len(faces))
    # Positions are integers, so vertices shared by sides are found exactly.
    unique, number = np.unique(np.concatenate(places), axis=0, return_inverse=True)
    vertices = (unique / cells - 0.5) * np.asarray(size, dtype=np.float64)
    return Mesh(vertices, number.reshape(-1)[np.concatenate(faces)])


def _band(rows: int, columns: int) -> IntArray:
    """Faces of rows of cells that close around; vertex (r, c) has number r·columns + c."""
    r, c = np.divmod(np.arange(rows * columns), columns)
    a, b = r * columns + c, r * columns + (c + 1) % columns
    d, e = a + columns, b + columns
    return np.stack([a, b, e, a, e, d], axis=-1).reshape(-1, 3)


def _require_lengths(function: str, **sizes: float) -> None:
    for name, size in sizes.items():
        if not (math.isfinite(size) and size > 0):
            raise InputError(f"{function}: {name} is {size}, expected a positive finite length")


def _count(function: str, name: str, value: int, smallest: int) -> int:
    try:
        count = operator.index(value)
    except TypeError as error:
        raise InputError(
            f"{function}: {name} is {value!r}, expected an integer of at least {smallest}"
        ) from error
    if count < smallest:
        raise InputError(f"{function}: {name} is {count}, expected at least {smallest}")
    return count
