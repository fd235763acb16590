"""Defects, repair, quality, refinement: of meshes whose defects were put in by hand."""

from __future__ import annotations

import numpy as np
import pytest

from autograd_gpu.errors import IndexRangeError, InputError, MeshError
from autograd_gpu.meshes import (
    Mesh,
    box,
    cut,
    cylinder,
    disk,
    grid,
    icosphere,
    repair,
    seam,
    torus,
)  # fmt: skip

BOOK = Mesh(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]],
    [[0, 1, 2], [1, 0, 3], [0, 1, 4]],
)
MOEBIUS_LIKE = Mesh(
    [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.5]], [[0, 1, 2], [1, 2, 3]]
)


def spoiled():
    """A grid with one of everything that a file may have."""
    good = grid(2, 2)
    n = len(good.vertices)
    vertices = np.concatenate([good.vertices, good.vertices[[4]], [[9, 9, 9], [0.75, 0, 0]]])
    faces = np.concatenate([good.faces, [[0, 0, 1], [1, n + 2, 2], [4, 3, 0]]])
    faces[7, faces[7] == 4] = n
    return good, Mesh(vertices, faces)


@pytest.mark.parametrize(
    "mesh", [icosphere(2), grid(3, 4), disk(4), torus(9, 6), box(3), cylinder(7, 2)], ids=repr
)
def test_good_meshes_have_no_defects(mesh):
    found = mesh.defects()
    assert found.ok and str(found) == "no defects"
    assert set(found.counts.values()) == {0}


def test_defects_are_counted_and_numbered():
    good, mesh = spoiled()
    n, m = len(good.vertices), len(good.faces)
    found = mesh.defects()
    assert found.collapsed_faces.tolist() == [m]
    assert found.flat_faces.tolist() == [m + 1]
    assert sorted(good.faces[1].tolist()) == [0, 3, 4]
    assert found.duplicate_faces.tolist() == [m + 2]
    assert found.duplicate_vertices.tolist() == [n]
    assert found.unreferenced_vertices.tolist() == [n + 1]
    assert not found.ok
    assert f"1 vertices without a face: {n + 1} (remove)" in str(found)
    assert str(found).count("\n") == len([c for c in found.counts.values() if c]) - 1


def test_non_manifold_parts_are_numbered():
    assert BOOK.defects().crowded_edges.tolist() == [[0, 1]]
    assert MOEBIUS_LIKE.defects().twisted_edges.tolist() == [[1, 2]]
    butterfly = Mesh(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [-1, 0, 0], [-1, -1, 0]], [[0, 1, 2], [0, 3, 4]]
    )
    assert butterfly.defects().touching_vertices.tolist() == [0]
    assert butterfly.defects().counts["crowded_edges"] == 0


def test_repair_does_what_is_asked_for_and_says_where_rows_come_from():
    good, mesh = spoiled()
    before = mesh.vertices.copy(), mesh.faces.copy()
    done = repair(mesh, merge=True, remove=True)
    # Vertex n + 2 lies on an edge: its flat face is gone, and so is it.
    assert done.mesh.defects().ok
    np.testing.assert_array_equal(done.mesh.vertices, good.vertices)
    np.testing.assert_array_equal(done.mesh.faces, good.faces)
    np.testing.assert_array_equal(mesh.vertices[done.vertex_rows], done.mesh.vertices)
    assert done.face_rows.tolist() == list(range(len(good.faces)))
    np.testing.assert_array_equal(mesh.vertices, before[0])
    np.testing.assert_array_equal(mesh.faces, before[1])

    merged = mesh.repaired(merge=True)
    assert len(merged.vertices) == len(mesh.vertices) - 1  # the lonely one stays
    assert len(merged.faces) == len(mesh.faces)
    with pytest.raises(InputError, match="nothing asked for"):
        repair(mesh)


def test_split_gives_every_sheet_its_own_vertices():
    done = repair(BOOK, split=True)
    found = done.mesh.defects()
    assert found.counts.pop("duplicate_vertices") == 4
    assert [name for name, count in found.counts.items() if count] == ["duplicate_vertices"]
    assert len(done.mesh.vertices) == 9 and len(done.mesh.faces) == 3
    np.testing.assert_array_equal(done.mesh.vertices[done.mesh.faces], BOOK.vertices[BOOK.faces])
    done.mesh.require_manifold()
    with pytest.raises(MeshError, match="three or more faces"):
        BOOK.require_manifold()
    whole = icosphere(1)
    np.testing.assert_array_equal(whole.repaired(split=True).faces, whole.faces)


def test_split_where_fans_touch():
    butterfly = Mesh(
        [[0, 0, 0], [1, 0, 0], [1, 1, 0], [-1, 0, 0], [-1, -1, 0]], [[0, 1, 2], [0, 3, 4]]
    )
    done = repair(butterfly, split=True)
    assert done.mesh.faces.tolist() == [[0, 1, 2], [5, 3, 4]]
    assert done.vertex_rows.tolist() == [0, 1, 2, 3, 4, 0]


def test_orient_makes_neighbours_agree():
    fixed = MOEBIUS_LIKE.repaired(orient=True)
    assert fixed.defects().ok
    assert sorted(map(sorted, fixed.faces.tolist())) == [[0, 1, 2], [1, 2, 3]]


# ---------------------------------------------------------------- quality


def test_quality_of_regular_triangles():
    q = icosphere(0).quality()
    assert (q.vertices, q.edges, q.faces) == (12, 30, 20)
    assert (q.components, q.boundary_edges, q.euler_characteristic) == (1, 0, 2)
    assert q.angles == pytest.approx((60.0, 60.0, 60.0))
    assert q.radius_ratio == pytest.approx((1.0, 1.0))
    assert q.valences == (5.0, 5.0, 5.0)
    assert q.obtuse_faces == q.negative_weights == 0
    assert "12 vertices, 30 edges, 20 faces" in str(q)


def test_quality_of_a_bad_pair():
    # Both triangles have 2·atan(4) at the apex; the shared edge is opposite both.
    mesh = Mesh([[-4, 0, 0], [4, 0, 0], [0, 1, 0], [0, -1, 0]], [[0, 1, 2], [1, 0, 3]])
    q = mesh.quality()
    assert q.angles[2] == pytest.approx(2 * np.degrees(np.arctan(4.0)))
    assert q.obtuse_faces == 2 and q.negative_weights == 1 and q.boundary_edges == 4
    a, s = 4.0, np.sqrt(17.0)
    assert q.radius_ratio[0] == pytest.approx(16 * a**2 / ((8 + 2 * s) * 8 * s * s))
    two = Mesh(np.concatenate([mesh.vertices, mesh.vertices + 9.0]),
               np.concatenate([mesh.faces, mesh.faces + 4]))  # fmt: skip
    assert two.quality().components == 2
    with pytest.raises(MeshError, match="zero area"):
        Mesh(np.zeros((3, 3)), [[0, 1, 2]]).quality()


# ---------------------------------------------------------------- weights and angles


def test_gauss_bonnet():
    for mesh, expected in ((icosphere(2), 2), (torus(12, 7), 0), (disk(3), 1), (box(2), 2)):
        assert mesh.euler_characteristic == expected
        assert mesh.angle_defects.sum() == pytest.approx(2 * np.pi * expected, abs=1e-10)
    np.testing.assert_allclose(grid(3, 3).angle_defects[[5, 6]], 0.0, atol=1e-14)
    assert Mesh([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5]], [[0, 1, 2]]).angle_defects[3] == 0


def test_mean_value_weights_reproduce_plane_coordinates():
    # Floater's coordinates are exact for linear functions in the plane, on any star.
    mesh = disk(4)
    rng = np.random.default_rng(1)
    moved = mesh.vertices + np.pad(
        rng.uniform(-0.05, 0.05, (len(mesh.vertices), 2)), ((0, 0), (0, 1))
    )
    mesh = Mesh(moved, mesh.faces)
    assert (mesh.mean_value_weights > 0).all()
    i, j = mesh.directed_edges.T
    sums = np.zeros_like(mesh.vertices)
    np.add.at(sums, i, mesh.mean_value_weights[:, None] * (mesh.vertices[j] - mesh.vertices[i]))
    np.testing.assert_allclose(sums[mesh.interior_vertices], 0.0, atol=1e-12)
    # One right triangle by hand: at the right angle tan(π/8·2 / 2) over each leg.
    right = Mesh([[0, 0, 0], [1, 0, 0], [0, 2, 0]], [[0, 1, 2]])
    np.testing.assert_allclose(right.mean_value_weights[:2], np.tan(np.pi / 4) / [1.0, 2.0])


def test_face_gradients_of_linear_functions():
    mesh = icosphere(1)
    slope = np.array([0.3, -1.2, 0.7])
    values = (mesh.vertices @ slope)[mesh.faces]
    edges = np.stack([values[:, 1] - values[:, 0], values[:, 2] - values[:, 0]], axis=1)
    gradient = np.einsum("mi,mij->mj", edges, mesh.face_gradients)
    tangential = slope - mesh.face_normals * (mesh.face_normals @ slope)[:, None]
    np.testing.assert_allclose(
        np.linalg.norm(gradient, axis=1), np.linalg.norm(tangential, axis=1), rtol=1e-12
    )
    assert (np.linalg.det(mesh.face_gradients) > 0).all()


# ---------------------------------------------------------------- refinement


@pytest.mark.parametrize("mesh", [grid(2, 3), torus(8, 5), icosphere(1)], ids=repr)
def test_midpoint_refinement(mesh):
    finer = mesh.refined()
    assert len(finer.vertices) == len(mesh.vertices) + len(mesh.edges)
    assert len(finer.faces) == 4 * len(mesh.faces)
    assert finer.euler_characteristic == mesh.euler_characteristic
    assert finer.defects().ok
    np.testing.assert_array_equal(finer.vertices[: len(mesh.vertices)], mesh.vertices)
    np.testing.assert_allclose(
        finer.face_areas.reshape(-1, 4), np.repeat(mesh.face_areas[:, None] / 4, 4, axis=1)
    )
    np.testing.assert_allclose(finer.face_normals[::4], mesh.face_normals, atol=1e-14)
    assert mesh.refined(0) is mesh
    assert len(mesh.refined(2).faces) == 16 * len(mesh.faces)


def test_loop_subdivision_smooths():
    solid = box(1).loop_subdivided(2)
    assert len(solid.faces) == 16 * 12 and solid.euler_characteristic == 2
    assert np.ptp(solid.vertices[:, 0]) < 1.0
    with pytest.raises(MeshError, match="three or more faces"):
        BOOK.loop_subdivided()


@pytest.mark.parametrize(("times", "message"), [(-1, "times is -1"), (1.5, "times is 1.5")])
def test_refinement_refuses(times, message):
    with pytest.raises(InputError, match=message):
        grid(1, 1).refined(times)


def test_face_edges():
    mesh = torus(6, 4)
    for k in range(3):
        pairs = np.sort(np.stack([mesh.faces[:, k], mesh.faces[:, (k + 1) % 3]], axis=1), axis=1)
        np.testing.assert_array_equal(mesh.edges[mesh.face_edges[:, k]], pairs)
    with pytest.raises(MeshError, match="name a vertex twice"):
        _ = Mesh(np.eye(3), [[0, 1, 1]]).face_edges


# ---------------------------------------------------------------- generators


def outward(mesh):
    """Six times the enclosed volume, positive where normals point outward."""
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces], 1, 0)
    return np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0


def test_generated_solids():
    assert outward(box(3, (1.0, 2.0, 3.0))) == pytest.approx(6.0)
    assert len(box(3).vertices) == 6 * 9 + 2 and len(box(3).faces) == 12 * 9
    assert outward(cylinder(200, 3, 2.0, 5.0)) == pytest.approx(np.pi * 4 * 5, rel=1e-3)
    assert outward(torus(200, 100, 2.0, 0.5)) == pytest.approx(2 * np.pi**2 * 2 * 0.25, rel=2e-3)
    open_tube = cylinder(12, 4, caps=False)
    assert [len(loop) for loop in open_tube.boundary_loops] == [12, 12]
    assert open_tube.euler_characteristic == 0
    assert cylinder(12, 4).boundary_loops == ()


def test_disk():
    mesh = disk(5, radius=2.0)
    assert len(mesh.vertices) == 1 + 3 * 5 * 6 and len(mesh.faces) == 6 * 25
    assert [len(loop) for loop in mesh.boundary_loops] == [30]
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices[-30:], axis=1), 2.0)
    np.testing.assert_allclose(mesh.face_normals[:, 2], 1.0)
    assert mesh.quality().angles[0] > 40.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: disk(0), "rings is 0"),
        (lambda: cylinder(2, 1), "around is 2"),
        (lambda: cylinder(3, 1, radius=-1.0), "radius is -1"),
        (lambda: torus(8, 8, 1.0, 1.5), "meet itself"),
        (lambda: box(2, (1.0, float("inf"), 1.0)), "y is inf"),
        (lambda: box(2, (1.0, 1.0)), "expected three lengths"),
    ],
)
def test_generators_refuse(call, message):
    with pytest.raises(InputError, match=message):
        call()


# ---------------------------------------------------------------- cutting


def test_a_cut_sphere_is_a_disk():
    mesh = icosphere(2)
    ends = [int(np.argmax(mesh.vertices[:, 2])), int(np.argmin(mesh.vertices[:, 2])), 40]
    edges = seam(mesh, ends)
    # A tree: one vertex more than edges, and the terminals are on it.
    on_seam = np.unique(mesh.edges[edges])
    assert len(on_seam) == len(edges) + 1 and set(ends) <= set(on_seam.tolist())
    opened, rows = cut(mesh, edges)
    assert opened.euler_characteristic == 1
    assert [len(loop) for loop in opened.boundary_loops] == [2 * len(edges)]
    np.testing.assert_array_equal(opened.vertices, mesh.vertices[rows])
    np.testing.assert_array_equal(rows[opened.faces], mesh.faces)
    np.testing.assert_array_equal(rows[: len(mesh.vertices)], np.arange(len(mesh.vertices)))


def test_a_seam_is_shortest():
    mesh = grid(4, 6, width=6.0, height=4.0)
    edges = seam(mesh, [0, 6])
    assert mesh.edge_lengths[edges].sum() == pytest.approx(6.0)


def test_cutting_refuses():
    mesh = icosphere(0)
    with pytest.raises(IndexRangeError, match="1 of 2 edges are outside 0 to 29: 30"):
        cut(mesh, [3, 30])
    with pytest.raises(InputError, match="float64"):
        cut(mesh, [0.5])
    with pytest.raises(InputError, match=r"1 terminal\(s\)"):
        seam(mesh, [3, 3])
    with pytest.raises(IndexRangeError, match="vertices 0 to 11"):
        seam(mesh, [0, 12])
    two = Mesh(np.concatenate([mesh.vertices, mesh.vertices]),
               np.concatenate([mesh.faces, mesh.faces + 12]))  # fmt: skip
    with pytest.raises(MeshError, match="joins vertices 15"):
        seam(two, [0, 15])
