"""``ag.cache``: what is there, and that it can be cleared; other files stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import autograd_gpu as ag
from autograd_gpu import cli
from autograd_gpu.disk_cache import FOLDER_VARIABLE
from autograd_gpu.solvers.telemetry import Telemetry


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    ag.cache.clear()
    return tmp_path


def solve() -> Telemetry:
    problem = ag.Problem()
    x = problem.parameters("x", np.linspace(0.1, 1.0, 30).reshape(10, 3))
    problem.add_residuals(lambda a, b: ag.norm(a - b) - 0.77, x[:-1], x[1:])
    with ag.telemetry() as heard:
        ag.solve(problem, backend="numba")
    return heard


def entries() -> dict[str, int]:
    return {row.name: row.entries for row in ag.cache.info()}


def test_what_a_solve_leaves_is_listed_and_cleared(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    (folder / "other").mkdir()
    first = solve()
    assert first.totals["generated"] == 3 and first.totals["cache_hits"] == 0
    assert entries() == {
        "generated": 3, "machine_code": 2, "derived graphs": 2, "sources": 4, "machine code": 2,
    }  # fmt: skip
    assert all(row.size > 0 for row in ag.cache.info() if row.where != "memory")
    assert {row.where for row in ag.cache.info()} == {
        str(folder / "generated"), str(folder / "machine_code"), "memory",
    }  # fmt: skip

    ag.cache.clear(disk=False)
    assert entries()["machine code"] == entries()["sources"] == 0
    assert solve().totals["generated"] == 0

    ag.cache.clear()
    assert entries() == {"derived graphs": 0, "sources": 0, "machine code": 0}
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "other"]
    assert solve().totals["generated"] == 3

    ag.cache.clear(memory=False)
    assert entries()["machine code"] == 2 and "machine_code" not in entries()


def test_a_link_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "file").write_text("mine")
    (folder / "generated").symlink_to(elsewhere)
    ag.cache.clear()
    assert (elsewhere / "file").read_text() == "mine"


def test_no_folder_means_memory_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert ag.cache.folder() is None
    assert {row.where for row in ag.cache.info()} == {"memory"}
    ag.cache.clear()


def test_the_command_line_lists_and_clears(folder: Path) -> None:
    solve()

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(cli.build_app(), ["cache", *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    assert "machine_code" in call() and "generated" in call()
    assert "machine_code" not in call("--clear")
    assert not (folder / "generated").exists()
