"""Generated kernels of the coarse space; texts of the conjugate gradients with it.

| kernel | one workgroup per | does |
|---|---|---|
| ``coarse_pieces`` | part of a pair of aggregates | its block of Pᵀ(JᵀJ + λD)P, summed |
| ``coarse_matrix`` | 256 entries | adds the pieces up into a dense matrix |
| ``coarse_invert_0``, ``_1`` | strip of tiles | a block step of Gauss-Jordan to the other matrix |
| ``coarse_restrict`` | aggregate | Pᵀr at the start of conjugate gradients |
| ``coarse_prolong`` | 256 nodes | adds P (PᵀAP)⁻¹ Pᵀr to the first direction |
| ``cg_product_coarse`` | 256 threads | ``cg_product``, and sums of Pᵀw |
| ``cg_update_coarse`` | 256 nodes | ``cg_update``, with the coarse part of M⁻¹r |

Pᵀr follows r by the same recurrence, so an iteration takes no dispatch more than without. Each
workgroup of the update solves for its own aggregates only: a few rows of the inverse.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from autograd_gpu.codegen.block_factor import PIVOT_FLOOR
from autograd_gpu.codegen.coarse_layout import (
    LARGEST_SPACE,
    MODE_BITS,
    PIECE_WORDS,
    STRIP,
    TILE,
    UNKNOWN_WORDS,
    Header,
    SetWord,
    set_word,
)
from autograd_gpu.codegen.coarse_space import (
    ARM,
    FREE,
    FREE_STRIDE,
    NODE_VECTOR,
    SIDE,
    CoarseStructure,
    damping_block,
    element_block,
    prolongation,
    restriction,
)
from autograd_gpu.codegen.element_parts import STORED_JACOBIAN, Contribution
from autograd_gpu.codegen.incidence import structure_key
from autograd_gpu.codegen.printer import WGSL_FLOAT32, print_statements
from autograd_gpu.codegen.solve_kernels import product_parts, update_parts
from autograd_gpu.codegen.solve_layout import element_columns, group_row, set_row
from autograd_gpu.codegen.solve_texts import (
    Loader,
    SolveKernel,
    common_context,
    kept_kernels,
    render_kernel,
)


def _words(node_set: int) -> dict[str, str]:
    """Name of a node set's word -> where it is read."""
    return {w.name.lower(): f"coarse[{set_word(node_set, w)}u]" for w in SetWord}


def _context(coarse: CoarseStructure, name: str) -> dict[str, Any]:
    return {
        **common_context(coarse.solve, name),
        "header": {w.name.lower(): f"coarse[{w.value}u]" for w in Header},
        "largest_space": LARGEST_SPACE,
        "unknown_words": UNKNOWN_WORDS,
        "piece_words": PIECE_WORDS,
        "mode_bits": MODE_BITS,
        "most": coarse.most,
        "tile": TILE,
        "strip": STRIP,
        "pivot_floor": PIVOT_FLOOR,
    }


def _set_context(coarse: CoarseStructure, node_set: int) -> dict[str, Any]:
    """What the templates say about a node set's modes.

    A vector's components are called ``a0``, …, those of a coarse vector ``y0``, …, the arm's
    ``arm0``, ….
    """
    modes, nodes = coarse.modes[node_set], coarse.solve.node_sets[node_set]

    def leaf(slot: int, k: int) -> str:
        return f"a{k}" if slot == NODE_VECTOR else f"arm{k}"

    def mode_leaf(slot: int, k: int) -> str:
        return f"y{k}" if slot == NODE_VECTOR else f"arm{k}"

    down = print_statements(restriction(modes, nodes.width), WGSL_FLOAT32, leaf, "c")
    up = print_statements(prolongation(modes, nodes.width), WGSL_FLOAT32, mode_leaf, "c")
    return {
        "row": set_row(node_set),
        "width": nodes.width,
        "masked": nodes.masked,
        "team": nodes.team,
        "modes": modes.count,
        "position": modes.position,
        "at": _words(node_set),
        "restrict": {"lines": down.lines, "outputs": list(enumerate(down.outputs))},
        "prolong": {"lines": up.lines, "outputs": list(enumerate(up.outputs))},
    }


class _PieceLoader(Loader):
    """Loads for an element of a pair of aggregates, numbered ``later`` and ``earlier``."""

    def __init__(self, coarse: CoarseStructure, g: int) -> None:
        group = coarse.solve.groups[g]
        super().__init__(coarse.solve, group, element_columns(group), "e")
        self.coarse = coarse
        self.row = group_row(coarse.solve, g)

    def leaf(self, slot: int, k: int) -> str:
        """A leaf of ``element_block``."""
        slots = self.group.kernel.slots
        if slot < len(slots):
            node = self.group.slots[slot]
            if node is None:
                return self.data(slot, k)
            return self.component("x", "parameters[half", node.place, node.offset + k)
        what = slot - len(slots)
        if what == ARM:
            return self.arm(*divmod(k, 3))
        if what == SIDE:
            return self.side(*divmod(k, 2))
        if what == FREE:
            return self.free(*divmod(k, FREE_STRIDE))
        record = self.once("j", f"control[{self.row}].w + e * {self.group.record_quads}u")
        return self.record(record, k if what == STORED_JACOBIAN else self.group.stored_entries + k)

    def arm(self, place: int, axis: int) -> str:
        """A coordinate of the arm of an element's node."""
        k = self.group.places[place].node_set
        position = self.coarse.modes[k].position
        assert position is not None
        quotient, remainder = divmod(position + axis, self.structure.lanes)
        units = self.structure.node_sets[k].width // self.structure.lanes
        number = self.table(("node", place, 0), f"n{place}")
        size = _words(k)["size"]
        row = f"control[{set_row(k)}]"
        centre = self.once(f"m{place}", f"{row}.y + middle({number}, {size}, {row}.x) * {units}u")
        unit = self.once(f"y{place}_{quotient}", f"parameters[half + {centre} + {quotient}u]")
        lane = "" if self.structure.lanes == 1 else f".{'xyzw'[remainder]}"
        own = self.component("x", "parameters[half", place, position + axis)
        return self.once(f"arm{place}_{axis}", f"{own} - {unit}{lane}")

    def side(self, place: int, side: int) -> str:
        """1 if an element's node is in the later (0) or earlier (1) aggregate, else 0."""
        words = _words(self.group.places[place].node_set)
        number = self.table(("node", place, 0), f"n{place}")
        own = self.once(f"g{place}", f"{words['first_aggregate']} + {number} / {words['size']}")
        other = ("later", "earlier")[side]
        return self.once(f"s{place}_{side}", f"select(0.0f, 1.0f, {own} == {other})")

    def free(self, place: int, a: int) -> str:
        """0 if component ``a`` of an element's node is frozen, else 1."""
        number = self.table(("node", place, 0), f"n{place}")
        start = _words(self.group.places[place].node_set)["mask"]
        mask = self.once(f"b{place}", f"coarse[{start} + {number}]")
        return self.once(f"f{place}_{a}", f"f32(1u - (({mask} >> {a}u) & 1u))")


def _outputs(block: Contribution, texts: tuple[str, ...]) -> list[tuple[int, str]]:
    return list(zip(block.targets, texts, strict=True))


def coarse_pieces(coarse: CoarseStructure) -> SolveKernel:
    """Blocks of Pᵀ(JᵀJ + λD)P between two aggregates, from a part of what they have in common."""
    elements: list[dict[str, Any]] = []
    for g, later, earlier in coarse.pairs:
        block = element_block(coarse, g, later, earlier)
        loader = _PieceLoader(coarse, g)
        printed = print_statements(block.graph, WGSL_FLOAT32, loader.leaf)
        outputs = _outputs(block, printed.outputs)
        elements.append(
            {"row": loader.row, "lines": [*loader.lines, *printed.lines], "outputs": outputs}
        )
    nodes: list[dict[str, Any]] = []
    for k, modes in enumerate(coarse.modes):
        if modes.count:
            context = _set_context(coarse, k)
            block = damping_block(modes, context["width"])
            printed = print_statements(
                block.graph, WGSL_FLOAT32, lambda s, j: f"a{j}" if s == NODE_VECTOR else f"arm{j}"
            )
            outputs = _outputs(block, printed.outputs)
            nodes.append({**context, "lines": printed.lines, "outputs": outputs})
    context = _context(coarse, "coarse_pieces")
    context |= {"elements": elements, "nodes": nodes, "block": coarse.most**2}
    buffers = {
        "tables": False,
        "vectors": False,
        "parameters": False,
        "state": False,
        "coarse": False,
        "coarse_sums": True,
    }
    if any("jacobian[" in line for body in elements for line in body["lines"]):
        buffers["jacobian"] = False
    return render_kernel("coarse_pieces", "solve/coarse_pieces", buffers, context)


def coarse_matrix(coarse: CoarseStructure) -> SolveKernel:
    """The dense coarse matrix, its diagonal, and the counter of inversion steps at zero."""
    context = {**_context(coarse, "coarse_matrix"), "block": coarse.most**2}
    buffers = {"coarse": False, "coarse_sums": True, "coarse_matrix": True}
    return render_kernel("coarse_matrix", "solve/coarse_matrix", buffers, context)


def coarse_invert(coarse: CoarseStructure, source: int) -> SolveKernel:
    """One block step of Gauss-Jordan from matrix ``source`` to the other one."""
    name = f"coarse_invert_{source}"
    context = {**_context(coarse, name), "source": source}
    buffers = {"coarse": False, "coarse_sums": True, "coarse_matrix": True}
    return render_kernel(name, "solve/coarse_invert", buffers, context)


def _sets(coarse: CoarseStructure) -> list[dict[str, Any]]:
    return [_set_context(coarse, k) for k, m in enumerate(coarse.modes) if m.count]


def coarse_restrict(coarse: CoarseStructure) -> SolveKernel:
    """Pᵀr of each aggregate."""
    context = {**_context(coarse, "coarse_restrict"), "sets": _sets(coarse)}
    buffers = {
        "vectors": False,
        "parameters": False,
        "state": False,
        "coarse": False,
        "coarse_sums": True,
    }
    return render_kernel("coarse_restrict", "solve/coarse_restrict", buffers, context)


def coarse_prolong(coarse: CoarseStructure) -> SolveKernel:
    """The coarse part of the first preconditioned residual."""
    context = {**_context(coarse, "coarse_prolong"), "sets": _sets(coarse)}
    buffers = {
        "vectors": True,
        "parameters": False,
        "state": False,
        "coarse": False,
        "coarse_sums": False,
        "coarse_matrix": False,
    }
    return render_kernel("coarse_prolong", "solve/coarse_prolong", buffers, context)


def cg_product_coarse(coarse: CoarseStructure, node_set: int) -> SolveKernel:
    """``cg_product`` that also sums Pᵀw over chunks of nodes."""
    context, buffers = product_parts(coarse.solve, node_set)
    name = f"cg_product_coarse_{node_set}"
    context |= {**_context(coarse, name), "coarse": _set_context(coarse, node_set)}
    buffers |= {"parameters": False, "coarse": False, "coarse_sums": True}
    return render_kernel(name, "solve/cg_product", buffers, context)


def cg_update_coarse(coarse: CoarseStructure) -> SolveKernel:
    """``cg_update`` with the coarse part of the preconditioner."""
    context, buffers = update_parts(coarse.solve)
    context |= _context(coarse, "cg_update_coarse")
    context["coarse"] = True
    for k, row in enumerate(context["sets"]):
        row["coarse"] = _set_context(coarse, k) if coarse.modes[k].count else None
    buffers |= {
        "parameters": False,
        "coarse": False,
        "coarse_sums": True,
        "coarse_matrix": False,
    }
    return render_kernel("cg_update_coarse", "solve/cg_update", buffers, context)


@lru_cache(maxsize=64)
def coarse_kernels(coarse: CoarseStructure) -> dict[str, SolveKernel]:
    """All kernels that a coarse space adds to a solve, by name."""
    key = repr((structure_key(coarse.solve), coarse.modes))
    return kept_kernels("coarse kernels", key, lambda: _all_kernels(coarse))


def _all_kernels(coarse: CoarseStructure) -> list[SolveKernel]:
    return [
        coarse_pieces(coarse),
        coarse_matrix(coarse),
        coarse_invert(coarse, 0),
        coarse_invert(coarse, 1),
        coarse_restrict(coarse),
        coarse_prolong(coarse),
        *(cg_product_coarse(coarse, k) for k, m in enumerate(coarse.modes) if m.count),
        cg_update_coarse(coarse),
    ]
