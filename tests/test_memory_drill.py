"""Memory that really runs out, in processes of their own: nothing here is simulated.

The software driver llvmpipe says so properly. SwiftShader does for single buffers, but crashes
where it cannot load its own code any more, so it takes part in the first drill only.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from memory_drill import lines
from tolerances import GRAPH, tolerance

each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())
FLOAT32 = tolerance("float32", GRAPH)


def drill(adapter: str, what: str, room: int) -> dict[str, Any]:
    """What the process found; ``room`` MiB are free when the work begins."""
    script = Path(__file__).with_name("memory_drill.py")
    command = [sys.executable, str(script), adapter, what, str(room)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def evaluated() -> ag.Evaluation:
    return lines(500_000).evaluate(backend="numpy")


@functools.cache
def least_cost() -> float:
    return ag.solve(lines(500_000), backend="numba").cost


@pytest.fixture
def llvmpipe() -> str:
    if "llvmpipe" not in wgsl_adapters():
        pytest.skip("the drill needs the address space of llvmpipe")
    return "llvmpipe"


def check_shortage(found: dict[str, Any]) -> None:
    """Memory ran out, and pieces or a new device were the way out.

    On a new device the ballast is gone; and with no buffer refused it was the host, whose arrays
    come from the same address space, that had no room for what was to travel.
    """
    assert "error" not in found, found
    assert "pieces" in found["device"] or found["generation"], found


@pytest.mark.wgsl
@each_adapter
def test_a_driver_that_refuses_a_buffer_is_out_of_memory(adapter: str) -> None:
    if adapter not in ("llvmpipe", "SwiftShader"):
        pytest.skip("fills the memory of the machine")
    found = drill(adapter, "fill", 0)
    assert found["error"] == "DeviceMemoryError" and "cannot allocate" in found["message"]
    assert found["ballast"] > 2 and found["generation"] == 0
    assert found["again"]  # the device is as good as before once there is room


@pytest.mark.wgsl
@pytest.mark.parametrize("room", [0, 32])
def test_an_evaluation_goes_on_in_pieces(llvmpipe: str, room: int) -> None:
    """Buffers are refused, or the driver gives up while data travel."""
    found = drill(llvmpipe, "evaluate", room)
    check_shortage(found)
    expected = evaluated()
    FLOAT32.check(found["cost"], expected.cost, "cost")
    FLOAT32.check(found["first"], expected.residuals[-1], "last residual")


@pytest.mark.wgsl
@pytest.mark.parametrize("what", ["host", "resident"])
def test_a_solve_goes_on_in_pieces(llvmpipe: str, what: str) -> None:
    found = drill(llvmpipe, what, 0)
    check_shortage(found)
    if what == "resident":
        assert "has no room for the whole solve" in found["faults"][0]
    FLOAT32.check(found["cost"], least_cost(), "cost")
