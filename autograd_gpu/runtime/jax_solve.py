"""Levenberg-Marquardt steps wholly on JAX's device; the host reads one small record a step.

The algorithm is that of the WGSL solve: conjugate gradients with a block-Jacobi preconditioner,
the gain ratio in difference form with the linear residual in it, Nielsen's damping.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.solve_program import LARGEST_POINT
from .batch import FloatArray
from .jax_calls import call, download, jax_errors, upload
from .jax_functions import compilations, double_precision, load_jax
from .jax_incidence import JaxStructure, JaxTables
from .jax_linearization import Linearizer, Vectors, apply_inverse, block_inverse_roots
from .step_record import StepRecord

RECORD = (
    "cost", "cost_before", "change", "damping", "gain", "predicted",
    "linear_iterations", "accepted", "gradient_norm", "step_norm", "parameter_norm",
)  # fmt: skip
"""What a step reports, in the order of the array that is read back."""


def _dot(a: Vectors, b: Vectors) -> Any:
    jnp = load_jax().numpy
    return sum(jnp.sum(x * y, dtype="float64") for x, y in zip(a, b, strict=True))


def _add(a: Vectors, factor: Any, b: Vectors) -> Vectors:
    return [x + factor.astype(x.dtype) * y for x, y in zip(a, b, strict=True)]


def _damping_diagonal(form: str, diagonal: Any) -> Any:
    jnp = load_jax().numpy
    diagonal = jnp.maximum(diagonal, 0)
    if form == "diagonal":
        return jnp.clip(diagonal, 1e-6, 1e32)
    if form == "one-plus-norm":
        return jnp.square(1 + jnp.sqrt(diagonal))
    return jnp.ones_like(diagonal)


def conjugate_gradients(
    product: Any, inverse: Vectors, right: Vectors, tolerance: Any, limit: Any
) -> tuple[Vectors, Vectors, Any]:
    """Solve A δ = b from δ = 0, in a loop on the device.

    Args:
        product: v -> A v.
        inverse: roots of the preconditioner's blocks, see ``block_inverse_roots``.
        right: b.
        tolerance: stop when the preconditioned residual's norm has fallen by this factor.
        limit: number of iterations at most.

    Returns:
        δ, what is left of the residual b - A δ, and the number of iterations.
    """
    jax = load_jax()
    jnp = jax.numpy
    start = apply_inverse(inverse, right)
    first = _dot(right, start)
    zero = [jnp.zeros_like(b) for b in right]

    def goes_on(state: Any) -> Any:
        _, _, _, gamma, iterations, sound = state
        return sound & (iterations < limit) & (gamma > tolerance * tolerance * first)

    def iterate(state: Any) -> Any:
        step, residual, direction, gamma, iterations, _ = state
        image = product(direction)
        curvature = _dot(direction, image)
        alpha = gamma / curvature
        sound = (curvature > 0) & jnp.isfinite(alpha)
        alpha = jnp.where(sound, alpha, 0)
        step = _add(step, alpha, direction)
        residual = _add(residual, -alpha, image)
        image = apply_inverse(inverse, residual)
        after = _dot(residual, image)
        beta = after / gamma
        sound = sound & jnp.isfinite(after)
        direction = _add(image, beta, direction)
        return step, residual, direction, after, iterations + sound.astype("int32"), sound

    state = (zero, right, start, first, jnp.int32(0), jnp.isfinite(first))
    step, residual, _, _, iterations, _ = jax.lax.while_loop(goes_on, iterate, state)
    return step, residual, iterations


class _Step:
    """One step as JAX traces it."""

    def __init__(self, lines: Linearizer) -> None:
        self._lines = lines
        self._structure = lines.structure
        self._jnp = load_jax().numpy

    def __call__(self, state: dict[str, Any], limits: dict[str, Any]) -> tuple[Any, Any]:
        jnp = self._jnp
        x = state["x"]
        values = self._lines.linearize(x)
        gradient, blocks = self._lines.gradient_and_blocks(values, x)
        damping = state["damping"]
        scale = [self._scale(b) for b in blocks]
        inverse = [block_inverse_roots(self._damped(b, d, damping))
                   for b, d in zip(blocks, scale, strict=True)]  # fmt: skip

        def product(v: Vectors) -> Vectors:
            image = self._lines.normal_product(values, v)
            # Frozen components of v are zero.
            return _add(image, damping, [d * u for d, u in zip(scale, v, strict=True)])

        right = [-g for g in gradient]
        step, left, iterations = conjugate_gradients(
            product, inverse, right, limits["linear_tolerance"], limits["linear_iterations"]
        )
        trial = [a + b for a, b in zip(x, step, strict=True)]
        cost, cost_after, change = self._costs(x, trial)
        damped = _dot(step, [d * s for d, s in zip(scale, step, strict=True)])
        predicted = 0.5 * (_dot(left, step) - _dot(gradient, step) + damping * damped)
        gain = -change / predicted
        accepted = (
            jnp.isfinite(gain)
            & jnp.isfinite(cost_after)
            & (predicted > 0)
            & (gain > limits["min_gain"])
        )
        record = {
            "cost": jnp.where(accepted, cost_after, cost),
            "cost_before": cost,
            "change": change,
            "damping": damping,
            "gain": jnp.where(jnp.isfinite(cost_after) & (predicted > 0), gain, jnp.nan),
            "predicted": predicted,
            "linear_iterations": iterations,
            "accepted": accepted,
            "gradient_norm": jnp.stack([jnp.max(jnp.abs(g)) for g in gradient]).max(),
            "step_norm": jnp.sqrt(_dot(step, step)),
            "parameter_norm": jnp.sqrt(_dot(x, x)),
        }
        after = self._controlled(state, gain, accepted)
        after["x"] = [jnp.where(accepted, t, old) for t, old in zip(trial, x, strict=True)]
        numbers = jnp.stack([jnp.asarray(record[name], "float64") for name in RECORD])
        if sum(v.size for v in x) * numbers.itemsize <= LARGEST_POINT:
            point = [v.ravel().astype("float64") for v in after["x"]]
            numbers = jnp.concatenate([numbers, *point])
        return after, numbers

    def _scale(self, block: Any) -> Any:
        diagonal = self._jnp.stack([block[a, a] for a in range(block.shape[0])])
        return _damping_diagonal(self._structure.damping, diagonal)

    def _damped(self, block: Any, scale: Any, damping: Any) -> Any:
        unit = self._jnp.eye(block.shape[0], dtype=block.dtype)[:, :, None]
        return block + unit * (damping.astype(block.dtype) * scale)[:, None]

    def _costs(self, x: Vectors, trial: Vectors) -> tuple[Any, Any, Any]:
        """Cost before and after, and their difference summed as such."""
        jnp = self._jnp
        before = after = change = jnp.float64(0)
        pairs = zip(self._lines.residuals(x), self._lines.residuals(trial), strict=True)
        for old, new in ((o, n) for olds, news in pairs for o, n in zip(olds, news, strict=True)):
            before = before + 0.5 * jnp.sum(old * old, dtype="float64")
            after = after + 0.5 * jnp.sum(new * new, dtype="float64")
            change = change + 0.5 * jnp.sum((new - old) * (new + old), dtype="float64")
        return before, after, change

    def _controlled(self, state: dict[str, Any], gain: Any, accepted: Any) -> dict[str, Any]:
        """Damping after the step. Source: Madsen, Nielsen, Tingleff 2004, §3.2."""
        jnp = self._jnp
        damping, growth = state["damping"], state["growth"]
        factor = jnp.maximum(1 / 3, 1 - (2 * jnp.minimum(gain, 1e3) - 1) ** 3)
        kept = jnp.maximum(damping * factor, 1e-32)
        grown = jnp.minimum(damping * growth, 1e32)
        return {
            "damping": jnp.where(accepted, kept, grown),
            "growth": jnp.where(accepted, 2.0, jnp.minimum(2 * growth, 1e16)),
        }


@lru_cache(maxsize=64)
def _jitted_step(structure: JaxStructure, precision: str) -> Any:
    """Compiled once per structure and shape: tables, data and limits are arguments."""
    jax = load_jax()

    def step(state: Any, tables: Any, limits: Any, counts: tuple[int, ...]) -> Any:
        compilations.note()
        return _Step(Linearizer(structure, tables, counts, precision))(state, limits)

    return jax.jit(step, static_argnames="counts")


class JaxSolve:
    """One problem's solve on JAX's device.

    Raises:
        DeviceMemoryError, DeviceError: from every method, where the device fails.
    """

    def __init__(self, tables: JaxTables) -> None:
        self._tables = tables
        self._read: list[NDArray[Any]] | None = None  # the point, as it came with the record
        self._counts = tuple(g.count for g in tables.groups)
        self._arrays = {
            "groups": tables.arrays_of_groups,
            "incidences": tables.arrays_of_incidences,
            "free": tables.free,
        }
        self._step = _jitted_step(tables.structure, tables.precision)
        self._state: dict[str, Any] = {}
        self._limits: dict[str, Any] = {}

    def start(
        self,
        parameters: FloatArray,
        damping: float,
        linear_tolerance: float,
        min_gain: float,
    ) -> None:
        """Upload the start point and reset the state."""
        jnp = load_jax().numpy
        packed = self._tables.pack(parameters)
        self._read = None
        with double_precision():
            self._state = {
                "x": upload("parameters", lambda: [jnp.asarray(x) for x in packed]),
                "damping": jnp.float64(damping),
                "growth": jnp.float64(2.0),
            }
            self._limits = {
                "linear_tolerance": jnp.float64(linear_tolerance),
                "min_gain": jnp.float64(min_gain),
            }

    def step(self, max_linear_iterations: int) -> StepRecord:
        """Linearize, run CG, try the step, decide: one read-back."""
        limits = {**self._limits, "linear_iterations": np.int32(max_linear_iterations)}
        with double_precision(), jax_errors("a step"):
            state, record = call(
                "step", self._step, self._state, self._arrays, limits, counts=self._counts
            )
            (read,) = download("step", record)
        self._state, self._read = state, self._point(read[len(RECORD) :])
        numbers = dict(zip(RECORD, read[: len(RECORD)].tolist(), strict=True))
        iterations = int(numbers.pop("linear_iterations"))
        accepted = bool(numbers.pop("accepted"))
        return StepRecord(**numbers, linear_iterations=iterations, accepted=accepted)

    def parameters(self) -> FloatArray:
        """The last accepted point; a small one is here already, even if the device is not."""
        point = download("point", self._state["x"]) if self._read is None else self._read
        return self._tables.unpack(point)

    def _point(self, numbers: NDArray[Any]) -> list[NDArray[Any]] | None:
        """Node sets from what came after the record; None if nothing did."""
        if not numbers.size:
            return None
        shapes: list[tuple[int, ...]] = [x.shape for x in self._state["x"]]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        return [
            part.reshape(shape) for part, shape in zip(np.split(numbers, ends), shapes, strict=True)
        ]

    def statement_counts(self) -> dict[str, int]:
        """Kernel name -> number of computed values in its text."""
        return {g.kernel.name: g.kernel.graph.stats.ops for g in self._tables.structure.groups}

    def close(self) -> None:
        """Let go of the arrays."""
        self._state = {}
