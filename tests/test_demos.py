"""The stories: each ends where its text says, at a small size, and writes what it lists."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.errors import MissingDependencyError

if find_spec("matplotlib") is None:
    pytest.skip("demos need the extra [demos]", allow_module_level=True)

from autograd_gpu.demos import (
    STORIES,
    arap,
    cloth,
    developable,
    films,
    flatten,
    ik,
    scenes,
    sketch,
    smooth,
)
from autograd_gpu.demos.sketch_constraints import CONSTRAINTS
from autograd_gpu.demos.stage import Stage

# Options of main that make a story short.
SMALL: dict[str, dict[str, Any]] = {
    "arap": {"poses": ["grazes"]},
    "cloth": {"cells": 6, "steps": 8},
    "ik": {"count": 60},
    "bundle": {"cameras": 8, "stride": 12},
    "icp": {"rounds": 2},
    "curves": {"count": 500},
}


def barrel() -> ag.meshes.Mesh:
    """A closed mesh where the cow is, of a fifth of its vertices."""
    sphere = ag.meshes.icosphere(3)
    return ag.meshes.Mesh(sphere.vertices * [0.45, 0.85, 0.86] + [0.0, 0.105, 0.195], sphere.faces)


@pytest.fixture
def quick(monkeypatch):
    """Without the pictures, which have tests of their own, and without their minutes."""
    blank = np.zeros((8, 8, 3), dtype=np.uint8)
    monkeypatch.setattr(scenes, "draw", lambda *_: (blank, "matplotlib"))
    monkeypatch.setattr(films.Reel.frames, "__defaults__", (3,))

    def render_row(path, bodies, titles, **_):
        assert len(bodies) == len(titles) and all(bodies)
        Path(path).write_bytes(b"picture")

    monkeypatch.setattr("autograd_gpu.demos.pictures.render_row", render_row)


@pytest.mark.parametrize("name", STORIES)
def test_a_story_runs_and_writes_what_it_lists(name, tmp_path, capsys, quick, monkeypatch):
    story = import_module(f"autograd_gpu.demos.{name}")
    if hasattr(story, "spot"):
        monkeypatch.setattr(story, "spot", barrel)
    stage = Stage(out=tmp_path / "new", backend="numpy", progress=False, record=True)
    story.main(stage, **SMALL.get(name, {}))
    assert stage.written and all(path.stat().st_size > 0 for path in stage.written)
    assert f"{name}.gif" in {path.name for path in stage.written}
    assert stage.reel.points == []  # the film has them
    printed = capsys.readouterr().out
    assert str(stage.written[-1]) in printed and "┃" in printed


def test_poses_reach_their_handles():
    mesh = barrel()
    handles = np.flatnonzero((mesh.vertices[:, 1] < -0.66) | (mesh.vertices[:, 2] < -0.6))
    problem = arap.build(mesh, handles)
    targets = arap.graze(mesh.vertices)[handles]
    problem.update(data={"handles": {"target": targets}})
    s = ag.solve(problem, backend="numpy", options=arap.OPTIONS)
    assert s.success and s.cost < 1e-3 * s.initial_cost
    assert np.abs(s.values["x"][handles] - targets).max() < 0.01


def test_the_cow_is_cut_to_a_disk():
    mesh = flatten.open_cow()
    assert mesh.euler_characteristic == 1 and len(mesh.boundary_loops) == 1
    identity = flatten.stretches(ag.meshes.grid(2, 3), ag.meshes.grid(2, 3).vertices[:, :2])
    np.testing.assert_allclose(identity, 1.0)


def test_smoothing_comes_nearer_to_the_original():
    clean = smooth.spot()
    noise = 0.01 * np.random.default_rng(0).standard_normal(clean.vertices.shape)
    s = ag.solve(smooth.build(clean, clean.vertices + noise, "bilaplacian"), backend="numpy")
    a, b, c = np.moveaxis(s.values["x"][clean.faces], 1, 0)
    normals = np.cross(b - a, c - a)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    assert np.mean(np.einsum("ij,ij->i", normals, clean.face_normals)) > 0.98


def test_a_free_cloth_falls_as_it_should():
    mesh = ag.meshes.grid(3, 3)
    mesh = ag.meshes.Mesh(mesh.vertices + np.array([0, 0, 5.0]), mesh.faces)
    problem = cloth.build(mesh)
    x, v = mesh.vertices, np.zeros_like(mesh.vertices)
    stage = Stage(backend="numpy", progress=False)
    for step in range(1, 4):
        before = x
        x, v, _ = cloth.advance(stage, problem, x, v)
        # Implicit Euler: the speed grows by h g in every step, less half a percent of drag.
        fallen = (x - before)[:, 1] / cloth.STEP
        drag = sum(0.995**k for k in range(step))
        np.testing.assert_allclose(fallen, -9.81 * cloth.STEP * drag, rtol=1e-6)


def test_arms():
    joints = ag.trace(ik.joints_of, 3, ik.LINKS + 1)
    straight = joints(np.zeros((1, 3)), np.zeros((1, ik.LINKS + 1)))[0]
    np.testing.assert_allclose(straight[:, 1], ik.LINK * np.arange(ik.LINKS + 1))
    bent = joints(np.ones((1, 3)), np.full((1, ik.LINKS + 1), 0.4))[0]
    np.testing.assert_allclose(np.linalg.norm(np.diff(bent, axis=0), axis=1), ik.LINK)


def test_a_sketch_has_every_kind_of_constraint_and_no_freedom():
    assert {row[0] for row in sketch.SKETCH} == set(CONSTRAINTS)
    problem, points, _ = sketch.build()
    s = ag.solve(problem, backend="numpy", options=sketch.OPTIONS)
    assert s.cost < 1e-16
    at = dict(zip(sketch.POINTS, s.values["p"], strict=True))
    assert np.linalg.norm(at["b"] - at["a"]) == pytest.approx(8.0)
    hexagon = np.array([at[k] for k in sketch.HEXAGON])
    sides = np.linalg.norm(hexagon - np.roll(hexagon, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, 0.9, rtol=1e-6)
    assert len(points) == len(at)


def test_a_coarse_sphere_becomes_developable(tmp_path, quick):
    # Level 4 ends at 97.7 %, and the same 60 vertices are left over at level 3.
    stage = Stage(out=tmp_path, backend="numpy", progress=False)
    mesh = developable.main(stage, level=3)
    size = np.abs(mesh.angle_defects) * len(mesh.vertices) / (4 * np.pi)
    assert np.sum(size >= developable.DEVELOPABLE) <= 64
    assert developable.share(mesh) == np.mean(size < 0.1) > 0.9
    assert mesh.angle_defects.sum() == pytest.approx(4 * np.pi)
    assert mesh.quality().angles[0] > 40.0
    assert developable.share(ag.meshes.icosphere(3)) == 0.0


# ---------------------------------------------------------------- the stage


def test_a_film_is_a_gif(tmp_path):
    from PIL import Image

    frames = [np.full((20, 30, 3), value, dtype=np.uint8) for value in (10, 120, 240)]
    films.save_gif(tmp_path / "film.gif", frames, 0.1)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 3 and film.size == (30, 20)


def test_a_film_shows_the_points_of_a_solve_from_its_start_to_its_end(tmp_path, monkeypatch):
    seen = []

    def draw(bodies, view, size, renderer):
        seen.append((bodies[0].vertices, view))
        return np.full((*size[::-1], 3), len(seen), dtype=np.uint8), "matplotlib"

    monkeypatch.setattr(scenes, "draw", draw)
    mesh = ag.meshes.icosphere(1)
    i, j = mesh.edges.T
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    problem.add_residuals(ag.meshes.energies.spring, x[i], x[j], 0.2, name="springs")
    stage = Stage(out=tmp_path, backend="numpy", progress=False, record=True)
    solution = stage.solve("springs", problem)
    stage.film_of_mesh("springs.gif", "x", mesh.faces, "auto")
    np.testing.assert_array_equal(seen[0][0], mesh.vertices)
    np.testing.assert_array_equal(seen[-1][0], solution.values["x"])
    assert len({id(view) for _, view in seen}) == 1  # a camera that stands still
    assert stage.written == [tmp_path / "springs.gif"]


def test_nothing_is_kept_or_drawn_without_record(tmp_path, quick):
    stage = Stage(out=tmp_path, backend="numpy", progress=False)
    sketch.main(stage)
    assert stage.reel.points == [] and [p.name for p in stage.written] == ["sketch.png"]


def test_films_thin_out_many_points_and_blend_few():
    reel = films.Reel()
    assert reel.frames() == []
    for k in range(101):
        reel.add({"x": np.array([float(k)])})
    many = [float(frame["x"][0]) for frame in reel.frames(11)]
    assert many == [10.0 * k for k in range(11)]
    del reel.points[3:]
    few = [float(frame["x"][0]) for frame in reel.frames(8)]
    np.testing.assert_allclose(few, [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2])


def test_a_window_gets_meshes_points_and_segments(monkeypatch):
    calls = []

    class Window(ModuleType):
        def __getattr__(self, name):
            return lambda *arguments, **_: calls.append((name, arguments))

    monkeypatch.setitem(sys.modules, "polyscope", Window("polyscope"))
    mesh, points = ag.meshes.icosphere(0), np.arange(6.0).reshape(2, 3)
    Stage(show=True).open_window(first=mesh, second=mesh, dots=points, lines=(points, points + 1.0))
    assert [name for name, _ in calls if name != "init"] == [
        "register_surface_mesh", "register_surface_mesh", "register_point_cloud",
        "register_curve_network", "show",
    ]  # fmt: skip
    placed = [arguments[1] for name, arguments in calls if name == "register_surface_mesh"]
    assert placed[1][:, 0].min() > placed[0][:, 0].max()
    nodes, pairs = calls[-2][1][1:]
    np.testing.assert_array_equal(nodes[pairs[:, 1]] - nodes[pairs[:, 0]], np.ones((2, 3)))


def test_show_without_polyscope_is_refused_before_the_solve(monkeypatch):
    monkeypatch.setitem(sys.modules, "polyscope", None)
    with pytest.raises(MissingDependencyError, match=r"autograd-gpu\[show\]"):
        Stage(show=True)


def test_a_file_in_the_place_of_the_folder_is_refused_before_the_solve(tmp_path):
    file = tmp_path / "picture.png"
    file.touch()
    for out in (file, file / "deeper"):
        with pytest.raises(ag.InputError, match=r"picture\.png' is a file, and pictures go into"):
            Stage(out=out)
    assert not Stage(out=tmp_path / "new").out.exists()
