"""Meshes made from a formula."""

from __future__ import annotations

import math
import operator

import numpy as np

from autograd_gpu.errors import InputError
from autograd_gpu.meshes.mesh import Mesh

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
    import trimesh

    sphere = trimesh.creation.icosphere(  # pyright: ignore[reportUnknownMemberType]
        subdivisions=count, radius=1.0
    )
    return Mesh.from_trimesh(sphere)


def grid(rows: int, columns: int, width: float = 1.0, height: float = 1.0) -> Mesh:
    """Rectangle [0, width] × [0, height] in the plane z = 0, each cell split in two triangles.

    ``rows`` × ``columns`` cells (rows along y, columns along x), (rows + 1)·(columns + 1)
    vertices; vertex (r, c) has number r·(columns + 1) + c. Normals point to +z.

    Raises:
        InputError: a count is not an integer of at least 1, or a size not positive and finite.
    """
    rows = _count("grid", "rows", rows, 1)
    columns = _count("grid", "columns", columns, 1)
    for name, size in (("width", width), ("height", height)):
        if not (math.isfinite(size) and size > 0):
            raise InputError(f"grid: {name} is {size}, expected a positive finite length")
    y, x = np.meshgrid(
        np.linspace(0.0, height, rows + 1), np.linspace(0.0, width, columns + 1), indexing="ij"
    )
    vertices = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    number = np.arange(len(vertices)).reshape(rows + 1, columns + 1)
    a, b = number[:-1, :-1], number[:-1, 1:]
    c, d = number[1:, 1:], number[1:, :-1]
    faces = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    return Mesh(vertices, faces)


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
