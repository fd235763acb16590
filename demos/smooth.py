"""A noisy surface made smooth: three energies on one mesh, each with an anchor to the data.

Laplacian smoothing (membrane) shrinks, bilaplacian (thin plate) keeps the shape, and the second
with a robust loss keeps creases as well: a fold counts as an outlier of smoothness.
``autograd-gpu demo smooth``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.models import spot
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import Mesh, energies

FloatArray = NDArray[np.float64]
OPTIONS = ag.LevenbergMarquardtOptions(function_tolerance=1e-4)
NOISE = 0.012
CAMERA = (118, 8)


def build(mesh: Mesh, noisy: FloatArray, kind: str) -> ag.Problem:
    """Anchors to the noisy positions, and one of three energies."""
    i, j = mesh.edges.T
    problem = ag.Problem()
    x = problem.parameters("x", noisy)
    problem.add_residuals(energies.anchor, x, noisy, 1.0, name="data")
    if kind == "Laplacian":
        problem.add_residuals(energies.laplacian_smoothing, x[i], x[j], 1.2, name="membrane")
    else:
        loss: Any = ag.losses.Huber(0.05) if kind == "robust bilaplacian" else None
        problem.add_residuals(
            energies.bilaplacian_smoothing, x, x[mesh.one_rings], 5.0, loss=loss, name="plate"
        )
    return problem


def main(stage: Stage) -> None:
    """Add noise to a cow, take it away again, and say how near to the original one comes."""
    mesh = spot()
    clean = mesh.vertices
    rng = np.random.default_rng(1)
    normals = scenes.vertex_normals(mesh.vertices, mesh.faces)
    noisy = mesh.vertices + normals * NOISE * rng.standard_normal((len(mesh.vertices), 1))

    def row(name: str, x: FloatArray, s: ag.Solution | None) -> list[str]:
        now = Mesh(x, mesh.faces)
        a, b, c = np.moveaxis(x[mesh.faces], 1, 0)
        volume: float = np.einsum("ij,ij->", a, np.cross(b, c)) / 6.0
        off = np.linalg.norm(x - clean) / np.sqrt(len(x))
        agree: FloatArray = np.einsum("ij,ij->i", now.face_normals, mesh.face_normals)
        tilt = np.degrees(np.mean(np.arccos(np.clip(agree, -1.0, 1.0))))
        spent = "" if s is None else f"{s.timings['total']:.1f} s ({s.iterations})"
        return [name, f"{off:.4f}", f"{tilt:.1f}°", f"{volume:.4f}", spent]

    rows = [row("original", clean, None), row("noisy", noisy, None)]
    results = {"noisy": noisy}
    for kind in ("Laplacian", "bilaplacian", "robust bilaplacian"):
        s = stage.solve(kind, build(mesh, noisy, kind), OPTIONS)
        results[kind] = s.values["x"]
        rows.append(row(kind, s.values["x"], s))
    bodies = [
        [scenes.checked_body(name, x, mesh.faces, pictures.BEFORE_COLOR if name == "noisy"
                             else pictures.AFTER_COLOR)]
        for name, x in results.items()
    ]  # fmt: skip
    pictures.render_row(
        stage.path("smooth.png"), bodies, list(results), panel=(400, 460), cameras=CAMERA
    )
    stage.film_of_mesh("smooth.gif", "x", mesh.faces, CAMERA)
    stage.open_window(
        noisy=Mesh(noisy, mesh.faces), smooth=Mesh(results["bilaplacian"], mesh.faces)
    )
    columns = ["surface", "distance to original", "normals off by", "volume", "time (iterations)"]
    stage.close(f"Noise of {NOISE} units along the normals", columns, rows)
