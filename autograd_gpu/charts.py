"""Manifolds as graphs: what kernels need of the space that a block of parameters lives on.

Tangent coordinates δ are used at δ = 0 only, so a Jacobian needs no more than the basis
∂(x ⊞ δ)/∂δ there, an ordinary graph of x; a step is taken by the graph of x ⊞ δ itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .diff import jacobian
from .errors import InputError, ShapeError, TraceError
from .ir import Argument, Builder, Graph, Shape
from .lie_groups import LieGroup
from .manifolds import Euclidean
from .rewrite import RULES, simplify
from .trace import shape_of, trace_shapes

ON_MANIFOLD = 1e-6
"""How far start values may be from their manifold, relative to 1 + |x|: what float32 rounds."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A manifold, traced; equal where the graphs are.

    Attributes:
        serial: decides equality.
        name: of the manifold, for messages.
        ambient: numbers per block.
        tangent: directions in which a block can move.
        basis: of x, ``(ambient, tangent)``: ∂(x ⊞ δ)/∂δ at δ = 0.
        plus: of x and δ: x ⊞ δ as the manifold gives it.
        retraction: of x and δ: the point of the manifold next to that.
        nearest: of x; None if the manifold has none.
        element: what a residual function sees of a traced block.
        outside: mask of rows that are no points of the manifold at all.
    """

    serial: bytes
    name: str = field(compare=False)
    ambient: int = field(compare=False)
    tangent: int = field(compare=False)
    basis: Graph = field(compare=False)
    plus: Graph = field(compare=False)
    retraction: Graph = field(compare=False)
    nearest: Graph | None = field(compare=False)
    element: Callable[[Any], Any] = field(compare=False)
    outside: Callable[[NDArray[np.float64]], NDArray[np.bool_]] = field(compare=False)

    def check(self, values: NDArray[np.float64], what: str) -> None:
        """Refuse values that do not lie on the manifold.

        Args:
            values: ``(n, ambient)``.
            what: for the message.

        Raises:
            InputError: names the first row.
        """
        rows = values.reshape(len(values), self.ambient)
        bad = self.outside(rows)
        remedy = f"pass points of {self.name}"
        if self.nearest is not None:
            near = self.nearest(_given(rows, self.ambient)).reshape(rows.shape)
            bad = bad | _apart(near, rows)
            remedy += f", for instance those next to yours, {self.name}.nearest(array)"
        if not bad.any():
            moved = self.plus(
                _given(rows, self.ambient), np.zeros((len(rows), *_shape(self.tangent)))
            )
            bad = _apart(moved.reshape(rows.shape), rows)
            remedy = f"plus(x, 0) must be x: correct {self.name}.plus"
        if bad.any():
            first = int(np.argmax(bad))
            raise InputError(
                f"{what}: {int(bad.sum())} of {len(rows)} rows do not lie on the manifold "
                f"{self.name} (to {ON_MANIFOLD:g}), the first is row {first}, "
                f"{np.array2string(rows[first], precision=6)}; {remedy}"
            )


def _shape(width: int) -> Shape:
    return shape_of(width)


def _given(rows: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    return rows.reshape(len(rows), *_shape(width))


def _apart(near: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        close = np.abs(near - rows) <= ON_MANIFOLD * (1.0 + np.abs(rows))
    return np.logical_not(np.all(close, axis=1))


def _no_rows(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.zeros(len(values), np.bool_)


def chart_of(manifold: Any, width: int, what: str) -> Chart | None:
    """The chart of a manifold for blocks of ``width`` numbers; None if it is Euclidean.

    Args:
        manifold: a class or an object of ``ag.manifolds``, or your own.
        width: numbers per block of the parameters.
        what: for messages.

    Raises:
        InputError: no manifold; says what it lacks.
        ShapeError: the manifold's blocks are of another width, or so is what its functions give.
        TraceError: its functions cannot be traced.
    """
    made: Any = _instance(manifold, width, what)
    name = made.__name__ if isinstance(made, type) else type(made).__name__
    ambient, tangent = _width(made, "ambient", what), _width(made, "tangent", what)
    add: Any = getattr(made, "plus", None)
    if not callable(add):
        raise InputError(f"{what}, manifold {name}: has no function plus(x, delta); define it")
    if ambient != width:
        raise ShapeError(
            f"{what}: got blocks of {width} numbers, expected {ambient} for the manifold {name}"
        )
    if isinstance(made, Euclidean):
        return None
    x, delta = Argument("x", _shape(ambient)), Argument("delta", _shape(tangent))
    where = f"{what}, manifold {name}"
    plus = _traced(add, [x, delta], ambient, f"{where}, plus")
    nearest = None
    if callable(bring := getattr(made, "nearest", None)):
        nearest = _traced(bring, [x], ambient, f"{where}, nearest")
    basis = _at_zero(jacobian(plus, [1]))
    retraction = plus if nearest is None else _composed(nearest, plus)
    serial = b"|".join(_serial(g) for g in (basis, retraction))
    return Chart(
        serial=serial,
        name=name,
        ambient=ambient,
        tangent=tangent,
        basis=basis,
        plus=plus,
        retraction=retraction,
        nearest=nearest,
        element=getattr(made, "element", _itself),
        outside=getattr(made, "outside", _no_rows),
    )


def _itself(x: Any) -> Any:
    return x


def _instance(manifold: Any, width: int, what: str) -> Any:
    """An object with the functions of a manifold, from that or from a class."""
    if not isinstance(manifold, type) or issubclass(manifold, LieGroup):
        return cast(Any, manifold)
    of_width: Any = getattr(cast(Any, manifold), "of_width", None)
    if of_width is not None:
        return of_width(width)
    try:
        return cast(Any, manifold)()
    except TypeError as error:
        raise InputError(
            f"{what}: the manifold {manifold.__name__} cannot be made without arguments ({error}); "
            f"pass an object, manifold={manifold.__name__}(…)"
        ) from error


def _width(manifold: Any, which: str, what: str) -> int:
    width: Any = getattr(manifold, which, None)
    if not isinstance(width, int | np.integer) or isinstance(width, bool) or width < 1:
        raise InputError(
            f"{what}: {manifold!r:.80} is no manifold: its {which!r} is {width!r}, expected the "
            "number of "
            + ("numbers per block" if which == "ambient" else "directions to move in")
            + "; use one of ag.manifolds, such as ag.manifolds.SO3, or a class with ambient, "
            "tangent and plus(x, delta)"
        )
    return int(cast(int, width))


def _traced(fn: Callable[..., Any], arguments: list[Argument], size: int, title: str) -> Graph:
    try:
        graph = simplify(trace_shapes(fn, arguments, title))
    except (ShapeError, TraceError) as error:
        raise type(error)(f"{title}, at {error}") from error
    if len(graph.outputs) != size:
        raise ShapeError(
            f"{title}: returns {len(graph.outputs)} numbers, expected {size}, the ambient width"
        )
    return graph


def _at_zero(graph: Graph) -> Graph:
    """A graph of x and δ at δ = 0, as one of x."""
    b = Builder(RULES)
    ids = b.absorb(graph.nodes, lambda node: b.constant(0.0) if node.leaf[0] == 1 else b.leaf(node))
    outputs = [ids[o] for o in graph.outputs]
    return simplify(
        Graph.build(b, outputs, graph.arguments[:1], graph.output_shape, f"{graph.name}_basis")
    )


def _composed(outer: Graph, inner: Graph) -> Graph:
    b = Builder(RULES)
    ids = b.absorb(inner.nodes)
    between = [ids[o] for o in inner.outputs]
    after = b.absorb(outer.nodes, lambda node: between[node.leaf[1]])
    outputs = [after[o] for o in outer.outputs]
    return simplify(Graph.build(b, outputs, inner.arguments, None, "retraction"))


def _serial(graph: Graph) -> bytes:
    # Exact, down to which component is which: canonical forms rename those.
    nodes = [(op, args, payload) for op, args, payload, _ in graph.nodes]
    return repr((nodes, graph.outputs)).encode()


def on_elements(fn: Callable[..., Any], charts: Sequence[Chart | None]) -> Callable[..., Any]:
    """``fn`` as a function of plain blocks: those with a chart become its elements on the way."""
    if all(c is None or c.element is _itself for c in charts):
        return fn

    def call(*blocks: Any) -> Any:
        return fn(*(b if c is None else c.element(b) for b, c in zip(blocks, charts, strict=True)))

    call.__name__ = getattr(fn, "__name__", type(fn).__name__)
    return call
