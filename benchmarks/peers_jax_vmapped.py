"""What a person writes in JAX for the workloads: `vmap` of residuals, and jaxls.

Nothing here uses this project but the arrays of the workloads.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import workloads

jax: Any = importlib.import_module("jax")
jnp: Any = importlib.import_module("jax.numpy")


def rotated(r: Any, v: Any) -> Any:
    """Rodrigues' formula."""
    t2 = r @ r
    small = t2 < 1e-12
    safe = jnp.where(small, 1.0, t2)
    t = jnp.sqrt(safe)
    a = jnp.where(small, 1.0, jnp.sin(t) / t)
    b = jnp.where(small, 0.5, (1 - jnp.cos(t)) / safe)
    across = jnp.cross(r, v)
    return v + a * across + b * jnp.cross(r, across)


def spring(p: Any, q: Any, rest: Any) -> Any:
    """Elongation."""
    return jnp.sqrt((p - q) @ (p - q)) - rest


def anchor(p: Any, target: Any, weight: Any) -> Any:
    """Weighted offset."""
    return weight * (p - target)


def arap(x_i: Any, x_j: Any, r_i: Any, edge: Any) -> Any:
    """As-rigid-as-possible edge."""
    return (x_j - x_i) - rotated(r_i, edge)


def reprojection(c: Any, point: Any, seen: Any) -> Any:
    """Snavely's camera."""
    at = rotated(c[:3], point) + c[3:6]
    u = -at[:2] / at[2]
    r2 = u @ u
    return c[6] * (1 + c[7] * r2 + c[8] * r2 * r2) * u - seen


def bending(a: Any, b: Any, c: Any, d: Any, weight: Any) -> Any:
    """Weighted dihedral angle."""
    e = b - a
    n1, n2 = jnp.cross(e, c - a), jnp.cross(d - a, e)
    return weight * jnp.arctan2(jnp.cross(n1, n2) @ e / jnp.sqrt(e @ e), n1 @ n2)


def strain(p: Any, q: Any, rest: Any) -> Any:
    """Relative elongation."""
    return jnp.sqrt((p - q) @ (p - q)) / rest - 1.0


def curve(theta: Any, t: Any, y: Any) -> Any:
    """A decay and an oscillation."""
    a, b, c, d, e = theta
    return a * jnp.exp(-b * t) + c * jnp.sin(d * t) + e - y


@dataclass(frozen=True)
class Term:
    """One residual function over a batch: positions of its blocks in x, and data."""

    fn: Callable[..., Any]
    blocks: list[NDArray[Any]]
    data: list[NDArray[Any]]


def _at(rows: Any, width: int, offset: int = 0) -> NDArray[Any]:
    return (offset + width * np.asarray(rows)[:, None] + np.arange(width)).astype(np.int32)


def terms_of(kind: str, level: int) -> list[Term]:
    """The terms of a workload, over its parameters laid end to end."""
    if kind == "W1r":
        w = workloads.w1r(level)
        n, (i, j) = len(w["p"]), w["e"].T
        return [
            Term(spring, [_at(i, 3), _at(j, 3)], [w["L0"]]),
            Term(anchor, [_at(np.arange(n), 3)], [w["p"], np.full(n, 0.05)]),
        ]
    if kind == "W2":
        w = workloads.w2(level)
        n, (i, j), h = len(w["p"]), w["de"].T, w["h"]
        return [
            Term(arap, [_at(i, 3), _at(j, 3), _at(i, 3, 3 * n)], [w["q"]]),
            Term(anchor, [_at(h, 3)], [w["t"], np.full(len(h), 10.0)]),
        ]
    if kind == "W3":
        w = workloads.w3()
        cameras = 9 * len(w["cam0"])
        return [Term(reprojection, [_at(w["ci"], 9), _at(w["pi"], 3, cameras)], [w["obs"]])]
    if kind == "W4":
        w = workloads.w4(level)
        n, h = len(w["p"]), w["h"].T
        return [
            Term(bending, [_at(k, 3) for k in h], [w["sw"]]),
            Term(strain, [_at(h[0], 3), _at(h[1], 3)], [w["L"]]),
            Term(anchor, [_at(np.arange(n), 3)], [w["p"], np.full(n, 0.01)]),
        ]
    w = workloads.w5()
    return [Term(curve, [], [w["t"], w["y"]])]


def vmapped(terms: list[Term], mode: str) -> Callable[[Any], Any]:
    """Jitted ``x -> (residuals, dense Jacobian blocks)``, by ``jacfwd`` or ``jacrev``.

    Residual and Jacobian share their evaluation; a term without blocks sees all of x.
    """
    derivative = {"forward": jax.jacfwd, "reverse": jax.jacrev}[mode]
    blocks = [[jnp.asarray(b) for b in t.blocks] for t in terms]
    data = [[jnp.asarray(d) for d in t.data] for t in terms]

    def both(x: Any, blocks: Any, data: Any) -> Any:
        residuals: list[Any] = []
        jacobians: list[Any] = []
        for term, own, given in zip(terms, blocks, data, strict=True):
            cuts = np.cumsum([b.shape[1] for b in own])[:-1]

            def local(v: Any, *numbers: Any, term: Term = term, cuts: Any = cuts) -> Any:
                parts = jnp.split(v, cuts) if term.blocks else [v]
                r = jnp.atleast_1d(term.fn(*parts, *numbers))
                return r, r

            rows = jnp.concatenate([x[b] for b in own], 1) if own else x
            axes = (0 if own else None, *[0] * len(given))
            j, r = jax.vmap(derivative(local, has_aux=True), axes)(rows, *given)
            residuals.append(r.reshape(-1))
            jacobians.append(j.reshape(-1))
        return jnp.concatenate(residuals), jnp.concatenate(jacobians)

    compiled = jax.jit(both)
    return lambda x: compiled(x, blocks, data)


def jaxls_solver(level: int, steps: int) -> tuple[Callable[[], float], float] | None:
    """W2 in jaxls with conjugate gradients: a solve that gives its cost, and seconds of analysis.

    None where jaxls is not installed. Source: github.com/brentyi/jaxls, API of October 2025.
    """
    try:
        jaxls: Any = importlib.import_module("jaxls")
        importlib.import_module("loguru").logger.remove()
    except ImportError:
        return None

    class Position(jaxls.Var[jax.Array], default_factory=lambda: jnp.zeros(3)):
        pass

    class Rotation(jaxls.Var[jax.Array], default_factory=lambda: jnp.zeros(3)):
        pass

    w = workloads.w2(level)
    n, (i, j) = len(w["p"]), w["de"].T
    began = time.perf_counter()
    costs = [
        jaxls.Cost(
            lambda v, a, b, r, q: arap(v[a], v[b], v[r], q),
            (
                Position(jnp.asarray(i)), Position(jnp.asarray(j)), Rotation(jnp.asarray(i)),
                jnp.asarray(w["q"]),
            ),
        ),
        jaxls.Cost(
            lambda v, a, t: 10.0 * (v[a] - t),
            (Position(jnp.asarray(w["h"])), jnp.asarray(w["t"])),
        ),
    ]  # fmt: skip
    both = [Position(jnp.arange(n)), Rotation(jnp.arange(n))]
    problem = jaxls.LeastSquaresProblem(costs, both).analyze()
    starts = [jnp.asarray(w["x0"]), jnp.asarray(w["r0"])]
    start = jaxls.VarValues.make(
        [v.with_value(value) for v, value in zip(both, starts, strict=True)]
    )
    analysis = time.perf_counter() - began
    termination = jaxls.TerminationConfig(
        max_iterations=steps, cost_tolerance=1e-8, gradient_tolerance=0.0, parameter_tolerance=0.0
    )

    def solve() -> float:
        values, _ = jax.block_until_ready(
            problem.solve(
                start, linear_solver="conjugate_gradient", verbose=False, return_summary=True,
                termination=termination,
            )
        )  # fmt: skip
        x = np.asarray(values[both[0]])
        r = np.asarray(values[both[1]])
        edges = jax.vmap(arap)(x[i], x[j], r[i], w["q"])
        held = 10.0 * (x[w["h"]] - w["t"])
        return 0.5 * float(jnp.sum(edges**2)) + 0.5 * float(np.sum(held**2))

    return solve, analysis
