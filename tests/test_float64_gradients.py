"""Gradients of random graphs on WGSL in float64 equal those of the CPU to 1e-10.

Which graphs count is decided by the rule in ``float64_gradients.py``, before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from bindings import bind
from conftest import LONG

import autograd_gpu as ag
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.number_formats import FORMATS
from float64_gradients import (
    GRAPHS,
    LARGE,
    LIMIT,
    SMALL,
    Pack,
    gradient_errors,
    gradients_on,
    pack_of,
)
from random_graphs import Array
from sessions import WGSL_FLOAT64, Backend, device_on, parameters_of
from workloads import reprojection_error, w3

FEWEST_FAIR = 0.95
"""Part of the generated graphs that the rule must keep."""

LARGE_GRAPHS = 10
SMALL_PACKS = 50 if LONG else 10
LARGE_PACKS = 1
ON_LLVMPIPE = [b for b in WGSL_FLOAT64 if b.adapter == "llvmpipe"]
"""Large graphs run there alone: SwiftShader takes a minute for the reprojection's Jacobian."""
EVERY = {"SwiftShader": 1 if LONG else 20}
"""SwiftShader takes a second to compile a graph: every 20th of them, all in the long profile."""


def check(backend: Backend, pack: Pack, every: int = 1) -> None:
    """Compare the gradients of all graphs that the rule keeps."""
    assert backend.adapter is not None
    worst = gradient_errors(device_on(backend.adapter), backend.precision, pack, every)
    k = int(np.argmax(worst))
    ops = " ".join(step.op for step in pack.recipes[k * every].steps)
    assert worst[k] <= LIMIT, f"{backend}: graph {k * every} is off by {worst[k]:.1e}: {ops}"


@pytest.mark.parametrize("backend", parameters_of(WGSL_FLOAT64))
@pytest.mark.parametrize("seed", range(SMALL_PACKS))
def test_gradients_of_graphs_up_to_40_ops(backend: Backend, seed: int) -> None:
    assert backend.adapter is not None
    check(backend, pack_of(seed, GRAPHS, *SMALL), EVERY.get(backend.adapter, 1))


@pytest.mark.long
@pytest.mark.parametrize("backend", parameters_of(ON_LLVMPIPE))
@pytest.mark.parametrize("seed", range(LARGE_PACKS))
def test_gradients_of_graphs_of_more_ops(backend: Backend, seed: int) -> None:
    check(backend, pack_of(seed, LARGE_GRAPHS, *LARGE))


def test_the_rule_keeps_nearly_all_graphs(note: Callable[[str], None]) -> None:
    small = [pack_of(seed, GRAPHS, *SMALL).fair for seed in range(SMALL_PACKS)]
    large = [pack_of(seed, LARGE_GRAPHS, *LARGE).fair for seed in range(LARGE_PACKS)]
    for packs in (small, small + large):
        assert np.concatenate(packs).mean() >= FEWEST_FAIR
    kept = np.concatenate(small)
    assert kept.size >= (1000 if LONG else 200)
    note(f"random graphs in float64: the rule keeps {kept.sum()} of {kept.size}")


# -- Jacobians of energies ----------------------------------------------------------------------

ENERGY_LIMIT = 1e-11
"""Largest |error| / (1 + |J|)."""
ELEMENTS = 1000


def as_rigid_as_possible_points(rng: np.random.Generator) -> list[Array]:
    """Edges of order 1; turns of up to π, of 1e-9 and of nothing."""
    x_i, x_j, edge = (rng.standard_normal((ELEMENTS, 3)) for _ in range(3))
    axis = rng.standard_normal((ELEMENTS, 3))
    angle = rng.uniform(0.0, np.pi, (ELEMENTS, 1))
    angle[:100] = 0.0
    angle[100:200] = 10.0 ** rng.uniform(-9, -3, (100, 1))
    return [x_i, x_j, angle * axis / np.linalg.norm(axis, axis=1, keepdims=True), edge]


def hinge_points(rng: np.random.Generator) -> list[Array]:
    """Two triangles over an edge of length 1, folded by up to 3 radians either way."""
    fold = rng.uniform(-3.0, 3.0, ELEMENTS)
    fold[:100] = 10.0 ** rng.uniform(-9, -3, 100)
    along, height = rng.uniform(0.2, 0.8, (2, ELEMENTS)), rng.uniform(0.5, 1.5, (2, ELEMENTS))
    zero = np.zeros(ELEMENTS)
    a, b = np.zeros((ELEMENTS, 3)), np.tile([1.0, 0.0, 0.0], (ELEMENTS, 1))
    c = np.stack([along[0], height[0], zero], axis=1)
    d = np.stack([along[1], -height[1] * np.cos(fold), height[1] * np.sin(fold)], axis=1)
    shift = rng.standard_normal((ELEMENTS, 3))
    return [p + shift for p in (a, b, c, d)]


def sightings(rng: np.random.Generator) -> list[Array]:
    """Cameras and points of the bundle adjustment workload."""
    arrays = w3(cameras=10, points=200)
    chosen = rng.integers(0, len(arrays["ci"]), ELEMENTS)
    camera, point = arrays["ci"][chosen], arrays["pi"][chosen]
    return [arrays["cam0"][camera], arrays["X0"][point], arrays["obs"][chosen]]


ENERGIES: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "as-rigid-as-possible": (energies.as_rigid_as_possible, as_rigid_as_possible_points, (3,)),
    "dihedral angle": (energies.dihedral_angle, hinge_points, ()),
    "Snavely reprojection": (reprojection_error, sightings, (2,)),
}
"""Residual, its points, and which arguments are data."""


@pytest.mark.parametrize("name", ENERGIES)
@pytest.mark.parametrize("backend", parameters_of(ON_LLVMPIPE))
def test_jacobians_of_energies(backend: Backend, name: str) -> None:
    fn, draw_points, data = ENERGIES[name]
    number = FORMATS[backend.precision]
    arrays = [
        number.decode(number.encode(a, "points").reshape(-1)).reshape(a.shape)
        for a in draw_points(np.random.default_rng(1))
    ]
    graph = ag.trace(fn, *(a.shape[1] for a in arrays))
    wrt = [k for k in range(len(arrays)) if k not in data]
    want = ag.jacobian(graph, wrt)(*arrays)
    assert backend.adapter is not None
    bounds = [bind(graph, arrays, data)]
    (got,) = gradients_on(device_on(backend.adapter), backend.precision, bounds)
    got = got.reshape(want.shape)
    error = np.abs(got - want) / (1.0 + np.abs(want))
    assert error.max() <= ENERGY_LIMIT, f"{error.max():.1e}"
