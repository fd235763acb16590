"""From which size on a GPU solves faster than a CPU: springs, as-rigid-as-possible, bending.

``python -m benchmarks.gpu_wins`` solves three energies on spheres of 12 to 998 562 vertices with
``backend="numba"`` and, where there is a hardware GPU, with ``backend="wgsl"`` in float32; it
replaces this machine's records under ``benchmarks/results/`` after every case, and then writes
docs/when-the-gpu-wins.md and its picture anew from the records of all machines. ``--page`` only
writes the page; ``--limit`` bounds what one solve may take; ``--sides cpu,wgsl,jax`` says what is
measured. Meshes are made here, so neither trimesh nor files are needed.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.errors import DeviceError, MissingDependencyError
from autograd_gpu.meshes import Mesh, energies
from benchmarks.metrics import RESULTS, commit, processor

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
FREQUENCIES = (1, 2, 4, 8, 16, 32, 64, 128, 316)
"""Parts of an edge of the icosahedron; f of them make 10 f² + 2 vertices."""
BACKENDS = {"cpu": ("numba", "float64"), "wgsl": ("wgsl", "float32"), "jax": ("jax", "float32")}
SUFFIX = "_gpu_wins.json"
GROWTH = 5.0
"""What the next size is expected to cost, in times of this one; a direct solver needs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One problem solved in one place.

    Attributes:
        energy: name of the problem.
        vertices, residuals, unknowns: its size.
        side: ``cpu``, ``wgsl`` or ``jax``.
        hardware: processor or GPU.
        solver: of the linear systems, and in which precision residuals were evaluated.
        first: seconds of the first solve of the problem, analysis and compilation included.
        seconds, costs: of a later solve, the fastest of a few: time since the call and cost after
            every iteration, the start first.
        commit: short hash of the sources.
    """

    energy: str
    vertices: int
    residuals: int
    unknowns: int
    side: str
    hardware: str
    solver: str
    first: float
    seconds: list[float]
    costs: list[float]
    commit: str


# -- problems ----------------------------------------------------------------------------------


def icosahedron() -> tuple[FloatArray, IntArray]:
    """Twelve corners and twenty faces, counter-clockwise seen from outside."""
    from scipy import spatial

    golden = (1.0 + 5.0**0.5) / 2.0
    plane = np.array([[0.0, a, b * golden] for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    corners = np.concatenate([np.roll(plane, k, axis=1) for k in range(3)])
    libraries: Any = spatial
    faces = np.array(libraries.ConvexHull(corners).simplices, dtype=np.int64)
    a, b, c = np.moveaxis(corners[faces], 1, 0)
    inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a) < 0.0
    faces[inward] = faces[inward][:, ::-1]
    return corners, faces


def sphere(frequency: int) -> Mesh:
    """Unit sphere: the icosahedron, each edge cut into ``frequency`` parts."""
    corners, faces = icosahedron()
    f = frequency
    i, j = np.array([(i, j) for i in range(f + 1) for j in range(f + 1 - i)]).T
    weights = np.column_stack([f - i - j, i, j]) / f
    row = {(int(a), int(b)): k for k, (a, b) in enumerate(zip(i, j, strict=True))}
    ups = [(row[a, b], row[a + 1, b], row[a, b + 1]) for a in range(f) for b in range(f - a)]
    downs = [
        (row[a + 1, b], row[a + 1, b + 1], row[a, b + 1])
        for a in range(f) for b in range(f - a - 1)
    ]  # fmt: skip
    pattern = np.array(ups + downs, dtype=np.int64)
    points: FloatArray = np.einsum("pk,fkc->fpc", weights, corners[faces]).reshape(-1, 3)
    # Neighbouring faces have their common side twice, up to rounding.
    _, first, number = np.unique(
        np.round(points * 1e7).astype(np.int64), axis=0, return_index=True, return_inverse=True
    )
    offsets = len(weights) * np.arange(len(faces))
    each = (offsets[:, None, None] + pattern[None]).reshape(-1, 3)
    vertices = points[first] / np.linalg.norm(points[first], axis=1, keepdims=True)
    return Mesh(vertices, number.ravel()[each])


def springs(mesh: Mesh) -> ag.Problem:
    """Springs that want to be up to 5 % longer or shorter, and anchors; in units of an edge."""
    i, j = mesh.edges.T
    scale = 1.0 / float(mesh.edge_lengths.mean())
    unit, rng = scale * mesh.vertices, np.random.default_rng(0)
    rest = scale * mesh.edge_lengths * rng.uniform(0.95, 1.05, len(i))
    problem = ag.Problem()
    x = problem.parameters("x", unit + 0.3 * rng.standard_normal(unit.shape))
    problem.add_residuals(energies.spring, x[i], x[j], rest, name="springs")
    problem.add_residuals(energies.anchor, x, unit, 0.5, name="anchor")
    return problem


def rigidity(mesh: Mesh) -> ag.Problem:
    """As rigid as possible: a fiftieth of the vertices held below, as many pulled aside above."""
    points = mesh.vertices
    i, j = mesh.directed_edges.T
    count = max(1, round(0.02 * len(points)))
    by_height = np.argsort(np.round(points[:, 2], 9), kind="stable")
    handles = np.concatenate([by_height[:count], by_height[-count:]])
    targets = points[handles].copy()
    targets[count:] += np.array([0.5, 0.0, 0.5])
    problem = ag.Problem()
    x = problem.parameters("x", points)
    r = problem.parameters("r", np.zeros_like(points))
    rest = points[j] - points[i]
    problem.add_residuals(energies.as_rigid_as_possible, x[i], x[j], r[i], rest, name="edges")
    problem.add_residuals(energies.anchor, x[handles], targets, 10.0, name="handles")
    return problem


def bending(mesh: Mesh) -> ag.Problem:
    """Hinges that would be flat against edges that would keep their length, from noise."""
    points = mesh.vertices
    a, b, c, d = mesh.dihedral_stencils.T
    e = points[b] - points[a]
    lengths = np.linalg.norm(e, axis=1)
    areas = 0.5 * (
        np.linalg.norm(np.cross(e, points[c] - points[a]), axis=1)
        + np.linalg.norm(np.cross(points[d] - points[a], e), axis=1)
    )
    noise = np.random.default_rng(0).standard_normal(points.shape)
    problem = ag.Problem()
    x = problem.parameters("x", points + 0.1 * lengths.mean() * noise)
    stiffness = np.sqrt(0.05 * lengths**2 / areas)
    problem.add_residuals(
        energies.dihedral_angle, x[a], x[b], x[c], x[d], weight=stiffness, name="bending"
    )
    problem.add_residuals(energies.edge_strain, x[a], x[b], lengths, name="edges")
    problem.add_residuals(energies.anchor, x, points, 0.01, name="anchor")
    return problem


ENERGIES: dict[str, Callable[[Mesh], ag.Problem]] = {
    "springs": springs,
    "as-rigid-as-possible": rigidity,
    "bending": bending,
}


# -- measuring ---------------------------------------------------------------------------------


def measure(energy: str, mesh: Mesh, side: str, limit: float, hardware: str) -> Case:
    """Solve once from nothing, then again until a second or three solves are spent."""
    backend, precision = BACKENDS[side]
    options = ag.LevenbergMarquardtOptions(
        function_tolerance=1e-5, max_iterations=50, max_seconds=limit
    )
    began = time.perf_counter()
    problem = ENERGIES[energy](mesh)
    made = time.perf_counter() - began
    solution = ag.solve(problem, options=options, backend=backend, precision=precision)
    first = solution.timings["total"]
    best: ag.Solution | None = None
    spent, count = 0.0, 0
    while count < 5 and (spent < 1.0 or count < 2) and not (count and spent > 0.5 * limit):
        again = ag.solve(problem, options=options, backend=backend, precision=precision)
        spent, count = spent + again.timings["total"], count + 1
        if best is None or again.timings["total"] < best.timings["total"]:
            best = again
    assert best is not None
    # The clock of the history starts after analysis and set-up; they are part of the solve.
    setup = best.timings["total"] - best.history[-1].seconds
    case = Case(
        energy=energy,
        vertices=len(mesh.vertices),
        residuals=best.residual_count,
        unknowns=best.parameter_count,
        side=side,
        hardware=hardware,
        solver=f"{best.precision}, {best.linear_solver}",
        first=round(first, 5),
        seconds=[float(f"{setup + r.seconds:.4g}") for r in best.history],
        costs=[float(f"{r.cost:.7g}") for r in best.history],
        commit=commit(),
    )
    print(
        f"{energy:22s}{case.vertices:9d} {side:5s} first {first:9.4f} s  again "
        f"{case.seconds[-1]:9.4f} s  {best.iterations:3d} iterations  cost {best.cost:.6g}  "
        f"{case.solver}  (made in {made:.1f} s)",
        flush=True,
    )
    return case


def hardware_gpu() -> str | None:
    """Name of this machine's GPU, None if it has none."""
    try:
        return next((a.name for a in ag.devices() if not a.is_software), None)
    except (DeviceError, MissingDependencyError):
        return None


def run(sides: list[str], names: list[str], most: int, limit: float, path: Path) -> None:
    """All cases, sizes ascending; a side that would take longer than the limit drops out."""
    gpu = hardware_gpu() or "no GPU"
    hardware = {"cpu": processor(), "wgsl": gpu, "jax": gpu}
    cases: list[Case] = []
    done: set[tuple[str, str]] = set()
    for frequency in FREQUENCIES:
        if 10 * frequency**2 + 2 > most:
            break
        mesh = sphere(frequency)
        for energy in names:
            for side in sides:
                if (energy, side) in done:
                    continue
                case = measure(energy, mesh, side, limit, hardware[side])
                cases.append(case)
                if GROWTH * case.seconds[-1] > limit:
                    done.add((energy, side))
                    print(f"{energy}, {side}: larger ones would take more than {limit:g} s")
                path.write_text(json.dumps([asdict(c) for c in cases], indent=1) + "\n")


def main() -> None:
    """Measure, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", default=None, help="cpu, wgsl, jax; by default what is here")
    parser.add_argument("--energies", default=",".join(ENERGIES))
    parser.add_argument("--most", type=int, default=1_000_000, help="vertices")
    parser.add_argument("--limit", type=float, default=40.0, help="seconds of one solve")
    parser.add_argument("--out", type=Path, help="instead of this machine's file of records")
    parser.add_argument("--page", action="store_true", help="only write the page")
    chosen = parser.parse_args()
    if not chosen.page:
        gpu = hardware_gpu()
        default = "wgsl,cpu" if gpu else "cpu"
        label = re.sub(r"\W+", "_", gpu or processor())
        path = chosen.out or RESULTS / f"{label}{SUFFIX}"
        sides, names = str(chosen.sides or default), str(chosen.energies)
        run(sides.split(","), names.split(","), chosen.most, chosen.limit, path)
        print(f"wrote {path}")
    from benchmarks.gpu_wins_page import write_page

    write_page()


if __name__ == "__main__":
    main()
