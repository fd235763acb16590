"""Kernels to source text, through the Jinja templates.

A template receives strings and integers only, under ``StrictUndefined``: a missing name is an
error here and not a bug in generated code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from autograd_gpu.codegen.bodies import Load, folded_body, leaf_name, straight_body
from autograd_gpu.codegen.kept import kept
from autograd_gpu.codegen.kernel import (
    GENERATOR_VERSION,
    Kernel,
    Product,
    data_slot,
    make_kernel,
    parameter_slot,
    topology_of,
)
from autograd_gpu.codegen.lanes import FAR, LANES, circular_arguments, fits_lanes
from autograd_gpu.codegen.layout import HEADER_WORDS, SLOT_WORDS
from autograd_gpu.codegen.printer import (
    JAX_FLOAT32,
    JAX_FLOAT64,
    NUMBA_FLOAT32,
    NUMBA_FLOAT64,
    SYMPY,
    Dialect,
    print_statements,
    select_prelude,
)
from autograd_gpu.codegen.program import BindingKind
from autograd_gpu.codegen.real_constants import real_constants
from autograd_gpu.codegen.stages import OP_BUDGET, Plan, Stage, exceeds, plan_stages
from autograd_gpu.codegen.wgsl_reals import EMULATED, WGSL_REALS
from autograd_gpu.errors import InputError
from autograd_gpu.ir import ARGUMENT_LEAVES, Graph

if TYPE_CHECKING:
    from jinja2 import Environment

WGSL_WORKGROUP_SIZE = 256

_DIALECTS: dict[tuple[str, str], Dialect] = {
    **{("wgsl", real.precision): real.dialect for real in WGSL_REALS.values()},
    ("numba", "float32"): NUMBA_FLOAT32,
    ("numba", "float64"): NUMBA_FLOAT64,
    ("jax", "float32"): JAX_FLOAT32,
    ("jax", "float64"): JAX_FLOAT64,
    ("sympy", "exact"): SYMPY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Generated text of a kernel.

    Attributes:
        kernel: what was printed.
        target: ``wgsl``, ``numba`` or ``jax``.
        precision: ``float32`` or ``float64``; on WGSL ``float64-native`` or ``float64-emulated``.
        source: the text.
        entry_point: name of the function in it.
        stage, stages: which part of the kernel this is, of how many.
        cells: numbers per element in the intermediate buffer between stages, 0 if there is none.
        bindings: WGSL: kind of each binding of group 0, by position; empty for others.
        workgroup_size: WGSL: invocations per workgroup; 0 for others.
        lanes: Numba: written for several elements at once; what the function returns is above 0
            where an argument of ``sin`` or ``cos`` was too large for that.
    """

    kernel: Kernel
    target: str
    precision: str
    source: str
    entry_point: str
    stage: int = 0
    stages: int = 1
    cells: int = 0
    bindings: tuple[BindingKind, ...] = ()
    workgroup_size: int = 0
    lanes: bool = False

    @property
    def key(self) -> str:
        """Identifies the text, but for target and precision."""
        if self.lanes:
            return f"{self.kernel.key}-lanes"
        if self.stages == 1:
            return self.kernel.key
        return f"{self.kernel.key}-stage{self.stage}of{self.stages}-{self.cells}"

    @property
    def adds(self) -> bool:
        """Whether this is where the costs of elements are added up."""
        return self.kernel.product is Product.COST and self.stage == self.stages - 1

    @property
    def arrays(self) -> tuple[str, ...]:
        """WGSL: what each binding is, by position, in the words of ``ChunkShape``."""
        names = ["control", "parameters", "indices", "data"]
        names.append("partials" if self.kernel.product is Product.COST else "residuals")
        if len(self.bindings) - (self.cells > 0) == 6:
            names.append("jacobian")
        return tuple([*names, "intermediate"] if self.cells else names)


def _load_template(name: str) -> str | None:
    path = files("autograd_gpu.templates").joinpath(*name.split("/"))
    return path.read_text(encoding="utf-8") if path.is_file() else None


@lru_cache(maxsize=1)
def template_environment() -> Environment:
    """The environment in which every template is rendered."""
    # Loaded when text is first generated: it is a third of the package's import time.
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(_load_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A stage of a kernel, which it is of how many, and the cells between all of them."""

    stage: Stage
    index: int
    count: int
    cells: int

    @property
    def suffix(self) -> str:
        """Of the name of the generated function."""
        return "" if self.count == 1 else f"_stage{self.index}"


def _context(
    kernel: Kernel, part: _Part, dialect: Dialect, target: str, precision: str
) -> dict[str, Any]:
    body = folded_body if kernel.is_folded and target != "jax" else straight_body
    real = WGSL_REALS[precision] if target == "wgsl" else None
    return {
        "name": kernel.name + part.suffix,
        "key": kernel.key,
        "product": kernel.product.value,
        "schedule": kernel.schedule,
        "precision": precision,
        "version": GENERATOR_VERSION,
        "real": real.type if real else precision,
        "zero": real.zero if real else "0.0",
        "plus": real.plus if real else "%s + %s",
        "cells": part.cells,
        "buffer": len(kernel.slots),
        "folded": kernel.is_folded,
        "control_rows": (HEADER_WORDS + SLOT_WORDS * len(kernel.slots)) // 4,
        "workgroup_size": WGSL_WORKGROUP_SIZE,
        **body(kernel, part.stage, dialect, target),
    }


@lru_cache(maxsize=1024)
def render(kernel: Kernel, target: str, precision: str) -> Source:
    """Source text of ``kernel``, in one piece however long it is.

    Raises:
        InputError: no such target or precision.
        KernelError: a constant does not fit the precision.
    """
    return _rendered(
        kernel, target, precision, "whole",
        lambda: (_render(kernel, plan_stages(kernel, None), 0, target, precision),),
    )[0]  # fmt: skip


@lru_cache(maxsize=1024)
def render_stages(
    kernel: Kernel, target: str, precision: str, op_budget: int | None = None
) -> tuple[Source, ...]:
    """Source texts of ``kernel`` that run in turn; one where it is within the op budget.

    ``op_budget`` is the operations of one text, by default the target's own (``OP_BUDGET``).
    """
    budget = op_budget or OP_BUDGET.get(target)
    if not exceeds(kernel, budget):
        return (render(kernel, target, precision),)

    def make() -> tuple[Source, ...]:
        plan = plan_stages(kernel, budget)
        return tuple(_render(kernel, plan, k, target, precision) for k in range(len(plan.stages)))

    return _rendered(kernel, target, precision, f"stages of {budget}", make)


def _rendered(
    kernel: Kernel, target: str, precision: str, how: str, make: Callable[[], tuple[Source, ...]]
) -> tuple[Source, ...]:
    """Texts of a kernel, from disk where they are kept."""
    return kept(
        "source",
        (kernel.key, target, precision, how),
        make,
        lambda sources: [[getattr(s, name) for name in _STORED] for s in sources],
        lambda rows: tuple(_source_of(kernel, target, precision, row) for row in rows),
    )


_STORED = (
    "source", "entry_point", "stage", "stages", "cells", "bindings", "workgroup_size", "lanes",
)  # fmt: skip


def _source_of(kernel: Kernel, target: str, precision: str, row: list[Any]) -> Source:
    fields = dict(zip(_STORED, row, strict=True))
    fields["bindings"] = tuple(fields["bindings"])
    return Source(kernel=kernel, target=target, precision=precision, **fields)


@lru_cache(maxsize=1024)
def render_lanes(kernel: Kernel, precision: str) -> Source | None:
    """Text for Numba that computes several elements at once; None where ``kernel`` does not fit."""
    if not fits_lanes(kernel, precision):
        return None
    return _rendered(
        kernel, "numba", precision, "lanes", lambda: (_render_lanes(kernel, precision),)
    )[0]


def _render_lanes(kernel: Kernel, precision: str) -> Source:
    part = _Part(plan_stages(kernel, None).stages[0], 0, 1, 0)
    context = _context(kernel, part, _DIALECTS["numba", precision], "numba", precision)
    graph = part.stage.graph
    loads: list[Load] = context["loads"]
    far = [
        graph.nodes[k].leaf if graph.nodes[k].op == "input" else k
        for k in circular_arguments(graph)
    ]
    text = (
        template_environment()
        .get_template("numba/lanes.py.j2")
        .render(
            context,
            name=f"{kernel.name}_lanes",
            schedule="lanes",
            lanes=LANES,
            limit=FAR,
            far=[f"v{k}" if isinstance(k, int) else f"s{k[0]}_{k[1]}" for k in far],
            columns=sum(len(load.components) for load in loads),
            words=[
                1,
                2,
                4,
                5,
                *(w for load in loads for w in range(load.control, load.control + SLOT_WORDS)),
            ],
        )
    )
    return Source(
        kernel=kernel,
        target="numba",
        precision=precision,
        source=text,
        entry_point=f"{kernel.name}_lanes",
        lanes=True,
    )


def _render(kernel: Kernel, plan: Plan, index: int, target: str, precision: str) -> Source:
    part = _Part(plan.stages[index], index, len(plan.stages), plan.cells)
    dialect = _DIALECTS.get((target, precision))
    if dialect is None:
        known = ", ".join(f"{t}/{p}" for t, p in _DIALECTS)
        raise InputError(f"no generator for {target!r} in {precision!r}; known: {known}")
    context = _context(kernel, part, dialect, target, precision)
    # On JAX the sum is the runtime's: a kernel there is a function of columns, nothing more.
    last = part.index == part.count - 1
    costs = kernel.product is Product.COST and target != "jax" and last
    template = "cost" if costs else "element"
    if kernel.is_folded and target != "jax":
        template = f"rows_{template}"
    extension = "wgsl" if target == "wgsl" else "py"
    skeleton = template_environment().get_template(f"{target}/{template}.{extension}.j2")
    text = skeleton.render(context)
    if target != "wgsl":
        return Source(
            kernel=kernel,
            target=target,
            precision=precision,
            source=text,
            entry_point=kernel.name + part.suffix,
            stage=part.index,
            stages=part.count,
            cells=part.cells,
        )
    prelude = select_prelude(wgsl_prelude(precision), text)
    bindings: list[BindingKind] = ["uniform", "read", "read", "read", "write"]
    if context["jacobian"] or context.get("of_items"):
        bindings.append("write")
    if part.cells:
        bindings.append("write")
    return Source(
        kernel=kernel,
        target=target,
        precision=precision,
        source=f"{text}\n{prelude}" if prelude else text,
        entry_point="main",
        stage=part.index,
        stages=part.count,
        cells=part.cells,
        bindings=tuple(bindings),
        workgroup_size=WGSL_WORKGROUP_SIZE,
    )


@lru_cache(maxsize=1024)
def columns_function(graph: Graph, target: str, precision: str) -> str:
    """Python text of a function ``graph(arguments) -> outputs``, both sequences of columns.

    Args:
        graph: what to print.
        target: ``jax`` (a column is an array), or ``sympy`` (an expression).
        precision: ``float32``, ``float64``; of SymPy ``exact``.

    Raises:
        KernelError: a constant does not fit the precision.
    """
    dialect = _DIALECTS[target, precision]
    statements = print_statements(graph, dialect, leaf_name)
    used: dict[int, set[int]] = {}
    for node in graph.nodes:
        if node.op in ARGUMENT_LEAVES:
            argument, component = node.leaf
            used.setdefault(argument, set()).add(component)
    loads = [{"position": k, "components": sorted(used[k])} for k in sorted(used)]
    return (
        template_environment()
        .get_template(f"{target}/function.py.j2")
        .render(
            name="function",
            key=graph.key,
            product=graph.name,
            schedule="columns",
            precision=precision,
            version=GENERATOR_VERSION,
            loads=loads,
            statements=statements.lines,
            outputs=statements.outputs,
        )
    )


@lru_cache(maxsize=4)
def wgsl_prelude(precision: str) -> str:
    """All functions that kernels of a precision may call, in WGSL."""
    name = precision.replace("-", "_")
    template = template_environment().get_template(f"wgsl/prelude_{name}.wgsl.j2")
    if precision == "float32":
        return template.render()
    real = WGSL_REALS[precision]
    needed = real_constants(real)
    return template.render(
        real=real.type,
        unknown_zero=" + ag_zero()" if precision == EMULATED.precision else "",
        c=needed.constants,
        tables=needed.tables,
    )


def _compile_to(
    graph: Graph, product: str, precision: str, target: str, data: tuple[int, ...]
) -> Source:
    try:
        wanted = Product(product)
    except ValueError:
        known = ", ".join(p.value for p in Product)
        raise InputError(f"unknown product {product!r}; known: {known}") from None
    make: list[Callable[..., Any]] = [
        data_slot if k in data else parameter_slot for k in range(len(graph.arguments))
    ]
    slots = [make[k](a.shape) for k, a in enumerate(graph.arguments)]
    return render(make_kernel(topology_of(graph, slots), wanted), target, precision)


def compile_to_wgsl(
    graph: Graph,
    product: str = "residual_jacobian",
    precision: str = "float32",
    data: tuple[int, ...] = (),
) -> Source:
    """WGSL text of a product of a residual graph.

    Args:
        graph: a traced residual.
        product: ``residual``, ``cost`` or ``residual_jacobian``.
        precision: ``float32``, ``float64-native`` or ``float64-emulated``.
        data: positions of arguments that are data and not differentiated.
    """
    return _compile_to(graph, product, precision, "wgsl", data)


def compile_to_numba(
    graph: Graph,
    product: str = "residual_jacobian",
    precision: str = "float64",
    data: tuple[int, ...] = (),
) -> Source:
    """Python text, ready for Numba, of a product; arguments as for ``compile_to_wgsl``."""
    return _compile_to(graph, product, precision, "numba", data)


def compile_to_jax(
    graph: Graph,
    product: str = "residual_jacobian",
    precision: str = "float64",
    data: tuple[int, ...] = (),
) -> Source:
    """Python text for JAX of a product; arguments as for ``compile_to_wgsl``.

    The function takes, per slot, a sequence of columns (one array per component), and returns
    lists of residuals and of those Jacobian entries that vary; of ``cost``, ½‖r‖² per element.
    """
    return _compile_to(graph, product, precision, "jax", data)
