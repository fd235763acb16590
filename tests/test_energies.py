"""Mesh energies against closed forms, and their Jacobians against central differences."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.meshes import energies

# Function, widths of its arguments.
ENERGIES = [
    (energies.spring, (3, 3, 1)),
    (energies.edge_strain, (3, 3, 1)),
    (energies.anchor, (3, 3, 1)),
    (energies.rotate, (3, 3)),
    (energies.as_rigid_as_possible, (3, 3, 3, 3)),
    (energies.dihedral_angle, (3, 3, 3, 3)),
    (energies.dihedral_bending, (3, 3, 3, 3, 1, 1)),
    (energies.triangle_area, (3, 3, 3)),
    (energies.area, (3, 3, 3, 1, 1)),
]


def evaluate(function, *arguments):
    """Trace the function, and evaluate it on one element of each argument (batch of one)."""
    arrays = [np.asarray(a, dtype=np.float64) for a in arguments]
    widths = [a.size for a in arrays]
    return np.atleast_1d(ag.trace(function, *widths)(*[a[None] for a in arrays])[0])


def jacobian(function, *arguments):
    arrays = [np.asarray(a, dtype=np.float64) for a in arguments]
    graph = ag.jacobian(ag.trace(function, *[a.size for a in arrays]))
    return np.reshape(graph(*[a[None] for a in arrays]), (-1, sum(a.size for a in arrays)))


def central_differences(graph, arguments, step=1e-6):
    """(batch, m, n) by central differences; error about step² and 1e-16 / step."""
    columns = []
    for k, argument in enumerate(arguments):
        flat = argument.reshape(len(argument), -1)
        for component in range(flat.shape[1]):
            sides = []
            for sign in (1.0, -1.0):
                moved = flat.copy()
                moved[:, component] += sign * step
                shifted = [*arguments]
                shifted[k] = moved.reshape(argument.shape)
                sides.append(graph(*shifted))
            columns.append((sides[0] - sides[1]) / (2.0 * step))
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize(("function", "widths"), ENERGIES, ids=lambda v: getattr(v, "__name__", ""))
def test_jacobian_against_central_differences(function, widths):
    rng = np.random.default_rng(3)
    batch = 20
    arguments = [
        rng.uniform(0.5, 1.5, batch) if w == 1 else rng.standard_normal((batch, w)) for w in widths
    ]
    graph = ag.trace(function, *widths)
    expected = central_differences(graph, arguments)
    got = np.reshape(ag.jacobian(graph)(*arguments), expected.shape)
    # Angles of thin triangles have large third derivatives, hence the relative part.
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_lengths_and_areas():
    p, q = [1.0, 0.0, 0.0], [1.0, 3.0, 4.0]
    assert evaluate(energies.spring, p, q, 2.0) == pytest.approx([3.0])
    assert evaluate(energies.edge_strain, p, q, 2.0) == pytest.approx([1.5])
    assert evaluate(energies.anchor, p, q, 2.0) == pytest.approx([0.0, -6.0, -8.0])
    corners = [0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 3.0, 1.0]
    assert evaluate(energies.triangle_area, *corners) == pytest.approx([3.0])
    assert evaluate(energies.area, *corners, 1.0, 0.5) == pytest.approx([1.0])


@pytest.mark.parametrize("function", [energies.spring, energies.edge_strain])
def test_gradient_of_a_collapsed_edge_is_zero(function):
    p = [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(jacobian(function, p, p, 1.0)[:, :6], 0.0)


# ---------------------------------------------------------------- rotation


def cross_matrix(r):
    return np.array([[0, -r[2], r[1]], [r[2], 0, -r[0]], [-r[1], r[0], 0]])


@pytest.mark.parametrize(
    "angle", [1e-12, 1e-4, 0.00999, 0.01, 0.01001, 0.3, 1.5, np.pi, 4.0, 2 * np.pi, 20.0]
)
def test_rotation_against_matrix_exponential(angle):
    # mpmath, not scipy.linalg.expm: that one is off by 5e-14 at angle 4.
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    v = np.array([0.3, 0.7, -1.1])
    with mpmath.workdps(40):
        turned = mpmath.expm(mpmath.matrix(cross_matrix(angle * axis))) * mpmath.matrix(v)
        expected = np.array([float(x) for x in turned])
    got = evaluate(energies.rotate, angle * axis, v)
    np.testing.assert_allclose(got, expected, rtol=0, atol=5e-16 * max(1.0, angle))
    assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(v), rel=1e-14)


def test_rotation_by_a_quarter_turn():
    got = evaluate(energies.rotate, [0.0, 0.0, np.pi / 2], [1.0, 0.0, 0.5])
    np.testing.assert_allclose(got, [0.0, 1.0, 0.5], atol=1e-15)


def test_derivatives_of_rotation_at_zero():
    v = np.array([0.3, 0.7, -1.1])
    full = jacobian(energies.rotate, np.zeros(3), v)
    np.testing.assert_array_equal(full[:, :3], -cross_matrix(v))
    np.testing.assert_array_equal(full[:, 3:], np.eye(3))

    # R v = v + r × v + ½ r × (r × v) + …, so ∂²/∂r_j∂r_k = ½ (E_j E_k + E_k E_j) v.
    second = ag.jacobian(ag.jacobian(ag.trace(energies.rotate, 3, 3)))
    got = np.reshape(second(np.zeros((1, 3)), v[None]), (3, 6, 6))[:, :3, :3]
    basis = [cross_matrix(row) for row in np.eye(3)]
    expected = [[0.5 * (ej @ ek + ek @ ej) @ v for ek in basis] for ej in basis]
    np.testing.assert_allclose(got, np.moveaxis(expected, -1, 0), atol=1e-15)


def test_rotation_is_smooth_where_the_series_takes_over():
    axis = np.array([2.0, -1.0, 2.0]) / 3.0
    v = np.array([0.3, 0.7, -1.1])
    below, above = (jacobian(energies.rotate, t * axis, v) for t in (0.01 - 1e-13, 0.01 + 1e-13))
    np.testing.assert_allclose(below, above, rtol=0, atol=1e-12)


def test_as_rigid_as_possible_vanishes_under_rigid_motion():
    r, rest = np.array([0.4, -2.0, 0.9]), np.array([1.0, 0.5, -0.2])
    x_i = np.array([5.0, 6.0, 7.0])
    x_j = x_i + evaluate(energies.rotate, r, rest)
    got = evaluate(energies.as_rigid_as_possible, x_i, x_j, r, rest)
    np.testing.assert_allclose(got, 0.0, atol=1e-15)
    got = evaluate(energies.as_rigid_as_possible, x_i, x_j + 1.0, r, rest)
    np.testing.assert_allclose(got, 1.0, atol=1e-14)


# ---------------------------------------------------------------- bending


def folded(angle):
    """Two triangles at edge (0,0,0)–(2,0,0); the second bends down by the angle."""
    d = [0.5, -np.cos(angle), -np.sin(angle)]
    return [0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.7, 1.5, 0.0], d


@pytest.mark.parametrize("angle", [-3.0, -np.pi / 2, -0.1, 0.0, 1e-9, 0.5, np.pi / 2, 3.0])
def test_dihedral_angle_of_folded_pair(angle):
    assert evaluate(energies.dihedral_angle, *folded(angle)) == pytest.approx([angle], abs=1e-15)
    bent = evaluate(energies.dihedral_bending, *folded(angle), 0.25, 3.0)
    assert bent == pytest.approx([3.0 * (angle - 0.25)], abs=1e-14)


def test_dihedral_angle_of_meshes():
    # A regular icosahedron: π minus its dihedral angle arccos(-√5/3), convex everywhere.
    mesh = ag.meshes.icosphere(0)
    graph = ag.trace(energies.dihedral_angle, 3, 3, 3, 3)
    got = graph(*np.moveaxis(mesh.vertices[mesh.dihedral_stencils], 1, 0))
    np.testing.assert_allclose(got, np.pi - np.arccos(-np.sqrt(5.0) / 3.0), rtol=1e-13)

    mesh = ag.meshes.grid(3, 4)
    got = graph(*np.moveaxis(mesh.vertices[mesh.dihedral_stencils], 1, 0))
    np.testing.assert_array_equal(got, 0.0)


def test_dihedral_gradient_by_height_of_the_opposite_vertex():
    # Lifting c above a flat pair turns its face by 1 / (distance of c from the edge).
    a, b, c, d = folded(0.0)
    gradient = jacobian(energies.dihedral_angle, a, b, c, d)[0]
    assert gradient[8] == pytest.approx(-1.0 / 1.5)
    assert gradient[11] == pytest.approx(-1.0)
    np.testing.assert_allclose(gradient.reshape(4, 3).sum(axis=0), 0.0, atol=1e-15)


@pytest.mark.parametrize("collapsed", ["edge", "c on a", "c on b", "d on a", "d on b", "all"])
def test_zero_area_triangle_bends_by_nothing(collapsed):
    a, b, c, d = (np.array(x) for x in folded(0.7))
    if collapsed == "edge":
        b = a
    elif collapsed == "all":
        b = c = d = a
    else:
        target = a if collapsed.endswith("a") else b
        c, d = (target, d) if collapsed.startswith("c") else (c, target)
    np.testing.assert_array_equal(evaluate(energies.dihedral_angle, a, b, c, d), 0.0)
    np.testing.assert_array_equal(jacobian(energies.dihedral_angle, a, b, c, d), 0.0)
