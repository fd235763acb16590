"""Geometry, matrices, quaternions: traced, eager and NumPy against NumPy and differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu import geometry as geo
from tolerances import CENTRAL_DIFFERENCE, GRAPH, tolerance

BATCH = 7
EXACT = tolerance("float64", GRAPH)


def unit(v: Any) -> Any:
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def angle_between(u: Any, v: Any) -> Any:
    return np.arccos(np.clip(np.sum(unit(u) * unit(v), axis=-1), -1.0, 1.0))


def folded(a: Any, b: Any, c: Any, d: Any) -> Any:
    """Dihedral angle by rotating into the plane across the edge."""
    e = unit(b - a)
    u = (c - a) - e * np.sum((c - a) * e, -1, keepdims=True)
    v = (d - a) - e * np.sum((d - a) * e, -1, keepdims=True)
    turn = np.arctan2(np.sum(np.cross(u, v) * e, -1), np.sum(u * v, -1))
    return np.where(turn > 0, turn - np.pi, turn + np.pi)


def ring_angles(center: Any, *ring: Any) -> Any:
    return sum(angle_between(p - center, q - center)
               for p, q in zip(ring, (*ring[1:], ring[0]), strict=True))  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A function of vectors, its arguments' widths, and NumPy's answer for a batch."""

    name: str
    fn: Callable[..., Any]
    widths: tuple[Any, ...]
    numpy: Callable[..., Any]


def symmetric(m: Any) -> Any:
    return 0.5 * (m + np.swapaxes(m, -1, -2))


CASES = [
    Case("triangle_normal", geo.triangle_normal, (3, 3, 3),
         lambda a, b, c: unit(np.cross(b - a, c - a))),
    Case("triangle_area", geo.triangle_area, (3, 3, 3),
         lambda a, b, c: 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=-1)),
    Case("interior_angle", geo.interior_angle, (3, 3, 3),
         lambda a, b, c: angle_between(b - a, c - a)),
    Case("angle_defect", lambda c, *ring: geo.angle_defect(c, ring), (3,) * 5,
         lambda c, *ring: 2 * np.pi - ring_angles(c, *ring)),
    Case("angle_defect_open", lambda c, p, q: geo.angle_defect(c, [p, q], closed=False), (3,) * 3,
         lambda c, p, q: np.pi - angle_between(p - c, q - c)),
    Case("dihedral_angle", geo.dihedral_angle, (3,) * 4, folded),
    Case("centroid", lambda *p: geo.centroid(p), (2, 2, 2), lambda *p: np.mean(p, axis=0)),
    Case("vertex_normal", lambda c, *ring: geo.vertex_normal(c, ring), (3,) * 5,
         lambda c, *r: unit(sum(np.cross(p - c, q - c)
                                for p, q in zip(r, (*r[1:], r[0]), strict=True)))),
    Case("plane_distance", geo.plane_distance, (3, 3, 3),
         lambda p, o, n: np.sum((p - o) * unit(n), axis=-1)),
    Case("plane_projection", geo.plane_projection, (3, 3, 3),
         lambda p, o, n: p - unit(n) * np.sum((p - o) * unit(n), -1, keepdims=True)),
    Case("bounding_box", lambda *p: [*geo.bounding_box(p)], (3, 3, 3),
         lambda *p: np.stack([np.min(p, axis=0), np.max(p, axis=0)], axis=1)),
    Case("project", geo.project, (3, 3),
         lambda u, v: unit(v) * np.sum(u * unit(v), -1, keepdims=True)),
    Case("reject", geo.reject, (3, 3),
         lambda u, v: u - unit(v) * np.sum(u * unit(v), -1, keepdims=True)),
    Case("lerp", geo.lerp, (3, 3, 1), lambda a, b, t: a * (1 - t[:, None]) + b * t[:, None]),
    Case("symmetric_eigenvalues", geo.symmetric_eigenvalues, ((3, 3),),
         lambda m: np.linalg.eigvalsh(symmetric(m))),
    Case("smallest_eigenvalue", geo.smallest_eigenvalue, ((3, 3),),
         lambda m: np.linalg.eigvalsh(symmetric(m))[:, 0]),
    Case("middle_eigenvalue", geo.middle_eigenvalue, ((3, 3),),
         lambda m: np.linalg.eigvalsh(symmetric(m))[:, 1]),
    Case("largest_eigenvalue", geo.largest_eigenvalue, ((3, 3),),
         lambda m: np.linalg.eigvalsh(symmetric(m))[:, 2]),
    *(Case(f"determinant_{n}", ag.determinant, ((n, n),), np.linalg.det) for n in (2, 3, 4)),
    *(Case(f"inverse_{n}", ag.inverse, ((n, n),), np.linalg.inv) for n in (2, 3, 4)),
]  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def arrays_of(case: Case) -> list[Any]:
    rng = np.random.default_rng(len(case.name))
    shapes = [() if w == 1 else (w if isinstance(w, tuple) else (w,)) for w in case.widths]
    arrays = [rng.uniform(-1.0, 1.0, (BATCH, *shape)) for shape in shapes]
    if case.name.startswith("inverse"):  # away from singular matrices
        arrays = [a + 2.5 * np.eye(a.shape[-1]) for a in arrays]
    return arrays


def values_of(arrays: list[Any], k: int) -> tuple[list[Any], list[ag.Value]]:
    """Element k as vectors and matrices of Values, and all the Values in order."""
    arguments, leaves = [], []
    for array in arrays:
        items = [ag.Value(x) for x in array[k].ravel()]
        leaves += items
        shape = array[k].shape
        if shape == ():
            arguments.append(items[0])
        elif len(shape) == 1:
            arguments.append(ag.vector.vector(items))
        else:
            rows = np.arange(len(items)).reshape(shape)
            arguments.append(ag.Matrix([[items[j] for j in row] for row in rows]))
    return arguments, leaves


def numbers(result: Any) -> Any:
    """Flat scalars of a result of Values."""
    if isinstance(result, ag.Matrix):
        return [e for row in result.rows for e in row]
    if isinstance(result, ag.Vector):
        return list(result.items)
    return [e for part in result for e in numbers(part)] if isinstance(result, list) else [result]


@each_case
def test_agrees_with_numpy(case: Case) -> None:
    """Traced and with NumPy arrays, for a batch; the formula in the table is another one."""
    arrays = arrays_of(case)
    want = case.numpy(*arrays)
    EXACT.check(ag.trace(case.fn, *case.widths)(*arrays), want, "traced")
    found = case.fn(*arrays)
    found = np.stack(found, axis=1) if isinstance(found, list) else found
    EXACT.check(found, want, "arrays")


@each_case
def test_eager_agrees_with_traced(case: Case) -> None:
    arrays = arrays_of(case)
    graph = ag.trace(case.fn, *case.widths)
    want, slopes = graph(*arrays), ag.jacobian(graph)(*arrays)
    arguments, leaves = values_of(arrays, 0)
    results = numbers(case.fn(*arguments))
    EXACT.check([r.data for r in results], want[0].ravel(), "values")
    for row, result in enumerate(results):
        for leaf in leaves:
            leaf.grad = 0.0
        result.backward()
        EXACT.check([leaf.grad for leaf in leaves], slopes[0][row], f"gradient of {row}")


@each_case
def test_gradients_agree_with_differences(case: Case) -> None:
    arrays = arrays_of(case)
    graph = ag.trace(case.fn, *case.widths)
    slopes = ag.jacobian(graph)(*arrays)
    h, column = 1e-5, 0
    for a, array in enumerate(arrays):
        flat = array.reshape(BATCH, -1)
        for k in range(flat.shape[1]):
            ends = []
            for sign in (1.0, -1.0):
                moved = flat.copy()
                moved[:, k] += sign * h
                given = [*arrays[:a], moved.reshape(array.shape), *arrays[a + 1 :]]
                ends.append(graph(*given).reshape(BATCH, -1))
            difference = (ends[0] - ends[1]) / (2.0 * h)
            scale = 1.0 + np.abs(slopes).max()
            CENTRAL_DIFFERENCE.check(
                slopes[:, :, column] / scale, difference / scale, f"argument {a}, component {k}"
            )
            column += 1


def rotated(eigenvalues: Any) -> Any:
    """Symmetric matrix of given eigenvalues, and its eigenvectors as columns."""
    v, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    return v @ np.diag(eigenvalues) @ v.T, v


EIGEN_GRADIENT = ag.jacobian(ag.trace(geo.symmetric_eigenvalues, (3, 3)))


@pytest.mark.parametrize("gap", [1.0, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("pair", [(0, 1), (1, 2)])
def test_eigenvalue_gradients_near_a_pair(gap: float, pair: tuple[int, int]) -> None:
    """Gradients are v vᵀ, within rounding over the gap; values stay exact."""
    eigenvalues = [1.0, 1.0 + gap, 3.0 + gap] if pair == (0, 1) else [-2.0, 1.0, 1.0 + gap]
    matrix, v = rotated(eigenvalues)
    np.testing.assert_allclose(geo.symmetric_eigenvalues(matrix), eigenvalues, atol=1e-13)
    slopes = EIGEN_GRADIENT(matrix).reshape(3, 3, 3)
    for k in range(3):
        want = np.outer(v[:, k], v[:, k])
        limit = 1e-13 / gap if k in pair else 1e-13
        np.testing.assert_allclose(slopes[k], want, atol=limit)


@pytest.mark.parametrize(
    ("eigenvalues", "clusters"),
    [([1.0, 1.0, 4.0], [(0, 1), (2,)]), ([-3.0, 2.0, 2.0], [(0,), (1, 2)]),
     ([2.0, 2.0, 2.0], [(0, 1, 2)]), ([0.0, 0.0, 0.0], [(0, 1, 2)])],
)  # fmt: skip
def test_repeated_eigenvalues_share_the_mean_of_their_projectors(
    eigenvalues: list[float], clusters: Any
) -> None:
    matrix = np.diag(eigenvalues)  # exact: nothing but the repetition is tested
    slopes = EIGEN_GRADIENT(matrix).reshape(3, 3, 3)
    np.testing.assert_allclose(geo.symmetric_eigenvalues(matrix), eigenvalues, atol=1e-15)
    for cluster in clusters:
        want = np.diag([float(k in cluster) / len(cluster) for k in range(3)])
        for k in cluster:
            np.testing.assert_allclose(slopes[k], want, atol=1e-14)


@pytest.mark.parametrize(
    ("fn", "points"),
    [
        (geo.triangle_normal, [[0.0] * 3] * 3),
        (geo.triangle_area, [[0.0] * 3, [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]),
        (geo.interior_angle, [[0.0] * 3, [0.0] * 3, [1.0, 0.0, 0.0]]),
        (geo.interior_angle, [[0.0] * 3, [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]),
        (geo.dihedral_angle, [[0.0] * 3] * 4),
        (geo.plane_distance, [[1.0, 2.0, 3.0], [0.0] * 3, [0.0] * 3]),
        (geo.project, [[1.0, 2.0, 3.0], [0.0] * 3]),
    ],
)
def test_degenerate_input_gives_zero_and_no_nan(fn: Any, points: list[Any]) -> None:
    graph = ag.trace(fn, *[3] * len(points))
    assert not np.any(graph(*points))
    assert np.isfinite(ag.jacobian(graph)(*points)).all()


def test_matrices_of_known_size() -> None:
    def residual(m: Any, v: Any) -> list[Any]:
        assert isinstance(m, ag.Mat3)
        assert isinstance(m.T @ m, ag.Mat3)
        diagonal = ag.Mat3.diagonal([v[0], 2.0, v[2]])
        columns = ag.Mat3.from_columns([v, v * 2.0, m[0]])
        return [m.trace(), (m + ag.Mat3.identity()).determinant(), (m.inverse() @ m)[0, 0],
                (diagonal @ v)[1], columns[2, 1], m.transpose()[0, 1]]  # fmt: skip

    rng = np.random.default_rng(0)
    m, v = rng.uniform(1.0, 2.0, (3, 3)), rng.uniform(1.0, 2.0, 3)
    want = [np.trace(m), np.linalg.det(m + np.eye(3)), 1.0, 2.0 * v[1], 2.0 * v[2], m[1, 0]]
    EXACT.check(ag.trace(residual, (3, 3), 3)(m, v), want, "matrix")
    assert isinstance(ag.Matrix([[1.0, 2.0], [3.0, 4.0]]), ag.Mat2)
    with pytest.raises(ag.ShapeError, match="Mat4"):
        ag.Mat4([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ag.ShapeError, match="determinant"):
        ag.trace(lambda m: ag.determinant(m), (2, 3))


def test_quaternions_against_rotation_matrices() -> None:
    rng = np.random.default_rng(5)
    axis, angle, v = rng.normal(size=(6, 3)), rng.uniform(-3.0, 3.0, 6), rng.normal(size=(6, 3))
    n = unit(axis)
    k = np.zeros((6, 3, 3))
    k[:, [2, 0, 1], [1, 2, 0]] = n
    k[:, [1, 2, 0], [2, 0, 1]] = -n
    s, c = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
    matrices = np.eye(3) + s * k + (1.0 - c) * (k @ k)  # Rodrigues
    q = ag.Quaternion.from_axis_angle(axis, angle)
    turned = np.einsum("bij,bj->bi", matrices, v)
    EXACT.check(q.to_matrix(), matrices, "matrix")
    EXACT.check(q.rotate(v), turned, "rotate")
    EXACT.check(q.conjugate().rotate(turned), v, "conjugate")
    EXACT.check((q * q).to_matrix(), matrices @ matrices, "product")
    EXACT.check(q.norm(), np.ones(6), "norm")
    p = ag.Quaternion.from_vector(rng.normal(size=(6, 4)))
    one = np.tile([1.0, 0.0, 0.0, 0.0], (6, 1))
    EXACT.check((p * p.inverse()).to_vector(), one, "inverse")
    EXACT.check(p.normalized().norm(), np.ones(6), "normalized")
    EXACT.check(q.dot(q), np.ones(6), "dot")

    def residual(axis: Any, angle: Any, v: Any) -> list[Any]:
        q = ag.Quaternion.from_axis_angle(axis, angle)
        assert isinstance(q.to_matrix(), ag.Mat3)
        return [q.rotate(v), q.to_matrix() @ v, (2.0 * q).normalized().rotate(v)]

    found = ag.trace(residual, 3, 1, 3)(axis, angle, v)
    EXACT.check(found, np.stack([turned] * 3, axis=1), "traced")


def test_a_rotation_is_differentiable_by_axis_and_angle() -> None:
    def residual(axis: Any, angle: Any, v: Any) -> Any:
        return ag.Quaternion.from_axis_angle(axis, angle).rotate(v)

    axis, v = np.array([0.3, -0.5, 0.8]), np.array([1.0, 2.0, -0.5])
    arguments, leaves = values_of([axis[None], np.array([0.7]), v[None]], 0)
    residual(*arguments).x.backward()
    graph = ag.trace(residual, 3, 1, 3)
    EXACT.check([x.grad for x in leaves], ag.jacobian(graph)(axis, 0.7, v)[0], "gradient")
    h = 1e-6
    difference = (graph(axis, 0.7 + h, v) - graph(axis, 0.7 - h, v))[0] / (2.0 * h)
    CENTRAL_DIFFERENCE.check(leaves[3].grad, difference, "angle")
    with pytest.raises(ag.ShapeError, match="expected 3"):
        ag.Quaternion.from_axis_angle([1.0, 0.0], 0.5)


def test_points_are_counted() -> None:
    with pytest.raises(ag.ShapeError, match="at least 3"):
        geo.angle_defect([0.0] * 3, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    with pytest.raises(ag.ShapeError, match="at least 1"):
        geo.bounding_box([])
    with pytest.raises(ag.ShapeError, match=r"expected \(3, 3\)"):
        geo.largest_eigenvalue(np.eye(2))
