"""Ragged arrays, mesh connectivity and weights, generators and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from autograd_gpu.errors import IndexRangeError, InputError, MeshError, ShapeError
from autograd_gpu.meshes import Mesh, from_trimesh, grid, icosphere, load, save
from autograd_gpu.ragged import Ragged

FOUR = [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.5]]
TWO_FACES = [[0, 1, 2], [1, 3, 2]]


# ---------------------------------------------------------------- Ragged


def test_ragged_rows():
    rows = Ragged([0, 2, 2, 5], np.arange(5) * 10)
    assert len(rows) == 3
    assert rows.lengths.tolist() == [2, 0, 3]
    assert [row.tolist() for row in rows] == [[0, 10], [], [20, 30, 40]]
    assert rows[2].tolist() == [20, 30, 40]
    assert rows.values.dtype == np.int64
    assert Ragged([0, 1], [[1.5, 2.5]])[0].shape == (1, 2)
    assert repr(rows) == "Ragged(3 rows, 5 values)"


def test_ragged_owns_its_arrays():
    indptr, values = np.array([0, 1, 3]), np.array([1.0, 2.0, 3.0])
    rows = Ragged(indptr, values)
    values[0] = 99.0
    indptr[1] = 2
    assert rows[0].tolist() == [1.0]
    with pytest.raises(ValueError, match="read-only"):
        rows[1][0] = 0.0
    with pytest.raises(AttributeError):
        rows.values = values  # pyright: ignore


@pytest.mark.parametrize(
    ("indptr", "values", "error", "message"),
    [
        ([[0, 1]], [1.0], ShapeError, r"shape \(1, 2\)"),
        ([], [], ShapeError, "shape"),
        ([0.0, 1.0], [1.0], InputError, "float64, expected integers"),
        ([1, 2], [1.0, 2.0], InputError, "starts at 1"),
        ([0, 3, 2, 4], [1.0] * 4, InputError, r"after entry 1 \(3 to 2"),
        ([0, 2], [1.0, 2.0, 3.0], ShapeError, "ends at 2, but there are 3 values"),
        ([0, 1], 1.0, ShapeError, "single number"),
        ([0, 1], ["a"], InputError, "dtype"),
        ([0, 2], [1.0, np.nan], InputError, r"1 entries .* first at \(1,\)"),
    ],
)
def test_ragged_refuses(indptr, values, error, message):
    with pytest.raises(error, match=message):
        Ragged(np.asarray(indptr), values)


@pytest.mark.parametrize("k", [-1, 2])
def test_ragged_row_out_of_range(k):
    with pytest.raises(IndexRangeError, match=f"row {k} does not exist"):
        Ragged([0, 1, 2], [1, 2])[k]


def test_ragged_row_is_an_integer():
    with pytest.raises(InputError, match="slice"):
        Ragged([0, 1], [1])[:1]  # pyright: ignore


# ---------------------------------------------------------------- connectivity


@pytest.mark.parametrize("level", [0, 1, 2, 4])
def test_icosphere_is_numbered_like_that_of_trimesh(level: int) -> None:
    theirs = trimesh.creation.icosphere(subdivisions=level)
    ours = icosphere(level)
    np.testing.assert_array_equal(ours.faces, theirs.faces)
    np.testing.assert_array_equal(ours.vertices, theirs.vertices)


@pytest.mark.parametrize("level", [0, 1, 3])
def test_icosphere(level):
    mesh = icosphere(level)
    assert len(mesh.vertices) == 10 * 4**level + 2
    assert len(mesh.faces) == 20 * 4**level
    assert mesh.edges.shape == (30 * 4**level, 2)
    assert mesh.dihedral_stencils.shape == (30 * 4**level, 4)
    assert mesh.directed_edges.shape == (60 * 4**level, 2)
    assert mesh.euler_characteristic == 2
    assert len(mesh.boundary_vertices) == 0
    assert mesh.boundary_loops == ()
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 1.0, rtol=4e-16)
    centres = mesh.vertices[mesh.faces].mean(axis=1)
    assert (np.einsum("ij,ij->i", centres, mesh.face_normals) > 0).all()
    np.testing.assert_allclose(mesh.vertex_areas.sum(), mesh.face_areas.sum())
    mesh.require_nondegenerate()


def test_grid():
    mesh = grid(2, 3, width=6.0, height=1.0)
    assert len(mesh.vertices) == 12
    assert len(mesh.faces) == 12
    assert mesh.euler_characteristic == 1
    assert mesh.vertices[1].tolist() == [2.0, 0.0, 0.0]
    assert mesh.vertices[-1].tolist() == [6.0, 1.0, 0.0]
    np.testing.assert_allclose(mesh.face_areas, 0.5)
    np.testing.assert_array_equal(mesh.face_normals, np.tile([0.0, 0.0, 1.0], (12, 1)))
    assert [loop.tolist() for loop in mesh.boundary_loops] == [[0, 1, 2, 3, 7, 11, 10, 9, 8, 4]]
    assert mesh.boundary_vertices.tolist() == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: icosphere(-1), "subdivisions is -1"),
        (lambda: icosphere(1.5), "subdivisions is 1.5"),
        (lambda: icosphere(11), "at most 10"),
        (lambda: grid(0, 3), "rows is 0"),
        (lambda: grid(3, 2, width=-1.0), "width is -1"),
        (lambda: grid(3, 2, height=float("nan")), "height is nan"),
    ],
)
def test_generators_refuse(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_edges_are_lexicographic():
    mesh = Mesh(FOUR, TWO_FACES)
    assert mesh.edges.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert mesh.directed_edges.tolist() == sorted(
        mesh.edges.tolist() + mesh.edges[:, ::-1].tolist()
    )
    np.testing.assert_allclose(mesh.edge_lengths, [1, 1, np.sqrt(2), np.sqrt(1.25), np.sqrt(1.25)])


def test_dihedral_stencils_by_definition():
    assert Mesh(FOUR, TWO_FACES).dihedral_stencils.tolist() == [[1, 2, 0, 3]]
    # The same edge, seen from the other orientation: the face with side a -> b comes first.
    assert Mesh(FOUR, [[0, 2, 1], [1, 2, 3]]).dihedral_stencils.tolist() == [[1, 2, 3, 0]]
    mesh = grid(3, 4)
    faces = {tuple(np.roll(face, k)) for face in mesh.faces for k in range(3)}
    stencils = mesh.dihedral_stencils
    assert all((a, b, c) in faces and (b, a, d) in faces and a < b for a, b, c, d in stencils)
    assert stencils[:, :2].tolist() == sorted(stencils[:, :2].tolist())
    boundary_edges = sum(len(loop) for loop in mesh.boundary_loops)
    assert len(stencils) == len(mesh.edges) - boundary_edges


def cyclic(row):
    """Start a closed ring at its smallest neighbour."""
    k = int(np.argmin(row))
    return [*row[k:], *row[:k]]


def test_one_rings_turn_counter_clockwise():
    mesh = grid(4, 4)
    boundary = set(mesh.boundary_vertices.tolist())
    for v, ring in enumerate(mesh.one_rings):
        spokes = mesh.vertices[ring] - mesh.vertices[v]
        turns = np.cross(spokes, np.roll(spokes, -1, axis=0))[:, 2]
        if v in boundary:
            assert (turns[:-1] > 0).all()
            assert {int(ring[0]), int(ring[-1])} <= boundary
        else:
            assert (turns > 0).all()
            assert ring[0] == ring.min()


@pytest.mark.parametrize("mesh", [icosphere(2), grid(3, 5), Mesh(FOUR, TWO_FACES)], ids=repr)
def test_one_rings_follow_faces(mesh):
    faces = {tuple(np.roll(face, k).tolist()) for face in mesh.faces for k in range(3)}
    boundary = set(mesh.boundary_vertices.tolist())
    neighbours = [set() for _ in mesh.vertices]
    for i, j in mesh.directed_edges:
        neighbours[i].add(int(j))
    for v, ring in enumerate(mesh.one_rings):
        ring = ring.tolist()
        assert set(ring) == neighbours[v] and len(ring) == len(neighbours[v])
        pairs = zip(ring, ring[1:] + ([] if v in boundary else ring[:1]), strict=False)
        assert all((v, j, k) in faces for j, k in pairs)


def test_one_ring_of_a_long_fan():
    n = 1000
    angle = np.linspace(0.0, 2.0 * np.pi, n, endpoint=False)
    rim = np.column_stack([np.cos(angle), np.sin(angle), 0.0 * angle])
    order = np.random.default_rng(0).permutation(n) + 1
    vertices = np.zeros((n + 1, 3))
    vertices[order] = rim
    faces = np.column_stack([np.zeros(n, dtype=int), order, np.roll(order, -1)])
    mesh = Mesh(vertices, faces)
    assert mesh.one_rings[0].tolist() == cyclic(order.tolist())
    assert [loop.tolist() for loop in mesh.boundary_loops] == [cyclic(order.tolist())]


def test_fans_that_meet_in_a_vertex():
    # Two triangles share only vertex 0; vertex 5 has no face.
    vertices = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [-1, 0, 0], [-1, -1, 0], [9, 9, 9]]
    mesh = Mesh(vertices, [[0, 1, 2], [0, 3, 4]])
    assert [ring.tolist() for ring in mesh.one_rings] == [
        [1, 2, 3, 4], [2, 0], [0, 1], [4, 0], [0, 3], [],
    ]  # fmt: skip
    assert [loop.tolist() for loop in mesh.boundary_loops] == [[0, 1, 2], [0, 3, 4]]
    assert mesh.euler_characteristic == 1


def test_boundary_loops_of_a_ring():
    mesh = grid(3, 3)
    middle = 4 * 2
    mesh = Mesh(mesh.vertices, np.delete(mesh.faces, [middle, middle + 1], axis=0))
    assert mesh.euler_characteristic == 0
    assert [loop.tolist() for loop in mesh.boundary_loops] == [
        [0, 1, 2, 3, 7, 11, 15, 14, 13, 12, 8, 4],
        [5, 9, 10, 6],
    ]


# ---------------------------------------------------------------- geometry


def test_cotangent_weights_by_hand():
    equilateral = Mesh([[0, 0, 0], [1, 0, 0], [0.5, np.sqrt(0.75), 0]], [[0, 1, 2]])
    np.testing.assert_allclose(equilateral.cotangent_weights, 0.5 / np.sqrt(3.0), rtol=1e-15)
    # Legs 1 and 2: cot at 1 is 1/2, at 2 is 2; edges (0,1), (0,2), (1,2).
    right = Mesh([[0, 0, 0], [1, 0, 0], [0, 2, 0]], [[0, 1, 2]])
    np.testing.assert_allclose(right.cotangent_weights, [1.0, 0.25, 0.0], atol=1e-15)
    # Unit square: the diagonal is opposite two right angles, each side opposite one of 45°.
    square = grid(1, 1)
    np.testing.assert_allclose(square.cotangent_weights, [0.5, 0.5, 0, 0.5, 0.5], atol=1e-15)


def test_cotangent_weights_make_coordinates_harmonic():
    mesh = grid(4, 5, width=2.0)
    laplacian = np.zeros_like(mesh.vertices)
    i, j = mesh.edges.T
    flow = mesh.cotangent_weights[:, None] * (mesh.vertices[j] - mesh.vertices[i])
    np.add.at(laplacian, i, flow)
    np.add.at(laplacian, j, -flow)
    interior = np.setdiff1d(np.arange(len(mesh.vertices)), mesh.boundary_vertices)
    np.testing.assert_allclose(laplacian[interior], 0.0, atol=1e-14)


def test_areas_and_normals():
    mesh = Mesh([[0, 0, 0], [1, 0, 0], [0, 2, 0], [9, 9, 9]], [[0, 1, 2]])
    assert mesh.face_areas.tolist() == [1.0]
    assert mesh.face_normals.tolist() == [[0.0, 0.0, 1.0]]
    np.testing.assert_allclose(mesh.vertex_areas, [1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_zero_area_faces_are_named(scale, offset):
    vertices = offset + scale * np.array([[0, 0, 0], [0.1] * 3, [0.3] * 3, [1, 0, 0], [1, 1, 0]])
    mesh = Mesh(vertices, [[0, 3, 4], [0, 1, 2], [3, 4, 4]])
    for operation in (
        lambda: mesh.cotangent_weights,
        lambda: mesh.face_normals,
        mesh.require_nondegenerate,
    ):
        with pytest.raises(MeshError, match=r"2 of 3 faces have zero area: faces 1, 2; remove"):
            operation()
    Mesh(vertices, [[0, 3, 4]]).require_nondegenerate()
    assert mesh.face_areas[0] > 0
    assert [0, 0] not in mesh.edges.tolist() and [4, 4] not in mesh.edges.tolist()


def test_non_manifold_edges_are_named():
    book = Mesh(
        [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]],
        [[0, 1, 2], [1, 0, 3], [0, 1, 4]],
    )
    for operation in (lambda: book.dihedral_stencils, lambda: book.boundary_loops):
        with pytest.raises(MeshError, match=r"1 edges have three or more faces.*\[0, 1\]"):
            operation()
    assert book.one_rings[0].tolist() == [1, 2, 3, 4]
    twisted = Mesh(FOUR, [[0, 1, 2], [1, 2, 3]])
    with pytest.raises(MeshError, match=r"oriented differently: vertex pairs \[1, 2\]"):
        _ = twisted.dihedral_stencils
    with pytest.raises(MeshError, match="name a vertex twice: faces 1;"):
        _ = Mesh(FOUR, [[0, 1, 2], [1, 1, 3]]).dihedral_stencils


@pytest.mark.parametrize(
    ("vertices", "faces", "error", "message"),
    [
        (np.zeros((3, 2)), [[0, 1, 2]], ShapeError, r"vertices has shape \(3, 2\)"),
        (FOUR, [[0, 1, 2, 3]], ShapeError, r"faces has shape \(1, 4\)"),
        (FOUR, [[0.0, 1.0, 2.0]], InputError, "faces has dtype float64"),
        (np.full((3, 3), "a"), [[0, 1, 2]], InputError, "vertices has dtype"),
        (FOUR, [[0, 1, 2], [0, 1, 4]], IndexRangeError, r"1 of 2 .* faces 1, .*\[0, 1, 4\]"),
        (FOUR, [[0, -1, 2]], IndexRangeError, "outside 0 to 3"),
        ([[0, 0, 0], [0, np.inf, 0], [0, 0, 0]], [[0, 1, 2]], InputError, "vertices 1;"),
    ],
)
def test_mesh_refuses(vertices, faces, error, message):
    with pytest.raises(error, match=message):
        Mesh(vertices, faces)


def test_arrays_of_the_user_stay_as_they_are():
    vertices, faces = np.array(FOUR), np.array(TWO_FACES)
    mesh = Mesh(vertices, faces)
    vertices[0] = 7.0
    faces[0] = 0
    assert mesh.vertices.tolist() == FOUR
    assert mesh.faces.tolist() == TWO_FACES
    names = ("vertices", "faces", "edges", "edge_lengths", "directed_edges", "dihedral_stencils",
             "boundary_vertices", "face_areas", "vertex_areas", "face_normals",
             "cotangent_weights")  # fmt: skip
    for name in names:
        assert not getattr(mesh, name).flags.writeable, name
        assert getattr(mesh, name) is getattr(mesh, name), name
    assert vertices.flags.writeable and faces.flags.writeable
    with pytest.raises(AttributeError):
        mesh.vertices = vertices  # pyright: ignore


# ---------------------------------------------------------------- files


def test_trimesh_round_trip():
    mesh = icosphere(1)
    other = mesh.to_trimesh()
    assert isinstance(other, trimesh.Trimesh) and other.is_watertight
    again = from_trimesh(other)
    np.testing.assert_array_equal(again.vertices, mesh.vertices)
    np.testing.assert_array_equal(again.faces, mesh.faces)
    with pytest.raises(InputError, match="got int, expected a trimesh"):
        from_trimesh(3)


@pytest.mark.parametrize(("ending", "tolerance"), [("obj", 1e-16), ("OFF", 1e-16), ("ply", 1e-7)])
def test_file_round_trip(tmp_path: Path, ending, tolerance):
    # Vertex 3 has no face, and stays.
    vertices = np.insert(icosphere(1).vertices / 3.0, 3, [9.0, 9.0, 9.0], axis=0)
    faces = icosphere(1).faces + (icosphere(1).faces >= 3)
    mesh = Mesh(vertices, faces)
    path = tmp_path / f"mesh.{ending}"
    mesh.save(path)
    again = load(str(path))
    np.testing.assert_array_equal(again.faces, mesh.faces)
    np.testing.assert_allclose(again.vertices, mesh.vertices, rtol=0, atol=tolerance)


def test_stl_round_trip_up_to_numbering(tmp_path: Path):
    mesh = icosphere(1)
    path = tmp_path / "mesh.stl"
    save(mesh, path)
    again = load(path)
    assert again.euler_characteristic == 2
    assert len(again.vertices) == len(mesh.vertices)
    np.testing.assert_allclose(
        again.vertices[again.faces], mesh.vertices[mesh.faces], rtol=0, atol=1e-7
    )


def test_texture_coordinates_do_not_cut_the_mesh(tmp_path: Path):
    path = tmp_path / "seam.obj"
    path.write_text(
        "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"
        "vt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\nvt 0.5 0.5\n"
        "f 1/1 2/2 3/3\nf 1/5 3/4 4/1\n"
    )
    mesh = load(path)
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]


def test_polygons_are_split(tmp_path: Path):
    path = tmp_path / "quad.obj"
    path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
    mesh = load(path)
    assert len(mesh.faces) == 2
    np.testing.assert_allclose(mesh.face_areas.sum(), 1.0)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.obj", None, InputError, "no file at .*missing.obj"),
        ("mesh.step", "", InputError, "ends in '.step', expected one of .obj, .ply, .stl, .off"),
        ("mesh", "", InputError, "ends in ''"),
        ("points.obj", "v 0 0 0\nv 1 0 0\n", MeshError, "no faces"),
        ("points.off", "OFF\n1 0 0\n0 0 0\n", MeshError, "1 vertices but no faces"),
        ("empty.obj", "", MeshError, "no faces"),
        ("junk.ply", "junk", InputError, "cannot be read as ply"),
        ("junk.off", "junk", InputError, "cannot be read as off"),
        ("junk.stl", "junk", MeshError, "no faces"),
        ("range.obj", "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n", InputError, "index 8 is out"),
    ],
)
def test_load_refuses(tmp_path: Path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        load(path)


def test_save_refuses(tmp_path: Path):
    with pytest.raises(InputError, match="expected one of"):
        save(icosphere(0), tmp_path / "mesh.step")
    with pytest.raises(InputError, match="no folder"):
        save(icosphere(0), tmp_path / "nowhere" / "mesh.obj")
