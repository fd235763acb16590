"""Gradients of random graphs on WGSL in float64 equal those of the CPU to 1e-10.

Which graphs count is decided by the rule in ``float64_gradients.py``, before anything runs.
"""

from __future__ import annotations

import numpy as np
import pytest
from conftest import LONG

from autograd_gpu.codegen.kernel import Product
from autograd_gpu.runtime.wgsl_backend import WgslSession
from float64_gradients import Pack, pack_of
from sessions import WGSL_FLOAT64, Backend, bind, device_on, parameters_of

LIMIT = 1e-10
"""Largest |error| / (1 + |g|)."""
FEWEST_FAIR = 0.95
"""Part of the generated graphs that the rule must keep."""

GRAPHS = 20
SMALL, LARGE = (3, 40), (41, 150)
"""Fewest and most ops of a graph before differentiation."""
SMALL_PACKS = 50 if LONG else 10
LARGE_PACKS = 5 if LONG else 1
ON_LLVMPIPE = [b for b in WGSL_FLOAT64 if b.adapter == "llvmpipe"]
"""Large graphs run there alone: SwiftShader compiles slowly."""


def check(backend: Backend, pack: Pack) -> None:
    """Compare the gradients of all graphs that the rule keeps."""
    bound = bind(pack.energies, pack.arrays)
    assert backend.adapter is not None
    device = device_on(backend.adapter)
    products = (Product.RESIDUAL_JACOBIAN,)
    arguments = (bound.parameters.size, backend.precision, device, products)
    with WgslSession([bound.group], *arguments) as session:
        _, values = session.residual_jacobian(bound.parameters)
        got = bound.dense_jacobian(values)
    error = np.abs(got - pack.exact) / (1.0 + np.abs(pack.exact))
    error[:, ~pack.fair] = 0.0
    worst = np.where(np.isnan(error), np.inf, error).max(axis=(0, 2))
    k = int(np.argmax(worst))
    ops = " ".join(step.op for step in pack.recipes[k].steps)
    assert worst[k] <= LIMIT, f"{backend}: graph {k} is off by {worst[k]:.1e}: {ops}"


@pytest.mark.parametrize("backend", parameters_of(WGSL_FLOAT64))
@pytest.mark.parametrize("seed", range(SMALL_PACKS))
def test_gradients_of_graphs_up_to_40_ops(backend: Backend, seed: int) -> None:
    check(backend, pack_of(seed, GRAPHS, *SMALL))


@pytest.mark.parametrize("backend", parameters_of(ON_LLVMPIPE))
@pytest.mark.parametrize("seed", range(LARGE_PACKS))
def test_gradients_of_graphs_of_more_ops(backend: Backend, seed: int) -> None:
    check(backend, pack_of(seed, GRAPHS, *LARGE))


def test_the_rule_keeps_nearly_all_graphs() -> None:
    small = [pack_of(seed, GRAPHS, *SMALL).fair for seed in range(SMALL_PACKS)]
    large = [pack_of(seed, GRAPHS, *LARGE).fair for seed in range(LARGE_PACKS)]
    for packs in (small, small + large):
        assert np.concatenate(packs).mean() >= FEWEST_FAIR
    assert np.concatenate(small).size >= (1000 if LONG else 200)
