"""Kernels, compile times and gradients of the developability energies on icospheres.

``python -m benchmarks.developability`` measures on this machine and writes the table into
docs/meshes.md; ``--levels 0,1`` for fewer subdivisions, ``--adapter NAME`` for another GPU or
software adapter. Every energy is compiled for the first time at its first level, so what later
levels share is seen as kernels that are not made again.
"""

from __future__ import annotations

import argparse
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import autograd_gpu as ag
from autograd_gpu.codegen.kernel import Product, make_kernel
from autograd_gpu.meshes import developability
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.numba_backend import NumbaSession
from autograd_gpu.runtime.wgsl_backend import WgslSession
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.metrics import processor

PAGE = Path(__file__).resolve().parents[1] / "docs" / "meshes.md"
MARKS = re.compile(r"(<!-- measured: developability -->\n).*?(<!-- end -->)", re.DOTALL)
NOISE = 0.03
"""By how much of an edge vertices are moved: choices tie on the regular mesh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One energy on one mesh; times in CPU seconds, as machines are shared; errors over 1 + |J|."""

    energy: str
    level: int
    stars: int
    kernels: int
    new_kernels: int
    operations: int
    trace: float
    numba: float
    wgsl: float
    check: float
    numba_error: float
    wgsl_error: float

    def __str__(self) -> str:
        return (
            f"| {self.energy} | {self.level} | {self.stars} | {self.kernels} "
            f"({self.new_kernels}) | {self.operations} | {self.trace:.2f} | {self.numba:.1f} | "
            f"{self.wgsl:.2f} | {self.check:.0e} | {self.numba_error:.0e} | {self.wgsl_error:.0e} |"
        )


HEADER = (
    "| energy | level | stars | kernels (new) | operations | trace, s | Numba, s | WGSL, s "
    "| differences | Numba error | WGSL error |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def measure(energy: str, level: int, device: Device, seen: set[str]) -> Row:
    """Trace, compile and compare one energy; ``seen`` are keys of kernels made before."""
    mesh = ag.meshes.icosphere(level)
    generator = np.random.default_rng(level)
    # Energies know no scale: edges of length 1 give differences the same footing on all levels.
    unit = mesh.vertices / mesh.edge_lengths.mean()
    start = unit + NOISE * generator.standard_normal(unit.shape)
    problem = ag.Problem()
    x = problem.parameters("x", start.astype(np.float32))
    v = mesh.interior_vertices
    began = time.process_time()
    problem.add_residuals(developability.ENERGIES[energy], x[v], x[mesh.one_rings][v], name=energy)
    kernels = [make_kernel(g.topology, Product.RESIDUAL_JACOBIAN) for g in problem.groups]
    traced = time.process_time() - began
    analysis, point = problem.analysis(), current_parameters(problem)
    oracle = problem.evaluate(backend="numpy").jacobian.toarray()
    seconds: list[float] = []
    errors: list[float] = []
    sessions = (
        lambda: NumbaSession(analysis.groups, analysis.parameter_count, "float64"),
        lambda: WgslSession(analysis.groups, analysis.parameter_count, "float32", device),
    )
    for backend, open_session in zip(("numba", "wgsl"), sessions, strict=True):
        began = time.process_time()
        with open_session() as session:
            session.residual_jacobian(point)  # compiles the products that it needs
        seconds.append(time.process_time() - began)
        found = problem.evaluate(
            backend=backend,
            precision="float64" if backend == "numba" else "float32",
            device=device if backend == "wgsl" else None,
        )
        error = np.abs(found.jacobian.toarray() - oracle) / (1.0 + np.abs(oracle))
        errors.append(float(error.max()))
    keys = {k.key for k in kernels}
    new = keys - seen
    seen |= keys
    return Row(
        energy=energy,
        level=level,
        stars=len(v),
        kernels=len(keys),
        new_kernels=len(new),
        operations=max(k.graph.stats.ops for k in kernels),
        trace=traced,
        numba=seconds[0],
        wgsl=seconds[1],
        check=max(g.worst_error for g in problem.check_gradients().groups),
        numba_error=errors[0],
        wgsl_error=errors[1],
    )


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--levels", default="0,1,2,3")
    parser.add_argument("--adapter", default=None)
    parser.add_argument("--print-only", action="store_true")
    arguments = parser.parse_args()
    device = Device(arguments.adapter)
    hardware = f"{processor()}; WGSL on {device.name}"
    seen: set[str] = set()
    lines = [HEADER]
    for energy in developability.ENERGIES:
        for level in map(int, arguments.levels.split(",")):
            lines.append(str(measure(energy, level, device, seen)))
            print(lines[-1], flush=True)
    table = "\n".join([f"Measured on {hardware}.", "", *lines]) + "\n"
    if not arguments.print_only:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(MARKS.sub(rf"\g<1>{table}\g<2>", page), encoding="utf-8")


if __name__ == "__main__":
    main()
