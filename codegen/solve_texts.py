"""What texts of a resident solve are made of: loads of elements and incidences, bindings, names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autograd_gpu.codegen.element_parts import (
    STORED_JACOBIAN,
    Contribution,
    number_of_leaf,
    of_node_alone,
)
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
from autograd_gpu.codegen.reversal import kind_contribution
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

    ``ahead`` are statements of a node alone, the same for all of its incidences: they precede the
    walk over its list. With ``slices`` the lists of heavy nodes are not walked: sums over their
    slices are added. If none else are there, nothing is loaded, and ``outputs`` only says what is
    summed.
    """

    row: int
    unit: bool
    loads: tuple[str, ...]
    statements: tuple[str, ...]
    outputs: tuple[tuple[int, str], ...]
    slices: SliceSums | None = None
    ahead: tuple[str, ...] = ()


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

    def cell(self, k: int) -> str:
        """Cell ``k`` that an earlier stage left; cells of adjacent elements are adjacent."""
        quad = self.once(f"s_{k // 4}", f"jacobian[s + {k // 4}u * c.z]")
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
    make: Callable[[GroupStructure, int], Contribution],
) -> Body:
    """What one incidence of a kind adds to its node's sums.

    Args:
        structure: the problem.
        node_set: whose nodes.
        kind_position: which kind of theirs.
        make: (group, place) -> what an element adds to the node at that place.
    """
    kind = structure.kinds[node_set][kind_position]
    group = structure.groups[kind.group]
    contribution = kind_contribution(group, kind, make)
    leaves = _IncidenceLeaves(structure, kind)
    printed = print_statements(contribution.graph, structure.real.dialect, leaves.text)
    ahead, statements = (), printed.lines
    if not kind.unit:  # a list of one has nothing to be ahead of
        ahead, statements = _apart(contribution.graph, printed.lines, group, kind.place)
    return Body(
        row=kind_row(structure, node_set, kind_position),
        unit=kind.unit,
        loads=tuple(leaves.loader.lines),
        statements=statements,
        outputs=tuple(zip(contribution.targets, printed.outputs, strict=True)),
        ahead=ahead,
    )


def _apart(
    graph: Graph, lines: Sequence[str], group: GroupStructure, place: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Statements of what depends on the node's own numbers alone, and the others."""
    own = of_node_alone(graph, group, place)
    printed = [alone for node, alone in zip(graph.nodes, own, strict=True) if node.args]
    ahead = tuple(line for line, alone in zip(lines, printed, strict=True) if alone)
    return ahead, tuple(line for line, alone in zip(lines, printed, strict=True) if not alone)


class _IncidenceLeaves:
    """What stands for the leaves of a contribution in the text of an incidence.

    Arguments are those of the element and, after them, those of its reverse, whose two places
    are exchanged.
    """

    def __init__(self, structure: SolveStructure, kind: Kind) -> None:
        self._kind = kind
        self._group = structure.groups[kind.group]
        self._row = group_row(structure, kind.group)
        self.loader = Loader(structure, self._group, kind_columns(self._group, kind), "k")

    def text(self, slot: int, k: int) -> str:
        """Name of a leaf's value, which the loader loads where it is not the node's own."""
        found = number_of_leaf(self._group, slot, k)
        if found is not None:
            vector, place, a = found
            prefix, base = ("p", "vectors[direction") if vector else ("x", "parameters[half")
            if place == self._kind.place:
                return f"{prefix}{a}"
            return self.loader.component(prefix, base, place, a)
        group, slots = self._group, len(self._group.slots)
        if slot < slots:
            return self.loader.data(slot, k)
        element = "k" if self._kind.direct else self.loader.table(("element", 0, 0), "e")
        first = f"control[{self._row}].w + {element} * {group.record_quads}u"
        record = self.loader.once("j", first)
        jacobian = slot - slots == STORED_JACOBIAN
        return self.loader.record(record, k if jacobian else group.stored_entries + k)


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


def lines_of(body: Body) -> tuple[str, ...]:
    """All loads and statements of a body."""
    return (*body.loads, *body.ahead, *body.statements)


def mentions(bodies: list[Body], word: str) -> bool:
    """Whether any of the bodies reads what ``word`` begins, such as ``jacobian[``."""
    return any(word in line for body in bodies for line in lines_of(body)) or any(
        word in text for body in bodies for _, text in body.outputs
    )


def element_body(
    structure: SolveStructure,
    g: int,
    graph: Graph,
    beyond: Callable[[Loader, int], str],
    places: Iterable[int] = (),
) -> Body:
    """What one element computes from the parameters of half ``half``; outputs are numbered.

    Args:
        structure: the problem.
        g: whose elements.
        graph: its arguments are the group's slots and one more.
        beyond: (loader, component) -> text of a component of that last argument.
        places: whose nodes are needed in any case.
    """
    group = structure.groups[g]
    loader = Loader(structure, group, element_columns(group), "e")

    def leaf(slot: int, k: int) -> str:
        if slot >= len(group.slots):
            return beyond(loader, k)
        node = group.slots[slot]
        if node is None:
            return loader.data(slot, k)
        return loader.component("x", "parameters[half", node.place, node.offset + k)

    printed = print_statements(graph, structure.real.dialect, leaf)
    for place in places:
        loader.node(place)
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
