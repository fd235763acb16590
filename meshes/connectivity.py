"""Combinatorics of triangle meshes: half-edges, fans around vertices, boundary loops.

Everything works on index arrays, without a Python loop over faces or vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autograd_gpu.errors import MeshError
from autograd_gpu.ragged import Ragged

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def first_few(entries: Sequence[object] | npt.NDArray[np.generic], shown: int = 5) -> str:
    """Write the first entries of a list for an error message."""
    rows: list[object] = entries.tolist() if isinstance(entries, np.ndarray) else list(entries)
    return ", ".join(str(row) for row in rows[:shown]) + (", …" if len(rows) > shown else "")


@dataclass(frozen=True, slots=True, eq=False)
class HalfEdges:
    """The directed sides of all faces; a side from a vertex to itself is left out.

    Attributes:
        origin, target: (h,) the vertices that a side runs between, face on its left.
        opposite: (h,) the third vertex of its face.
        edge: (h,) row of the side in ``edges``.
        edges: (k, 2) vertex pairs i < j in lexicographic order.
    """

    origin: IntArray
    target: IntArray
    opposite: IntArray
    edge: IntArray
    edges: IntArray

    @property
    def forward(self) -> BoolArray:
        """Sides that run from the smaller vertex to the larger."""
        return self.origin < self.target


def half_edges(faces: IntArray, vertex_count: int) -> HalfEdges:
    """Collect the sides of all faces, and number the edges that they lie on."""
    origin, target, opposite = (
        np.concatenate([faces[:, (k + shift) % 3] for k in range(3)]) for shift in range(3)
    )
    proper = origin != target
    if not proper.all():
        origin, target, opposite = origin[proper], target[proper], opposite[proper]
    key = np.minimum(origin, target) * vertex_count + np.maximum(origin, target)
    keys, edge = np.unique(key, return_inverse=True)
    edges = np.column_stack(np.divmod(keys, max(vertex_count, 1)))
    return HalfEdges(origin, target, opposite, edge, edges)


def collapsed_faces(faces: IntArray) -> IntArray:
    """Faces that name a vertex twice."""
    a, b, c = faces.T
    return np.flatnonzero((a == b) | (b == c) | (c == a))


def require_distinct_corners(faces: IntArray, operation: str) -> None:
    """Raise where a face names a vertex twice.

    Raises:
        MeshError: names the faces.
    """
    collapsed = collapsed_faces(faces)
    if len(collapsed):
        raise MeshError(
            f"{operation}: {len(collapsed)} faces name a vertex twice: faces "
            f"{first_few(collapsed)}; remove them (mesh.repaired(remove=True))"
        )


def require_manifold_edges(sides: HalfEdges, faces: IntArray, operation: str) -> None:
    """Raise unless every edge has one face, or two faces that traverse it in opposite ways.

    Raises:
        MeshError: a face names a vertex twice, an edge has three or more faces, or the two faces
            of an edge are oriented differently; names the faces or edges.
    """
    require_distinct_corners(faces, operation)
    count = len(sides.edges)
    ahead = np.bincount(sides.edge[sides.forward], minlength=count)
    uses = np.bincount(sides.edge, minlength=count)
    crowded = np.flatnonzero(uses > 2)
    if len(crowded):
        raise MeshError(
            f"{operation}: {len(crowded)} edges have three or more faces, expected one or two: "
            f"vertex pairs {first_few(sides.edges[crowded])}; split the mesh there, or remove the "
            "extra faces (mesh.repaired(split=True) gives every sheet its own vertices)"
        )
    twisted = np.flatnonzero((uses == 2) & (ahead != 1))
    if len(twisted):
        raise MeshError(
            f"{operation}: the two faces at {len(twisted)} edges are oriented differently: vertex "
            f"pairs {first_few(sides.edges[twisted])}; orient all faces the same way "
            "(mesh.repaired(orient=True) does it)"
        )


def dihedral_stencils(sides: HalfEdges) -> IntArray:
    """(k, 4) vertices (a, b, c, d) of interior edges a < b with faces (a, b, c) and (b, a, d).

    Expects manifold edges. Sorted by (a, b).
    """
    third = np.full((len(sides.edges), 2), -1, dtype=np.int64)
    third[sides.edge, np.where(sides.forward, 0, 1)] = sides.opposite
    interior = (third >= 0).all(axis=1)
    return np.column_stack([sides.edges[interior], third[interior]])


def chains(successor: IntArray) -> tuple[IntArray, IntArray]:
    """First member of each node's chain, and the node's place in it counted from 0.

    ``successor[k]`` follows node k, -1 where nothing does; no node follows two others. A closed
    chain starts at its smallest member. Pointer doubling: O(n log(longest chain)).
    """
    nodes = np.arange(len(successor))
    linked = successor >= 0
    before = nodes.copy()
    before[successor[linked]] = nodes[linked]
    is_first = np.ones(len(nodes), dtype=np.bool_)
    is_first[successor[linked]] = False

    # The smallest label upstream marks the chain. Labels of true ends are negative, so they win
    # over every other member, and one search finds ends of open chains and minima of closed ones.
    label = np.where(is_first, nodes - len(nodes), nodes)
    ancestor = before
    while True:
        better = np.minimum(label, label[ancestor])
        if np.array_equal(better, label):
            break
        label, ancestor = better, ancestor[ancestor]
    first = np.where(label < 0, label + len(nodes), label)

    place = (first != nodes).astype(np.int64)
    ancestor = np.where(first == nodes, nodes, before)
    while not np.array_equal(ancestor, first):
        place = place + place[ancestor]
        ancestor = ancestor[ancestor]
    return first, place


@dataclass(frozen=True, slots=True, eq=False)
class Fans:
    """Neighbours of every vertex, chained counter-clockwise.

    Node k is the pair (origin[k], target[k]), pairs in lexicographic order.

    Attributes:
        origin, target: (2 edges,) the pairs: vertex, neighbour.
        first: (2 edges,) the node that starts the node's chain.
        place: (2 edges,) the node's place in its chain.
    """

    origin: IntArray
    target: IntArray
    first: IntArray
    place: IntArray


def directed_edges(edges: IntArray) -> IntArray:
    """Both directions of every edge, (2k, 2), in lexicographic order."""
    both = np.concatenate([edges, edges[:, ::-1]])
    width = int(edges.max(initial=0)) + 1
    return np.column_stack(np.divmod(np.sort(both[:, 0] * width + both[:, 1]), width))


def vertex_fans(sides: HalfEdges, directed: IntArray, vertex_count: int) -> Fans:
    """Chain the neighbours of every vertex.

    Around a vertex where a pair is the side of two faces, no order exists, and every neighbour
    is a chain by itself.
    """
    origin, target = directed.T
    keys = origin * vertex_count + target
    has_corner = sides.opposite != sides.origin
    corner_origin = sides.origin[has_corner]
    node = np.searchsorted(keys, corner_origin * vertex_count + sides.target[has_corner])
    following = np.searchsorted(keys, corner_origin * vertex_count + sides.opposite[has_corner])
    clash = (np.bincount(node, minlength=len(keys)) > 1) | (
        np.bincount(following, minlength=len(keys)) > 1
    )
    unordered = np.zeros(vertex_count, dtype=np.bool_)
    unordered[origin[clash]] = True
    ordered = ~unordered[corner_origin]
    successor = np.full(len(keys), -1, dtype=np.int64)
    successor[node[ordered]] = following[ordered]
    first, place = chains(successor)
    return Fans(origin, target, first, place)


def one_rings(fans: Fans, vertex_count: int) -> Ragged:
    """Neighbours of every vertex in the order of its fans."""
    # A chain's first node has the chain's vertex as origin, so chains in order of their first
    # node are grouped by vertex.
    sizes = np.bincount(fans.first, minlength=len(fans.first))
    starts = np.cumsum(sizes) - sizes
    neighbours = np.empty_like(fans.target)
    neighbours[starts[fans.first] + fans.place] = fans.target
    counts = np.bincount(fans.origin, minlength=vertex_count)
    return Ragged(np.concatenate([[0], np.cumsum(counts)]), neighbours)


def boundary_loops(sides: HalfEdges, fans: Fans, vertex_count: int) -> tuple[IntArray, ...]:
    """Chain boundary vertices to closed loops, face on the left, each from its smallest side.

    Expects manifold edges. At a vertex where two fans touch, a loop stays on its own fan.
    """
    uses = np.bincount(sides.edge, minlength=len(sides.edges))
    on_boundary = uses[sides.edge] == 1
    origin, target = sides.origin[on_boundary], sides.target[on_boundary]
    keys = fans.origin * vertex_count + fans.target
    rim = np.sort(np.searchsorted(keys, origin * vertex_count + target))
    if len(rim) == 0:
        return ()
    # The side (y, b) ends the fan around b that (b, y) is last in; the loop leaves b by that
    # fan's first node.
    back = np.searchsorted(keys, fans.target[rim] * vertex_count + fans.origin[rim])
    successor = np.searchsorted(rim, fans.first[back])
    first, place = chains(successor)
    order = np.lexsort((place, first))
    loops = np.split(fans.origin[rim][order], np.flatnonzero(np.diff(first[order])) + 1)
    for loop in loops:
        loop.setflags(write=False)
    return tuple(loops)


def corner_fans(
    faces: IntArray, vertex_count: int, opened: IntArray | None = None
) -> tuple[IntArray, IntArray]:
    """Give every fan of faces its own vertex: (m, 3) faces, and the old vertex of each new one.

    Faces stay joined only at edges that have exactly two of them, oriented alike, and that are
    not ``opened`` (rows of the edges). Each vertex
    keeps its number for the fan of its smallest corner; further fans get numbers from
    ``vertex_count`` on, in the order of their smallest corners (3f + c).
    """
    from scipy import sparse

    sides = half_edges(faces, vertex_count)
    uses = np.bincount(sides.edge, minlength=len(sides.edges))
    ahead = np.bincount(sides.edge[sides.forward], minlength=len(sides.edges))
    together = (uses == 2) & (ahead == 1)
    if opened is not None:
        together[opened] = False
    joined = together[sides.edge]
    # Where each side begins and ends, as corners, in the order of `half_edges`.
    rows = np.arange(len(faces)) * 3
    begin = np.concatenate([rows + k for k in range(3)])
    end = np.concatenate([rows + (k + 1) % 3 for k in range(3)])
    proper = np.concatenate([faces[:, k] != faces[:, (k + 1) % 3] for k in range(3)])
    begin, end = begin[proper], end[proper]
    order = np.flatnonzero(joined)[np.argsort(sides.edge[joined], kind="stable")].reshape(-1, 2)
    first, second = order.T
    links = np.concatenate(
        [np.stack([begin[first], end[second]]), np.stack([end[first], begin[second]])], axis=1
    )
    count = faces.size
    graph = sparse.coo_array((np.ones(links.shape[1]), tuple(links)), shape=(count, count))
    fan = sparse.csgraph.connected_components(graph, directed=False)[1]
    _, smallest, fan = np.unique(fan, return_index=True, return_inverse=True)
    owner = faces.reshape(-1)[smallest]
    by_corner = np.argsort(smallest, kind="stable")
    keeps = np.zeros(len(owner), dtype=np.bool_)
    keeps[by_corner[np.unique(owner[by_corner], return_index=True)[1]]] = True
    number = np.array(owner)
    further = by_corner[~keeps[by_corner]]
    number[further] = vertex_count + np.arange(len(further))
    old = np.concatenate([np.arange(vertex_count), owner[further]])
    return number[fan].reshape(-1, 3), old
