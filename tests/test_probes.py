"""``ag.probe``: intermediate values read back on every backend, and kernels that do not notice."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import InputError, TraceError
from autograd_gpu.runtime.device import Device
from tolerances import GRAPH, TOLERANCES

PRECISION = {"numpy": "float64", "numba": "float64", "jax": "float64", "wgsl": "float32"}
BACKENDS = [
    "numpy", "numba", "jax", pytest.param("wgsl", marks=pytest.mark.wgsl),
]  # fmt: skip


def spring(p: ag.Vec3, q: ag.Vec3, rest: Any) -> Any:
    edge = ag.probe("edge", q - p)
    length = ag.probe("length", ag.norm(edge))
    ag.probe("long", length > rest)
    ag.probe("frame", [[edge.x, edge.y], [length, 2.0]])
    return length - rest


def plain_spring(p: ag.Vec3, q: ag.Vec3, rest: Any) -> Any:
    return ag.norm(q - p) - rest


def springs(fn: Any = spring) -> ag.Problem:
    mesh = ag.meshes.icosphere(1)
    i, j = mesh.edges.T
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    problem.add_residuals(fn, x[i], x[j], 0.9 * mesh.edge_lengths, name="springs")
    problem.add_residuals(lambda p, p0: 0.1 * (p - p0), x, mesh.vertices, name="anchor")
    return problem


def expected(problem: ag.Problem, x: np.ndarray) -> dict[str, np.ndarray]:
    mesh = ag.meshes.icosphere(1)
    i, j = mesh.edges.T
    edge = x[j] - x[i]
    length = np.linalg.norm(edge, axis=1)
    frame = np.stack([edge[:, :2], np.stack([length, np.full(len(i), 2.0)], axis=1)], axis=1)
    long = (length > 0.9 * mesh.edge_lengths).astype(float)
    return {"edge": edge, "length": length, "long": long, "frame": frame}


@pytest.mark.parametrize("backend", BACKENDS)
def test_probes_are_read_back(backend: str) -> None:
    problem = springs()
    device = Device(wgsl_adapters()[0]) if backend == "wgsl" else None
    precision = PRECISION[backend]
    evaluation = problem.evaluate(backend=backend, precision=precision, device=device)
    wanted = expected(problem, problem.values_of(problem.arrays[0]))
    assert set(evaluation.probes) == set(wanted)
    for name, values in wanted.items():
        got = evaluation.probes[name]
        assert got.shape == values.shape and got.dtype == np.float64
        TOLERANCES[precision, GRAPH].check(got, values, name)

    solution = ag.solve(problem, backend=backend, precision=precision, device=device)
    wanted = expected(problem, solution.values["x"])
    TOLERANCES[precision, GRAPH].check(solution.probes["length"], wanted["length"], "at the end")
    if device is not None:
        device.close()


def test_kernels_do_not_notice() -> None:
    with_probes, without = springs(), springs(plain_spring)
    assert [g.topology.key for g in with_probes.groups] == [g.topology.key for g in without.groups]
    assert ag.trace(spring, 3, 3, 1).key == ag.trace(plain_spring, 3, 3, 1).key
    first, second = (p.evaluate(backend="numba") for p in (with_probes, without))
    assert first.residuals.tobytes() == second.residuals.tobytes()
    assert first.jacobian.data.tobytes() == second.jacobian.data.tobytes()
    solved = [ag.solve(p, backend="numba") for p in (with_probes, without)]
    assert solved[0].values["x"].tobytes() == solved[1].values["x"].tobytes()
    assert len(solved[1].probes) == 0
    assert {k.name for k in solved[0].kernels} == {k.name for k in solved[1].kernels}


def test_rows_of_varying_length_come_back_in_order() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((9, 3))
    indptr, indices = np.array([0, 2, 5, 6, 9]), rng.integers(0, 9, 9)
    problem = ag.Problem()
    x = problem.parameters("x", values)

    def mean(own: ag.Vec3, near: Any) -> Any:
        centre = ag.probe("centre", ag.mean([q for q in near]))
        ag.probe("all", [q.x for q in near])
        return own - centre

    problem.add_residuals(mean, x[:4], x[ag.Ragged(indptr, indices)], name="smooth")
    probes = problem.evaluate(backend="numpy").probes
    wanted = [values[indices[a:b]].mean(axis=0) for a, b in pairwise(indptr)]
    np.testing.assert_allclose(probes["centre"], wanted, rtol=1e-13)
    assert {name for name in probes if name != "centre"} == {
        "all (length 1)", "all (length 2)", "all (length 3)"
    }  # fmt: skip
    np.testing.assert_array_equal(
        probes["all (length 3)"], [values[indices[a : a + 3], 0] for a in (2, 6)]
    )


def attention(own: ag.Vec3, near: Any, weight: Any, scale: Any) -> Any:
    """What there is to probe over a long row: of elements, of items, and of items by the row."""
    force = [
        w * ag.exp(-scale * ag.dot(q - own, q - own)) for q, w in zip(near, weight, strict=True)
    ]
    total = ag.probe("total", ag.sum(force))
    ag.probe("own", own)
    ag.probe("force", force)
    ag.probe("share", [f / total for f in force])
    ag.probe("step", [q - own for q in near])
    return total - 1.0


def long_rows(lengths: list[int]) -> tuple[ag.Problem, dict[str, list[np.ndarray]]]:
    """A problem over rows, and for each probe a value of every element."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((30, 3))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = rng.integers(0, 30, indptr[-1])
    weights = rng.uniform(0.5, 1.5, indptr[-1])
    problem = ag.Problem()
    x = problem.parameters("x", values)
    problem.freeze(x, np.arange(10))
    selection = x[ag.Ragged(indptr, indices)]
    own = np.arange(len(lengths)) + 3
    problem.add_residuals(
        attention, x[own], selection, ag.Ragged(indptr, weights), 0.7, name="attention"
    )
    wanted: dict[str, list[np.ndarray]] = {
        n: [] for n in ("total", "own", "force", "share", "step")
    }
    for e, (a, b) in enumerate(pairwise(indptr)):
        step = values[indices[a:b]] - values[own[e]]
        force = weights[a:b] * np.exp(-0.7 * (step**2).sum(axis=1))
        for name, value in (
            ("total", force.sum()), ("own", values[own[e]]), ("force", force),
            ("share", force / force.sum()), ("step", step),
        ):  # fmt: skip
            wanted[name].append(np.asarray(value))
    return problem, wanted


@pytest.mark.parametrize("backend", BACKENDS)
def test_over_long_rows(backend: str) -> None:
    """Rows of one kernel with a loop, in several batches, beside short ones that are unrolled."""
    lengths = [40, 3, 70, 40, 3, 33, 128]
    problem, wanted = long_rows(lengths)
    device = Device(wgsl_adapters()[0]) if backend == "wgsl" else None
    precision = PRECISION[backend]
    probes = problem.evaluate(backend=backend, precision=precision, device=device).probes
    bound = TOLERANCES[precision, GRAPH]
    for name in ("total", "own"):
        bound.check(probes[name], np.stack(wanted.pop(name)), name)
    for name, values in wanted.items():
        assert {k for k in probes if k.startswith(name)} == {
            f"{name} (length {n})" for n in set(lengths)
        }
        for length in set(lengths):
            expected = np.stack([v for v, n in zip(values, lengths, strict=True) if n == length])
            bound.check(probes[f"{name} (length {length})"], expected, f"{name} {length}")
    if device is not None:
        device.close()


def test_over_long_rows_of_one_length() -> None:
    problem, wanted = long_rows([50, 50])
    probes = ag.solve(
        problem, backend="numba", options=ag.LevenbergMarquardtOptions(max_iterations=0)
    ).probes
    assert set(probes) == set(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(probes[name], np.stack(values), rtol=1e-12)
    # New data are seen as well.
    rows = problem.evaluate(backend="numba").probes["force"]
    problem.update(data={"attention": {"weight": np.full(100, 2.0)}})
    again = problem.evaluate(backend="numba").probes["force"]
    assert again.shape == rows.shape and not np.allclose(again, rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight", [None, 2.0])
def test_beside_samples_of_a_grid(backend: str, weight: float | None) -> None:
    rng = np.random.default_rng(2)
    image = ag.Grid2D(rng.standard_normal((12, 15)), spacing=0.5)
    points = rng.uniform(0.5, 5.0, (9, 2))
    levels = rng.standard_normal(9)

    def level(p: Any, wanted: Any) -> Any:
        seen = ag.probe("seen", image(p.x, p.y))
        ag.probe("off", [seen - wanted, 2.0 * p.x])
        return seen - wanted

    problem = ag.Problem()
    x = problem.parameters("x", points)
    problem.add_residuals(level, x, levels, weight=weight, name="image")
    device = Device(wgsl_adapters()[0]) if backend == "wgsl" else None
    precision = PRECISION[backend]
    probes = problem.evaluate(backend=backend, precision=precision, device=device).probes
    seen = image(points)
    bound = TOLERANCES[precision, GRAPH]
    bound.check(probes["seen"], seen, "seen")
    bound.check(probes["off"], np.stack([seen - levels, 2.0 * points[:, 0]], axis=1), "off")
    if device is not None:
        device.close()


def test_probes_are_saved_with_a_problem(tmp_path: Path) -> None:
    problem = springs()
    problem.save(tmp_path / "springs.zip")
    found = ag.Problem.load(tmp_path / "springs.zip").evaluate(backend="numpy").probes
    for name, values in problem.evaluate(backend="numpy").probes.items():
        assert np.array_equal(found[name], values)
    ragged, _ = long_rows([2, 3, 2])
    ragged.save(tmp_path / "rows.zip")
    found = ag.Problem.load(tmp_path / "rows.zip").evaluate(backend="numpy").probes
    wanted = ragged.evaluate(backend="numpy").probes
    assert set(found) == set(wanted) and "step (length 3)" in found
    for name in wanted:
        assert np.array_equal(found[name], wanted[name])


@pytest.mark.wgsl
def test_a_solution_is_not_lost_for_its_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(wgsl_adapters()[0])
    options = ag.LevenbergMarquardtOptions(max_iterations=3)

    def lose(record: Any) -> None:
        if record.iteration == 3:
            device.wgpu_device.destroy()

    solution = ag.solve(
        springs(), backend="wgsl", precision="float32", device=device, linear_solver="pcg",
        options=options, callback=lose,
    )  # fmt: skip
    assert solution.iterations == 3
    assert "probes are computed on the CPU" in solution.faults[-1]
    wanted = expected(springs(), solution.values["x"])
    np.testing.assert_allclose(solution.probes["length"], wanted["length"], rtol=1e-6)
    device.close()


def test_a_name_of_two_groups_says_which() -> None:
    problem = springs()
    x = problem.arrays[0]
    problem.add_residuals(lambda p: ag.probe("length", ag.norm(p)) - 1.0, x, name="sphere")
    probes = problem.evaluate(backend="numpy").probes
    assert {"springs.length", "sphere.length", "edge"} <= set(probes)
    np.testing.assert_allclose(probes["sphere.length"], 1.0)
    assert "Probes(" in repr(probes)
    with pytest.raises(InputError, match="there is no such probe, known are: 'edge'"):
        probes["length"]


def test_data_and_points_may_change() -> None:
    problem = springs()
    x = problem.values_of(problem.arrays[0])
    problem.freeze(problem.arrays[0], [0, 1])
    problem.update(x=2.0 * x, data={"springs": np.zeros(len(problem.evaluate().probes["length"]))})
    probes = problem.evaluate(backend="numba").probes
    np.testing.assert_allclose(probes["length"], expected(problem, 2.0 * x)["length"], rtol=1e-13)
    assert (probes["long"] == 1.0).all()


def test_on_manifolds_and_in_energies() -> None:
    problem = ag.Problem()
    r = problem.parameters("r", np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]]), manifold=ag.manifolds.SO3)
    v = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 2.0]])
    problem.add_residuals(lambda q, v: ag.probe("turned", q.act(v)) - v, r, v, name="align")
    problem.add_energy(lambda q: ag.probe("height", 1.0 - q.to_vector()[0]) ** 2, r, name="rise")
    probes = problem.evaluate(backend="numba").probes
    np.testing.assert_allclose(probes["turned"], v * [[1, 1, 1], [1, -1, -1]], atol=1e-14)
    np.testing.assert_allclose(probes["height"], [0.0, 1.0], atol=1e-14)


def test_outside_of_residuals_a_probe_does_nothing() -> None:
    assert ag.probe("x", 2.0) == 2.0
    a = ag.Value(3.0)
    assert ag.probe("a", a) is a
    array = np.ones(3)
    assert ag.probe("array", array) is array


@pytest.mark.parametrize("name", ["", 3])
def test_names_are_texts(name: Any) -> None:
    with pytest.raises(TraceError, match="expected a text"):
        ag.probe(name, 1.0)


def test_a_name_is_used_once_in_a_function() -> None:
    def twice(p: Any) -> Any:
        return ag.probe("p", p) + ag.probe("p", 2 * p)

    problem = ag.Problem()
    x = problem.parameters("x", np.ones(3))
    with pytest.raises(TraceError, match="'p' is taken in this function"):
        problem.add_residuals(twice, x)
