"""Reading and writing of mesh files, through trimesh, and of formats of solid meshes by meshio."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from autograd_gpu.errors import InputError, MeshError
from autograd_gpu.meshes import conversion
from autograd_gpu.meshes.mesh import Mesh

# Arguments for trimesh's reader and writer, one row a format.
_READ: dict[str, dict[str, Any]] = {
    # Without maintain_order a vertex is split wherever texture coordinates differ: open seams.
    "obj": {"maintain_order": True, "skip_materials": True, "group_material": False},
    "ply": {},
    "stl": {},
    "off": {},
    "gltf": {},
    "glb": {},
}
_WRITE: dict[str, dict[str, Any]] = {
    "obj": {"digits": 17, "header": None, "include_normals": False},
    "ply": {"vertex_normal": False},
    "stl": {},
    "off": {"digits": 17},
    "gltf": {"embed_buffers": True},
    "glb": {},
}
MESHIO_FORMATS = ("vtk", "vtu", "msh", "mesh")
"""Endings that meshio reads and writes: VTK, Gmsh, Medit; in float64."""
_MESHIO_WRITE: dict[str, dict[str, Any]] = {
    "vtk": {},
    "vtu": {},
    # ASCII, with the 17 digits that float64 needs.
    "msh": {"file_format": "gmsh22", "binary": False, "float_fmt": ".17g"},
    "mesh": {"float_fmt": ".17g"},
}


def load(path: str | PathLike[str]) -> Mesh:
    """Read a triangle mesh from a file; polygons are split in triangles.

    Endings: obj, ply, stl, off, gltf, glb, and with meshio vtk, vtu, msh, mesh.

    Vertices keep the order of the file; an stl file has none, there vertices at the same
    position are merged. Texture coordinates, normals and colours are left out. Coordinates of
    ply files are read as stored; files that ``save`` wrote hold ply, stl and gltf in float32. The
    meshes of a gltf scene become one, each moved to its place.

    Raises:
        InputError: no such file, an unknown ending, or a file that cannot be read.
        MeshError: the file has no faces.
        MissingDependencyError: an ending that needs meshio, which is not installed.
    """
    path = Path(path)
    ending = _ending(path, "load")
    if not path.is_file():
        raise InputError(f"load: no file at {str(path)!r}; check the name and the working folder")
    if ending in MESHIO_FORMATS:
        return _load_by_meshio(path, ending)
    import trimesh

    try:
        loaded: Any = trimesh.load_mesh(  # pyright: ignore[reportUnknownMemberType]
            path, file_type=ending, process=False, **_READ[ending]
        )
    except Exception as error:
        # trimesh's readers raise whatever their parsing meets: ValueError, KeyError, IndexError, …
        raise InputError(
            f"load: {str(path)!r} cannot be read as {ending} ({type(error).__name__}: {error}); "
            "check that contents and ending agree"
        ) from error
    if len(loaded.faces) == 0:
        raise MeshError(
            f"load: {str(path)!r} has {len(loaded.vertices)} vertices but no faces; a mesh needs "
            "triangles"
        )
    if ending == "stl":
        loaded.merge_vertices()
    return Mesh.from_trimesh(loaded)


def save(mesh: Mesh, path: str | PathLike[str]) -> None:
    """Write vertices and faces to a file, in the format of its ending; endings as for ``load``.

    obj and off hold 17 decimals; ply, stl and gltf (a file with embedded buffers) hold float32,
    and meshio's formats float64. stl holds no vertex
    numbers: vertices without a face are lost, and the order of the others changes.

    Raises:
        InputError: an unknown ending, or the folder does not exist.
    """
    path = Path(path)
    ending = _ending(path, "save")
    if not path.parent.is_dir():
        raise InputError(f"save: no folder {str(path.parent)!r} to write {path.name!r} into")
    if ending in MESHIO_FORMATS:
        meshio: Any = conversion.library("meshio", "autograd-gpu[meshes]")
        meshio.write(path, conversion.to_meshio(mesh), **_MESHIO_WRITE[ending])
    elif ending == "gltf":
        # One file: buffers lie in it as base64.
        parts: Any = mesh.to_trimesh().scene().export(file_type=ending, **_WRITE[ending])
        path.write_bytes(parts["model.gltf"])
    else:
        mesh.to_trimesh().export(path, file_type=ending, **_WRITE[ending])


def _load_by_meshio(path: Path, ending: str) -> Mesh:
    meshio: Any = conversion.library("meshio", "autograd-gpu[meshes]")
    try:
        loaded: Any = meshio.read(path)
    except (Exception, SystemExit) as error:
        # meshio's readers raise what they meet, and leave the program by sys.exit for some.
        raise InputError(
            f"load: {str(path)!r} cannot be read as {ending} ({type(error).__name__}: {error}); "
            "check that contents and ending agree"
        ) from error
    return conversion.from_meshio(loaded)


def _ending(path: Path, operation: str) -> str:
    ending = path.suffix.lower().removeprefix(".")
    known = (*_READ, *MESHIO_FORMATS)
    if ending not in known:
        raise InputError(
            f"{operation}: {path.name!r} ends in {path.suffix!r}, expected one of "
            + ", ".join(f".{name}" for name in known)
        )
    return ending
