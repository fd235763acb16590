"""A cow unrolled: cut open along a short tree, flattened two ways, and drawn with a checker.

The checker is the same in the plane and on the cow. Under the conformal map its squares stay
square and vary in size; under the isometric one they keep their size as well as the plane allows.
``autograd-gpu demo flatten``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.demos.models import spot
from autograd_gpu.demos.stage import Stage
from autograd_gpu.meshes import Mesh, energies

FloatArray = NDArray[np.float64]
SQUARE = 0.09
LIGHT, DARK = np.array([0.93, 0.92, 0.88]), np.array([0.30, 0.50, 0.76])
SEAM = (0.91, 0.38, 0.16)
OPTIONS = ag.LevenbergMarquardtOptions(max_iterations=200, function_tolerance=1e-4)
CAMERA = (118, 8)


def open_cow() -> Mesh:
    """Cut from hoof to hoof, to the muzzle, the tail, the ears and the horns."""
    mesh = spot()
    ends = [[x, -0.74, z] for x in (-0.25, 0.25) for z in (0.03, 0.8)]
    ends += [[x, 0.95, -0.25] for x in (-0.15, 0.15)] + [[x, 0.6, -0.1] for x in (-0.45, 0.45)]
    ends += [[0.0, 0.2, -0.66], [0.0, 0.0, 1.05]]
    apart = np.linalg.norm(mesh.vertices[:, None] - np.array(ends), axis=2)
    return ag.meshes.cut(mesh, ag.meshes.seam(mesh, np.argmin(apart, axis=0)))[0]


def flatten(mesh: Mesh, start: FloatArray, kind: str) -> ag.Problem:
    """One element per face; what a rigid motion (or a scaling) of the plane would leave is held."""
    (loop,) = mesh.boundary_loops
    problem = ag.Problem()
    u = problem.parameters("u", start)
    a, b, c = mesh.faces.T
    energy = energies.conformal if kind == "conformal" else energies.isometric
    weight = np.sqrt(mesh.face_areas)
    problem.add_residuals(energy, u[a], u[b], u[c], mesh.face_gradients, weight=weight, name=kind)
    problem.freeze(u, [loop[0], loop[len(loop) // 2]] if kind == "conformal" else [loop[0]])
    return problem


def stretches(mesh: Mesh, u: FloatArray) -> FloatArray:
    """Singular values of every face's Jacobian, (m, 2); the second negative where it is flipped."""
    corners = u[mesh.faces]
    edges = np.stack([corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]], axis=2)
    jacobian = edges @ mesh.face_gradients
    values = np.array(np.linalg.svd(jacobian, compute_uv=False), dtype=np.float64)
    values[:, 1] *= np.sign(np.linalg.det(jacobian))
    return values


def checker(u: FloatArray) -> FloatArray:
    """Colours of points of the plane."""
    light = (np.floor(u[:, :1] / SQUARE) + np.floor(u[:, 1:2] / SQUARE)) % 2 < 1
    return np.where(light, LIGHT, DARK)


def bodies(mesh: Mesh, u: FloatArray) -> tuple[list[scenes.Body], list[scenes.Body]]:
    """The cow and its map, refined so that the checker's edges are sharp."""
    plane = Mesh(np.column_stack([u - u.mean(axis=0), np.zeros(len(u))]), mesh.faces).refined(3)
    solid = mesh.refined(3)
    colors = checker(plane.vertices)
    (loop,) = mesh.boundary_loops
    return [
        scenes.checked_body("cow", solid.vertices, solid.faces, (0.9, 0.9, 0.9), colors),
        scenes.spheres(mesh.vertices[loop], 0.011, SEAM),
    ], [
        scenes.checked_body("map", plane.vertices, plane.faces, (0.9, 0.9, 0.9), colors),
        scenes.spheres(plane.vertices[: len(u)][loop], 0.011, SEAM),
    ]


def main(stage: Stage) -> None:
    """Flatten twice, draw both, and say how much lengths, angles and areas change."""
    mesh = open_cow()
    (loop,) = mesh.boundary_loops
    print(f"cut along {len(loop) // 2} edges: {mesh}, one boundary of {len(loop)} vertices")
    # Two vertices of the boundary fix the conformal map; their distance is its scale.
    start = mesh.vertices[:, [2, 1]].copy()
    start[loop[0]], start[loop[len(loop) // 2]] = (0.0, 0.0), (1.0, 0.0)
    u = stage.solve("conformal", flatten(mesh, start, "conformal")).values["u"]
    u *= np.sqrt(mesh.face_areas.sum() / (mesh.face_areas @ np.prod(stretches(mesh, u), axis=1)))
    maps = {"conformal": u}
    stage.reel.points.clear()  # a film shows how lengths are mended
    s = stage.solve("isometric", flatten(mesh, u, "isometric"), OPTIONS)
    maps["isometric"] = s.values["u"]
    rows, panels = list[list[str]](), list[list[scenes.Body]]()
    for name, flat in maps.items():
        values = stretches(mesh, flat)
        area, ratio = np.prod(values, axis=1), values[:, 0] / np.abs(values[:, 1])
        rows.append([name, f"{np.median(ratio):.3f}", f"{np.quantile(ratio, 0.95):.2f}",
                     f"{np.quantile(area, 0.05):.3f} … {np.quantile(area, 0.95):.2f}",
                     str(int(np.sum(area <= 0)))])  # fmt: skip
        panels += bodies(mesh, flat)
    flat_view = (0, 0)
    pictures.render_row(
        stage.path("flatten.png"), panels,
        ["conformal: angles kept", "its map", "isometric: lengths kept", "its map"],
        cameras=[CAMERA, flat_view, CAMERA, flat_view], panel=(400, 440), legend={"seam": SEAM},
    )  # fmt: skip
    stage.film("flatten.gif", lambda v: bodies(mesh, v["u"])[1], flat_view)
    stage.open_window(cow=mesh, map=Mesh(np.column_stack([maps["isometric"], 0 * u[:, 0]]),
                                         mesh.faces))  # fmt: skip
    columns = ["map", "σ₁/σ₂, median", "95 % below", "area ratio, 5 … 95 %", "flipped faces"]
    stage.close("Distortion over the faces", columns, rows)
