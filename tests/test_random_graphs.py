"""Random graphs over all ops on every backend: values, Jacobians, gradients.

Many graphs share a kernel, since compiling takes longer than everything else. The graphs come
from a seeded generator and not from Hypothesis: a shrink would compile at every try, and every
backend gets the same graphs, whose float64 oracle is evaluated once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from bindings import bind
from conftest import LONG

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.diff import value_and_jacobian
from autograd_gpu.ops import OPS
from random_graphs import (
    BINARY,
    STEPS,
    TERNARY,
    UNARY,
    Array,
    Recipe,
    random_arrays,
    random_recipe,
    well_conditioned,
)
from sessions import BACKENDS, Backend, parameters_of
from tolerances import GRAPH, tolerance

WIDTHS = (3, 2, 1, 2)
DATA = (2,)
PARAMETERS = [k for k in range(len(WIDTHS)) if k not in DATA]
PACK = 21
PACKS = 100 if LONG else 10
STEPS_OF_A_GRAPH = (3, 16 if LONG else 9)
BATCH = 200
FEWEST_FAIR = 0.3
"""Part of the points that must be well-conditioned, over a pack."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Graphs that share a kernel, with their oracle; rows are outputs, one graph after another."""

    recipes: tuple[Recipe, ...]
    arrays: list[Array]
    graph: Graph
    exact: Array
    jacobian: Array
    fair: Array


@functools.lru_cache(maxsize=10)
def pack_of(seed: int) -> Pack:
    """The graphs of one kernel, and what NumPy gives for them in float64."""
    rng = np.random.default_rng([seed, 2026])
    chosen = tuple(random_recipe(rng, STEPS_OF_A_GRAPH, WIDTHS) for _ in range(PACK))

    def residual(*arguments: Any) -> list[Any]:
        return [r for recipe in chosen for r in recipe(*arguments)]

    arrays = random_arrays(WIDTHS, BATCH, seed)
    graph = ag.trace(residual, *WIDTHS)
    fair: list[Array] = []
    for recipe in chosen:
        alone = recipe.trace()
        mask = well_conditioned(value_and_jacobian(alone, PARAMETERS), arrays)
        fair += [mask] * len(alone.outputs)
    jacobian = ag.jacobian(graph, PARAMETERS)
    with np.errstate(all="ignore"):
        return Pack(chosen, arrays, graph, graph(*arrays), jacobian(*arrays), np.array(fair).T)


def steps_of(seed: int) -> str:
    return "\n".join(" ".join(s.op for s in recipe.steps) for recipe in pack_of(seed).recipes)


@pytest.mark.parametrize("backend", parameters_of(BACKENDS))  # varies fastest
@pytest.mark.parametrize("seed", range(PACKS))
def test_random_graphs(backend: Backend, seed: int) -> None:
    pack = pack_of(seed)
    bound = bind(pack.graph, pack.arrays, DATA)
    with backend.open([bound.group], bound.parameters.size) as session:
        residuals, values = (a.copy() for a in session.residual_jacobian(bound.parameters))
    residuals = residuals.reshape(pack.exact.shape)
    jacobian = bound.dense_jacobian(values)
    bounds = tolerance(backend.precision, GRAPH)
    fair = pack.fair
    assert fair.mean() > FEWEST_FAIR, f"only {fair.mean():.0%} of the points are well-conditioned"
    what = f"pack {seed}: {steps_of(seed)}\n"
    bounds.check(residuals[fair], pack.exact[fair], f"{what}residuals")
    bounds.check(jacobian[fair], pack.jacobian[fair], f"{what}Jacobian")
    # A gradient sums over outputs, so its error is compared with the sum of magnitudes.
    r, J = np.where(fair, pack.exact, 0.0), np.where(fair[..., None], pack.jacobian, 0.0)
    mine = np.where(fair[..., None], jacobian, 0.0)
    scale = 1.0 + np.einsum("bmn,bm->bn", np.abs(J), np.abs(r))
    gradient = np.einsum("bmn,bm->bn", mine, np.where(fair, residuals, 0.0))
    bounds.check(gradient / scale, np.einsum("bmn,bm->bn", J, r) / scale, f"{what}gradient")


def test_there_are_enough_graphs_and_they_use_every_op() -> None:
    assert PACK * PACKS >= (2000 if LONG else 200)
    used: set[str] = set()
    for name in STEPS:
        step = {**BINARY, **UNARY, **TERNARY}[name]
        arity = 1 if name in UNARY else 2 if name in BINARY else 3
        used |= {name, *(n.op for n in ag.trace(step, *[1] * arity).nodes)}
    assert used >= set(OPS), f"no step uses {set(OPS) - used}"
    drawn = {s.op for seed in range(10) for r in pack_of(seed).recipes for s in r.steps}
    assert drawn == set(STEPS)
