"""From the standard starts every problem of the paper ends at a minimum that the paper lists."""

from __future__ import annotations

import pytest

import autograd_gpu as ag
from more_garbow_hillstrom import LISTED, Listed

# The paper prints six or seven digits; of a minimum that is zero, what rounding leaves.
DIGITS, ZERO = 1e-6, 1e-12

# A residual so large that JᵀJ is a poor model everywhere: with damping scaled by the columns of J,
# which grow along the way, steps get a thousand times shorter than they need be.
UNSCALED = {"brown and dennis"}


def check(listed: Listed, total: float) -> None:
    """The sum of squares is one of the minima."""
    near = [pytest.approx(m, rel=DIGITS, abs=0.0 if m else ZERO) for m in listed.minima]
    assert total in near, listed.minima


@pytest.mark.parametrize("name", LISTED)
def test_levenberg_marquardt(name: str) -> None:
    listed = LISTED[name]
    options = ag.LevenbergMarquardtOptions(
        damping="identity" if name in UNSCALED else "one-plus-norm",
        max_iterations=500,
        function_tolerance=1e-15,
        gradient_tolerance=1e-14,
        parameter_tolerance=1e-15,
    )
    solution = ag.solve(listed.problem(), backend="numpy", options=options)
    assert solution.success, solution.report()
    check(listed, 2.0 * solution.cost)


@pytest.mark.parametrize("name", LISTED)
def test_least_squares_as_it_comes(name: str) -> None:
    listed = LISTED[name]
    found = ag.least_squares(listed.fn, list(listed.start), args=listed.data, backend="numpy")
    assert found.success, found.message
    check(listed, 2.0 * found.cost)
