"""Reading and writing of mesh files, through trimesh."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from autograd_gpu.errors import InputError, MeshError
from autograd_gpu.meshes.mesh import Mesh

# Arguments for trimesh's reader and writer, one row a format.
_READ: dict[str, dict[str, Any]] = {
    # Without maintain_order a vertex is split wherever texture coordinates differ: open seams.
    "obj": {"maintain_order": True, "skip_materials": True, "group_material": False},
    "ply": {},
    "stl": {},
    "off": {},
}
_WRITE: dict[str, dict[str, Any]] = {
    "obj": {"digits": 17, "header": None, "include_normals": False},
    "ply": {"vertex_normal": False},
    "stl": {},
    "off": {"digits": 17},
}


def load(path: str | PathLike[str]) -> Mesh:
    """Read a triangle mesh from an obj, ply, stl or off file; polygons are split in triangles.

    Vertices keep the order of the file; an stl file has none, there vertices at the same
    position are merged. Texture coordinates, normals and colours are left out. Coordinates of
    ply files are read as stored; files that ``save`` wrote hold ply and stl in float32.

    Raises:
        InputError: no such file, an unknown ending, or a file that cannot be read.
        MeshError: the file has no faces.
    """
    path = Path(path)
    ending = _ending(path, "load")
    if not path.is_file():
        raise InputError(f"load: no file at {str(path)!r}; check the name and the working folder")
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
    """Write vertices and faces to an obj, ply, stl or off file, chosen by the ending.

    obj and off hold 17 decimals; ply and stl (both binary) hold float32. stl holds no vertex
    numbers: vertices without a face are lost, and the order of the others changes.

    Raises:
        InputError: an unknown ending, or the folder does not exist.
    """
    path = Path(path)
    ending = _ending(path, "save")
    if not path.parent.is_dir():
        raise InputError(f"save: no folder {str(path.parent)!r} to write {path.name!r} into")
    mesh.to_trimesh().export(path, file_type=ending, **_WRITE[ending])


def _ending(path: Path, operation: str) -> str:
    ending = path.suffix.lower().removeprefix(".")
    if ending not in _READ:
        raise InputError(
            f"{operation}: {path.name!r} ends in {path.suffix!r}, expected one of "
            + ", ".join(f".{name}" for name in _READ)
        )
    return ending
