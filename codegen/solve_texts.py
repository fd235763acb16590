"""What texts of a resident solve are made of: loads of elements and incidences, bindings, names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from autograd_gpu.codegen.element_parts import STORED_JACOBIAN, VECTOR, Contribution, column_offsets
from autograd_gpu.codegen.incidence import (
    WORKGROUP_SIZE,
    GroupStructure,
    Kind,
    SolveStructure,
)
from autograd_gpu.codegen.kept import kept
from autograd_gpu.codegen.kernel import GENERATOR_VERSION
from autograd_gpu.codegen.printer import print_statements, select_prelude
from autograd_gpu.codegen.render import template_environment, wgsl_prelude
from autograd_gpu.codegen.solve_layout import (
    ELEMENT_SUMS,
    STEP_SUMS,
    Column,
    Vector,
    control_rows,
    element_columns,
    group_row,
    kind_columns,
    kind_row,
    number_columns,
    set_row,
    table_columns,
)
from autograd_gpu.ir import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveKernel:
    """Text of one kernel, and the names of the buffers that it binds, by position."""

    name: str
    source: str
    buffers: tuple[str, ...]
    writes: frozenset[str]
    workgroup_size: int = WORKGROUP_SIZE


@dataclass(frozen=True, slots=True)
class SliceSums:
    """Where sums over slices of a kind's lists are read.

    Attributes:
        row: control row of the kind's slices.
        all_row: control row of all slices.
        stride: numbers of a slice.
        complete: no node walks its own list.
    """

    row: int
    all_row: int
    stride: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Body:
    """Loads and statements of one element or incidence, and what each output is added to.

    With ``slices`` the lists of heavy nodes are not walked: sums over their slices are added. If
    none else are there, nothing is loaded, and ``outputs`` only says what is summed.
    """

    row: int
    unit: bool
    loads: tuple[str, ...]
    statements: tuple[str, ...]
    outputs: tuple[tuple[int, str], ...]
    slices: SliceSums | None = None


class Loader:
    """Collects the loads that a graph's leaves need, each once, in order of first use."""

    def __init__(
        self,
        structure: SolveStructure,
        group: GroupStructure,
        columns: tuple[Column, ...],
        index: str,
    ) -> None:
        self.structure = structure
        self.group = group
        self.columns = columns
        self.index = index
        self.lines: list[str] = []
        self._seen: set[str] = set()

    def once(self, name: str, text: str) -> str:
        """Emit ``let name = text`` unless it is there already; returns the name."""
        if name not in self._seen:
            self._seen.add(name)
            self.lines.append(f"let {name} = {text};")
        return name

    def table(self, column: Column, name: str) -> str:
        """A column of the table, as u32."""
        position = table_columns(self.structure, self.columns).index(column)
        return self.once(name, f"tables[c.y + {position}u * c.z + {self.index}]")

    def node(self, place: int) -> str:
        """Word offset of an element's node inside a vector."""
        slot = self.group.places[place]
        number = self.table(("node", place, 0), f"n{place}")
        width = self.structure.node_sets[slot.node_set].width // self.structure.lanes
        base = f"control[{set_row(slot.node_set)}].y"
        return self.once(f"o{place}", f"{base} + {number} * {width}u")

    def component(self, prefix: str, array: str, place: int, a: int) -> str:
        """Component ``a`` of a node in an array of the layout of vectors."""
        quotient, remainder = divmod(a, self.structure.lanes)
        name = f"{prefix}{place}_{quotient}"
        unit = self.once(name, f"{array} + {self.node(place)} + {quotient}u]")
        return unit if self.structure.lanes == 1 else f"{unit}.{'xyzw'[remainder]}"

    def record(self, base: str, k: int) -> str:
        """Word ``k`` of a stored record that begins at quad ``base``."""
        quad = self.once(f"j_{k // 4}", f"jacobian[{base} + {k // 4}u]")
        return f"{quad}.{'xyzw'[k % 4]}"

    def data(self, slot: int, component: int) -> str:
        """A number of a data slot."""
        column, name = ("data", slot, component), f"d{slot}_{component}"
        if self.structure.numbers_apart:
            position = number_columns(self.structure, self.columns).index(column)
            return self.once(name, f"numbers[c.w + {position}u * c.z + {self.index}]")
        word = self.table(column, f"w{slot}_{component}")
        return self.once(name, f"bitcast<f32>({word})")


def common_context(structure: SolveStructure, name: str) -> dict[str, Any]:
    """What every template of a solve uses."""
    return {
        **number_context(structure),
        "name": name,
        "version": GENERATOR_VERSION,
        "control_rows": control_rows(structure),
        "workgroup_size": structure.workgroup_size,
        "vector": {v.name.lower(): int(v) for v in Vector},
        "step_sums": STEP_SUMS,
        "element_sums": ELEMENT_SUMS,
    }


def number_context(structure: SolveStructure) -> dict[str, Any]:
    """How templates write numbers of the structure's type."""
    real, lanes = structure.real, structure.lanes
    return {
        "precision": real.precision,
        "real": real.type,
        "zero": real.zero,
        "forms": real.forms,
        "vectors_of_reals": not structure.numbers_apart,
        "lanes": lanes,
        "unit": real.type if lanes == 1 else f"vec{lanes}<{real.type}>",
    }


_BUFFER_TYPES = {
    "parameters": "array<unit>",
    "vectors": "array<unit>",
    "factors": "array<quad>",
    "tables": "array<u32>",
    "numbers": "array<real>",
    "jacobian": "array<quad>",
    "partials": "array<real>",
    "state": "State",
    "record": "array<real>",
    "result": "array<unit>",
    "coarse": "array<u32>",
    "coarse_sums": "array<f32>",
    "coarse_matrix": "array<f32>",
}


def render_kernel(
    name: str, template: str, buffers: dict[str, bool], context: dict[str, Any]
) -> SolveKernel:
    """Text of a kernel; ``buffers`` maps each bound buffer to whether it is written.

    ``numbers`` is added where the text reads it.
    """
    if any("numbers[" in line for body in _bodies(context) for line in body.loads):
        buffers = {**buffers, "numbers": False}
    bindings = [
        (k + 1, "read_write" if written else "read", buffer, _BUFFER_TYPES[buffer])
        for k, (buffer, written) in enumerate(buffers.items())
    ]
    text = (
        template_environment()
        .get_template(f"wgsl/{template}.wgsl.j2")
        .render(bindings=bindings, **context)
    )
    prelude = select_prelude(wgsl_prelude(context["precision"]), text)
    return SolveKernel(
        name=name,
        source=f"{text}\n{prelude}" if prelude else text,
        buffers=("control", *buffers),
        writes=frozenset(b for b, written in buffers.items() if written),
        workgroup_size=context["workgroup_size"],
    )


def _bodies(context: dict[str, Any]) -> list[Body]:
    """The bodies that a context holds, of nodes or of elements."""
    rows: list[dict[str, Any]] = [*context.get("groups", []), *context.get("lists", [])]
    return [*context.get("kinds", []), *(row["body"] for row in rows)]


def incidence_body(
    structure: SolveStructure,
    node_set: int,
    kind_position: int,
    contribution: Contribution,
) -> Body:
    """What one incidence of a kind adds to its node's sums."""
    kind = structure.kinds[node_set][kind_position]
    group = structure.groups[kind.group]
    loader = Loader(structure, group, kind_columns(group, kind), "k")
    leaf = _incidence_leaf(structure, kind, group, loader)
    printed = print_statements(contribution.graph, structure.real.dialect, leaf)
    return Body(
        row=kind_row(structure, node_set, kind_position),
        unit=kind.unit,
        loads=tuple(loader.lines),
        statements=printed.lines,
        outputs=tuple(zip(contribution.targets, printed.outputs, strict=True)),
    )


def _incidence_leaf(
    structure: SolveStructure, kind: Kind, group: GroupStructure, loader: Loader
) -> Callable[[int, int], str]:
    slots = group.kernel.slots
    columns = column_offsets(group)
    g = group_row(structure, kind.group)

    def element() -> str:
        if kind.direct:
            return "k"
        return loader.table(("element", 0, 0), "e")

    def component(prefix: str, base: str, place: int, a: int) -> str:
        if place == kind.place:
            return f"{prefix}{a}"
        return loader.component(prefix, base, place, a)

    def leaf(slot: int, k: int) -> str:
        if slot < len(slots):
            node = group.slots[slot]
            if node is not None:
                return component("x", "parameters[half", node.place, node.offset + k)
            return loader.data(slot, k)
        what = slot - len(slots)
        if what == VECTOR:
            node, a = columns[k]
            return component("p", "vectors[direction", node.place, node.offset + a)
        record = loader.once("j", f"control[{g}].w + {element()} * {group.record_quads}u")
        return loader.record(record, k if what == STORED_JACOBIAN else group.stored_entries + k)

    return leaf


def node_context(
    structure: SolveStructure, node_set: int, bodies: list[Body], name: str
) -> dict[str, Any]:
    """What templates say about the sums of one node set."""
    nodes = structure.node_sets[node_set]
    return {
        **common_context(structure, name),
        "kinds": bodies,
        "width": nodes.width,
        "team": nodes.team,
        "masked": nodes.masked,
        "row": set_row(node_set),
    }


def mentions(bodies: list[Body], word: str) -> bool:
    """Whether any of the bodies reads what ``word`` begins, such as ``jacobian[``."""
    return any(word in line for body in bodies for line in (*body.loads, *body.statements)) or any(
        word in text for body in bodies for _, text in body.outputs
    )


def element_body(structure: SolveStructure, g: int, graph: Graph) -> Body:
    """What one element computes from the parameters of half ``half``."""
    group = structure.groups[g]
    loader = Loader(structure, group, element_columns(group), "e")

    def leaf(slot: int, k: int) -> str:
        node = group.slots[slot]
        if node is None:
            return loader.data(slot, k)
        return loader.component("x", "parameters[half", node.place, node.offset + k)

    printed = print_statements(graph, structure.real.dialect, leaf)
    return Body(
        row=group_row(structure, g),
        unit=False,
        loads=tuple(loader.lines),
        statements=printed.lines,
        outputs=tuple(enumerate(printed.outputs)),
    )


def quads_of(numbers: tuple[str, ...], zero: str) -> list[str]:
    """Numbers as arguments of quad, the last filled up with zeros."""
    filled = [*numbers, *[zero] * (-len(numbers) % 4)]
    return [", ".join(filled[k : k + 4]) for k in range(0, len(filled), 4)]


def kept_kernels(
    what: str, key: str, make: Callable[[], Iterable[SolveKernel]]
) -> dict[str, SolveKernel]:
    """Kernels by name, in the order in which they are made; from disk where they are kept."""
    return kept(
        what,
        (key,),
        lambda: {kernel.name: kernel for kernel in make()},
        lambda kernels: [
            [k.name, k.source, k.buffers, sorted(k.writes), k.workgroup_size]
            for k in kernels.values()
        ],
        lambda rows: {
            name: SolveKernel(
                name=name,
                source=source,
                buffers=tuple(buffers),
                writes=frozenset(writes),
                workgroup_size=size,
            )
            for name, source, buffers, writes, size in rows
        },
    )
