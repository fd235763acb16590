"""Problems and solutions in files: the same numbers afterwards, and what a file refuses."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from autograd_gpu.graph_documents import graph_document, graph_of_document
from autograd_gpu.solvers.archive import ArchiveWriter
from random_graphs import random_recipe


def ragged_problem() -> ag.Problem:
    mesh = ag.meshes.icosphere(1)
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    rows = ag.Ragged(mesh.one_rings.indptr, np.arange(float(len(mesh.one_rings.values))))
    problem.add_residuals(
        lambda p, ring, w: p - ag.mean(ring) + 0.01 * ag.mean(w), x, x[mesh.one_rings], rows,
        loss=ag.losses.Huber(0.2), weight=np.linspace(1.0, 2.0, len(mesh.vertices)), name="smooth",
    )  # fmt: skip
    return problem


def bundle() -> ag.Problem:
    return workloads.bundle_problem(6, 40)


def poses() -> ag.Problem:
    problem = ag.Problem()
    start = np.tile([1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0], (4, 1))
    q = problem.parameters("q", start, manifold=ag.manifolds.SE3)
    problem.freeze(q, 0)
    problem.add_residuals(
        lambda a, b: (a.inverse() @ b).log() - 0.1, q[:-1], q[1:], name="odometry"
    )
    return problem


def energies() -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", np.linspace(0.5, 2.0, 5))
    problem.add_energy(lambda x, w: w * x - ag.log(x), x, np.arange(1.0, 6.0), name="barrier")
    problem.add_residuals(lambda x: x - 1.0, x, weight=0.5, name="near")
    return problem


def bounded() -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", [0.5, 1.0], bounds=(0.25, np.inf))
    problem.add_residuals(lambda x: x, x, name="zero")
    return problem


def constrained() -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", [[0.5, 0.0]])
    problem.add_residuals(lambda x: [x.x - 2.0, x.y - 1.0], x, name="near")
    problem.add_constraint(lambda x: x.x * x.x + x.y * x.y, x, upper=1.0, name="disk")
    return problem


PROBLEMS: dict[str, Callable[[], ag.Problem]] = {
    "springs": workloads.PROBLEMS["W1r_s3"],
    "bundle": bundle,
    "ragged": ragged_problem,
    "poses": poses,
    "energies": energies,
    "bounded": bounded,
    "constrained": constrained,
}
each_problem = pytest.mark.parametrize("name", PROBLEMS)


@each_problem
def test_a_loaded_problem_is_the_one_saved(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name]()
    problem.save(tmp_path / "problem.agp")
    loaded = ag.Problem.load(tmp_path / "problem.agp")
    assert [(g.name, g.count, g.topology.key) for g in loaded.groups] == [
        (g.name, g.count, g.topology.key) for g in problem.groups
    ]
    for array in problem.arrays:
        other = loaded.array(array.name)
        assert np.array_equal(loaded.values_of(other), problem.values_of(array))
        assert np.array_equal(loaded.frozen_of(other), problem.frozen_of(array))
    if name in ("energies", "constrained"):
        ours, theirs = (ag.solve(p, backend="numpy") for p in (loaded, problem))
        assert ours.cost == theirs.cost and np.array_equal(ours.values["x"], theirs.values["x"])
        return
    a, b = (p.evaluate("numpy") for p in (problem, loaded))
    assert a.cost == b.cost and np.array_equal(a.residuals, b.residuals)
    assert (a.jacobian != b.jacobian).nnz == 0


@each_problem
def test_a_loaded_problem_can_be_updated_and_saved_again(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name]()
    first, second = tmp_path / "first", tmp_path / "second"
    problem.save(first)
    ag.Problem.load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


def test_data_of_a_loaded_problem_are_named_as_before(tmp_path: Path) -> None:
    ragged_problem().save(tmp_path / "p")
    loaded = ag.Problem.load(tmp_path / "p")
    before = loaded.evaluate("numpy").cost
    loaded.update(data={"smooth": {"loss_delta": 0.01}})
    assert loaded.evaluate("numpy").cost < before


def test_nothing_in_a_file_is_code(tmp_path: Path) -> None:
    bundle().save(tmp_path / "p")
    with zipfile.ZipFile(tmp_path / "p") as archive:
        assert {Path(n).suffix for n in archive.namelist()} == {".json", ".npy"}
        assert json.loads(archive.read("document.json"))["version"] == 1
    with np.load(tmp_path / "p", allow_pickle=False) as arrays:
        assert all(arrays[n].dtype != object for n in arrays.files if n != "document.json")


@pytest.mark.parametrize("seed", range(20))
def test_graphs_survive_as_documents(seed: int) -> None:
    recipe = random_recipe(np.random.default_rng(seed), (5, 40), (2, 3))
    graph = ag.trace(recipe, 2, 3)
    again = graph_of_document(json.loads(json.dumps(graph_document(graph))))
    assert again.nodes == graph.nodes and again.outputs == graph.outputs
    assert again.key == graph.key


def test_a_manifold_of_ones_own_is_refused(tmp_path: Path) -> None:
    class Half:
        ambient, tangent = 2, 1

        @staticmethod
        def plus(x: Any, delta: Any) -> Any:
            return ag.Vec2([x.x + delta, x.y])

    problem = ag.Problem()
    x = problem.parameters("x", np.ones((3, 2)), manifold=Half)
    problem.add_residuals(lambda x: x, x)
    with pytest.raises(ag.InputError, match=r"save, parameters 'x': the manifold Half is your own"):
        problem.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_folded_rows_are_refused(tmp_path: Path) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones(50))
    rows = ag.Ragged(np.array([0, 40]), np.arange(40))
    problem.add_residuals(lambda ring: ag.sum(ring), x[rows])
    with pytest.raises(ag.InputError, match="folded in a loop cannot be saved yet"):
        problem.save(tmp_path / "p")


def test_external_residuals_are_refused_but_have_costs(tmp_path: Path) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 2.0])
    problem.add_external(lambda x: (x - 3.0, [np.ones((2, 1, 1))]), x, name="outside")
    problem.freeze(x)
    problem.add_residuals(lambda x: x, x, name="inside")
    with pytest.raises(ag.InputError, match="save, external residuals 'outside': a file cannot"):
        problem.save(tmp_path / "p")
    outside, inside = ag.solve(problem, backend="numpy").groups
    assert (outside.cost, outside.worst_element, inside.cost) == (2.5, 0, 2.5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "problem"
    energies().save(path)
    return path


def test_damaged_files_are_refused_and_named(saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: len(content) // 2])
    with pytest.raises(ag.InputError, match=r"problem': damaged, or not written by autograd_gpu"):
        ag.Problem.load(saved)
    saved.write_text("x = 1")
    with pytest.raises(ag.InputError, match="damaged, or not written"):
        ag.Problem.load(saved)
    with pytest.raises(ag.InputError, match="no such file"):
        ag.Problem.load(saved.with_name("nothing"))


def test_other_kinds_and_versions_are_refused(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ag.InputError, match="got the format 'autograd_gpu problem'"):
        ag.Solution.load(saved)
    monkeypatch.setattr("autograd_gpu.solvers.archive.VERSION", 2)
    with pytest.raises(ag.InputError, match=r"got version 1 of the format, expected 2"):
        ag.Problem.load(saved)
    ArchiveWriter().write(tmp_path / "empty", "problem", {})
    with pytest.raises(ag.InputError, match="the document is damaged"):
        ag.Problem.load(tmp_path / "empty")


def test_an_op_that_is_not_known_is_named() -> None:
    document = graph_document(ag.trace(lambda x: ag.sin(x), 1))
    document["nodes"][-1][0] = "frobnicate"
    with pytest.raises(ag.InputError, match="'frobnicate' that this version cannot read"):
        graph_of_document(document)


@each_problem
def test_a_loaded_solution_is_the_one_saved(name: str, tmp_path: Path) -> None:
    solution = ag.solve(PROBLEMS[name](), backend="numpy")
    solution.save(tmp_path / "solution")
    loaded = ag.Solution.load(tmp_path / "solution")
    assert loaded.report() == solution.report()
    assert repr(loaded.history) == repr(solution.history)  # NaN equals NaN in text
    assert loaded.values.keys() == solution.values.keys()
    for key, values in solution.values.items():
        assert np.array_equal(values, loaded.values[key])
    for key, values in solution.multipliers.items():
        assert np.array_equal(values, loaded.multipliers[key])


def test_costs_by_group_add_up_and_name_the_worst_element() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.zeros(4))
    problem.add_residuals(lambda x, t: x - t, x, [1.0, 2.0, -5.0, 0.0], name="targets")
    problem.add_residuals(
        lambda x: [x, x], x[[0, 1]], weight=np.array([1.0, 3.0]), loss=ag.losses.Cauchy(1.0)
    )
    problem.freeze(x)
    solution = ag.solve(problem, backend="numpy")
    targets, other = solution.groups
    assert (targets.name, targets.count, targets.cost) == ("targets", 4, 15.0)
    assert (targets.worst_element, targets.worst_norm) == (2, 5.0)
    assert np.isclose(targets.cost + other.cost, solution.cost)
    assert "targets" in solution.report() and "worst element" in solution.report()


def test_worst_elements_of_ragged_groups_are_numbered_as_given() -> None:
    problem = ragged_problem()
    options = ag.LevenbergMarquardtOptions(max_iterations=0)
    solution = ag.solve(problem, backend="numpy", options=options)
    (group,) = solution.groups
    assert (group.name, group.count) == ("smooth", 42)
    assert np.isclose(group.cost, problem.evaluate("numpy").cost)
    x, rows = solution.values["x"], ag.meshes.icosphere(1).one_rings
    spans = np.split(np.arange(len(rows.values)), rows.indptr[1:-1])
    means = [x[rows.values[span]].mean(axis=0) - 0.01 * span.mean() for span in spans]
    norms = np.linalg.norm(x - means, axis=1) * np.linspace(1.0, 2.0, 42)
    assert group.worst_element == np.argmax(norms)


def test_costs_are_those_of_the_data_that_were_solved() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.zeros(2))
    problem.add_residuals(lambda x, t: x - t, x, [1.0, 2.0], name="targets")
    problem.add_residuals(lambda x: x, x, name="zero")
    solution = ag.solve(problem, backend="numpy")
    problem.update(x=[9.0, 9.0], data={"targets": [100.0, 100.0]})
    assert np.isclose(sum(g.cost for g in solution.groups), solution.cost)


def test_plots_show_the_course_of_the_solve(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    solution = ag.solve(energies(), backend="numpy")
    figure = solution.plot(tmp_path / "solve.png")
    assert (tmp_path / "solve.png").stat().st_size > 10_000
    cost = figure.axes[0].lines[0]
    assert np.allclose(cost.get_ydata(), [r.cost for r in solution.history if r.cost > 0])


def test_plots_without_matplotlib_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    solution = ag.solve(energies(), backend="numpy")
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ag.MissingDependencyError, match=r"pip install autograd-gpu\[plot\]"):
        solution.plot()
