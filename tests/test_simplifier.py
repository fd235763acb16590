"""Simplified derivatives against SymPy's ``cse``: the same values in no more operations."""

from __future__ import annotations

import numpy as np
import pytest
from sympy_graphs import YARDSTICKS, as_graph, sympy_jacobian

import autograd_gpu as ag
from tolerances import Tolerance

SAME = Tolerance(1e-12, 1e-12, "two spellings of one derivative, tens of float64 operations")
MOST = 1.15
"""Our ops, at most, for one of SymPy's."""


@pytest.mark.parametrize("name", YARDSTICKS)
def test_derivatives_take_no_more_operations_than_sympy(name: str) -> None:
    yardstick = YARDSTICKS[name]
    ours = ag.jacobian(yardstick.trace(), yardstick.wrt)
    theirs = as_graph(yardstick, sympy_jacobian(yardstick)())
    # Camera coordinates stay away from the plane of the image centre, where both are ill-posed.
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(0.2, 1.0, (20, width)) for width in yardstick.widths]
    want = theirs(*arrays)
    scale = 1.0 + np.abs(want).max(axis=1, keepdims=True)
    got = ours(*arrays).reshape(want.shape)
    SAME.check(got / scale, want / scale, name)
    assert ours.stats.ops <= MOST * theirs.stats.ops, f"{ours.stats}\n{theirs.stats}"


def test_stats_show_what_simplification_would_save() -> None:
    graph = ag.trace(lambda x, y: 1.0 * x * y + x * ag.sin(y) + 0.0, 1, 1)
    assert (graph.stats.ops, graph.stats.simplified_ops) == (6, 3)
    assert graph.stats.simplified_cost < graph.stats.cost
    assert "6 ops -> 3 simplified" in str(graph.stats)
    simple = ag.simplify(graph)
    assert simple.stats.simplified_ops == simple.stats.ops == 3
    assert "simplified" not in str(simple.stats)
