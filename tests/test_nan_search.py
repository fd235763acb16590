"""``ag.debug_nans`` names the group, the element, the first op and the line, on every backend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, device_on, parameters_of

BACKENDS = parameters_of([NUMPY, NUMBA, *JAX, *WGSL])


def search(problem: ag.Problem, backend: Backend = NUMPY) -> Any:
    return ag.debug_nans(
        problem,
        backend=backend.name,
        precision=backend.precision,
        device=device_on(backend.adapter) if backend.adapter else None,
    )


def quotient(p: Any, q: Any) -> Any:
    offset = q - p
    share = offset[0] / offset[1]  # the bad line
    return [ag.norm(offset), share * share - 2.0]


def start() -> np.ndarray[Any, Any]:
    values = np.arange(12.0).reshape(6, 2) ** 2
    values[4, 1] = values[3, 1]
    return values


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_pole_is_named_with_its_line(backend: Backend) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", start())
    problem.add_residuals(lambda p: 0.1 * p, x, name="fine")
    problem.add_residuals(quotient, x[:-1], x[1:], weight=np.arange(5) + 2.0, name="shares")
    found = search(problem, backend)
    assert not found.ok
    (finding,) = found.findings
    assert (finding.group, finding.element, finding.component) == ("shares", 3, 1)
    assert not finding.in_jacobian
    assert (finding.op, finding.operands, finding.result) == ("div", (28.0, 0.0), np.inf)
    assert "test_nan_search.py" in finding.line
    assert finding.line.endswith("share = offset[0] / offset[1]  # the bad line")
    assert backend.name in str(found)
    assert "it begins in div(28, 0), which is inf\n    at " in str(found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_elements_of_ragged_groups_have_the_users_numbers(backend: Backend) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 2.0, 0.0, 3.0])
    rows = ag.Ragged([0, 2, 3, 5, 6], [0, 1, 3, 1, 2, 1])
    problem.add_residuals(lambda row: ag.sum([1.0 / v for v in row]), x[rows], name="sums")
    (finding,) = search(problem, backend).findings
    assert (finding.group, finding.element, finding.op) == ("sums (length 2)", 2, "div")


def test_an_untaken_arm_is_not_blamed() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [2.0, 0.0])
    problem.add_residuals(lambda v: ag.where(v > 1.0, 1.0 / v, v) + ag.log(v), x, name="r")
    (finding,) = search(problem).findings
    assert (finding.element, finding.op, finding.operands) == (1, "log", (0.0,))
    safe = ag.Problem()
    y = safe.parameters("y", [2.0, 0.0])
    safe.add_residuals(lambda v: ag.where(v > 1.0, 1.0 / v, v), y)
    assert search(safe).ok
    assert str(search(safe)).startswith("all residuals and derivatives are finite on numpy")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_derivative_that_is_not_finite_where_the_value_is(backend: Backend) -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 1e-25])
    # In float32, the slope 1 / v² = 1e50 overflows, and the value 1e25 does not.
    problem.add_residuals(lambda v: 1.0 / v, x, name="steep")
    found = search(problem, backend)
    if backend.precision == "float64":
        assert found.ok
        return
    (finding,) = found.findings
    assert finding.in_jacobian
    assert (finding.element, finding.op) == (1, "div")


def test_overflow_of_a_jacobian_names_the_op() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 1e-300])
    problem.add_residuals(lambda v: 1e-200 / v * 1e-100, x, name="steep")
    (finding,) = search(problem).findings
    assert finding.in_jacobian
    assert (finding.group, finding.element, finding.op) == ("steep", 1, "div")
    assert finding.line.endswith(
        'problem.add_residuals(lambda v: 1e-200 / v * 1e-100, x, name="steep")'
    )
    assert str(finding).startswith("the Jacobian of residuals 'steep', element 1, component 0 is")


def test_parameters_are_those_of_the_problem() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", [1.0, 2.0])
    problem.add_residuals(lambda v: ag.sqrt(v), x)
    assert search(problem).ok
    problem.update(x=[1.0, -2.0])
    (finding,) = search(problem).findings
    assert (finding.element, finding.op, finding.operands) == (1, "sqrt", (-2.0,))
    with pytest.raises(ag.InputError, match="unknown"):
        ag.debug_nans(problem, backend="abacus")
