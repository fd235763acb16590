"""Generated kernels of a device-resident solve; each is one template over a few strings.

| kernel | one thread per | does |
|---|---|---|
| ``linearize_elements`` | element | stores residual and Jacobian of the groups that store them |
| ``slices_linearize`` | incidence | slices of heavy nodes' lists, added up before … |
| ``linearize_nodes`` | node | gradient, damped block factor, start of CG |
| ``slices_product`` | incidence | slices of heavy nodes' lists, added up before … |
| ``cg_product`` | node | w = (JᵀJ + λD) u and the dot products' partial sums |
| ``cg_update`` | node | all vectors of one single-reduction CG step |
| ``trial_step`` | component | the trial point and the sums for the predicted reduction |
| ``trial_elements`` | element | cost and change of cost in difference form |
| ``decide`` | (one workgroup) | gain ratio, damping, acceptance |

Source of the iteration: Chronopoulos and Gear 1989, "s-step iterative methods for symmetric
linear systems", s = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import chain
from typing import Any

from autograd_gpu.codegen.block_factor import block_factor, lower_index
from autograd_gpu.codegen.element_kernels import linearize_elements, trial_elements
from autograd_gpu.codegen.incidence import (
    SolveStructure,
    block_pattern,
    gradient_contribution,
    linearize_contribution,
    structure_key,
)
from autograd_gpu.codegen.printer import print_statements
from autograd_gpu.codegen.slice_kernels import slice_kernel, with_slices
from autograd_gpu.codegen.solve_layout import set_row, sliced_kinds
from autograd_gpu.codegen.solve_texts import (
    Body,
    SolveKernel,
    common_context,
    incidence_body,
    kept_kernels,
    mentions,
    node_context,
    quads_of,
    render_kernel,
)
from autograd_gpu.codegen.tangent_product import product_of
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.rewrite import RULES


@lru_cache(maxsize=8)
def damping_scale(form: str) -> Graph:
    """D of a diagonal entry of JᵀJ; the same forms as on the host."""
    b = Builder(RULES)
    entry, one = b.input(0, 0), b.constant(1.0)
    if form == "diagonal":
        value = b.apply("minimum", b.apply("maximum", entry, b.constant(1e-6)), b.constant(1e32))
    elif form == "one-plus-norm":
        root = b.apply("add", one, b.apply("sqrt", entry))
        value = b.apply("mul", root, root)
    else:
        value = one
    return Graph.build(b, [value], [Argument("entry", ())], None, "damping_scale")


def product_bodies(structure: SolveStructure, node_set: int) -> list[Body]:
    """What incidences of each kind of a node set add to JᵀJ v."""
    return [
        incidence_body(structure, node_set, k, product_of(kind))
        for k, kind in enumerate(structure.kinds[node_set])
    ]


def linearize_bodies(structure: SolveStructure, node_set: int) -> list[Body]:
    """What incidences of each kind of a node set add to its gradient and diagonal block."""
    make = partial(linearize_contribution, width=structure.node_sets[node_set].width)
    return [
        incidence_body(structure, node_set, k, make) for k in range(len(structure.kinds[node_set]))
    ]


def product_parts(
    structure: SolveStructure, node_set: int
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Context and buffers of ``cg_product``."""
    bodies = product_bodies(structure, node_set)
    bodies = with_slices(structure, node_set, bodies, product=True)
    context = node_context(structure, node_set, bodies, f"cg_product_{node_set}")
    context["reads_parameters"] = any(
        kind.walked and not structure.groups[kind.group].stored
        for kind in structure.kinds[node_set]
    )
    context["coarse"] = None
    buffers = {"tables": False, "vectors": True, "partials": True, "state": True}
    if context["reads_parameters"]:
        buffers["parameters"] = False
    if mentions(bodies, "jacobian["):
        buffers["jacobian"] = False
    return context, buffers


def cg_product(structure: SolveStructure, node_set: int) -> SolveKernel:
    """Product w = (JᵀJ + λD) u over one node set, with the partial sums of r·u and w·u."""
    context, buffers = product_parts(structure, node_set)
    return render_kernel(context["name"], "solve/cg_product", buffers, context)


def linearize_nodes(structure: SolveStructure, node_set: int) -> SolveKernel:
    """Gradient, damped diagonal block and its factor over one node set; CG is set to its start."""
    width = structure.node_sets[node_set].width
    bodies = linearize_bodies(structure, node_set)
    bodies = with_slices(structure, node_set, bodies, product=False)
    pattern = block_pattern(structure, node_set)
    block = block_factor(width, pattern)
    dialect = structure.real.dialect
    scale = print_statements(damping_scale(structure.damping), dialect, lambda _, k: "h")
    factor = print_statements(block.factor, dialect, lambda _, k: f"h{k}", "q")
    start = print_statements(
        block.solve, dialect, lambda s, k: factor.outputs[k] if s == 0 else f"b{k}", "m"
    )
    context = node_context(structure, node_set, bodies, f"linearize_nodes_{node_set}")
    context |= {
        "used": [*range(width), *sorted(width + p for p in pattern)],
        "diagonal": [lower_index(a, a) for a in range(width)],
        "pattern": sorted(pattern),
        "damping_scale": scale,
        "factor": factor.lines,
        "quads": quads_of(factor.outputs, structure.real.zero),
        "start": start.lines,
        "preconditioned": list(enumerate(start.outputs)),
        "triangle": [(lower_index(a, b), a, b) for a in range(width) for b in range(a + 1)],
    }
    buffers = {
        "tables": False,
        "vectors": True,
        "factors": True,
        "partials": True,
        "state": True,
        "parameters": False,
    }
    if mentions(bodies, "jacobian["):
        buffers["jacobian"] = False
    return render_kernel(context["name"], "solve/linearize_nodes", buffers, context)


def update_parts(structure: SolveStructure) -> tuple[dict[str, Any], dict[str, bool]]:
    """Context and buffers of ``cg_update``."""
    sets: list[dict[str, Any]] = []
    for k, nodes in enumerate(structure.node_sets):
        block = block_factor(nodes.width, block_pattern(structure, k))
        solve = print_statements(
            block.solve,
            structure.real.dialect,
            lambda s, a: f"l{a // 4}.{'xyzw'[a % 4]}" if s == 0 else f"r{a}",
            "m",
        )
        sets.append(
            {
                "row": set_row(k),
                "width": nodes.width,
                "quads": -(-block.stored // 4),
                "statements": solve.lines,
                "outputs": list(enumerate(solve.outputs)),
            }
        )
    context = {**common_context(structure, "cg_update"), "sets": sets, "coarse": None}
    return context, {"vectors": True, "factors": False, "partials": False, "state": True}


def cg_update(structure: SolveStructure) -> SolveKernel:
    """One CG step over all node sets, after their products."""
    context, buffers = update_parts(structure)
    return render_kernel("cg_update", "solve/cg_update", buffers, context)


@lru_cache(maxsize=64)
def record_kernels(structure: SolveStructure) -> dict[str, SolveKernel]:
    """``linearize_elements`` for programs that need no other kernel of a solve."""
    if not any(group.stored for group in structure.groups):
        return {}
    return kept_kernels(
        "record kernels",
        structure_key(structure),
        lambda: linearize_elements(structure),
    )


def trial_step(structure: SolveStructure) -> SolveKernel:
    """The trial point in the other half, and the sums for the predicted reduction."""
    buffers = {"parameters": True, "vectors": False, "partials": True, "state": False}
    return render_kernel(
        "trial_step", "solve/trial_step", buffers, common_context(structure, "trial_step")
    )


def decide(structure: SolveStructure) -> SolveKernel:
    """Gain ratio, acceptance and damping from the partial sums; one workgroup."""
    buffers = {"partials": False, "state": True, "record": True}
    context = {
        **common_context(structure, "decide"),
        # Its sums must fit into the 16 KiB of shared memory that every device grants.
        "workgroup_size": structure.workgroup_size // structure.real.words,
        "step_threads": structure.workgroup_size,
    }
    return render_kernel("decide", "solve/decide", buffers, context)


def gather_gradient(structure: SolveStructure, node_set: int) -> SolveKernel:
    """Jᵀr over one node set, by gathering; recomputes everything, stores the result only."""
    bodies = [
        incidence_body(structure, node_set, k, gradient_contribution)
        for k in range(len(structure.kinds[node_set]))
    ]
    context = node_context(structure, node_set, bodies, f"gather_gradient_{node_set}")
    buffers = {"tables": False, "parameters": False, "result": True}
    return render_kernel(context["name"], "solve/gather_gradient", buffers, context)


@lru_cache(maxsize=64)
def gradient_kernels(structure: SolveStructure) -> dict[str, SolveKernel]:
    """Kernels of Jᵀr by gathering, by name, one a node set."""
    sets = range(len(structure.node_sets))
    return kept_kernels(
        "gradient kernels",
        structure_key(structure),
        lambda: [gather_gradient(structure, k) for k in sets],
    )


class Told:
    """Whom to tell of each kernel that is made; no part of what kernels are cached by."""

    def __init__(self, of: Callable[[SolveKernel], None]) -> None:
        self.of = of

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Told)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=64)
def element_kernels(structure: SolveStructure, told: Told) -> dict[str, SolveKernel]:
    """Those of ``solve_kernels`` that hold the residual function: they take longest to compile.

    Whoever is told hears of each as soon as there is its text, and of none that was kept.
    """

    def make() -> Iterator[SolveKernel]:
        for kernel in chain(linearize_elements(structure), trial_elements(structure)):
            told.of(kernel)
            yield kernel

    return kept_kernels("element kernels", structure_key(structure), make)


@lru_cache(maxsize=64)
def solve_kernels(structure: SolveStructure) -> dict[str, SolveKernel]:
    """All kernels of a solve by name."""
    others = kept_kernels("solve kernels", structure_key(structure), lambda: _others(structure))
    return {**element_kernels(structure, Told(lambda _: None)), **others}


def _others(structure: SolveStructure) -> list[SolveKernel]:
    kernels: list[SolveKernel] = []
    sets = range(len(structure.node_sets))
    if sliced_kinds(structure):
        linearized = [linearize_bodies(structure, k) for k in sets]
        kernels.append(slice_kernel(structure, linearized, product=False))
        products = [product_bodies(structure, k) for k in sets]
        kernels.append(slice_kernel(structure, products, product=True))
    for k in sets:
        kernels += [linearize_nodes(structure, k), cg_product(structure, k)]
    return [*kernels, cg_update(structure), trial_step(structure), decide(structure)]
