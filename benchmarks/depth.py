"""Chains of growing depth through the whole language: time per operation should not grow.

``python -m benchmarks.depth [--out FILE]``: trace, simplify, differentiate and hash chains of
25 000, 50 000 and 100 000 operations; least processor time of three runs each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autograd_gpu as ag
from benchmarks.metrics import RESULTS, Recorder, processor

DEPTHS = (25_000, 50_000, 100_000)


def least_seconds(run: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Shortest processor time, and the last result."""
    times: list[float] = []
    result: Any = None
    for _ in range(repeats):
        began = time.process_time()
        result = run()
        times.append(time.process_time() - began)
    return min(times), result


def main() -> None:
    """Measure all depths and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "depth.json")
    out: Path = parser.parse_args().out
    record = Recorder(processor(), "float64")
    for depth in DEPTHS:

        def chain(x: Any, y: Any, depth: int = depth) -> Any:
            for k in range(depth // 2):
                x = ag.sin(x) + (y if k % 2 else 0.5)
            return x

        seconds, graph = least_seconds(lambda f=chain: ag.trace(f, 1, 1))
        record.add(f"{depth}/trace", 1e6 * seconds / depth, "µs/op")
        seconds, _ = least_seconds(lambda g=graph: ag.simplify(g))
        record.add(f"{depth}/simplify", 1e6 * seconds / depth, "µs/op")
        seconds, _ = least_seconds(lambda g=graph: ag.jacobian(g))
        record.add(f"{depth}/jacobian", 1e6 * seconds / depth, "µs/op")
        seconds, _ = least_seconds(lambda f=chain: ag.trace(f, 1, 1).key)
        record.add(f"{depth}/trace_and_key", 1e6 * seconds / depth, "µs/op")
    record.write(out)


if __name__ == "__main__":
    main()
