"""A process that really runs out of memory on a device; `test_memory_drill.py` starts it.

Software drivers take their memory from the process, so a limit on its address space is a limit on
theirs. The device is filled until its driver refuses, some of that is freed, and then a problem
that needs more is evaluated and solved.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import conftest  # finds the drivers  # noqa: F401
import numpy as np

import autograd_gpu as ag
from autograd_gpu.errors import DeviceMemoryError
from autograd_gpu.runtime.adapters import load_wgpu
from autograd_gpu.runtime.device import Device

MEBIBYTE = 1 << 20
BALLAST = 16 * MEBIBYTE
HOST = 110 * MEBIBYTE
"""Room for arrays on the host; wgpu asks drivers for blocks of 128 MiB, which do not fit in."""

SOLVERS = {"resident": "pcg", "host": "sparse-cholesky"}

LIKE: dict[str, Any] = {"backend": "wgsl", "precision": "float32"}


def lines(count: int) -> ag.Problem:
    """Planes through few points: much data, few residuals."""
    rng = np.random.default_rng(0)
    problem = ag.Problem()
    x = problem.parameters("x", rng.standard_normal((20, 3)))
    given = [rng.standard_normal((count, 8)) for _ in range(4)]

    def far(p: Any, *rows: Any) -> Any:
        return sum(r[k] * p[k % 3] for r in rows for k in range(8)) - 1.0

    problem.add_residuals(far, x[rng.integers(0, 20, count)], *given, name="planes")
    return problem


def address_space() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))


class CountingDevice(Device):
    """Books what its driver refuses."""

    refused = 0

    def create_buffer(self, name: str, size: int, usage: int) -> Any:
        try:
            return super().create_buffer(name, size, usage)
        except DeviceMemoryError:
            self.refused += 1
            raise


def fill(device: Device, room: int) -> list[Any]:
    """Take all memory but ``room`` bytes."""
    usage: Any = load_wgpu().BufferUsage
    kind = usage.STORAGE | usage.COPY_DST | usage.COPY_SRC
    taken: list[Any] = []
    spare = np.empty(HOST, np.uint8)  # of the address space, not of memory
    on_the_host = device.adapter.adapter_type == "CPU"
    if on_the_host:
        most = address_space() + 3 * 128 * MEBIBYTE
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    for size in [BALLAST] if on_the_host else [64 * BALLAST, BALLAST]:
        try:
            while True:
                taken.append(device.create_buffer("ballast", size, kind))
        except DeviceMemoryError:
            pass
    while room > 0:
        device.give_back(taken.pop(), keep=False)
        room -= BALLAST
    del spare
    return taken


def main(adapter: str, what: str, room: int) -> None:
    device = CountingDevice(adapter)
    LIKE["device"] = device
    lines(300).evaluate(**LIKE)
    for solver in SOLVERS.values() if what in SOLVERS else ():  # so that all code is loaded
        ag.solve(lines(300), linear_solver=solver, **LIKE)
    problem = lines(300 if what == "fill" else 500_000)
    ballast = fill(device, room * MEBIBYTE)
    device.refused = 0
    found: dict[str, Any] = {"ballast": len(ballast)}
    try:
        found.update(work(what, problem, device))
    except Exception as error:  # told to whoever started this
        found.update(error=type(error).__name__, message=str(error))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if what == "fill":
        for buffer in ballast:
            device.give_back(buffer, keep=False)
        found["again"] = lines(300).evaluate(**LIKE).cost > 0.0
    found.update(refused=device.refused, generation=device.generation)
    print(json.dumps(found))


def work(what: str, problem: ag.Problem, device: Device) -> dict[str, Any]:
    """What there is not enough memory for, and what comes of it."""
    if what == "fill":
        usage: Any = load_wgpu().BufferUsage
        device.create_buffer(
            "one more", 16 * BALLAST, usage.STORAGE | usage.COPY_DST | usage.COPY_SRC
        )
        return {}
    if what == "evaluate":
        got = problem.evaluate(**LIKE)
        return {"cost": got.cost, "device": got.device, "first": float(got.residuals[-1])}
    solution = ag.solve(problem, linear_solver=SOLVERS[what], **LIKE)
    return {"cost": solution.cost, "device": solution.device, "faults": solution.faults}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
