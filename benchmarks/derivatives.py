"""Our simplified Jacobians and SymPy's ``diff`` and ``cse``, side by side: operations and time.

``python -m benchmarks.derivatives [--out FILE]``. Operations are nodes of our IR on both sides
(see ``tests/sympy_graphs.py``). Time is from a traced graph, or SymPy's expressions, to the shared
derivatives: the least processor time of some repeats, with SymPy's cache of results cleared.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from sympy.core.cache import clear_cache
from sympy_graphs import YARDSTICKS, as_graph, sympy_jacobian

import autograd_gpu as ag
from benchmarks.metrics import RESULTS, Recorder, processor


def least_seconds(run: Callable[[], object], repeats: int) -> float:
    """Shortest processor time of ``repeats`` runs."""
    clear_cache()
    times: list[float] = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
        clear_cache()
    return min(times)


def main() -> None:
    """Measure all residuals and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "derivatives.json")
    out: Path = parser.parse_args().out
    record = Recorder(processor(), "float64")
    for name, yardstick in YARDSTICKS.items():
        graph = yardstick.trace()
        ours = ag.jacobian(graph, yardstick.wrt)
        run = sympy_jacobian(yardstick)
        theirs = as_graph(yardstick, run())
        seconds = least_seconds(lambda g=graph, w=yardstick.wrt: ag.jacobian(g, w), 20)
        sympy_seconds = least_seconds(run, 5)
        record.add(f"{name}/ops", ours.stats.ops, "ops")
        record.add(f"{name}/sympy_ops", theirs.stats.ops, "ops")
        record.add(f"{name}/ops_ratio", ours.stats.ops / theirs.stats.ops, "")
        record.add(f"{name}/time", 1e3 * seconds, "ms")
        record.add(f"{name}/sympy_time", 1e3 * sympy_seconds, "ms")
        record.add(f"{name}/speed", sympy_seconds / seconds, "x", "higher")
    record.write(out)


if __name__ == "__main__":
    main()
