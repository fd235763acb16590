"""JAX functions as graphs: a jaxpr, interpreted on traced scalars.

What moves entries about (reshape, slice, gather, concatenate, …) is done by JAX itself on an array
of positions, so each of those primitives means here exactly what it means there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

import numpy as np

from ..errors import TraceError
from ..ir import Argument, Graph
from ..runtime.jax_functions import double_precision, load_jax
from ..scalar import AbstractScalar, apply
from ..trace import Width, argument_names, flatten_result, function_name, shape_of, trace_shapes
from .jax_primitives import RULES, Array, Operands, combined, each, entries, is_traced, objects

# Primitive that moves entries -> the operands that they come from; all of them where it is None.
# The other operands are positions.
_MOVES: dict[str, tuple[int, ...] | None] = {
    **{
        name: (0,)
        for name in (
            "reshape", "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "rev",
            "copy", "copy_p", "gather", "dynamic_slice", "split", "tile",
        )
    },
    "pad": (0, 1), "dynamic_update_slice": (0, 1), "scatter": (0, 2),
    "concatenate": None, "stack": None,
}  # fmt: skip
_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "remat2", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin",
}  # fmt: skip
MOST_TURNS = 10_000
"""Of a loop that is unrolled."""


def from_jax(fn: Callable[..., Any], widths: Sequence[Width], name: str | None = None) -> Graph:
    """A function of JAX arrays as a graph, which is a residual function on every backend.

    The function is traced by JAX once, for one element, in float64. Loops of known length are
    unrolled; of ``lax.cond`` both branches are evaluated; values are taken to be finite, which
    decides tests for infinity. Derivatives are those of the op table: a ``custom_jvp`` or
    ``custom_vjp`` is replaced by the function that it stands for.

    Args:
        fn: takes one array per width, returns an array or a (nested) list or tuple of them.
        widths: per argument 1 for a scalar (shape ``()``), k for ``(k,)``, or a shape, as in
            ``ag.trace``.
        name: of the graph, the function's by default.

    Raises:
        TraceError: JAX cannot trace the function, or it uses a primitive that has no scalar form;
            all such primitives are named.
        MissingDependencyError: JAX is not installed.
    """
    jax = load_jax()
    title = name or function_name(fn)
    shapes = [shape_of(w) for w in widths]
    names = argument_names(fn, len(shapes))
    with double_precision():
        given = [jax.ShapeDtypeStruct(shape, np.dtype(np.float64)) for shape in shapes]
        try:
            closed, result = jax.make_jaxpr(fn, return_shape=True)(*given)
        except Exception as error:  # a user's function may raise anything
            raise TraceError(
                f"from_jax: JAX could not trace {title!r}\n  {type(error).__name__}: {error}"
            ) from error
        structure = jax.tree.structure(result)

        def residual(*values: Any) -> Any:
            columns = [
                objects(flatten_result(v, title)[0], shape)
                for v, shape in zip(values, shapes, strict=True)
            ]
            outputs = _Interpreter(closed.jaxpr, title).run(closed.jaxpr, closed.consts, columns)
            return jax.tree.unflatten(structure, [o.tolist() for o in outputs])

        described = [Argument(n, s) for n, s in zip(names, shapes, strict=True)]
        return trace_shapes(residual, described, title)


class _Interpreter:
    """Evaluates one jaxpr, and those inside it.

    Args:
        outermost: searched for all that is unsupported, once something is.
        title: of the function.
    """

    def __init__(self, outermost: Any, title: str) -> None:
        self._outermost = outermost
        self._title = title

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Array]) -> list[Array]:
        """Outputs of a jaxpr."""
        known: dict[Any, Array] = {}
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            known[variable] = np.asarray(value)
        for variable, value in zip(jaxpr.invars, arguments, strict=True):
            known[variable] = value

        def read(atom: Any) -> Array:
            return np.asarray(atom.val) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, [read(a) for a in equation.invars])
            for variable, value in zip(equation.outvars, results, strict=True):
                known[variable] = _settled(value, variable.aval.dtype)
        return [read(a) for a in jaxpr.outvars]

    def _closed(self, closed: Any, arguments: Sequence[Array]) -> list[Array]:
        inner = getattr(closed, "jaxpr", closed)
        return self.run(inner, getattr(closed, "consts", ()), arguments)

    def _equation(self, equation: Any, operands: list[Array]) -> list[Array]:
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            return self._closed(_inner_jaxpr(params), operands)
        if not any(is_traced(o) for o in operands):
            results = equation.primitive.bind(*operands, **params)
            several = equation.primitive.multiple_results
            return [np.asarray(r) for r in (results if several else [results])]
        if name == "scan":
            return self._scan(params, operands)
        if name == "while":
            return self._while(params, operands)
        if name == "cond":
            return self._cond(params, operands)
        if name in _MOVES:
            moved = _moved(equation, operands)
            if moved is None:
                self._refuse(name, " at a traced position")
            return moved
        if name in RULES:
            return [RULES[name](params, operands)]
        self._refuse(name)

    def _refuse(self, name: str, why: str = "") -> NoReturn:
        unknown = sorted({name, *_unsupported(self._outermost)})
        raise TraceError(
            f"from_jax: {self._title!r} uses the JAX primitive {name!r}, which has no scalar form"
            f"{why}; all that it uses and that have none: {', '.join(unknown)}"
        )

    def _scan(self, params: Mapping[str, Any], operands: list[Array]) -> list[Array]:
        fixed, carried = params["num_consts"], params["num_carry"]
        consts, carry = operands[:fixed], list(operands[fixed : fixed + carried])
        sequences = operands[fixed + carried :]
        if params["length"] > MOST_TURNS:
            self._refuse("scan", f" at {params['length']} turns (at most {MOST_TURNS})")
        turns = range(params["length"])
        rows: list[list[Array]] = []
        for turn in reversed(turns) if params["reverse"] else turns:
            out = self._closed(
                params["jaxpr"], [*consts, *carry, *(s[turn, ...] for s in sequences)]
            )
            carry = out[:carried]
            rows.append([entries(o) for o in out[carried:]])
        if params["reverse"]:
            rows.reverse()
        stacked = [np.stack(column) for column in zip(*rows, strict=True)]
        return [*carry, *stacked]

    def _while(self, params: Mapping[str, Any], operands: list[Array]) -> list[Array]:
        tests, bodies = params["cond_nconsts"], params["body_nconsts"]
        of_test, of_body = operands[:tests], operands[tests : tests + bodies]
        carry = operands[tests + bodies :]
        for _ in range(MOST_TURNS):
            (goes_on,) = self._closed(params["cond_jaxpr"], [*of_test, *carry])
            if isinstance(goes_on.item(), AbstractScalar):
                break
            if not goes_on.item():
                return carry
            carry = self._closed(params["body_jaxpr"], [*of_body, *carry])
        self._refuse("while", " unless its number of turns is known while tracing")

    def _cond(self, params: Mapping[str, Any], operands: list[Array]) -> list[Array]:
        branches, which, rest = params["branches"], operands[0].item(), operands[1:]
        if not isinstance(which, AbstractScalar):
            chosen = min(max(int(which), 0), len(branches) - 1)
            return self._closed(branches[chosen], rest)
        results = self._closed(branches[-1], rest)
        for k in reversed(range(len(branches) - 1)):
            taken = apply("lt", which, k + 0.5)
            first = self._closed(branches[k], rest)
            results = [each(lambda a, b, c=taken: combined("where", c, a, b), a, b)
                       for a, b in zip(first, results, strict=True)]  # fmt: skip
        return results


def _settled(array: Array, dtype: Any) -> Array:
    """Numbers again, where every entry is one: JAX computes with indices and counters itself."""
    if not is_traced(array) or any(isinstance(v, AbstractScalar) for v in array.ravel()):
        return array
    return np.array(array.tolist(), dtype)


def _inner_jaxpr(params: Mapping[str, Any]) -> Any:
    return next(params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in params)


def _unsupported(jaxpr: Any) -> set[str]:
    """Names of the primitives that no rule knows, inner jaxprs included."""
    found: set[str] = set()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        inner: list[Any] = []
        for value in equation.params.values():
            several = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else [value]
            inner += [getattr(v, "jaxpr", v) for v in several if hasattr(v, "jaxpr")]
            inner += [v for v in several if hasattr(v, "eqns")]
        for j in inner:
            found |= _unsupported(j)
        if not inner and name not in {*_MOVES, *RULES, "while", "scan", "cond", "iota"}:
            found.add(name)
    return found


def _moved(equation: Any, operands: Operands) -> list[Array] | None:
    """Let JAX move numbers of entries, and pick the entries; None where positions are traced."""
    chosen = _MOVES[equation.primitive.name]
    flat: list[Any] = []
    given: list[Array] = []
    for k, o in enumerate(operands):
        if chosen is not None and k not in chosen:
            given.append(o)
            continue
        given.append(np.arange(len(flat), len(flat) + o.size, dtype=np.int32).reshape(o.shape))
        flat += entries(o).ravel().tolist()
    if any(is_traced(o) for o in given):
        return None
    params = dict(equation.params)
    if "fill_value" in params:
        params["fill_value"] = -1  # instead of NaN; no entry has this number
    results = equation.primitive.bind(*given, **params)
    several = equation.primitive.multiple_results
    moved = [np.asarray(r) for r in (results if several else [results])]
    if any(m.size and not 0 <= m.min() <= m.max() < len(flat) for m in moved):
        raise TraceError("from_jax: an index is out of range; JAX would fill in a value there")
    return [objects([flat[k] for k in m.ravel()], m.shape) for m in moved]
