"""Meshes from and to other libraries, and the formats that came with them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import meshio
import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.errors import InputError, MeshError, MissingDependencyError
from autograd_gpu.meshes import box, icosphere, load, save, torus


def same(a, b, tolerance=0.0):
    np.testing.assert_array_equal(a.faces, b.faces)
    np.testing.assert_allclose(a.vertices, b.vertices, rtol=0, atol=tolerance)


def test_meshio_round_trip():
    mesh = torus(7, 5)
    other = ag.meshes.to_meshio(mesh)
    assert isinstance(other, meshio.Mesh)
    same(ag.meshes.from_meshio(other), mesh)
    other.points[0] = 99.0
    assert mesh.vertices[0, 0] != 99.0


def test_meshio_cells():
    points = [[0, 0], [1, 0], [1, 1], [0, 1], [2, 0]]
    mixed = meshio.Mesh(points, [("line", [[0, 1]]), ("quad", [[0, 1, 2, 3]]),
                                 ("triangle", [[1, 4, 2]])])  # fmt: skip
    mesh = ag.meshes.from_meshio(mixed)
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3], [1, 4, 2]]
    assert mesh.vertices.shape == (5, 3) and mesh.face_areas.sum() == pytest.approx(1.5)
    solid = meshio.Mesh(np.eye(4, 3), [("tetra", [[0, 1, 2, 3]])])
    with pytest.raises(InputError, match="cells of type tetra, expected triangles"):
        ag.meshes.from_meshio(solid)
    with pytest.raises(MeshError, match="no triangles"):
        ag.meshes.from_meshio(meshio.Mesh(points, [("line", [[0, 1]])]))
    with pytest.raises(InputError, match="got int, expected a meshio"):
        ag.meshes.from_meshio(3)


@pytest.mark.parametrize(
    ("ending", "tolerance"),
    [("gltf", 1e-7), ("glb", 1e-7), ("vtk", 0), ("vtu", 0), ("msh", 0), ("mesh", 1e-15)],
)
def test_file_round_trip(tmp_path: Path, ending, tolerance):
    mesh = icosphere(1)
    path = tmp_path / f"mesh.{ending}"
    save(mesh, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    same(load(path), mesh, tolerance)


def test_gltf_is_one_file_with_its_numbers_inside(tmp_path: Path):
    box(1).save(tmp_path / "box.gltf")
    buffers = json.loads((tmp_path / "box.gltf").read_text())["buffers"]
    assert all(buffer["uri"].startswith("data:") for buffer in buffers)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("junk.vtk", "junk", "cannot be read as vtk"),
        ("junk.msh", "junk", "cannot be read as msh"),
        ("junk.glb", "junk", "cannot be read as glb"),
    ],
)
def test_load_refuses(tmp_path: Path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / name)


def test_polygons_of_pyvista():
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=float)
    surface = SimpleNamespace(points=points, faces=np.array([4, 0, 1, 2, 3, 3, 0, 1, 4]))
    assert ag.meshes.from_pyvista(surface).faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]
    surface = SimpleNamespace(points=points, faces=np.array([3, 0, 1, 2, 3, 0, 1, 4]))
    assert ag.meshes.from_pyvista(surface).faces.tolist() == [[0, 1, 2], [0, 1, 4]]
    with pytest.raises(InputError, match=r"expected a pyvista\.PolyData"):
        ag.meshes.from_pyvista(3)


def test_pyvista_round_trip():
    pytest.importorskip("pyvista", reason="pyvista is no dependency; its class is large")
    mesh = torus(7, 5)
    same(ag.meshes.from_pyvista(ag.meshes.to_pyvista(mesh)), mesh, 1e-7)


@pytest.mark.parametrize(
    ("module", "convert", "remedy"),
    [
        ("meshio", ag.meshes.to_meshio, r"autograd-gpu\[meshes\]"),
        ("pyvista", ag.meshes.to_pyvista, "pip install 'pyvista'"),
        ("polyscope", ag.meshes.to_polyscope, r"autograd-gpu\[show\]"),
    ],
)
def test_a_missing_library_is_named(monkeypatch, module, convert, remedy):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=remedy):
        convert(icosphere(0))


def test_polyscope_gets_the_arrays(monkeypatch):
    calls = []
    stand_in = SimpleNamespace(
        init=lambda: calls.append("init"),
        register_surface_mesh=lambda *args, **options: calls.append((args, options)),
    )
    monkeypatch.setitem(sys.modules, "polyscope", stand_in)
    mesh = icosphere(0)
    ag.meshes.to_polyscope(mesh, "sphere", smooth_shade=True)
    assert calls[0] == "init"
    (name, vertices, faces), options = calls[1]
    assert name == "sphere" and vertices is mesh.vertices and faces is mesh.faces
    assert options == {"smooth_shade": True}
