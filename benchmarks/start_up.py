"""From launch to solving: ``make demo``, with cold caches on disk and with warm ones.

``python -m benchmarks.start_up [--level 5] [--repeats 5] [--out FILE]``. A process is started as
the demo starts it and ends when its first kernel has run, which is the start of the first solve.
The first launch has a new cache folder; the others find what it left. What make itself does before
(stamps, the look for a WebGPU adapter) is measured apart and added.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from autograd_gpu.disk_cache import FOLDER_VARIABLE
from benchmarks.metrics import RESULTS, Recorder, processor

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = """
import os, sys
from autograd_gpu import events

class First:
    def hear(self, event):
        if event.kind in ("run", "dispatch"):
            os._exit(0)

events.listen(First())
from autograd_gpu.cli import main
sys.argv = ["autograd-gpu", "demo", "icosphere", "--level", sys.argv[1], "--out", sys.argv[2]]
main()
sys.exit("no kernel ran")
"""


def launch(level: int, caches: str, out: str) -> tuple[float, float]:
    """Seconds from launch until the first kernel has run, and seconds of processor time."""
    before = os.times()
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", LAUNCH, str(level), out],
        check=True,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, FOLDER_VARIABLE: caches},
    )
    after = os.times()
    used = after.children_user + after.children_system
    used -= before.children_user + before.children_system
    return time.perf_counter() - began, used


def make_seconds() -> float:
    """What ``make demo`` does before it starts Python, where everything is set up."""
    began = time.perf_counter()
    subprocess.run(["make", "-s", "adapter"], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Run all and write the records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--level", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit")
    chosen = parser.parse_args()
    hardware = processor()
    print(hardware)
    record = Recorder(hardware, "float64", chosen.commit)
    load = f"load {os.getloadavg()[0]:.2g} on {os.cpu_count()} threads"
    with tempfile.TemporaryDirectory() as folder:
        runs = [launch(chosen.level, folder, folder) for _ in range(1 + chosen.repeats)]
    make = float(np.median([make_seconds() for _ in range(3)]))
    warm = [seconds for seconds, _ in runs[1:]]
    key = f"start_up/icosphere_{chosen.level}"
    record.add(f"{key}/cold", runs[0][0], "s", note=f"nothing in the cache folder; {load}")
    record.add(f"{key}/warm", float(np.median(warm)), "s", note=load)
    record.add(f"{key}/warm_least", min(warm), "s", note="where other work disturbs")
    used = float(np.median([used for _, used in runs[1:]]))
    record.add(f"{key}/warm_processor", used, "s", note="of all threads")
    record.add(f"{key}/make", make, "s", note="make and the look for an adapter")
    record.add(f"{key}/make_demo_warm", make + float(np.median(warm)), "s")
    record.write(chosen.out or RESULTS / f"{hardware.split()[1]}_start_up.json")


if __name__ == "__main__":
    main()
