"""``ag.warm_up``: a solve after it compiles, loads and generates nothing, whatever the method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.events import Event, leave, listen
from autograd_gpu.runtime import assembly_kernels, numba_backend
from autograd_gpu.runtime.jax_functions import compilations

MADE = ("compile", "load", "generate")
ADAPTERS = wgsl_adapters()[:1]


class Made:
    """What was compiled, loaded or generated."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []

    def __enter__(self) -> Made:
        listen(self)
        return self

    def __exit__(self, *_: object) -> None:
        leave(self)

    def hear(self, event: Event) -> None:
        if event.kind in MADE:
            self.names.append((event.kind, event.name))


def springs(seed: float, n: int = 30, **parameters: Any) -> ag.Problem:
    """A chain with a constant of its own, so that no other test has compiled it."""
    points = np.linspace(0.1, 1.0, 3 * n).reshape(n, 3)
    problem = ag.Problem()
    x = problem.parameters("x", points, **parameters)
    problem.add_residuals(lambda a, b: ag.norm(a - b) - 0.3 * ag.sin(seed * a[0]), x[:-1], x[1:])
    problem.add_residuals(lambda a: 0.1 * (a - seed), x)
    return problem


def bundle(seed: float) -> ag.Problem:
    """Cameras and points: what the Schur complement eliminates."""
    rng = np.random.default_rng(0)
    problem = ag.Problem()
    c = problem.parameters("c", rng.normal(size=(4, 6)))
    p = problem.parameters("p", rng.normal(size=(60, 3)))
    i, j = (a.ravel() for a in np.meshgrid(np.arange(4), np.arange(60)))
    problem.add_residuals(
        lambda c, p: [c[0] * p[0] + c[1] * p[1] + c[2] - seed, c[3] * p[2] + c[4] * c[5] - p[1]],
        c[i], p[j],
    )  # fmt: skip
    return problem


def rotations(seed: float) -> ag.Problem:
    problem = ag.Problem()
    q = problem.parameters("q", np.tile([1.0, 0.0, 0.0, 0.0], (20, 1)), manifold=ag.manifolds.SO3)
    start, target = np.random.default_rng(0).normal(size=(2, 20, 3))
    problem.add_residuals(lambda q, a, b: q.act(a * seed) - b, q, start, target)
    return problem


def energies(seed: float) -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", np.linspace(0.5, 1.5, 40).reshape(20, 2))
    problem.add_energy(lambda a, b: ag.exp(seed * (a - b)[0]) + ag.dot(a - b, a - b), x[:-1], x[1:])
    problem.add_residuals(lambda a: a - 1.0, x)
    return problem


SHORT = ag.LevenbergMarquardtOptions(max_iterations=3)
CASES: dict[str, tuple[Callable[[float], ag.Problem], dict[str, Any]]] = {
    "automatic": (springs, {}),
    "lanes": (lambda s: springs(s, 4200), {"options": SHORT}),
    "pcg": (springs, {"linear_solver": "pcg"}),
    "dense": (springs, {"linear_solver": "dense-cholesky"}),
    "qr": (springs, {"linear_solver": "dense-qr"}),
    "schur": (bundle, {"linear_solver": "schur"}),
    "implicit schur": (bundle, {"linear_solver": "schur-implicit"}),
    "dogleg": (springs, {"method": "dogleg"}),
    "gauss-newton": (springs, {"method": "gauss-newton"}),
    "l-bfgs": (springs, {"method": "l-bfgs"}),
    "newton": (energies, {}),
    "manifold": (rotations, {}),
    "bounds": (lambda s: springs(s, bounds=(-5.0, 5.0)), {}),
}  # fmt: skip


def check(problem: ag.Problem, **arguments: Any) -> ag.Solution:
    before = problem.evaluate(backend="numpy").cost
    with Made() as warmed:
        seconds = ag.warm_up(problem, **arguments)
    assert warmed.names and seconds > 0.0
    assert problem.evaluate(backend="numpy").cost == before
    with Made() as solved:
        solution = ag.solve(problem, **arguments)
    assert solved.names == []
    assert solution.iterations > 0
    return solution


@pytest.mark.parametrize("case", CASES)
def test_a_solve_after_it_compiles_nothing(case: str) -> None:
    make, arguments = CASES[case]
    numba_backend._compiled.clear()
    assembly_kernels.kernel.cache_clear()
    seed = 1.0 + 0.01 * list(CASES).index(case)
    check(make(seed), backend="numba", **arguments)
    # Another problem with the same residual functions finds everything as well.
    with Made() as again:
        ag.solve(make(seed), backend="numba", **arguments)
    assert again.names == []


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"linear_solver": "pcg"},
        {"linear_solver": "auto"},
        {"precision": "mixed"},
        {"method": "l-bfgs"},
        {"precision": "mixed", "linear_solver": "pcg"},
    ],
    ids=str,
)
def test_a_solve_on_a_device_after_it_compiles_nothing(
    adapter: str, arguments: dict[str, Any]
) -> None:
    device = ag.Device(adapter)
    device.wgpu_device  # noqa: B018 - opened, so that a self-test is not counted
    if arguments.get("precision") == "mixed":
        ag.solve(springs(9.0), backend="wgsl", device=device, precision="mixed")
    numba_backend._compiled.clear()
    seed = 2.0 + len(str(arguments)) / 100
    solution = check(springs(seed), backend="wgsl", device=device, **arguments)
    assert np.isfinite(solution.cost)
    device.close()


def test_the_coarse_space_of_a_large_solve_is_compiled_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from autograd_gpu.solvers import device_preconditioner

    if not ADAPTERS:
        pytest.skip("no WGSL adapter")
    monkeypatch.setattr(device_preconditioner, "SMALLEST_PROBLEM", 10)
    with Made() as warmed:
        ag.warm_up(springs(3.0, 800), backend="wgsl", device=ADAPTERS[0], linear_solver="pcg")
    assert ("compile", "coarse_matrix") in warmed.names


def test_jax_compiles_when_it_is_warmed_up() -> None:
    pytest.importorskip("jax")
    problem = springs(4.0)
    ag.warm_up(problem, backend="jax")
    before = compilations.total
    ag.solve(problem, backend="jax")
    assert compilations.total == before


def test_arguments_are_checked_as_for_a_solve() -> None:
    from autograd_gpu.errors import InputError

    with pytest.raises(InputError, match="unknown"):
        ag.warm_up(springs(5.0), backend="abacus")
    with pytest.raises(InputError, match="no residuals"):
        ag.warm_up(ag.Problem())
    with pytest.raises(InputError, match="got int, expected"):
        ag.warm_up(3)
