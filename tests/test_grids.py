"""Sampled grids: interpolation against its definition, and as ingredients of residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import autograd_gpu as ag
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of
from tolerances import CENTRAL_DIFFERENCE, GRAPH, tolerance

Array = NDArray[np.float64]
BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])
EXACT = tolerance("float64", GRAPH)
RNG = np.random.default_rng(6)


def picture(x: Any, y: Any) -> Any:
    """A smooth image, defined between pixels as well."""
    spots = [(20.0, 14.0, 7.0, 1.0), (38.0, 30.0, 9.0, -0.8), (12.0, 40.0, 6.0, 0.6)]
    return sum(h * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * s * s)) for a, b, s, h in spots)


COLUMNS, ROWS = np.meshgrid(np.arange(56.0), np.arange(48.0))


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_grids_go_through_their_samples_and_clamp(method: str) -> None:
    values = RNG.standard_normal((5, 7))
    grid = ag.Grid2D(values, origin=(-1.0, 2.0), spacing=(0.5, 2.0), method=method)
    rows, columns = np.indices(values.shape)
    EXACT.check(grid(-1.0 + 0.5 * columns, 2.0 + 2.0 * rows), values, "samples")
    assert grid(-9.0, 2.0) == pytest.approx(values[0, 0])
    assert grid([100.0, 100.0]) == pytest.approx(values[-1, -1])
    _, gradient = grid.interpolate([[-9.0, 5.0]])
    assert gradient[0, 0] == 0.0
    assert gradient[0, 1] != 0.0


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_gradients_are_those_of_differences(dimensions: int, method: str) -> None:
    make = ag.Grid2D if dimensions == 2 else ag.Grid3D
    grid = make(RNG.standard_normal((5, 6, 7)[:dimensions]), 0.5, 0.25, method)
    points = RNG.uniform(0.3, 1.9, (200, dimensions))
    value, gradient = grid.interpolate(points)
    assert value.shape == (200,)
    for k in range(dimensions):
        step = 1e-5 * np.eye(dimensions)[k]
        slope = (grid(points + step) - grid(points - step)) / 2e-5
        cell = (points[:, k] - 0.5) / 0.25
        smooth = np.abs(cell - np.round(cell)) > 1e-3  # bilinear gradients jump between cells
        CENTRAL_DIFFERENCE.check(gradient[smooth, k], slope[smooth], f"axis {k}")


@pytest.mark.parametrize(("method", "degree"), [("bilinear", 1), ("bicubic", 2)])
def test_polynomials_are_exact_inside(method: str, degree: int) -> None:
    x, y, z = np.meshgrid(np.arange(7.0), np.arange(6.0), np.arange(5.0), indexing="ij")

    def polynomial(x: Any, y: Any, z: Any) -> Any:
        return 1.0 + (x + 0.5) ** degree - 2.0 * y**degree + (0.3 * z) ** degree + x * y * z

    volume = ag.Grid3D(polynomial(x, y, z).transpose(2, 1, 0), method=method)
    points = RNG.uniform(1.0, 3.0, (50, 3))
    EXACT.check(volume(points), polynomial(*points.T), "volume")
    layer = ag.Grid2D(polynomial(x, y, z)[:, :, 2].T, method=method)
    EXACT.check(layer(points[:, 0], points[:, 1]), polynomial(*points[:, :2].T, 2.0), "layer")


def shifted(shift: Array, method: str) -> ag.Problem:
    grid = ag.Grid2D(picture(COLUMNS, ROWS), method=method)
    inner = (slice(8, -8), slice(8, -8))
    x, y = COLUMNS[inner].ravel(), ROWS[inner].ravel()
    target = picture(x + shift[0], y + shift[1])
    problem = ag.Problem()
    t = problem.parameters("t", [[0.0, 0.0]])
    problem.add_residuals(
        lambda t, x, y, wanted: grid(x + t[0], y + t[1]) - wanted, t[0], x, y, target, name="image"
    )
    problem.add_residuals(lambda t: 1e-6 * t, t, name="prior")
    return problem


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_image_registers_to_a_shifted_copy(backend: Backend, method: str) -> None:
    shift = np.array([3.37, -2.61])
    solution = ag.solve(
        shifted(shift, method),
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )
    assert solution.success, solution.message
    assert np.abs(solution.values["t"][0] - shift).max() < 0.01  # pixels
    assert "'image' by NumPy on the CPU" in solution.device


def test_points_are_pulled_onto_the_zero_of_a_distance_field() -> None:
    axis = np.linspace(-1.5, 1.5, 31)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    field = ag.Grid3D(np.sqrt(x * x + y * y + z * z) - 1.0, -1.5, 0.1, "bicubic")
    start = RNG.standard_normal((20, 3))
    start *= RNG.uniform(0.6, 1.3, (20, 1)) / np.linalg.norm(start, axis=1, keepdims=True)
    problem = ag.Problem()
    p = problem.parameters("p", start)
    problem.add_residuals(lambda v: field(v), p, weight=3.0, name="surface")
    problem.add_residuals(lambda v, s: 0.05 * (v - s), p, start, name="stay")
    assert problem.check_gradients().ok
    solution = ag.solve(problem)
    assert solution.success, solution.message
    np.testing.assert_allclose(np.linalg.norm(solution.values["p"], axis=1), 1.0, atol=2e-3)


def test_weights_and_several_samples_enter_the_jacobian() -> None:
    image = ag.Grid2D(RNG.standard_normal((9, 9)), method="bicubic")
    other = ag.Grid2D(RNG.standard_normal((9, 9)), method="bicubic")
    problem = ag.Problem()
    p = problem.parameters("p", RNG.uniform(1.0, 7.0, (6, 2)))
    s = problem.parameters("s", [1.5])

    def residual(v: Any, w: Any, k: Any, d: Any) -> list[Any]:
        a, b = image(v), other(v[0], w[1] * k)
        return [a * b + k * d, ag.sin(a) - v[0] + image(v)]

    weight = RNG.uniform(0.5, 2.0, 5)
    problem.add_residuals(residual, p[:-1], p[1:], s[0], np.arange(5.0), weight=weight)
    assert problem.check_gradients().ok
    found = problem.evaluate().residuals.reshape(5, 2)
    v, w = problem.values_of(p)[:-1], problem.values_of(p)[1:]
    a, b = image(v), other(v[:, 0], 1.5 * w[:, 1])
    EXACT.check(found[:, 0], weight * (a * b + 1.5 * np.arange(5.0)), "first")
    EXACT.check(found[:, 1], weight * (2.0 * np.sin(a) - np.sin(a) - v[:, 0] + a), "second")
    problem.update(data={"residual": {"d": np.zeros(5)}})
    EXACT.check(problem.evaluate().residuals.reshape(5, 2)[:, 0], weight * a * b, "new data")


def test_what_does_not_fit_is_refused_by_name() -> None:
    grid = ag.Grid2D(np.zeros((3, 3)))
    assert repr(grid) == "Grid2D(3 × 3, bilinear)"
    with pytest.raises(ag.ShapeError, match=r"Grid2D: got values of shape \(3,\)"):
        ag.Grid2D(np.zeros(3))
    with pytest.raises(ag.InputError, match="1 values are not finite"):
        ag.Grid2D([[0.0, np.nan], [0.0, 0.0]])
    with pytest.raises(ag.InputError, match="method='nearest'"):
        ag.Grid2D(np.zeros((3, 3)), method="nearest")
    with pytest.raises(ag.InputError, match="spacing is"):
        ag.Grid2D(np.zeros((3, 3)), spacing=0.0)
    with pytest.raises(ag.ShapeError, match="Grid3D: origin"):
        ag.Grid3D(np.zeros((3, 3, 3)), origin=(0.0, 1.0))
    with pytest.raises(ag.ShapeError, match="got 3 coordinates, expected 2"):
        grid(1.0, 2.0, 3.0)
    problem = ag.Problem()
    p = problem.parameters("p", np.ones((4, 2)))
    with pytest.raises(ag.TraceError, match=r"'loss'.*without loss"):
        problem.add_residuals(lambda v: grid(v), p, loss=ag.losses.Huber(1.0), name="loss")
    with pytest.raises(ag.TraceError, match=r"'field'.*samples a grid"):
        problem.add_energy(lambda v: grid(v), p, name="field")
    with pytest.raises(ag.TraceError, match="come from a sample"):
        problem.add_residuals(lambda v: grid(grid(v), v[0]), p)
    with pytest.raises(ag.TraceError, match="works in residual functions"):
        ag.trace(lambda v: grid(v), 2)
