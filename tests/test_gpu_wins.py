"""When the GPU wins: the meshes, the break-even points, and a page that says what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_wins, gpu_wins_page
from benchmarks.gpu_wins import Case, sphere
from benchmarks.metrics import RESULTS


@pytest.mark.parametrize("frequency", [1, 2, 5, 8])
def test_a_sphere_is_closed_and_faces_outwards(frequency: int) -> None:
    mesh = sphere(frequency)
    assert len(mesh.vertices) == 10 * frequency**2 + 2
    assert mesh.euler_characteristic == 2 and mesh.defects().ok
    np.testing.assert_allclose(np.linalg.norm(mesh.vertices, axis=1), 1.0)
    centres = mesh.vertices[mesh.faces].mean(axis=1)
    assert np.sum(centres * mesh.face_normals, axis=1).min() > 0.0


def case(side: str, vertices: int, seconds: list[float], costs: list[float]) -> Case:
    return Case(
        energy="springs", vertices=vertices, residuals=6 * vertices, unknowns=3 * vertices,
        side=side, hardware=side, solver="", first=1.0, seconds=seconds, costs=costs, commit="c",
    )  # fmt: skip


def test_times_are_to_one_cost_that_every_place_reached() -> None:
    cases = [
        case("cpu", 12, [0.0, 0.1, 0.2, 0.3], [9.0, 2.0, 1.025, 1.0]),
        case("wgsl", 12, [0.0, 0.4], [9.0, 1.02]),
    ]
    times = gpu_wins_page.times_of(cases)
    assert times["cpu", "cpu"] == {12: 0.2}  # and not when it was at its own end
    assert times["wgsl", "wgsl"] == {12: 0.4}


def test_the_break_even_lies_between_the_sizes_around_it() -> None:
    cpu = {10: 0.001, 100: 0.01, 1000: 0.1}
    # Constant, so it crosses a time that grows with the size at a tenth of 1000.
    assert gpu_wins_page.break_even(dict.fromkeys(cpu, 0.05), cpu) == pytest.approx(500.0)
    assert gpu_wins_page.break_even(dict.fromkeys(cpu, 1e-4), cpu) == 10.0
    assert gpu_wins_page.break_even(dict.fromkeys(cpu, 1.0), cpu) == math.inf
    # One lucky small size is no break-even.
    assert gpu_wins_page.break_even({10: 1e-4, 100: 0.05, 1000: 0.05}, cpu) > 100.0


def test_measuring_replaces_the_records_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "here_gpu_wins.json"
    monkeypatch.setitem(gpu_wins.BACKENDS, "cpu", ("numpy", "float64"))
    monkeypatch.setattr(gpu_wins, "hardware_gpu", lambda: None)
    path.write_text("[]")
    gpu_wins.run(["cpu"], list(gpu_wins.ENERGIES), 42, 20.0, path)
    cases = gpu_wins_page.load([path])
    assert {(c.energy, c.vertices) for c in cases} == {
        (e, n) for e in gpu_wins.ENERGIES for n in (12, 42)
    }
    for c in cases:
        assert c.costs[-1] < c.costs[0] and len(c.costs) == len(c.seconds)
        assert sorted(c.seconds) == c.seconds
    assert json.loads(path.read_text())[0] == asdict(cases[0])
    gpu = [replace(c, side="wgsl", hardware="a GPU") for c in cases]
    gpu_wins_page.draw([*cases, *gpu], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert "| a GPU, WGSL |" in gpu_wins_page.section([*cases, *gpu])


def test_the_page_is_what_the_records_say() -> None:
    cases = gpu_wins_page.load(RESULTS.glob(f"*{gpu_wins.SUFFIX}"))
    page = gpu_wins_page.PAGE.read_text(encoding="utf-8")
    section = gpu_wins_page.section(cases) if cases else ""
    assert f"<!-- measured: gpu wins -->\n{section}<!-- end -->" in page, (
        "python -m benchmarks.gpu_wins --page"
    )


def test_auto_follows_the_rule_that_the_page_states(monkeypatch: pytest.MonkeyPatch) -> None:
    from autograd_gpu.runtime import choice

    asked: list[str] = []

    def opened(precision: str, device: object, reason: str) -> str:
        asked.append(f"{precision}: {reason}")
        return "the GPU"

    monkeypatch.setattr(choice, "_hardware_adapter", lambda: "a GPU")
    monkeypatch.setattr(choice, "_wgsl", opened)
    bound = choice.GPU_MIN_RESIDUALS
    page = gpu_wins_page.PAGE.read_text(encoding="utf-8")
    assert f"at least **{bound:,} residuals**".replace(",", " ") in page
    assert choice.choose_backend("auto", "float32", None, bound) == "the GPU"
    assert asked == [f"float32: float32 and {bound} residuals on a GPU"]
    assert choice.choose_backend("auto", "float32", None, bound - 1).backend == "numba"
    assert choice.choose_backend("auto", "auto", None, 100 * bound).backend == "numba"
    monkeypatch.setattr(choice, "_hardware_adapter", lambda: None)
    assert choice.choose_backend("auto", "float32", None, bound).backend == "numba"
