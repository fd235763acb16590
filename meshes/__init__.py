"""Triangle meshes: connectivity, generators, files, and energies as plain residual functions."""

from __future__ import annotations

from autograd_gpu.meshes import developability, energies
from autograd_gpu.meshes.files import load, save
from autograd_gpu.meshes.generators import grid, icosphere
from autograd_gpu.meshes.mesh import Mesh

from_trimesh = Mesh.from_trimesh

__all__ = [
    "Mesh",
    "developability",
    "energies",
    "from_trimesh",
    "grid",
    "icosphere",
    "load",
    "save",
]
