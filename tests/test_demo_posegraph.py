"""The pose graph demo: a loss keeps wrong edges from bending the sphere, and it writes files."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import pytest
from typer.testing import CliRunner

import autograd_gpu as ag

if find_spec("matplotlib") is None:
    pytest.skip("demos need the extra [demos]", allow_module_level=True)

from autograd_gpu.cli import build_app
from autograd_gpu.demos import posegraph
from autograd_gpu.demos.stage import Stage
from autograd_gpu.errors import MissingDependencyError
from autograd_gpu.estimation import sphere_of_poses


def test_the_loss_keeps_the_sphere_round():
    graph, true = sphere_of_poses(14, 14, outliers=0.03)
    _, (plain, robust, turned) = posegraph.solve_all(graph, true, Stage(progress=False))
    assert robust.solution.success and turned.solution.success
    assert robust.error < 0.3 * plain.error
    # One minimum, whatever the start.
    np.testing.assert_allclose(turned.solution.cost, robust.solution.cost, rtol=1e-4)
    assert robust.error < posegraph.error_of(graph.poses, true)


def test_it_writes_what_it_names(tmp_path, capsys):
    written = posegraph.main(Stage(out=tmp_path / "new", progress=False), laps=6)
    assert [path.name for path in written] == ["posegraph.png", "posegraph_convergence.png"]
    assert all(path.stat().st_size > 2000 for path in written)
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in written)
    assert "36 poses, 65 edges" in printed
    assert "turned by 30°" in printed and "210 tangent coordinates of 36 poses" in printed


def test_missing_pictures_are_named_before_the_solve(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    monkeypatch.setattr(ag, "solve", lambda *_, **__: pytest.fail("solved first"))
    with pytest.raises(MissingDependencyError, match="matplotlib"):
        posegraph.main(Stage(out=tmp_path), laps=4)


def test_the_command_line_passes_options_on(tmp_path, monkeypatch):
    got = []
    monkeypatch.setattr(posegraph, "main", lambda stage, laps: got.append((stage, laps)))
    result = CliRunner().invoke(
        build_app(), ["demo", "posegraph", "--laps", "9", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    ((stage, laps),) = got
    assert (laps, stage.out, stage.backend, stage.show) == (9, tmp_path, "auto", False)
