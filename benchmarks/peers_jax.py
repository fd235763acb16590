"""JAX on the same card: the gradient of the spring energy by reverse mode."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


def gradient_seconds(
    x: NDArray[Any], i: NDArray[Any], j: NDArray[Any], rest: NDArray[Any]
) -> tuple[float, NDArray[Any]] | None:
    """Seconds of one jitted ``grad`` (median, back to back, float32) and it; None without JAX."""
    try:
        jax: Any = importlib.import_module("jax")
    except ImportError:
        return None
    jnp = jax.numpy

    def cost(x: Any, i: Any, j: Any, rest: Any) -> Any:
        d = x[j] - x[i]
        r = jnp.sqrt((d * d).sum(1)) - rest
        return 0.5 * (r * r).sum()

    gradient = jax.jit(jax.grad(cost))
    arguments = (
        jnp.asarray(x, jnp.float32), jnp.asarray(i), jnp.asarray(j), jnp.asarray(rest, jnp.float32)
    )  # fmt: skip
    result = gradient(*arguments).block_until_ready()
    began = time.perf_counter()
    while time.perf_counter() - began < 0.5:
        gradient(*arguments).block_until_ready()
    seconds: list[float] = []
    for _ in range(7):
        t0 = time.perf_counter()
        for _ in range(50):
            out = gradient(*arguments)
        out.block_until_ready()
        seconds.append((time.perf_counter() - t0) / 50)
    return float(np.median(seconds)), np.asarray(result)
