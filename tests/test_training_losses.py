"""Losses of predictions and targets against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from tolerances import CENTRAL_DIFFERENCE, GRAPH, tolerance

PREDICTED = np.array([0.2, 0.9, 0.55, 0.4])
TARGET = np.array([0.0, 1.0, 0.25, 0.4])


def huber(r: Any, delta: float) -> Any:
    return np.where(np.abs(r) <= delta, 0.5 * r * r, delta * (np.abs(r) - 0.5 * delta))


def tukey(r: Any, delta: float) -> Any:
    return delta**2 / 6.0 * (1.0 - np.clip(1.0 - (r / delta) ** 2, 0.0, 1.0) ** 3)


LOSSES: list[Any] = [
    ("mse", ag.mse_loss, lambda p, t: np.mean((p - t) ** 2)),
    ("mae", ag.mae_loss, lambda p, t: np.mean(np.abs(p - t))),
    ("binary", ag.binary_cross_entropy_loss,
     lambda p, t: -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))),
    ("categorical", ag.categorical_cross_entropy_loss, lambda p, t: -np.sum(t * np.log(p))),
    ("huber", lambda p, t: ag.huber_loss(p, t, 0.15),
     lambda p, t: np.mean(huber(p - t, 0.15))),
    ("tukey", lambda p, t: ag.tukey_loss(p, t, 0.25),
     lambda p, t: np.mean(tukey(p - t, 0.25))),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "numpy"), [c[1:] for c in LOSSES], ids=[c[0] for c in LOSSES])
def test_value_and_gradient(loss: Any, numpy: Any) -> None:
    limit = tolerance("float64", GRAPH)
    want = numpy(PREDICTED, TARGET)
    limit.check(loss(PREDICTED, TARGET), want, "arrays")
    limit.check(ag.trace(loss, 4, 4)(PREDICTED, TARGET), want, "traced")
    values = [ag.Value(x) for x in PREDICTED]
    result = loss(values, TARGET)
    limit.check(result.data, want, "eager")
    result.backward()
    h = 1e-6
    for k, value in enumerate(values[:3]):  # the last one sits on a kink of mae
        step = h * (np.arange(4) == k)
        slope = (numpy(PREDICTED + step, TARGET) - numpy(PREDICTED - step, TARGET)) / (2.0 * h)
        CENTRAL_DIFFERENCE.check(value.grad, slope, f"gradient {k}")


def test_the_ends_of_probabilities_are_finite() -> None:
    p = ag.Value(0.0)
    loss = ag.binary_cross_entropy_loss(p, 1.0)
    loss.backward()
    assert loss.data == pytest.approx(-np.log(1e-12))
    assert p.grad == 0.0
    assert ag.binary_cross_entropy_loss(1.0, 1.0) == pytest.approx(0.0, abs=1e-11)


def test_a_class_may_be_given_by_number() -> None:
    p = [ag.Value(x) for x in (0.2, 0.5, 0.3)]
    loss = ag.categorical_cross_entropy_loss(p, 1)
    loss.backward()
    assert loss.data == pytest.approx(-np.log(0.5))
    assert [v.grad for v in p] == pytest.approx([0.0, -2.0, 0.0])


def test_misuse_is_named() -> None:
    with pytest.raises(ag.ShapeError, match="one target for each"):
        ag.mse_loss([1.0, 2.0], [1.0])
    with pytest.raises(ag.InputError, match="class 3"):
        ag.categorical_cross_entropy_loss([0.5, 0.5], 3)
    with pytest.raises(ag.InputError, match="delta"):
        ag.huber_loss([1.0], [2.0], -1.0)
