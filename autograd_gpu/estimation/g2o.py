"""Pose graphs in the text format of g2o.

Lines are ``VERTEX_SE2 id x y angle``, ``VERTEX_SE3:QUAT id x y z qx qy qz qw``, ``EDGE_SE2 i j``
and ``EDGE_SE3:QUAT i j`` with a motion in the same order and the upper triangle of its information
matrix, row by row, ``FIX id …``, and comments after ``#``. Information matrices of SE3 are of
translation, then rotation; here the rotation is the rotation vector in radians, as in GTSAM and in
Ceres's example, though g2o's own error has the vector part of the quaternion, half as large.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.estimation.pose_graph import Pose, PoseGraph
from autograd_gpu.estimation.text_lines import FloatArray, Lines, Path, opened
from autograd_gpu.lie_groups import SE2, SE3

IntArray = NDArray[np.intp]

_SE3_FROM_FILE = np.array([6, 3, 4, 5, 0, 1, 2])  # (w, x, y, z, translation) of the file's order
_SE3_TO_FILE = np.array([4, 5, 6, 1, 2, 3, 0])
_TURN_FIRST = np.array([3, 4, 5, 0, 1, 2])


@dataclass(frozen=True)
class _Kind:
    """How a group is written.

    Attributes:
        group: which.
        vertex, edge: words that lines begin with.
        from_file, to_file: orders of the numbers of a pose.
        tangent: order of the tangent coordinates; it undoes itself.
    """

    group: Pose
    vertex: str
    edge: str
    from_file: IntArray
    to_file: IntArray
    tangent: IntArray


_PLAIN = np.arange(3)
_KINDS = (
    _Kind(SE2, "VERTEX_SE2", "EDGE_SE2", _PLAIN, _PLAIN, _PLAIN),
    _Kind(SE3, "VERTEX_SE3:QUAT", "EDGE_SE3:QUAT", _SE3_FROM_FILE, _SE3_TO_FILE, _TURN_FIRST),
)
_BY_TAG = {tag: kind for kind in _KINDS for tag in (kind.vertex, kind.edge)}


@dataclass
class _Content:
    """What was read so far."""

    kind: _Kind | None = None
    vertices: dict[int, FloatArray] = field(default_factory=dict[int, FloatArray])
    edges: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])
    measurements: list[FloatArray] = field(default_factory=list[FloatArray])
    information: list[FloatArray] = field(default_factory=list[FloatArray])
    fixed: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])


def read_g2o(path: Path) -> PoseGraph:
    """Read a pose graph of SE2 or SE3; ``.gz`` and ``.bz2`` are unpacked.

    Poses are in the order of the file. Quaternions are made of unit length.

    Raises:
        FileFormatError: a line that says something else; names file and line.
        OSError: the file cannot be opened.
    """
    content = _Content()
    with opened(path, "rt") as file:
        lines = Lines(path, file)
        for words in lines:
            _read_line(lines, words, content)
        if content.kind is None or not content.edges:
            lines.refuse("the file ends without any edge")
        return _graph(lines, content, content.kind)


def _read_line(lines: Lines, words: list[str], content: _Content) -> None:
    tag, rest = words[0], words[1:]
    if tag == "FIX":
        content.fixed += [(lines.integer(w, "a vertex of FIX"), lines.number) for w in rest]
        return
    kind = _BY_TAG.get(tag)
    if kind is None:
        lines.refuse(f"{tag} is not read; expected {', '.join(_BY_TAG)} or FIX")
    if content.kind is not None and content.kind is not kind:
        lines.refuse(f"{tag} in a graph of {content.kind.group.__name__}; poses are of one kind")
    content.kind = kind
    if tag == kind.vertex:
        _read_vertex(lines, rest, content, kind)
    else:
        _read_edge(lines, rest, content, kind)


def _read_vertex(lines: Lines, rest: list[str], content: _Content, kind: _Kind) -> None:
    name = lines.integer(rest[0] if rest else "", "the number of a vertex")
    if name in content.vertices:
        lines.refuse(f"vertex {name} is there already")
    content.vertices[name] = _pose(lines, rest[1:], kind, "a pose")


def _read_edge(lines: Lines, rest: list[str], content: _Content, kind: _Kind) -> None:
    first, second, *numbers = [*rest, "", ""]
    i, j = (lines.integer(w, "a vertex of an edge") for w in (first, second))
    if i == j:
        lines.refuse(f"an edge from vertex {i} to itself")
    numbers, width, k = numbers[:-2], kind.group.ambient, kind.group.tangent
    upper = k * (k + 1) // 2
    if len(numbers) != width + upper:
        lines.refuse(
            f"got {len(numbers)} numbers after the vertices, expected {width} of a motion and "
            f"{upper} of the upper triangle of its information"
        )
    content.measurements.append(_pose(lines, numbers[:width], kind, "a motion"))
    triangle = lines.numbers(numbers[width:], upper, "the information of an edge")
    matrix = np.zeros((k, k))
    matrix[np.triu_indices(k)] = triangle
    matrix = matrix + np.triu(matrix, 1).T
    if np.linalg.eigvalsh(matrix)[0] < -1e-9 * np.abs(matrix).max():
        lines.refuse("the information matrix has a negative eigenvalue")
    content.information.append(matrix[np.ix_(kind.tangent, kind.tangent)])
    content.edges.append((i, j, lines.number))


def _pose(lines: Lines, words: list[str], kind: _Kind, what: str) -> FloatArray:
    numbers = lines.numbers(words, kind.group.ambient, what)[kind.from_file]
    if kind.group is SE3 and not np.linalg.norm(numbers[:4]) > 1e-6:
        lines.refuse(f"the quaternion of {what} is zero")
    return np.asarray(kind.group.nearest(numbers))


def _graph(lines: Lines, content: _Content, kind: _Kind) -> PoseGraph:
    position = {name: k for k, name in enumerate(content.vertices)}

    def found(name: int, number: int) -> int:
        if name not in position:
            lines.number = number
            lines.refuse(f"vertex {name} is in no line of its own")
        return position[name]

    return PoseGraph(
        kind.group,
        np.array(list(content.vertices.values())),
        [(found(i, number), found(j, number)) for i, j, number in content.edges],
        np.array(content.measurements),
        np.array(content.information),
        [found(name, number) for name, number in content.fixed],
        list(content.vertices),
    )


def write_g2o(path: Path, graph: PoseGraph) -> None:
    """Write a pose graph; numbers are such that ``read_g2o`` gives the same ones."""
    kind = next(k for k in _KINDS if k.group is graph.group)
    upper = np.triu_indices(graph.group.tangent)
    order = np.ix_(kind.tangent, kind.tangent)
    with opened(path, "wt") as file:
        for name, pose in zip(graph.ids.tolist(), graph.poses, strict=True):
            file.write(f"{kind.vertex} {name} {_written(pose[kind.to_file])}\n")
        if len(graph.fixed):
            file.write(f"FIX {' '.join(map(str, graph.ids[graph.fixed].tolist()))}\n")
        for (i, j), motion, information in zip(
            graph.ids[graph.edges].tolist(), graph.measurements, graph.information, strict=True
        ):
            numbers = np.concatenate([motion[kind.to_file], information[order][upper]])
            file.write(f"{kind.edge} {i} {j} {_written(numbers)}\n")


def _written(numbers: FloatArray) -> str:
    return " ".join(map(repr, numbers.tolist()))
