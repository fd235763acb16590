"""The topology key: equal graphs share it however built, different ones never do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.codegen.kernel import Product, data_slot, make_kernel, parameter_slot, topology_of
from autograd_gpu.errors import ShapeError
from autograd_gpu.topology import canonicalize
from random_graphs import Recipe, random_arrays, recipes


def key(fn: Callable[..., Any], *widths: Any) -> str:
    return ag.trace(fn, *widths).key


# -- equal ---------------------------------------------------------------------------------------

EQUAL: list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[int, ...]]] = [
    ("renamed", lambda x, y: ag.sin(x) / y, lambda u, v: ag.sin(u) / v, (1, 1)),
    ("arguments exchanged", lambda x, y: ag.sin(x) / y, lambda x, y: ag.sin(y) / x, (1, 1)),
    ("commuted sum", lambda x, y: ag.sin(x) + ag.exp(y), lambda x, y: ag.exp(y) + ag.sin(x),
     (1, 1)),
    ("commuted product", lambda x, y: x * ag.cos(y), lambda x, y: ag.cos(y) * x, (1, 1)),
    ("commuted below", lambda x, y: ag.sqrt(x * y + 2), lambda x, y: ag.sqrt(2 + y * x), (1, 1)),
    ("dead code", lambda x, y: x * y, lambda x, y: (ag.sin(x), x * y)[1], (1, 1)),
    ("vectors", lambda p, q: q - p, lambda p, q: p - q, (3, 3)),
    ("spring", lambda p, q, r: ag.norm(q - p) - r, lambda a, b, c: ag.norm(b - a) - c, (3, 3, 1)),
    ("by components", lambda p, q: ag.dot(p, q),
     lambda p, q: q[0] * p[0] + q[1] * p[1] + q[2] * p[2], (3, 3)),
    ("symmetric roles", lambda x, y, z: x * y + y * z, lambda x, y, z: x * z + y * x, (1, 1, 1)),
    ("hypot", lambda x, y: ag.hypot(ag.sin(x), y), lambda x, y: ag.hypot(y, ag.sin(x)), (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "widths"), [e[1:] for e in EQUAL],
                         ids=[e[0] for e in EQUAL])  # fmt: skip
def test_equal_graphs_share_a_key(first: Any, second: Any, widths: tuple[int, ...]) -> None:
    assert key(first, *widths) == key(second, *widths)
    a, b = ag.trace(first, *widths), ag.trace(second, *widths)
    assert a.canonical.serial == b.canonical.serial


def test_simplified_equals_are_one_kernel() -> None:
    slots = [parameter_slot(()), parameter_slot(())]
    first = topology_of(ag.trace(lambda x, y: x * x - (-y), 1, 1), slots)
    second = topology_of(ag.trace(lambda x, y: y**2 + x, 1, 1), slots)
    assert first.key == second.key
    assert first.arguments == second.arguments[::-1]
    for product in Product:
        assert make_kernel(first, product) is make_kernel(second, product)


def test_slots_say_which_argument_they_are() -> None:
    graph = ag.trace(lambda x, unused, y: ag.sin(y) / x, 1, 1, 1)
    canonical = graph.canonical
    assert sorted(canonical.arguments) == [0, 2]
    arrays = random_arrays((1, 1, 1), 5, 0)
    again = canonical.graph()(*(arrays[a] for a in canonical.arguments))
    np.testing.assert_array_equal(again, graph(*arrays))


# -- different -----------------------------------------------------------------------------------

DIFFERENT: list[tuple[str, Callable[..., Any], Callable[..., Any], tuple[int, ...]]] = [
    ("functions", lambda x: ag.sin(ag.abs(x)), lambda x: ag.exp(ag.sin(x)), (1,)),
    ("one op", lambda x: ag.sin(x), lambda x: ag.cos(x), (1,)),
    ("nesting", lambda x: ag.sin(ag.exp(x)), lambda x: ag.exp(ag.sin(x)), (1,)),
    ("aliasing", lambda x, y: x * x, lambda x, y: x * y, (1, 1)),
    ("aliasing deeper", lambda x, y: ag.sin(x) * ag.cos(x), lambda x, y: ag.sin(x) * ag.cos(y),
     (1, 1)),
    ("constants", lambda x: x + 1.0, lambda x: x + 1.5, (1,)),
    ("last bit", lambda x: x + 0.1, lambda x: x + np.nextafter(0.1, 1), (1,)),
    ("zeros", lambda x: ag.atan2(0.0, x), lambda x: ag.atan2(-0.0, x), (1,)),
    ("component", lambda p: p.x, lambda p: p.y, (3,)),
    ("components", lambda p, q: p.x * q.y, lambda p, q: p.x * q.x, (2, 2)),
    ("leaf of which argument", lambda p, q: [p.x, q.x, p.y], lambda p, q: [p.x, q.x, q.y], (2, 2)),
    ("operand order", lambda x, y: [x / y, x], lambda x, y: [y / x, x], (1, 1)),
    ("order of outputs", lambda x: [x, ag.sin(x)], lambda x: [ag.sin(x), x], (1,)),
    ("repeated output", lambda x: [x, x], lambda x: [x], (1,)),
    ("output shape", lambda x: [x], lambda x: x, (1,)),
    ("which argument twice", lambda x, y: x * x * y + x, lambda x, y: x * x * y + y, (1, 1)),
    ("pairing", lambda a, b, c, d: a * b + ag.sin(a * c), lambda a, b, c, d: a * b + ag.sin(c * d),
     (1, 1, 1, 1)),
    ("comparison", lambda x, y: ag.where(x < y, x, 1.0), lambda x, y: ag.where(x <= y, x, 1.0),
     (1, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "widths"), [e[1:] for e in DIFFERENT],
                         ids=[e[0] for e in DIFFERENT])  # fmt: skip
def test_different_graphs_differ(first: Any, second: Any, widths: tuple[int, ...]) -> None:
    assert key(first, *widths) != key(second, *widths)


def test_width_of_an_argument_is_part_of_the_key() -> None:
    assert key(lambda p: p[0], 2) != key(lambda p: p[0], 3) != key(lambda p: p[0], (1, 3))


def test_kinds_of_slots_are_part_of_a_topology() -> None:
    graph = ag.trace(lambda x, y: x * ag.sin(y), 1, 1)
    parameter, data = parameter_slot(()), data_slot(())
    keys = {topology_of(graph, s).key for s in
            ([parameter, parameter], [parameter, data], [data, parameter])}  # fmt: skip
    assert len(keys) == 3
    with pytest.raises(ShapeError, match="slots of shapes"):
        topology_of(graph, [parameter_slot((3,)), parameter])


# -- random graphs -------------------------------------------------------------------------------


def _evaluate_canonical(graph: Graph, arrays: Sequence[Any]) -> Any:
    canonical = graph.canonical
    with np.errstate(all="ignore"):
        return canonical.graph()(*(arrays[a] for a in canonical.arguments))


@given(recipes(), st.integers(0, 2**32))
def test_the_canonical_form_computes_the_same(recipe: Recipe, seed: int) -> None:
    graph = recipe.trace()
    arrays = random_arrays(recipe.widths, 20, seed)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(_evaluate_canonical(graph, arrays), graph(*arrays))


@given(recipes())
def test_canonical_forms_are_fixed_points(recipe: Recipe) -> None:
    canonical = recipe.trace().canonical
    assert canonicalize(canonical.graph()).serial == canonical.serial


@given(recipes())
def test_swapped_operands_share_a_key(recipe: Recipe) -> None:
    assert recipe.trace().key == recipe.with_swapped_operands().trace().key


SMALL = recipes(widths=(1, 1), max_steps=2)


@settings(max_examples=400)
@given(SMALL, SMALL, st.integers(0, 2**32))
def test_a_shared_key_means_the_same_function(first: Recipe, second: Recipe, seed: int) -> None:
    """Soundness: small graphs collide often, and where they do they must be equal."""
    a, b = first.trace(), second.trace()
    assert (a.key == b.key) == (a.canonical.serial == b.canonical.serial)
    if a.key != b.key:
        return
    rows = random_arrays((1,) * len(a.canonical.slots), 10, seed)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(a.canonical.graph()(*rows), b.canonical.graph()(*rows))


class _PermutationTally:
    """How many random graphs kept their key when their arguments were permuted."""

    def __init__(self) -> None:
        self.same = self.total = 0


def test_permuted_arguments_share_a_key_in_99_of_100_graphs() -> None:
    tally = _PermutationTally()

    @settings(max_examples=300)
    @given(recipes(max_steps=30), st.randoms(use_true_random=False))
    def collect(recipe: Recipe, random: Any) -> None:
        order = list(range(len(recipe.widths)))
        random.shuffle(order)
        reordered, widths = recipe.permuted(order)
        graph, other = recipe.trace(), ag.trace(reordered, *widths)
        tally.total += 1
        if graph.key != other.key:
            return
        tally.same += 1
        # The same key, and slots that stand for the same arguments: kernels may be exchanged.
        rows = random_arrays(recipe.widths, 4, 7)
        moved = [rows[k] for k in order]
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(
                _evaluate_canonical(other, moved), _evaluate_canonical(graph, rows),
                rtol=1e-12, atol=1e-12,
            )  # fmt: skip

    collect()
    assert tally.total >= 200
    assert tally.same >= 0.99 * tally.total, f"{tally.same} of {tally.total}"


# -- processes -----------------------------------------------------------------------------------

_PROGRAM = """
import autograd_gpu as ag
def residual(p, q, r):
    d = q - p
    return [ag.norm(d) * ag.sin(r) + 0.1, ag.where(d.x > r, ag.dot(p, q), -0.0)]
graph = ag.trace(residual, 3, 3, 1)
print(graph.key, ag.jacobian(graph).key)
"""


def test_keys_are_the_same_in_every_process() -> None:
    seen: set[str] = set()
    for seed in ("0", "1", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        seen.add(done.stdout)
    assert len(seen) == 1
    assert len(seen.pop().split()[0]) == 32
