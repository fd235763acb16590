"""A sphere that becomes developable, but for a few points that take all of its curvature.

The angle defect of a vertex is its share of Gaussian curvature, and a surface is developable where
it is 0; over a closed sphere the defects sum to 4π whatever one does (Gauss–Bonnet). A loss that
forgives outliers therefore makes most vertices developable and leaves the curvature to a few. Its
width shrinks from three times the sphere's own defect to a tenth, as in graduated non-convexity.
``autograd-gpu demo icosphere --developable``.

Source: Stein, Grinspun and Crane 2018, Developability of triangle meshes, for the aim (flat parts
and hinges that meet in seams); Blake and Zisserman 1987, Visual reconstruction, for the schedule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import Mesh, energies

FloatArray = NDArray[np.float64]
WIDTHS = (3.0, 1.5, 0.8, 0.4, 0.2, 0.1)
DEVELOPABLE = 0.1
"""A vertex counts as developable below this part of the angle defect that it had on the sphere."""
OPTIONS = ag.LevenbergMarquardtOptions(
    max_iterations=40, function_tolerance=1e-4, initial_damping=1e-3
)
FLAT, HINGE, SEAM = (0.80, 0.82, 0.86), (0.20, 0.42, 0.72), (0.91, 0.38, 0.16)


def relative_defect(p: Any, ring: Any, scale: Any) -> Any:
    """Angle defect of a vertex, in units of the sphere's."""
    return scale * ag.geometry.angle_defect(p, ring)


def build(mesh: Mesh, loss: Any) -> ag.Problem:
    """Defects under the loss; lengths and places are held a little, so that triangles stay good."""
    i, j = mesh.edges.T
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    scale = len(mesh.vertices) / (4.0 * np.pi)
    problem.add_residuals(
        relative_defect, x, x[mesh.one_rings], scale, loss=loss, name="developable"
    )
    problem.add_residuals(
        energies.edge_strain, x[i], x[j], mesh.edge_lengths, weight=0.3, name="lengths"
    )
    problem.add_residuals(energies.anchor, x, mesh.vertices, 0.1, name="places")
    return problem


def share(mesh: Mesh) -> float:
    """Part of the vertices that are developable by the definition above."""
    return float(np.mean(relative(mesh) < DEVELOPABLE))


def relative(mesh: Mesh) -> FloatArray:
    """Absolute angle defects in units of the sphere's mean."""
    return np.abs(mesh.angle_defects) * len(mesh.vertices) / (4.0 * np.pi)


def colored(mesh: Mesh) -> list[scenes.Body]:
    """Flat parts grey, hinges blue by how much they bend, seam points orange."""
    stencils = mesh.dihedral_stencils
    angle = ag.trace(ag.geometry.dihedral_angle, 3, 3, 3, 3)
    bends = np.abs(angle(*np.moveaxis(mesh.vertices[stencils], 1, 0)))
    bent = np.zeros(len(mesh.vertices))
    for end in (0, 1):
        np.maximum.at(bent, stencils[:, end], bends)
    blend = np.clip(bent / np.quantile(bent, 0.97), 0.0, 1.0)[:, None]
    tint = (1.0 - blend) * np.array(FLAT) + blend * np.array(HINGE)
    curved = mesh.vertices[relative(mesh) >= DEVELOPABLE]
    bodies = [scenes.checked_body("sphere", mesh.vertices, mesh.faces, FLAT, tint)]
    return [*bodies, scenes.spheres(curved, 0.028, SEAM)] if 0 < len(curved) < 500 else bodies


def main(stage: Stage, level: int = 4) -> Mesh:
    """Solve with one width after the other, and draw flat parts, hinges and seams."""
    mesh = ag.meshes.icosphere(level)
    problem = build(mesh, ag.losses.GemanMcClure(WIDTHS[0]))
    x, rows = mesh.vertices, list[list[str]]()
    for width in WIDTHS:
        problem.update(x=x, data={"developable": {"loss_delta": width}})
        s = stage.solve(f"width {width:g}", problem, OPTIONS)
        x = s.values["x"]
        now = Mesh(x, mesh.faces)
        size = relative(now)
        rows.append([f"{width:g}", str(s.iterations), f"{100 * share(now):.1f} %",
                     str(int(np.sum(size >= DEVELOPABLE))), f"{size.max():.1f}",
                     f"{now.quality().angles[0]:.0f}°", f"{s.timings['total']:.1f} s"])  # fmt: skip
    result = Mesh(x, mesh.faces)
    plain = scenes.checked_body("sphere", x, mesh.faces, pictures.AFTER_COLOR)
    pictures.render_row(
        stage.path("developable.png"),
        [[scenes.checked_body("sphere", mesh.vertices, mesh.faces, pictures.BEFORE_COLOR)],
         [plain], colored(result)],
        ["sphere", f"{100 * share(result):.1f} % of vertices developable", "hinges and seams"],
        legend={"flat": FLAT, "hinge": HINGE, "not developable": SEAM},
    )  # fmt: skip
    stage.film("developable.gif", lambda v: colored(Mesh(v["x"], mesh.faces)))
    stage.open_window(sphere=mesh, developable=result)
    columns = ["width", "iterations", "developable", "others", "largest defect", "least angle",
               "time"]  # fmt: skip
    stage.close("Angle defects, in units of the sphere's", columns, rows)
    return result
