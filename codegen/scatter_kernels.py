"""Generated kernels of single products of a problem, by how they add into shared parameters.

| accumulation | one thread per | adds by |
|---|---|---|
| ``gather`` | node (or a team) | walking the node's incident elements; nothing is shared |
| ``two-level`` | element, then node | lists in shared memory, then the partial sums of workgroups |
| ``atomic-native`` | element | ``atomicAdd`` on ``atomic<f32>``, where the device has it |
| ``atomic-cas`` | element | ``atomicCompareExchangeWeak`` on the bits, everywhere |

The first two give the same bits in every run. The products are those of ``PRODUCTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autograd_gpu.codegen.element_parts import Contribution, column_offsets
from autograd_gpu.codegen.incidence import (
    ElementContribution,
    GroupStructure,
    Kind,
    NodeSlot,
    SolveStructure,
    block_contribution,
    element_contribution,
    gradient_contribution,
    structure_key,
)
from autograd_gpu.codegen.kernel import GENERATOR_VERSION
from autograd_gpu.codegen.printer import select_prelude
from autograd_gpu.codegen.render import template_environment, wgsl_prelude
from autograd_gpu.codegen.solve_layout import control_rows, set_row
from autograd_gpu.codegen.solve_texts import (
    Body,
    Loader,
    SolveKernel,
    element_body,
    incidence_body,
    kept_kernels,
    lines_of,
    number_context,
)
from autograd_gpu.codegen.tangent_product import product_of
from autograd_gpu.errors import DeviceLimitError

ACCUMULATIONS = ("gather", "two-level", "atomic-native", "atomic-cas")

SHARED_WORDS = 4096
"""Shared memory of a workgroup that every WebGPU device grants: 16 KiB."""

FLOAT32_ACCUMULATIONS = ("atomic-native", "atomic-cas")
"""Those that WGSL's atomics, of 32 bits, leave in float32."""

BLOCK_DIAGONAL = "block_diagonal"

_VECTOR_WORDS = {"jtj_product": "vectors"}
_BASES = {"gradient": "y", "jtj_product": "z", BLOCK_DIAGONAL: "w"}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorStructure:
    """What the generated text depends on.

    Attributes:
        solve: the problem's structure.
        accumulations: one of ``ACCUMULATIONS`` per group.
        teams: ``two-level``: threads that share one node's partial sums, per node set.
    """

    solve: SolveStructure
    accumulations: tuple[str, ...]
    teams: tuple[int, ...]

    def groups_by(self, *accumulations: str) -> tuple[int, ...]:
        """Groups that accumulate in one of these ways."""
        return tuple(g for g, a in enumerate(self.accumulations) if a in accumulations)

    @property
    def gathers(self) -> bool:
        """Whether nodes are gathered: the first to write a result, or there is nothing else."""
        return bool(self.groups_by("gather")) or not self.accumulations

    @property
    def reductions(self) -> tuple[tuple[int, int], ...]:
        """(group, node set) pairs that have partial sums per workgroup; none but ``two-level``."""
        return tuple(
            (g, k)
            for g in self.groups_by("two-level")
            for k in sorted({s.node_set for s in self.solve.groups[g].places})
        )

    @property
    def reduced_sets(self) -> tuple[int, ...]:
        """Node sets that sums over workgroups are written to: all, unless gathering wrote them."""
        if not self.reductions:
            return ()
        if not self.gathers:
            return tuple(range(len(self.solve.node_sets)))
        return tuple(sorted({k for _, k in self.reductions}))

    @property
    def control_rows(self) -> int:
        """Rows of the control block: the solve's, a row per node set, two per reduction."""
        return self.block_row(len(self.solve.node_sets)) + 2 * len(self.reductions)

    def block_row(self, node_set: int) -> int:
        """Row whose x is the first word of a node set's packed blocks."""
        return control_rows(self.solve) + node_set

    def reduction_row(self, g: int, node_set: int) -> int:
        """First of two rows: (workgroups, lists, entries, destinations), (nodes, partials …)."""
        return self.block_row(len(self.solve.node_sets)) + 2 * self.reductions.index((g, node_set))


def output_name(product: str) -> str:
    """Buffer that a product is written to."""
    return "blocks" if product == BLOCK_DIAGONAL else "result"


def triangle(width: int) -> int:
    """Entries of a packed lower triangle."""
    return width * (width + 1) // 2


def _frozen_bits(product: str, width: int) -> list[int]:
    """Mask bits that make each component, or packed entry, an exact zero."""
    if product != BLOCK_DIAGONAL:
        return [1 << a for a in range(width)]
    return [(1 << a) | (1 << b) for a in range(width) for b in range(a + 1)]


def _render(
    structure: OperatorStructure,
    name: str,
    template: str,
    buffers: dict[str, tuple[str, bool]],
    context: dict[str, Any],
    accumulation: str,
    group: int | None = None,
) -> SolveKernel:
    """Text of a kernel; ``buffers`` maps each bound buffer to (type, whether it is written).

    With ``group``, it is a kernel over the elements of that group, with workgroups of its size.
    """
    solve = structure.solve
    workgroup_size = solve.workgroup_size if group is None else solve.element_size(group)
    text = (
        template_environment()
        .get_template(f"wgsl/scatter/{template}.wgsl.j2")
        .render(
            name=name,
            version=GENERATOR_VERSION,
            accumulation=accumulation,
            **number_context(structure.solve),
            control_rows=structure.control_rows,
            workgroup_size=workgroup_size,
            bindings=[
                (k + 1, "read_write" if written else "read", buffer, kind)
                for k, (buffer, (kind, written)) in enumerate(buffers.items())
            ],
            **context,
        )
    )
    prelude = select_prelude(wgsl_prelude(structure.solve.precision), text)
    return SolveKernel(
        name=name,
        source=f"{text}\n{prelude}" if prelude else text,
        buffers=("control", *buffers),
        writes=frozenset(buffer for buffer, (_, written) in buffers.items() if written),
        workgroup_size=workgroup_size,
    )


def _inputs(bodies: Sequence[Body]) -> dict[str, tuple[str, bool]]:
    """The buffers that bodies read."""
    lines = [line for body in bodies for line in lines_of(body)]
    lines += [text for body in bodies for _, text in body.outputs]
    types = {"parameters": "unit", "vectors": "unit", "jacobian": "quad", "numbers": "real"}
    read = {b: t for b, t in types.items() if any(f"{b}[" in line for line in lines)}
    return {"tables": ("array<u32>", False)} | {b: (f"array<{t}>", False) for b, t in read.items()}


def _store_context(
    structure: OperatorStructure, product: str, node_set: int, used: Sequence[int]
) -> dict[str, Any]:
    """What ``store.wgsl.j2`` needs."""
    nodes = structure.solve.node_sets[node_set]
    return {
        "row": set_row(node_set),
        "width": nodes.width,
        "masked": nodes.masked,
        "used": list(used),
        "frozen_bits": _frozen_bits(product, nodes.width),
        "packed": triangle(nodes.width) if product == BLOCK_DIAGONAL else 0,
        "block_row": structure.block_row(node_set),
        "output": output_name(product),
    }


def _output_type(product: str) -> str:
    return "array<real>" if product == BLOCK_DIAGONAL else "array<unit>"


# -- gather ------------------------------------------------------------------------------------


def _incidence(product: str, kind: Kind) -> Callable[[GroupStructure, int], Contribution]:
    """(group, place) -> what an element adds to the node at that place."""
    if product == "jtj_product":
        return product_of(kind)
    return gradient_contribution if product == "gradient" else block_contribution


def gather_nodes(structure: OperatorStructure, product: str, node_set: int) -> SolveKernel:
    """A product over one node set, by gathering."""
    solve = structure.solve
    nodes = solve.node_sets[node_set]
    bodies = [
        incidence_body(solve, node_set, k, _incidence(product, kind))
        for k, kind in enumerate(solve.kinds[node_set])
        if structure.accumulations[kind.group] == "gather"
    ]
    used = range(nodes.width)
    if product == BLOCK_DIAGONAL:
        used = sorted({a for body in bodies for a, _ in body.outputs})
    inputs = _inputs(bodies)
    recomputed = any(
        not solve.groups[kind.group].stored
        for kind in solve.kinds[node_set]
        if structure.accumulations[kind.group] == "gather"
    )
    if recomputed:
        inputs["parameters"] = ("array<unit>", False)
    if product in _VECTOR_WORDS:
        inputs["vectors"] = ("array<unit>", False)
    context = {
        **_store_context(structure, product, node_set, used),
        "kinds": bodies,
        "team": nodes.team,
        "own_parameters": recomputed,
        "own_direction": product in _VECTOR_WORDS,
    }
    output = {output_name(product): (_output_type(product), True)}
    return _render(
        structure, f"gather_{product}_{node_set}", "gather", inputs | output, context, "gather"
    )


# -- elements ----------------------------------------------------------------------------------


def _element_body(structure: SolveStructure, g: int, contribution: ElementContribution) -> Body:
    """One element of group ``g``; of what follows its slots it may read the vector."""
    columns = column_offsets(structure.groups[g])

    def vector(loader: Loader, k: int) -> str:
        node, a = columns[k]
        return loader.component("p", "vectors[0u", node.place, node.offset + a)

    places = [place for place, _ in contribution.targets]
    return element_body(structure, g, contribution.graph, vector, places)


def _place_context(
    structure: OperatorStructure, product: str, slot: NodeSlot, sums: list[tuple[int, str]]
) -> dict[str, Any]:
    """Where the sums of one place go."""
    nodes = structure.solve.node_sets[slot.node_set]
    bits = _frozen_bits(product, nodes.width)
    lanes = structure.solve.lanes
    word = f"o{slot.place} * {lanes}u" if lanes > 1 else f"o{slot.place}"
    if product == BLOCK_DIAGONAL:
        base = f"control[{structure.block_row(slot.node_set)}].x"
        word = f"{base} + n{slot.place} * {triangle(nodes.width)}u"
    return {
        "place": slot.place,
        "row": set_row(slot.node_set),
        "masked": nodes.masked,
        "word": word,
        "sums": [(a, bits[a], text) for a, text in sums],
    }


def clear_output(structure: OperatorStructure, product: str) -> SolveKernel:
    """Zeros in a product's buffer, one thread per word."""
    output = output_name(product)
    buffers = {output: ("array<u32>", True)}
    return _render(structure, f"clear_{output}", "clear", buffers, {"output": output}, "atomic")


def atomic_elements(structure: OperatorStructure, product: str, g: int) -> SolveKernel:
    """A product's contributions of one group, added to the output by atomics."""
    group = structure.solve.groups[g]
    contribution = element_contribution(group, product)
    body = _element_body(structure.solve, g, contribution)
    by_place: dict[int, list[tuple[int, str]]] = {}
    for (place, a), (_, text) in zip(contribution.targets, body.outputs, strict=True):
        by_place.setdefault(place, []).append((a, text))
    slots = {s.place: s for s in group.places}
    inputs = _inputs([body])
    output = output_name(product)
    accumulation = structure.accumulations[g]
    native = accumulation == "atomic-native"
    inputs[output] = (f"array<atomic<{'f32' if native else 'u32'}>>", True)
    context = {
        "body": body,
        "reads_parameters": "parameters" in inputs,
        "output": output,
        "places": [
            _place_context(structure, product, slots[p], sums) for p, sums in by_place.items()
        ],
    }
    return _render(structure, f"atomic_{product}_{g}", "atomic", inputs, context, accumulation, g)


# -- two levels --------------------------------------------------------------------------------


def partial_sums(group: GroupStructure, product: str, node_set: int) -> tuple[int, ...]:
    """Components (or packed positions) of a node set that a group's elements contribute to."""
    places = {s.place for s in group.places if s.node_set == node_set}
    targets = element_contribution(group, product).targets
    return tuple(sorted({a for place, a in targets if place in places}))


def places_of(group: GroupStructure, node_set: int) -> tuple[int, ...]:
    """Places of a group that are nodes of a set, ascending."""
    return tuple(s.place for s in group.places if s.node_set == node_set)


def _rounds(structure: OperatorStructure, product: str, g: int) -> list[dict[str, Any]]:
    """Cut a group's sums into rounds whose contributions fit into shared memory."""
    group = structure.solve.groups[g]
    targets = element_contribution(group, product).targets
    position = {target: k for k, target in enumerate(targets)}
    real = structure.solve.real
    room, zero = SHARED_WORDS // real.words, real.zero
    rounds: list[dict[str, Any]] = []
    workgroup = structure.solve.element_size(g)
    for k in sorted({s.node_set for s in group.places}):
        places = places_of(group, k)
        stride = len(places) * workgroup
        if stride > room:
            raise DeviceLimitError(
                f"residuals {group.kernel.name!r}: an element sees {len(places)} blocks, "
                f"two-level accumulation holds {room // workgroup} in "
                f"{4 * SHARED_WORDS} bytes of shared memory; use accumulation='gather'"
            )
        sums = partial_sums(group, product, k)
        step = room // stride
        for first in range(0, len(sums), step):
            chunk = sums[first : first + step]
            stores = [
                (
                    q * stride + i * workgroup,
                    f"s{position[p, a]}" if (p, a) in position else zero,
                )
                for q, a in enumerate(chunk)
                for i, p in enumerate(places)
            ]
            rounds.append(
                {
                    "row": structure.reduction_row(g, k),
                    "stores": stores,
                    "sums": len(chunk),
                    "stride": stride,
                    "record": len(sums),
                    "first": first,
                }
            )
    return rounds


def two_level_elements(structure: OperatorStructure, product: str, g: int) -> SolveKernel:
    """Partial sums of a product over the unique nodes of each workgroup of a group's elements."""
    group = structure.solve.groups[g]
    body = _element_body(structure.solve, g, element_contribution(group, product))
    rounds = _rounds(structure, product, g)
    inputs = _inputs([body])
    context = {
        "body": body,
        "reads_parameters": "parameters" in inputs,
        "rounds": rounds,
        "shared_words": max((r["sums"] * r["stride"] for r in rounds), default=1),
        "base": _BASES[product],
    }
    name = f"two_level_{product}_elements_{g}"
    inputs["partials"] = ("array<real>", True)
    return _render(structure, name, "two_level_elements", inputs, context, "two-level", g)


def two_level_nodes(structure: OperatorStructure, product: str, node_set: int) -> SolveKernel:
    """Sum of the workgroups' partial sums over one node set, in the order of workgroups."""
    solve = structure.solve
    sources: list[dict[str, Any]] = [
        {"row": structure.reduction_row(g, k), "sums": partial_sums(solve.groups[g], product, k)}
        for g, k in structure.reductions
        if k == node_set
    ]
    used: Sequence[int] = range(solve.node_sets[node_set].width)
    if product == BLOCK_DIAGONAL:
        used = sorted({a for source in sources for a in source["sums"]})
        if structure.gathers:  # the whole block is stored again
            used = range(triangle(solve.node_sets[node_set].width))
    context = {
        **_store_context(structure, product, node_set, used),
        "team": structure.teams[node_set],
        "sources": sources,
        "adds": structure.gathers,
        "base": _BASES[product],
    }
    buffers = {
        "tables": ("array<u32>", False),
        "partials": ("array<real>", False),
        output_name(product): (_output_type(product), True),
    }
    name = f"two_level_{product}_nodes_{node_set}"
    return _render(structure, name, "two_level_nodes", buffers, context, "two-level")


@lru_cache(maxsize=64)
def operator_kernels(structure: OperatorStructure, product: str) -> tuple[SolveKernel, ...]:
    """Kernels of a product in the order in which they run."""
    solve = structure_key(structure.solve)
    key = repr((solve, structure.accumulations, structure.teams, product))
    made = kept_kernels("operator kernels", key, lambda: _all_kernels(structure, product))
    return tuple(made.values())


def _all_kernels(structure: OperatorStructure, product: str) -> tuple[SolveKernel, ...]:
    """What gathers writes every node, two levels write or add to what is there, atomics add."""
    kernels: list[SolveKernel] = []
    if structure.gathers:
        sets = range(len(structure.solve.node_sets))
        kernels += [gather_nodes(structure, product, k) for k in sets]
    two_level = structure.groups_by("two-level")
    kernels += [two_level_elements(structure, product, g) for g in two_level]
    kernels += [two_level_nodes(structure, product, k) for k in structure.reduced_sets]
    if not kernels:
        kernels.append(clear_output(structure, product))
    atomic = structure.groups_by("atomic-native", "atomic-cas")
    return (*kernels, *(atomic_elements(structure, product, g) for g in atomic))
