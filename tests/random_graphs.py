"""Random residual functions for Hypothesis, and the rule that says which points are fair.

A ``Recipe`` is a straight-line program: each step applies an op to earlier values. It is an
ordinary residual function (call it, trace it, shrink it), and its arguments can be permuted or
its commutative operands swapped without changing what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.ir import evaluate_nodes
from autograd_gpu.ops import BOOL

Array = NDArray[np.float64]

# Steps keep values of order 1, so that graphs of any depth stay finite; an op with a restricted
# domain gets an operand inside it.
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / (1.5 + b * b),
    "minimum": lambda a, b: ag.minimum(a, b),
    "maximum": lambda a, b: ag.maximum(a, b),
    "atan2": lambda a, b: ag.atan2(a, 1.0 + b * b),
    "hypot": lambda a, b: ag.hypot(a, b),
    "pow": lambda a, b: ag.pow(0.5 + ag.abs(a), ag.tanh(b)),
}
COMMUTATIVE = ("add", "mul", "hypot")
UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": lambda a: -a,
    "sin": ag.sin,
    "cos": ag.cos,
    "tanh": ag.tanh,
    "exp": lambda a: ag.exp(-(a * a)),
    "log": lambda a: ag.log(0.5 + a * a),
    "log1p": lambda a: ag.log1p(ag.abs(a)),
    "expm1": lambda a: ag.expm1(0.3 * ag.tanh(a)),
    "sqrt": lambda a: ag.sqrt(0.1 + a * a),
    "abs": ag.abs,
    "atan": ag.atan,
    "asin": lambda a: ag.asin(0.9 * ag.sin(a)),
    "sinh": lambda a: ag.sinh(ag.tanh(a)),
    "cosh": lambda a: ag.cosh(ag.tanh(a)),
    "erf": ag.erf,
    "sigmoid": ag.sigmoid,
    "softplus": ag.softplus,
    "relu": ag.relu,
    "square": ag.square,
    "cbrt": lambda a: ag.cbrt(1.0 + a * a),
}
TERNARY: dict[str, Callable[[Any, Any, Any], Any]] = {
    "where_less": lambda a, b, c: ag.where(a < b, c, a),
    # The untaken arm is not finite: log of a negative number, a division by zero.
    "where_log": lambda a, b, c: ag.where(a > 0.2, ag.log(a), b * c),
    "where_and": lambda a, b, c: ag.where((a > 0.0) & (b <= c), a * b, c),
    "clip": lambda a, b, c: ag.clip(a, -1.0 - b * b, 1.0 + c * c),
}
STEPS = (*BINARY, *UNARY, *TERNARY)


@dataclass(frozen=True, slots=True)
class Step:
    """One application; operands are taken modulo the number of values so far."""

    op: str
    operands: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A residual function of arguments of given widths."""

    widths: tuple[int, ...]
    constants: tuple[float, ...]
    steps: tuple[Step, ...]
    outputs: int
    swapped: bool = False

    @property
    def __name__(self) -> str:
        return "random_residual"

    def __call__(self, *arguments: Any) -> list[Any]:
        values: list[Any] = []
        for width, argument in zip(self.widths, arguments, strict=True):
            values += [argument] if width == 1 else [argument[k] for k in range(width)]
        inputs = len(values)
        for step in self.steps:
            first, second, third = step.operands
            # The first operand is never a literal, so that each step is traced and not evaluated.
            a = values[first % len(values)]
            b, c = ([*values, *self.constants][k % (len(values) + len(self.constants))]
                    for k in (second, third))  # fmt: skip
            if step.op in BINARY:
                if self.swapped and step.op in COMMUTATIVE:
                    a, b = b, a
                value = BINARY[step.op](a, b)
            elif step.op in UNARY:
                value = UNARY[step.op](a)
            else:
                value = TERNARY[step.op](a, b, c)
            # Products of products overflow in a few steps; bounded values do not.
            values.append(ag.atan(value) if step.op in ("mul", "square") else value)
        last = values[-min(self.outputs, len(values) - inputs) :]
        return [v + 0.125 * values[0] for v in last]

    def trace(self) -> Graph:
        """The graph as written."""
        return ag.trace(self, *self.widths)

    def permuted(self, order: Sequence[int]) -> tuple[Callable[..., Any], tuple[int, ...]]:
        """The same function with arguments in another order, and their widths."""
        place = {original: k for k, original in enumerate(order)}

        def reordered(*arguments: Any) -> Any:
            return self(*(arguments[place[k]] for k in range(len(self.widths))))

        return reordered, tuple(self.widths[k] for k in order)

    def with_swapped_operands(self) -> Recipe:
        """Commutative ops written the other way round."""
        return replace(self, swapped=True)


_CONSTANTS = st.sampled_from([-0.0, 0.0, 1.0, -1.0, 0.5, 2.0, -0.7, 3.25, 0.1, 1e-3])


@st.composite
def recipes(
    draw: st.DrawFn,
    widths: tuple[int, ...] | None = None,
    min_steps: int = 1,
    max_steps: int = 24,
) -> Recipe:
    """Random residual functions, of up to four arguments unless ``widths`` says."""
    if widths is None:
        widths = tuple(draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=4)))
    index = st.integers(0, 1000)
    step = st.builds(Step, st.sampled_from(STEPS), st.tuples(index, index, index))
    steps = draw(st.lists(step, min_size=min_steps, max_size=max_steps))
    constants = draw(st.lists(_CONSTANTS, max_size=3))
    outputs = draw(st.integers(1, 4))
    return Recipe(widths, tuple(constants), tuple(steps), outputs)


def random_arrays(widths: Sequence[int], batch: int, seed: int) -> list[Array]:
    """Inputs of order 1, exact in float32; width 1 is ``(batch,)``."""
    rng = np.random.default_rng(seed)
    made: list[Array] = []
    for width in widths:
        shape = (batch,) if width == 1 else (batch, width)
        made.append(rng.uniform(-2.0, 2.0, shape).astype(np.float32).astype(np.float64))
    return made


# A point is fair to a float32 backend if rounding cannot matter: see ``well_conditioned``.
BRANCH_MARGIN = 1e-3
GROWTH_LIMIT = 1e-5
LARGEST_VALUE = 1e4
_KINKS = ("lt", "le", "gt", "ge", "eq", "ne", "minimum", "maximum")
_JUMPS = ("abs", "sign", "floor", "ceil", "round")


def _node_values(graph: Graph, arrays: Sequence[Array], dtype: Any = np.float64) -> list[Any]:
    columns = [np.asarray(a, dtype).reshape(len(a), -1) for a in arrays]
    return evaluate_nodes(graph.nodes, lambda argument, k: columns[argument][:, k], dtype)


def _outputs(graph: Graph, values: Sequence[Any], batch: int) -> Array:
    return np.stack([np.broadcast_to(values[o], (batch,)) for o in graph.outputs], axis=1)


def smooth_points(graph: Graph, arrays: Sequence[Array]) -> NDArray[np.bool_]:
    """Elements of the batch that stay clear of every kink, jump and branch of ``graph``."""
    batch = len(arrays[0])
    values = _node_values(graph, arrays)
    fair = np.ones(batch, bool)
    with np.errstate(invalid="ignore"):
        for k, node in enumerate(graph.nodes):
            if node.op in _KINKS:
                a, b = (values[j] for j in node.args)
                fair &= ~(np.abs(a - b) < BRANCH_MARGIN)
            elif node.op in _JUMPS:
                fair &= ~(np.abs(values[node.args[0]]) < BRANCH_MARGIN)
            elif node.op in ("sqrt", "hypot") and node.dtype != BOOL:
                fair &= ~(np.abs(values[k]) < BRANCH_MARGIN)
        results = _outputs(graph, values, batch)
        return fair & (np.abs(results) < LARGEST_VALUE).all(axis=1)


def well_conditioned(graph: Graph, arrays: Sequence[Array]) -> NDArray[np.bool_]:
    """Elements where float32 can be expected to give the outputs of ``graph``.

    The rule: no branch is near; rounding the inputs (float64 evaluation of inputs moved by one
    float32 epsilon) and rounding every operation (NumPy evaluation in float32) change outputs by
    less than ``GROWTH_LIMIT``, relative to 1 + |output|.
    """
    batch = len(arrays[0])
    exact = _outputs(graph, _node_values(graph, arrays), batch)
    eps = float(np.finfo(np.float32).eps)
    rng = np.random.default_rng(0)
    fair = smooth_points(graph, arrays)
    trials = [_node_values(graph, arrays, np.float32)]
    for _ in range(2):
        moved = [a * (1.0 + eps * rng.choice([-1.0, 1.0], a.shape)) for a in arrays]
        trials.append(_node_values(graph, moved))
    with np.errstate(invalid="ignore"):
        for trial in trials:
            change = np.abs(_outputs(graph, trial, batch) - exact)
            fair &= (change < GROWTH_LIMIT * (1.0 + np.abs(exact))).all(axis=1)
    return fair
