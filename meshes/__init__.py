"""Triangle meshes: connectivity, generators, files, and energies as plain residual functions."""

from __future__ import annotations

from autograd_gpu.meshes import developability, energies
from autograd_gpu.meshes.conversion import (
    from_meshio,
    from_pyvista,
    from_trimesh,
    require_polyscope,
    to_meshio,
    to_polyscope,
    to_pyvista,
    to_trimesh,
)
from autograd_gpu.meshes.cutting import cut, seam
from autograd_gpu.meshes.defects import Defects, Repair, repair
from autograd_gpu.meshes.files import load, save
from autograd_gpu.meshes.generators import box, cylinder, disk, grid, icosphere, torus
from autograd_gpu.meshes.mesh import Mesh
from autograd_gpu.meshes.parameterization import longest_step_without_flips, tutte_embedding
from autograd_gpu.meshes.quality import Quality

__all__ = [
    "Defects",
    "Mesh",
    "Quality",
    "Repair",
    "box",
    "cut",
    "cylinder",
    "developability",
    "disk",
    "energies",
    "from_meshio",
    "from_pyvista",
    "from_trimesh",
    "grid",
    "icosphere",
    "load",
    "longest_step_without_flips",
    "repair",
    "require_polyscope",
    "save",
    "seam",
    "to_meshio",
    "to_polyscope",
    "to_pyvista",
    "to_trimesh",
    "torus",
    "tutte_embedding",
]
