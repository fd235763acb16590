"""Pose graphs and bundles: known truth found again, files written and read, wrong lines named."""

from __future__ import annotations

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.estimation import (
    Bundle,
    PoseGraph,
    read_bal,
    read_g2o,
    sphere_of_poses,
    write_bal,
    write_g2o,
)
from autograd_gpu.manifolds import SE2, SE3
from workloads import bundle_problem, w3

ADAPTERS = wgsl_adapters()
BACKENDS = [("numpy", None), ("numba", None), ("jax", None),
            *(pytest.param("wgsl", a, marks=pytest.mark.wgsl) for a in ADAPTERS)]  # fmt: skip
long = pytest.mark.long


def distance(found, true):
    """Root mean square of what translations are off."""
    return float(np.sqrt(np.mean(np.sum((found[:, 4:] - true[:, 4:]) ** 2, axis=1))))


def turned(true, degrees, seed=1):
    """Poses, each turned about an axis of its own; the first stays."""
    axes = np.random.default_rng(seed).standard_normal((len(true), 3))
    axes *= np.radians(degrees) / np.linalg.norm(axes, axis=1, keepdims=True)
    away = SE3.from_vector(true) @ SE3.exp(np.concatenate([axes, np.zeros_like(axes)], axis=1))
    numbers = SE3.nearest(away.to_vector())
    numbers[0] = true[0]
    return numbers


def expected_cost(graph):
    """Half the degrees of freedom: the mean of the minimum, noise being what it is said to be."""
    return 0.5 * 6 * (len(graph.edges) - len(graph.poses) + 1)


def check_from_odometry(laps, backend, adapter):
    graph, true = sphere_of_poses(laps, laps)
    drift = distance(graph.poses, true)
    solution = ag.solve(graph.problem(), backend=backend, device=adapter)
    assert solution.success, solution.message
    assert solution.backend == backend
    freedom = expected_cost(graph)
    # Five standard deviations of half a χ² variable.
    assert abs(solution.cost - freedom) < 5.0 * np.sqrt(freedom)
    assert distance(solution.values["poses"], true) < 0.2 * drift
    np.testing.assert_allclose(
        np.linalg.norm(solution.values["poses"][:, :4], axis=1), 1.0, rtol=0, atol=1e-15
    )


def check_turned_by_30_degrees(laps, backend, adapter):
    graph, true = sphere_of_poses(laps, laps, outliers=0.02)
    begun = graph.with_poses(turned(true, 30.0))
    plain = ag.solve(begun.problem(), backend=backend, device=adapter)
    robust = ag.solve(begun.problem(ag.losses.Huber(2.0)), backend=backend, device=adapter)
    assert robust.success, robust.message
    # Wrong closures bend the plain solution, and hardly the robust one.
    off = distance(robust.values["poses"], true)
    assert off < 0.3 * distance(plain.values["poses"], true)
    assert off < 0.5


@pytest.mark.parametrize(("backend", "adapter"), BACKENDS)
def test_a_sphere_of_poses_from_odometry(backend, adapter):
    check_from_odometry(8 if backend == "wgsl" else 12, backend, adapter)


def test_a_sphere_of_poses_turned_by_30_degrees():
    check_turned_by_30_degrees(12, "numpy", None)


@long
@pytest.mark.parametrize(("backend", "adapter"), BACKENDS)
def test_2500_poses_from_odometry(backend, adapter):
    check_from_odometry(50, backend, adapter)


@long
@pytest.mark.parametrize(("backend", "adapter"), BACKENDS)
def test_2500_poses_turned_by_30_degrees(backend, adapter):
    check_turned_by_30_degrees(50, backend, adapter)


def test_the_sphere_is_one():
    graph, true = sphere_of_poses(6, 9, radius=3.0, rotation_noise=1e-9, translation_noise=1e-9)
    np.testing.assert_allclose(np.linalg.norm(true[:, 4:], axis=1), 3.0, rtol=1e-12)
    np.testing.assert_allclose(graph.poses[:, 4:], true[:, 4:], atol=1e-6)
    assert len(graph.edges) == 53 + 45
    with pytest.raises(ag.InputError, match="sphere_of_poses: laps=1"):
        sphere_of_poses(1, 9)


def plane_graph(count=9, seed=0):
    """A closed walk in the plane, with full information matrices."""
    rng = np.random.default_rng(seed)
    true = [SE2.identity()]
    for step in rng.normal([1.0, 0.0, 0.7], 0.1, (count - 1, 3)):
        true.append(true[-1] @ SE2.exp(step))
    true = np.array([p.to_vector() for p in true])
    i, j = np.arange(count), np.roll(np.arange(count), -1)
    motion = SE2.from_vector(true[i]).inverse() @ SE2.from_vector(true[j])
    measured = (motion @ SE2.exp(0.05 * rng.standard_normal((count, 3)))).to_vector()
    half = rng.standard_normal((count, 3, 3))
    information = half @ half.transpose(0, 2, 1) + np.eye(3)
    begun = true + 0.1 * rng.standard_normal(true.shape)
    ids = 10 + 3 * rng.permutation(count)
    return PoseGraph(SE2, begun, np.stack([i, j], 1), measured, information, [4], ids)


def space_graph():
    graph, _ = sphere_of_poses(3, 4)
    rng = np.random.default_rng(3)
    half = rng.standard_normal((len(graph.edges), 6, 6))
    information = half @ half.transpose(0, 2, 1)
    return PoseGraph(SE3, graph.poses, graph.edges, graph.measurements, information)


@pytest.mark.parametrize("name", ["graph.g2o", "graph.g2o.gz", "graph.g2o.bz2"])
@pytest.mark.parametrize("make", [plane_graph, space_graph])
def test_g2o_written_and_read(tmp_path, make, name):
    graph = make()
    write_g2o(tmp_path / name, graph)
    again = read_g2o(tmp_path / name)
    assert again.group is graph.group
    np.testing.assert_array_equal(again.edges, graph.edges)
    np.testing.assert_array_equal(again.fixed, graph.fixed)
    np.testing.assert_array_equal(again.ids, graph.ids)
    np.testing.assert_array_equal(again.information, 0.5 * (
        graph.information + graph.information.transpose(0, 2, 1)))  # fmt: skip
    np.testing.assert_allclose(again.poses, graph.poses, rtol=0, atol=1e-15)
    np.testing.assert_allclose(again.measurements, graph.measurements, rtol=0, atol=1e-15)
    before, after = (g.problem().evaluate("numpy") for g in (graph, again))
    np.testing.assert_allclose(after.residuals, before.residuals, rtol=1e-12, atol=1e-12)
    # A second round changes nothing any more.
    write_g2o(tmp_path / "again.g2o", again)
    third = read_g2o(tmp_path / "again.g2o")
    np.testing.assert_allclose(third.poses, again.poses, rtol=0, atol=3e-16)


def test_the_sphere_written_and_read_as_g2o(tmp_path):
    graph, _ = sphere_of_poses(50, 50)
    assert len(graph.poses) == 2500
    write_g2o(tmp_path / "sphere.g2o", graph)
    again = read_g2o(tmp_path / "sphere.g2o")
    np.testing.assert_array_equal(again.edges, graph.edges)
    np.testing.assert_allclose(again.poses, graph.poses, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(again.information, graph.information)
    costs = [g.problem().evaluate("numpy").cost for g in (graph, again)]
    np.testing.assert_allclose(costs[1], costs[0], rtol=1e-9)


def test_information_is_that_of_the_file(tmp_path):
    """Lines as g2o writes them: translation first, quaternion with w last."""
    path = tmp_path / "two.g2o"
    diagonal = [100.0, 200.0, 300.0, 4.0, 5.0, 6.0]
    upper = " ".join(str(v) for v in np.diag(diagonal)[np.triu_indices(6)])
    path.write_text(
        "# two poses\n\nVERTEX_SE3:QUAT 0 0 0 0 0 0 0 1\n"
        "VERTEX_SE3:QUAT 7 1 2 3 0 0 0.7071068 0.7071068\nFIX 0\n"
        f"EDGE_SE3:QUAT 0 7 1.5 2 3 0 0 0.7071068 0.7071068 {upper}\n"
    )
    graph = read_g2o(path)
    np.testing.assert_array_equal(graph.ids, [0, 7])
    np.testing.assert_allclose(graph.poses[1], [0.5**0.5, 0, 0, 0.5**0.5, 1, 2, 3], rtol=1e-15)
    np.testing.assert_array_equal(np.diag(graph.information[0]), [4, 5, 6, 100, 200, 300])
    # Z turns by 90° about z: what is missing along x is missing along -y in its frame.
    evaluation = graph.problem().evaluate("numpy")
    np.testing.assert_allclose(
        evaluation.residuals, [0, 0, 0, 0, 0.5 * np.sqrt(200.0), 0], atol=1e-14
    )
    np.testing.assert_allclose(evaluation.cost, 0.5 * 0.25 * 200.0)


def test_a_graph_in_the_plane():
    graph = plane_graph()
    problem = graph.problem()
    assert problem.check_gradients().ok
    solution = ag.solve(problem, backend="numpy")
    assert solution.success and solution.cost < 0.1 * solution.initial_cost
    np.testing.assert_array_equal(solution.values["poses"][4], graph.poses[4])


VERTICES = "VERTEX_SE2 0 0 0 0\nVERTEX_SE2 1 1 0 0\n"
EDGE = "EDGE_SE2 0 1 1 0 0 1 0 0 1 0 1\n"


@pytest.mark.parametrize(("text", "line", "match"), [
    (VERTICES + "VERTEX_SE2 0 1 0 0\n", 3, "vertex 0 is there already"),
    (VERTICES + "VERTEX_SE2 2 1 0\n", 3, "got 2 numbers, expected 3: a pose"),
    (VERTICES + "VERTEX_SE2 2 1 x 0\n", 3, "could not convert .* 'x'"),
    (VERTICES + "VERTEX_SE2 2 1 nan 0\n", 3, "NaN or infinity"),
    (VERTICES + "VERTEX_SE2\n", 3, "the number of a vertex"),
    (VERTICES + "VERTEX_SE2 -1 1 0 0\n", 3, "got '-1' as the number of a vertex"),
    (VERTICES + "VERTEX_XY 2 1 0\n", 3, "VERTEX_XY is not read; expected VERTEX_SE2"),
    (VERTICES + "VERTEX_SE3:QUAT 2 0 0 0 0 0 0 1\n", 3, "in a graph of SE2"),
    (VERTICES + "EDGE_SE2 0 1 1 0 0 1 0 0 1 0\n", 3, "got 8 numbers after the vertices"),
    (VERTICES + "EDGE_SE2 0\n", 3, "a vertex of an edge"),
    (VERTICES + "EDGE_SE2 0 0 1 0 0 1 0 0 1 0 1\n", 3, "from vertex 0 to itself"),
    (VERTICES + "EDGE_SE2 0 1 1 0 0 1 0 0 -1 0 1\n", 3, "negative eigenvalue"),
    (VERTICES + "EDGE_SE2 0 5 1 0 0 1 0 0 1 0 1\n" + EDGE, 3, "vertex 5 is in no line"),
    (VERTICES + EDGE + "FIX 9\n", 4, "vertex 9 is in no line"),
    (VERTICES + EDGE + "FIX a\n", 4, "got 'a' as a vertex of FIX"),
    (VERTICES, 2, "ends without any edge"),
    ("VERTEX_SE3:QUAT 0 0 0 0 0 0 0 0\n", 1, "the quaternion of a pose is zero"),
    ("", 0, "ends without any edge"),
])  # fmt: skip
def test_wrong_lines_of_g2o_are_named(tmp_path, text, line, match):
    path = tmp_path / "bad.g2o"
    path.write_text(text)
    with pytest.raises(ag.FileFormatError, match=rf"bad\.g2o:{line}: [\s\S]*{match}"):
        read_g2o(path)


def w3_bundle(cameras=60, points=20_000):
    arrays = w3(cameras, points)
    return Bundle(
        cameras=arrays["cam0"], points=arrays["X0"], camera_of=arrays["ci"],
        point_of=arrays["pi"], observed=arrays["obs"],
    )  # fmt: skip


@pytest.mark.parametrize("name", ["w3.txt", "w3.txt.bz2"])
def test_w3_written_and_read_as_bal(tmp_path, name):
    size = (60, 20_000) if name == "w3.txt" else (6, 50)
    bundle = w3_bundle(*size)
    write_bal(tmp_path / name, bundle)
    again = read_bal(tmp_path / name)
    for what in ("cameras", "points", "camera_of", "point_of", "observed"):
        np.testing.assert_array_equal(getattr(again, what), getattr(bundle, what), err_msg=what)
    found, known = again.problem().evaluate("numpy"), bundle_problem(*size).evaluate("numpy")
    np.testing.assert_allclose(found.cost, known.cost, rtol=1e-12)


def test_a_bundle_from_a_file_is_solved(tmp_path):
    write_bal(tmp_path / "small.txt", w3_bundle(6, 60))
    problem = read_bal(tmp_path / "small.txt").problem()
    assert problem.check_gradients().ok
    found, known = (
        ag.solve(problem, backend="numpy"),
        ag.solve(bundle_problem(6, 60), backend="numpy"),
    )
    np.testing.assert_allclose(found.cost, known.cost, rtol=1e-6)


CAMERA = "0\n" * 9
BAL = "1 1 1\n0 0 1.0 2.0\n" + CAMERA + "1\n2\n3\n"


@pytest.mark.parametrize(("text", "line", "match"), [
    ("", 0, "the numbers of cameras, points and observations"),
    ("1 1\n", 1, "the numbers of cameras"),
    ("1 1 0\n", 1, "at least one camera"),
    ("1 x 1\n", 1, "got 'x'"),
    ("1 1 2\n0 0 1 2\n", 2, "ends after 1 of 2 observations"),
    ("1 1 1\n0 0 1\n", 2, "expected an observation"),
    ("1 1 1\n0 3 1 2\n", 2, "camera 0 and point 3, of 1 cameras and 1 points"),
    ("1 1 1\n0 0 1 inf\n", 2, "NaN or infinity"),
    (BAL.replace("2\n3\n", "2\n"), 13, "ends after 11 of 12 numbers"),
    (BAL + "4\n", 15, "more than the 12 numbers"),
    (BAL.replace("3\n", "three\n"), 14, "could not convert"),
])  # fmt: skip
def test_wrong_lines_of_bal_are_named(tmp_path, text, line, match):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    with pytest.raises(ag.FileFormatError, match=rf"bad\.txt:{line}: [\s\S]*{match}"):
        read_bal(path)


def test_graphs_that_do_not_fit_together():
    graph = plane_graph()
    parts = (graph.poses, graph.edges, graph.measurements)
    with pytest.raises(ag.ShapeError, match=r"poses: got shape \(9, 3\), expected \(9, 7\)"):
        PoseGraph(SE3, *parts)
    with pytest.raises(ag.ShapeError, match="measurements"):
        PoseGraph(SE2, graph.poses, graph.edges, graph.measurements[:3])
    with pytest.raises(ag.IndexRangeError, match="edges: positions of poses beyond 0 to 8"):
        PoseGraph(SE2, graph.poses, graph.edges + 1, graph.measurements)
    with pytest.raises(ag.InputError, match="ids: some occur twice"):
        PoseGraph(SE2, *parts, ids=np.zeros(9))
    with pytest.raises(ag.InputError, match="no edge from pose 0 to 1"):
        PoseGraph(SE2, graph.poses, graph.edges[1:], graph.measurements[1:]).from_odometry()
