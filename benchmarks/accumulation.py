"""Gather, two-level and atomic accumulation of the same products, side by side.

``python -m benchmarks.accumulation [--adapter NAME] [--level 9] [--out FILE]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import autograd_gpu as ag
import workloads
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.node_tables import NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.solvers.device_levenberg_marquardt import array_layouts
from autograd_gpu.solvers.evaluation import current_parameters
from benchmarks.device_solve import springs
from benchmarks.metrics import RESULTS, Recorder, slope

ACCUMULATIONS = ("gather", "two-level", "atomic-native", "atomic-cas")


def measure(record: Recorder, device: Device, name: str, problem: ag.Problem) -> None:
    """Time every product with every accumulation that the device can run."""
    analysis = problem.analysis()
    x = current_parameters(problem)
    tables = NodeTables(array_layouts(analysis), analysis.groups, x)
    for accumulation in ACCUMULATIONS:
        try:
            operators = Operators(device, tables, accumulation)
        except ag.DeviceError as error:
            print(f"{name} {accumulation}: {error}")
            continue
        with operators:
            operators.jtj_product(x, np.ones(x.size))
            for product in ("gradient", "jtj_product", "block_diagonal"):

                def run(count: int, product: str = product, on: Operators = operators) -> None:
                    on.runner.run([product] * count)

                # Long bursts: the read-back at the end of each must not let the clocks fall.
                seconds = slope(run, 20, 220, 3)
                record.add(f"{name}/{product}/{accumulation}", seconds * 1e6, "us")


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter")
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    device = Device(chosen.adapter)
    record = Recorder(device.name, "float32")
    problems: dict[str, Callable[[], ag.Problem]] = {
        f"springs_{chosen.level}": lambda: springs(chosen.level)[0],
        "bundle_60": workloads.bundle_problem,
        "bundle_1000": lambda: workloads.bundle_problem(1000, 200_000),
        "curve_1": lambda: workloads.curve_problem(1 << 20),
    }
    for name, make in problems.items():
        measure(record, device, name, make())
    default = RESULTS / f"{device.adapter.name.replace(' ', '_')}_accumulation.json"
    record.write(chosen.out or default)


if __name__ == "__main__":
    main()
