"""Random residual functions for Hypothesis, and the rule that says which points are fair.

A ``Recipe`` is a straight-line program: each step applies an op to earlier values. It is an
ordinary residual function (call it, trace it, shrink it), and its arguments can be permuted or
its commutative operands swapped without changing what it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu import Graph
from autograd_gpu.ir import Argument, Builder, Node, evaluate_nodes
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
    "mod": lambda a, b: ag.mod(a, 1.5 + ag.tanh(b)),
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
    "tan": lambda a: ag.tan(ag.tanh(a)),
    "acos": lambda a: ag.acos(0.9 * ag.cos(a)),
    "sign": lambda a: a * ag.sign(a),
    "floor": lambda a: a - ag.floor(a),
    "ceil": lambda a: ag.ceil(a) - a,
    "round": lambda a: a - ag.round(a),
    "reciprocal": lambda a: ag.reciprocal(1.0 + a * a),
    "cube": lambda a: ag.cube(ag.tanh(a)),
}
TERNARY: dict[str, Callable[[Any, Any, Any], Any]] = {
    "where_less": lambda a, b, c: ag.where(a < b, c, a),
    # The untaken arm is not finite: log of a negative number, a division by zero.
    "where_log": lambda a, b, c: ag.where(a > 0.2, ag.log(a), b * c),
    "where_and": lambda a, b, c: ag.where((a > 0.0) & (b <= c), a * b, c),
    "where_or": lambda a, b, c: ag.where((a >= b) | (b > c), c, a),
    "where_not": lambda a, b, c: ag.where(~((a >= b) & (a != c)), b, c),
    "where_equal": lambda a, b, c: ag.where(ag.sign(a) == ag.sign(b), c, a + b),
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


CONSTANTS = (-0.0, 0.0, 1.0, -1.0, 0.5, 2.0, -0.7, 3.25, 0.1, 1e-3)
_CONSTANTS = st.sampled_from(CONSTANTS)


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


def random_recipe(
    rng: np.random.Generator,
    steps: tuple[int, int],
    widths: tuple[int, ...] | None = None,
    ops: Sequence[str] = STEPS,
) -> Recipe:
    """A random residual function where hundreds of thousands are wanted, without Hypothesis.

    Args:
        rng: source of all choices.
        steps: fewest and most.
        widths: of the arguments; up to four of width 1 to 3 by default.
        ops: names of the steps to choose from.
    """
    if widths is None:
        widths = tuple(rng.integers(1, 4, rng.integers(1, 5)).tolist())
    names = rng.choice(ops, rng.integers(steps[0], steps[1] + 1)).tolist()
    operands = rng.integers(0, 1000, (len(names), 3)).tolist()
    chosen = tuple(Step(n, (a, b, c)) for n, (a, b, c) in zip(names, operands, strict=True))
    constants = tuple(rng.choice(CONSTANTS, rng.integers(0, 4)).tolist())
    return Recipe(widths, constants, chosen, int(rng.integers(1, 5)))


def scrambled(graph: Graph, rng: np.random.Generator) -> tuple[Graph, list[int]]:
    """The same function built otherwise, and the place of each argument in it.

    Arguments are permuted, nodes are made in another topological order, and operands of
    commutative ops stand the other way round as often as not.
    """
    order = rng.permutation(len(graph.arguments)).tolist()
    users: list[list[int]] = [[] for _ in graph.nodes]
    waiting = [len(set(node.args)) for node in graph.nodes]
    for k, node in enumerate(graph.nodes):
        for a in set(node.args):
            users[a].append(k)
    builder = Builder()
    new: dict[int, int] = {}
    ready = [k for k, count in enumerate(waiting) if count == 0]
    while ready:
        k = ready.pop(int(rng.integers(len(ready))))
        node = graph.nodes[k]
        if node.op == "input":
            new[k] = builder.input(order[node.leaf[0]], node.leaf[1], node.dtype)
        elif node.op == "const":
            new[k] = builder.constant(cast("float | bool", node.payload))
        else:
            new[k] = builder.raw(node.op, tuple(new[a] for a in node.args))
        for user in users[k]:
            waiting[user] -= 1
            if waiting[user] == 0:
                ready.append(user)
    arguments = [Argument("", ())] * len(order)
    for original, place in enumerate(order):
        arguments[place] = graph.arguments[original]
    made = Graph.build(builder, [new[o] for o in graph.outputs], arguments, graph.output_shape)
    return made, order


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
_ODD = ("abs", "sign")
# Jumps at integers of what is given here, by op.
_STEPS: dict[str, Callable[..., Any]] = {
    "floor": lambda x: x, "ceil": lambda x: x, "round": lambda x: x + 0.5,
    "mod": lambda a, b: a / b,
}  # fmt: skip


def _node_values(graph: Graph, arrays: Sequence[Array], dtype: Any = np.float64) -> list[Any]:
    columns = [np.asarray(a, dtype).reshape(len(a), -1) for a in arrays]
    return evaluate_nodes(graph.nodes, lambda argument, k: columns[argument][:, k], dtype)


def _outputs(graph: Graph, values: Sequence[Any], batch: int) -> Array:
    return np.stack([np.broadcast_to(values[o], (batch,)) for o in graph.outputs], axis=1)


def _are_signs(graph: Graph, node: Node) -> bool:
    """Whether both operands are signs, which are equal without being near a kink."""
    return all(graph.nodes[a].op == "sign" for a in node.args)


def smooth_points(graph: Graph, arrays: Sequence[Array]) -> NDArray[np.bool_]:
    """Elements of the batch that stay clear of every kink, jump and branch of ``graph``."""
    batch = len(arrays[0])
    values = _node_values(graph, arrays)
    fair = np.ones(batch, bool)
    with np.errstate(invalid="ignore"):
        for k, node in enumerate(graph.nodes):
            operands = [values[j] for j in node.args]
            if node.op in _KINKS and node.args[0] != node.args[1] and not _are_signs(graph, node):
                fair &= ~(np.abs(operands[0] - operands[1]) < BRANCH_MARGIN)
            elif node.op in _ODD:
                fair &= ~(np.abs(operands[0]) < BRANCH_MARGIN)
            elif node.op in _STEPS:
                steps = _STEPS[node.op](*operands)
                fair &= ~(np.abs(steps - np.rint(steps)) < BRANCH_MARGIN)
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
