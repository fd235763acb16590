"""Random graphs whose gradients are compared in float64, and the rule that leaves some out.

The rule (``fair_graphs`` applies it, ``docs/precision.md`` repeats it) looks at the graph, its
points and NumPy only, never at a device. A graph is left out if at any of its points

1. an operand that was rounded lies within ``MARGIN`` of a kink, jump or branch of its op, in the
   graph or its gradient: there the two arithmetics may take different sides and both be right; or
2. rounding matters: every op of the gradient that rounds is made wrong by a random ±2^-44 (three
   draws: Monte Carlo arithmetic, Parker 1997), and the gradient moves by more than ``GROWTH``
   (1 + |g|); or
3. a value on the way is beyond ``LARGEST``, or the gradient is not finite.

Operands that no arithmetic rounds (arguments, literals, integers made by ``floor`` or ``sign``, and
what is selected among such) may lie on a kink: all arithmetics see it alike.

2^-44 is what a double-float operation may be off by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from bindings import Bound, bind

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.codegen.kernel import Product
from autograd_gpu.ir import evaluate_nodes, reachable
from autograd_gpu.ops import BOOL, NODE_OPS
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.wgsl_backend import WgslSession
from random_graphs import Array, Recipe, random_arrays, random_recipe

WIDTHS = (3, 2, 1, 2)
POINTS = 8
SMALL, LARGE = (3, 40), (41, 80)
"""Fewest and most ops of a graph before differentiation."""
GRAPHS = 20
"""Small graphs of a pack."""
LIMIT = 1e-10
"""Largest |error| / (1 + |g|)."""

MARGIN = 1e-9
GROWTH = 1e-11
ROUNDING = 2.0**-44
LARGEST = 1e6
DRAWS = 3

COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
SELECTIONS = ("minimum", "maximum", "where")
EXACT = ("neg", "abs", "sign", "floor", "ceil", "round", *SELECTIONS)
"""Ops whose result is not rounded if their operands are not."""
DISCRETE = ("sign", "floor", "ceil", "round")
"""Ops whose result is not rounded, whatever their operands."""
# Distance of operands from the nearest kink or jump.
DISTANCES: dict[str, Callable[..., Any]] = {
    **{name: lambda a, b: np.abs(a - b) for name in (*COMPARISONS, "minimum", "maximum")},
    "abs": np.abs, "sign": np.abs,
    "floor": lambda x: np.abs(x - np.rint(x)), "ceil": lambda x: np.abs(x - np.rint(x)),
    "round": lambda x: np.abs(x + 0.5 - np.rint(x + 0.5)),
    "mod": lambda a, b: np.abs(a / b - np.rint(a / b)),
    "sqrt": np.abs, "hypot": np.hypot,
}  # fmt: skip


def energy(recipe: Recipe) -> Callable[..., Any]:
    """½‖r‖² of a recipe, to be traced."""

    def half_square(*arguments: Any) -> Any:
        return sum(0.5 * r * r for r in recipe(*arguments))

    return half_square


def gradient(recipe: Recipe) -> Graph:
    """Gradient of ½‖r‖² by all arguments."""
    return ag.jacobian(ag.trace(energy(recipe), *WIDTHS))


def draw(rng: np.random.Generator, fewest: int, most: int) -> Recipe:
    """A recipe whose graph has ``fewest`` to ``most`` ops; half of them below twice the fewest."""
    while True:
        size = int(1.0 / rng.uniform(1.0 / most, 1.0 / fewest))
        recipe = random_recipe(rng, (max(1, size // 2), size), WIDTHS)
        if fewest <= recipe.trace().stats.ops <= most:
            return recipe


def _exactness(graph: Graph, values: list[Any]) -> list[Any]:
    """Per node and point, whether the value is the same in every arithmetic."""
    exact: list[Any] = []
    for node in graph.nodes:
        if node.op in ("const", "input") or node.op in DISCRETE or node.dtype == BOOL:
            exact.append(np.True_)
        elif node.op == "where":
            condition, (_, a, b) = values[node.args[0]], node.args
            exact.append(np.where(condition, exact[a], exact[b]))
        elif node.op in ("minimum", "maximum"):
            a, b = node.args
            chosen = values[a] <= values[b] if node.op == "minimum" else values[a] >= values[b]
            exact.append(np.where(chosen, exact[a], exact[b]))
        elif node.op in EXACT:
            exact.append(exact[node.args[0]])
        else:
            exact.append(np.False_)
    return exact


def clear_of_kinks(graph: Graph, arrays: list[Array]) -> Array:
    """Parts 1 and 3 of the rule, by point.

    The untaken arm of a ``where`` may be NaN.
    """
    columns = [a.reshape(len(a), -1) for a in arrays]
    values = evaluate_nodes(graph.nodes, lambda a, k: columns[a][:, k])
    exact = _exactness(graph, values)
    clear = np.ones(len(arrays[0]), bool)
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            if node.op in DISTANCES:
                operands = [values[a] for a in node.args]
                same = functools.reduce(np.logical_and, (exact[a] for a in node.args))
                clear &= same | ~(DISTANCES[node.op](*operands) < MARGIN)
        for k in reachable(graph.nodes, graph.outputs):
            if graph.nodes[k].dtype != BOOL:
                clear &= ~(np.abs(values[k]) > LARGEST)
        for k in graph.outputs:
            clear &= np.isfinite(values[k])
    return clear


def rounding_error(graph: Graph, arrays: list[Array]) -> Array:
    """Largest |change| / (1 + |output|) by point, where every rounded op is off by ±2^-44."""
    columns = [a.reshape(len(a), -1) for a in arrays]
    batch = len(arrays[0])

    def leaf(argument: int, k: int) -> Any:
        return columns[argument][:, k]

    values = evaluate_nodes(graph.nodes, leaf)
    exact = _exactness(graph, values)
    want = np.stack([np.broadcast_to(values[o], batch) for o in graph.outputs], axis=1)
    worst = np.zeros(batch)
    rng = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for _ in range(DRAWS):
            moved: list[Any] = []
            for k, node in enumerate(graph.nodes):
                if node.op in ("const", "input"):
                    moved.append(values[k])
                    continue
                value = NODE_OPS[node.op].numpy(*(moved[a] for a in node.args))
                if node.dtype != BOOL and node.op not in EXACT:
                    sign = rng.choice([-ROUNDING, ROUNDING], batch)
                    value = value * (1.0 + np.where(exact[k], 0.0, sign))
                moved.append(value)
            got = np.stack([np.broadcast_to(moved[o], batch) for o in graph.outputs], axis=1)
            change = np.abs(got - want) / (1.0 + np.abs(want))
            worst = np.maximum(worst, np.where(np.isfinite(change), change, np.inf).max(axis=1))
    return worst


@dataclass(frozen=True, slots=True)
class Pack:
    """Graphs and the points that they share.

    Attributes:
        energies: of one output each, whose Jacobian is the gradient.
        arrays: arguments, exact in every number type.
        exact: ``(points, graphs, components)``, in float64.
        fair: by graph, whether the rule keeps it.
        recipes: for messages.
    """

    energies: tuple[Graph, ...]
    arrays: list[Array]
    exact: Array
    fair: Array
    recipes: tuple[Recipe, ...]


def gradients_on(device: Device, precision: str, bounds: list[Bound]) -> list[Array]:
    """Jacobians of groups over the same parameters, in one submission; nothing else is compiled."""
    x, groups = bounds[0].parameters, [b.group for b in bounds]
    with WgslSession(groups, x.size, precision, device, (Product.RESIDUAL_JACOBIAN,)) as session:
        _, values = session.residual_jacobian(x)
    sizes = [g.count * len(g.kernel(Product.RESIDUAL_JACOBIAN).entries) for g in groups]
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [b.dense_jacobian(part) for b, part in zip(bounds, parts, strict=True)]


def gradient_errors(device: Device, precision: str, pack: Pack, every: int = 1) -> Array:
    """Largest |error| / (1 + |g|) of each graph, or of every so manieth; 0 if the rule drops it.

    Each graph is a group with a kernel of its own: llvmpipe takes 47 s for one kernel of 200
    ops that call elementary functions, and a tenth of that for ten kernels.
    """
    bounds = [bind(graph, pack.arrays) for graph in pack.energies[::every]]
    exact, fair = pack.exact[:, ::every], pack.fair[::every]
    rows = [j[:, 0] for j in gradients_on(device, precision, bounds)]
    error = np.abs(np.stack(rows, axis=1) - exact) / (1.0 + np.abs(exact))
    error[:, ~fair] = 0.0
    return np.where(np.isnan(error), np.inf, error).max(axis=(0, 2))


@functools.lru_cache(maxsize=16)
def pack_of(seed: int, graphs: int, fewest: int, most: int) -> Pack:
    """``graphs`` random graphs of ``fewest`` to ``most`` ops."""
    rng = np.random.default_rng([seed, fewest, most])
    recipes = tuple(draw(rng, fewest, most) for _ in range(graphs))
    arrays = random_arrays(WIDTHS, POINTS, seed)
    exact: list[Array] = []
    fair: list[bool] = []
    for recipe in recipes:
        graph = gradient(recipe)
        kept = clear_of_kinks(graph, arrays) & (rounding_error(graph, arrays) < GROWTH)
        fair.append(bool(kept.all()))
        with np.errstate(all="ignore"):
            exact.append(graph(*arrays).reshape(POINTS, -1))
    energies = tuple(ag.trace(energy(recipe), *WIDTHS) for recipe in recipes)
    return Pack(energies, arrays, np.stack(exact, axis=1), np.array(fair), recipes)
