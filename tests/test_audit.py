"""Audits: right backends pass on every workload, and a wrong one is caught and located."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu.errors import InputError
from autograd_gpu.runtime.numba_backend import NumbaSession
from workloads import bending_problem, bundle_problem, deformation_problem, springs_problem

PROBLEMS = {
    "springs": lambda: springs_problem(1),
    "deformation": lambda: deformation_problem(1),
    "bundle": lambda: bundle_problem(cameras=4, points=40),
    "bending": lambda: bending_problem(1),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_numba_agrees_with_numpy(name, precision):
    problem = PROBLEMS[name]()
    audit = problem.audit("numba", precision)
    assert audit.ok, str(audit)
    assert [g.name for g in audit.groups] == [g.name for g in problem.groups]
    assert precision in audit.backend
    assert "numpy, float64" in audit.reference


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", wgsl_adapters())
@pytest.mark.parametrize("name", PROBLEMS)
def test_wgsl_agrees_with_numba(name, adapter):
    audit = PROBLEMS[name]().audit("wgsl", "float32", against="numba", device=adapter)
    assert audit.ok, str(audit)


def two_groups() -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", np.linspace(0.5, 1.5, 12).reshape(4, 3))
    problem.add_residuals(lambda p: ag.norm(p) - 1.0, x, name="unit length")
    problem.add_residuals(lambda p: [p[0] * p[1], ag.sin(p[2])], x, name="products")
    return problem


@pytest.mark.parametrize("damage", [1e-6, np.nan, np.inf])
@pytest.mark.parametrize("which", ["residuals", "jacobian"])
def test_a_wrong_number_is_located(monkeypatch, damage, which):
    problem = two_groups()
    right = NumbaSession.residual_jacobian

    def wrong(self: Any, parameters: Any) -> Any:
        residuals, jacobian = right(self, parameters)
        if which == "residuals":
            residuals[4 + 2 * 2 + 1] += damage  # the second group begins at row 4
        else:
            jacobian[4 * 3 + 2 * 3 + 2] += damage  # ∂sin(p₂)/∂p₂ of element 2
        return residuals, jacobian

    monkeypatch.setattr(NumbaSession, "residual_jacobian", wrong)
    audit = problem.audit("numba", "float64")
    assert not audit.ok
    assert audit.groups[0].ok
    caught = getattr(audit.groups[1], which)
    assert (caught.element, caught.row) == (2, 1)
    assert caught.column == (2 if which == "jacobian" else -1)
    assert "products: WRONG" in str(audit)
    other = audit.groups[1].jacobian if which == "residuals" else audit.groups[1].residuals
    assert other.ok


def test_cancellation_is_explained_by_rounding():
    # 1e4 + small - 1e4: float32 has 4 digits left, and that is nobody's error.
    problem = ag.Problem()
    a = problem.parameters("a", np.full(50, 1e4) + np.random.default_rng(0).random(50))
    b = problem.parameters("b", np.full(50, 1e4))
    problem.add_residuals(lambda a, b: ag.log(ag.abs(a - b) + 1e-3), a, b)
    assert problem.audit("numba", "float32").ok


def test_comparing_a_backend_with_itself_is_refused():
    with pytest.raises(InputError, match="both sides are numpy in float64"):
        two_groups().audit("numpy")
    with pytest.raises(InputError, match="unknown"):
        two_groups().audit("numba", against="octave")
