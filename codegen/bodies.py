"""Bodies of kernels for the templates: what is loaded, computed and stored for an element."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from autograd_gpu.codegen.fold_printer import Loop, print_folded
from autograd_gpu.codegen.kernel import Kernel, Product
from autograd_gpu.codegen.layout import HEADER_WORDS, SLOT_WORDS
from autograd_gpu.codegen.printer import Dialect, print_statements
from autograd_gpu.codegen.stages import Stage
from autograd_gpu.ir import ARGUMENT_LEAVES, Graph


@dataclass(frozen=True, slots=True)
class Load:
    """How one slot is read; ``components`` are those that the kernel uses."""

    position: int
    kind: str
    control: int
    ambient: int
    components: tuple[int, ...]


def _by_slot(kernel: Kernel, leaves: Iterable[tuple[int, int]]) -> dict[int, set[int]]:
    """Components of each slot; those of the intermediate buffer, if any, come after the slots."""
    used: dict[int, set[int]] = {k: set() for k in range(len(kernel.slots))}
    for slot, component in leaves:
        used.setdefault(slot, set()).add(component)
    return used


def _leaves(graph: Graph, *kinds: str) -> list[tuple[int, int]]:
    return [node.leaf for node in graph.nodes if node.op in kinds]


def leaf_name(slot: int, component: int) -> str:
    """Name of a component of a slot, once loaded."""
    return f"s{slot}_{component}"


def _control_row(slot: int, target: str) -> int:
    """Where a slot's words begin: a word of the control block, or a row of four in WGSL."""
    return (HEADER_WORDS + SLOT_WORDS * slot) // (4 if target == "wgsl" else 1)


def _loads(kernel: Kernel, used: dict[int, set[int]], target: str) -> list[Load]:
    return [
        Load(
            position=k,
            kind=slot.kind.value,
            control=_control_row(k, target),
            ambient=slot.ambient,
            components=tuple(sorted(used[k])),
        )
        for k, slot in enumerate(kernel.slots)
        if used[k]
    ]


def straight_body(kernel: Kernel, stage: Stage, dialect: Dialect, target: str) -> dict[str, Any]:
    """Straight-line statements."""
    buffer = len(kernel.slots)
    statements = print_statements(stage.graph, dialect, leaf_name)
    used = _by_slot(kernel, _leaves(stage.graph, *ARGUMENT_LEAVES))
    text = dict(zip(stage.outputs, statements.outputs, strict=False))
    m = kernel.residual_size if kernel.product is not Product.COST else 1
    stored = [(e.output, k) for k, e in enumerate(kernel.entries) if e.output is not None]
    # WGSL stores what varies, densely; on the host an element's row holds the constants too.
    position = {o: (o if target == "wgsl" else k) for o, k in stored}
    return {
        "loads": _loads(kernel, used, target),
        "statements": statements.lines,
        "residuals": [(k, text[k]) for k in range(m) if k in text],
        "jacobian": [(position[o], text[m + o]) for o, _ in stored if m + o in text],
        "fetched": sorted(used.get(buffer, ())),
        "kept": list(zip(stage.stores, statements.outputs[len(stage.outputs) :], strict=True)),
    }


def folded_body(kernel: Kernel, stage: Stage, dialect: Dialect, target: str) -> dict[str, Any]:
    """Loops over long rows; Jacobian entries at (plain, rows): plain + rows · capacity."""
    m = kernel.residual_size if kernel.product is not Product.COST else 1
    per_item = [m + e.output for e in kernel.entries if e.per_item and e.output is not None]
    printed = print_folded(stage.graph, dialect, leaf_name, per_item)
    places: dict[bool, list[tuple[int, int, str]]] = {False: [], True: []}  # per item or not
    plain = rows = 0
    for entry in kernel.entries:
        if entry.output is not None:
            places[entry.per_item].append((plain, rows, printed.outputs[m + entry.output]))
        elif target == "wgsl":
            continue
        plain, rows = plain + (not entry.per_item), rows + entry.per_item
    used = _by_slot(kernel, _leaves(stage.graph, "input"))
    loops = [_loop_context(kernel, loop, target) for loop in printed.loops]
    return {
        "loads": _loads(kernel, used, target),
        "row_controls": [
            (k, _control_row(k, target)) for k, s in enumerate(kernel.slots) if s.is_row
        ],
        "loops": loops,
        "statements": printed.after,
        "residuals": list(enumerate(printed.outputs[:m])),
        "jacobian": places[False],
        "of_items": places[True],
        "last": [_loop_context(kernel, printed.last, target)] if printed.last else [],
        "fetched": [],
    }


def _loop_context(kernel: Kernel, loop: Loop, target: str) -> dict[str, Any]:
    used = _by_slot(kernel, loop.components)
    return {
        "before": loop.before,
        "starts": loop.starts,
        "loads": _loads(kernel, used, target),
        "body": loop.body,
        "steps": loop.steps,
    }
