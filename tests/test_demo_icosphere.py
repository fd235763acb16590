"""The icosphere demo: it converges, its handles are where they were told to be, it writes files."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.errors import DeviceError, InputError, MissingDependencyError

if find_spec("matplotlib") is None:
    pytest.skip("demos need the extra [demos]", allow_module_level=True)

from autograd_gpu.demos import backends, icosphere, scenes
from autograd_gpu.demos.stage import Stage
from autograd_gpu.runtime import device


@pytest.mark.parametrize("pose", [icosphere.sphere(2), icosphere.cow()], ids=["sphere", "cow"])
def test_the_handles_get_there_and_the_edges_keep_their_length(pose):
    solution = ag.solve(pose.problem(), options=icosphere.OPTIONS, backend="numpy")
    x = solution.values["x"]
    assert solution.success
    size = np.ptp(pose.mesh.vertices, axis=0).max()
    assert np.abs(x[pose.moved] - pose.targets).max() < 0.02 * size
    assert np.abs(x[pose.held] - pose.mesh.vertices[pose.held]).max() < 0.02 * size
    i, j = pose.mesh.edges.T
    lengths = np.linalg.norm(x[j] - x[i], axis=1)
    strain = np.abs(lengths / pose.mesh.edge_lengths - 1.0)
    assert np.median(strain) < 0.1


def test_it_writes_what_it_names(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(icosphere, "cow", lambda: icosphere.sphere(0))
    # A software adapter draws slowly, and has tests of its own.
    monkeypatch.setattr(scenes, "adapter_exists", lambda: False)
    written = icosphere.main(Stage(out=tmp_path / "new", progress=False), level=1)
    assert [path.name for path in written] == ["sphere.png", "cow.png", "convergence.png"]
    assert all(path.stat().st_size > 2000 for path in written)
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in written)
    assert "Winner here: " in printed
    assert "numba float64" in printed and "numpy float64" in printed
    assert "the linear solver runs on the CPU" in printed  # why that backend
    assert "compile  " in printed


def test_without_an_adapter_the_cpu_does_it_and_one_line_says_so(capsys, monkeypatch):
    def none(*_):
        raise DeviceError("no WebGPU adapter found on this machine")

    monkeypatch.setattr(device, "default_device", none)
    runs = backends.compare(icosphere.sphere(1).problem(), icosphere.OPTIONS)
    assert {run.solution.backend for run in runs} == {"numba", "numpy"}
    assert capsys.readouterr().out.count("no WebGPU adapter found") == 1


@pytest.mark.wgsl
def test_all_backends_end_at_one_cost():
    runs = backends.compare(icosphere.sphere(1).problem(), icosphere.OPTIONS)
    costs = [run.solution.cost for run in runs]
    assert len(runs) == len(backends.BACKENDS)
    assert costs == pytest.approx([costs[0]] * len(costs), rel=1e-3)


def test_the_warm_up_takes_the_compilation(tmp_path):
    run = backends.timed_solve(icosphere.sphere(1).problem(), icosphere.OPTIONS, "numba")
    again = backends.timed_solve(icosphere.sphere(1).problem(), icosphere.OPTIONS, "numpy")
    assert run.compile_seconds > 0.0 and again.compile_seconds > 0.0
    assert len(run.solution.kernels) == 4 and len(again.solution.kernels) == 0
    assert len(run.row) == len(again.row)


def test_missing_pictures_are_named_before_the_solve(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    monkeypatch.setattr(ag, "solve", lambda *_, **__: pytest.fail("solved first"))
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        icosphere.main(Stage(out=tmp_path), level=1)


def test_an_unknown_backend_is_refused(tmp_path):
    with pytest.raises(InputError, match="backend='cuda'"):
        icosphere.main(Stage(out=tmp_path, backend="cuda", progress=False), level=0)
    assert list(tmp_path.iterdir()) == []
