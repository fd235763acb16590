"""Generated kernels of a device-resident solve; each is one template over a few strings.

| kernel | one thread per | does |
|---|---|---|
| ``linearize_elements`` | element | stores residual and Jacobian of the groups that store them |
| ``linearize_nodes`` | node | gradient, damped block factor, start of CG |
| ``cg_product`` | node | w = (JᵀJ + λD) u and the dot products' partial sums |
| ``cg_update`` | node | all vectors of one single-reduction CG step |
| ``trial_step`` | component | the trial point and the sums for the predicted reduction |
| ``trial_elements`` | element | cost and change of cost in difference form |
| ``decide`` | (one workgroup) | gain ratio, damping, acceptance |

Source of the iteration: Chronopoulos and Gear 1989, "s-step iterative methods for symmetric
linear systems", s = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from autograd_gpu.codegen.block_factor import block_factor, lower_index
from autograd_gpu.codegen.element_parts import STORED_JACOBIAN, VECTOR, Contribution, column_offsets
from autograd_gpu.codegen.incidence import (
    WORKGROUP_SIZE,
    GroupStructure,
    Kind,
    SolveStructure,
    block_pattern,
    gradient_contribution,
    linearize_contribution,
    product_contribution,
    structure_key,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveKernel:
    """Text of one kernel, and the names of the buffers that it binds, by position."""

    name: str
    source: str
    buffers: tuple[str, ...]
    writes: frozenset[str]
    workgroup_size: int = WORKGROUP_SIZE


@dataclass(frozen=True, slots=True)
class Body:
    """Loads and statements of one element or incidence, and what each output is added to."""

    row: int
    unit: bool
    loads: tuple[str, ...]
    statements: tuple[str, ...]
    outputs: tuple[tuple[int, str], ...]


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
    groups: list[dict[str, Any]] = context.get("groups", [])
    return [*context.get("kinds", []), *(g["body"] for g in groups)]


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


def _node_context(
    structure: SolveStructure, node_set: int, bodies: list[Body], name: str
) -> dict[str, Any]:
    nodes = structure.node_sets[node_set]
    return {
        **common_context(structure, name),
        "kinds": bodies,
        "width": nodes.width,
        "team": nodes.team,
        "masked": nodes.masked,
        "row": set_row(node_set),
    }


def _mentions(bodies: list[Body], word: str) -> bool:
    return any(word in line for body in bodies for line in (*body.loads, *body.statements)) or any(
        word in text for body in bodies for _, text in body.outputs
    )


def product_parts(
    structure: SolveStructure, node_set: int
) -> tuple[dict[str, Any], dict[str, bool]]:
    """Context and buffers of ``cg_product``."""
    bodies = [
        incidence_body(
            structure, node_set, k, product_contribution(structure.groups[kind.group], kind.place)
        )
        for k, kind in enumerate(structure.kinds[node_set])
    ]
    context = _node_context(structure, node_set, bodies, f"cg_product_{node_set}")
    context["reads_parameters"] = any(
        not structure.groups[kind.group].stored for kind in structure.kinds[node_set]
    )
    context["coarse"] = None
    buffers = {"tables": False, "vectors": True, "partials": True, "state": True}
    if context["reads_parameters"]:
        buffers["parameters"] = False
    if _mentions(bodies, "jacobian["):
        buffers["jacobian"] = False
    return context, buffers


def cg_product(structure: SolveStructure, node_set: int) -> SolveKernel:
    """Product w = (JᵀJ + λD) u over one node set, with the partial sums of r·u and w·u."""
    context, buffers = product_parts(structure, node_set)
    return render_kernel(context["name"], "solve/cg_product", buffers, context)


def linearize_nodes(structure: SolveStructure, node_set: int) -> SolveKernel:
    """Gradient, damped diagonal block and its factor over one node set; CG is set to its start."""
    width = structure.node_sets[node_set].width
    bodies = [
        incidence_body(
            structure,
            node_set,
            k,
            linearize_contribution(structure.groups[kind.group], kind.place, width),
        )
        for k, kind in enumerate(structure.kinds[node_set])
    ]
    pattern = block_pattern(structure, node_set)
    block = block_factor(width, pattern)
    dialect = structure.real.dialect
    scale = print_statements(damping_scale(structure.damping), dialect, lambda _, k: "h")
    factor = print_statements(block.factor, dialect, lambda _, k: f"h{k}", "q")
    start = print_statements(
        block.solve, dialect, lambda s, k: factor.outputs[k] if s == 0 else f"b{k}", "m"
    )
    context = _node_context(structure, node_set, bodies, f"linearize_nodes_{node_set}")
    context |= {
        "sums": width + width * (width + 1) // 2,
        "used": [*range(width), *sorted(width + p for p in pattern)],
        "diagonal": [lower_index(a, a) for a in range(width)],
        "pattern": sorted(pattern),
        "damping_scale": scale,
        "factor": factor.lines,
        "quads": _quads(factor.outputs, structure.real.zero),
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
    if _mentions(bodies, "jacobian["):
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


def _quads(numbers: tuple[str, ...], zero: str) -> list[str]:
    """Numbers as arguments of quad, the last filled up with zeros."""
    filled = [*numbers, *[zero] * (-len(numbers) % 4)]
    return [", ".join(filled[k : k + 4]) for k in range(0, len(filled), 4)]


@lru_cache(maxsize=64)
def record_kernel(structure: SolveStructure) -> SolveKernel | None:
    """``linearize_elements`` for programs that need no other kernel of a solve."""
    if not any(group.stored for group in structure.groups):
        return None
    made = kept_kernels(
        "record kernel",
        structure_key(structure),
        lambda: [kernel for kernel in (linearize_elements(structure),) if kernel],
    )
    return made["linearize_elements"]


def linearize_elements(structure: SolveStructure) -> SolveKernel | None:
    """Records of the groups that store them; None if there is no such group."""
    groups: list[dict[str, Any]] = []
    for g, group in enumerate(structure.groups):
        if group.stored:
            # The kernel's graph begins with residuals, a record ends with them.
            m = 0 if group.blocks else group.kernel.residual_size
            graph = group.blocks.graph if group.blocks else group.kernel.graph
            body = element_body(structure, g, graph)
            words = tuple(text for _, text in body.outputs)
            quads = _quads((*words[m:], *words[:m]), structure.real.zero)
            groups.append({"body": body, "quads": quads})
    if not groups:
        return None
    context = {**common_context(structure, "linearize_elements"), "groups": groups}
    buffers = {"tables": False, "parameters": False, "jacobian": True, "state": False}
    return render_kernel("linearize_elements", "solve/linearize_elements", buffers, context)


def trial_step(structure: SolveStructure) -> SolveKernel:
    """The trial point in the other half, and the sums for the predicted reduction."""
    buffers = {"parameters": True, "vectors": False, "partials": True, "state": False}
    return render_kernel(
        "trial_step", "solve/trial_step", buffers, common_context(structure, "trial_step")
    )


def trial_elements(structure: SolveStructure) -> SolveKernel:
    """Cost at the trial point and its change, in difference form."""
    groups: list[dict[str, Any]] = []
    for g, group in enumerate(structure.groups):
        body = element_body(structure, g, group.residual.graph)
        groups.append({"body": body, "residuals": group.kernel.residual_size, "position": g})
    context = {**common_context(structure, "trial_elements"), "groups": groups}
    buffers = {"tables": False, "parameters": False, "partials": True, "state": False}
    return render_kernel("trial_elements", "solve/trial_elements", buffers, context)


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
        incidence_body(
            structure, node_set, k, gradient_contribution(structure.groups[kind.group], kind.place)
        )
        for k, kind in enumerate(structure.kinds[node_set])
    ]
    context = _node_context(structure, node_set, bodies, f"gather_gradient_{node_set}")
    buffers = {"tables": False, "parameters": False, "result": True}
    return render_kernel(context["name"], "solve/gather_gradient", buffers, context)


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


@lru_cache(maxsize=64)
def gradient_kernels(structure: SolveStructure) -> dict[str, SolveKernel]:
    """Kernels of Jᵀr by gathering, by name, one a node set."""
    sets = range(len(structure.node_sets))
    return kept_kernels(
        "gradient kernels",
        structure_key(structure),
        lambda: [gather_gradient(structure, k) for k in sets],
    )


@lru_cache(maxsize=64)
def solve_kernels(structure: SolveStructure) -> dict[str, SolveKernel]:
    """All kernels of a solve by name."""
    return kept_kernels("solve kernels", structure_key(structure), lambda: _all_kernels(structure))


def _all_kernels(structure: SolveStructure) -> list[SolveKernel]:
    kernels: list[SolveKernel] = []
    stored = linearize_elements(structure)
    if stored is not None:
        kernels.append(stored)
    for k in range(len(structure.node_sets)):
        kernels += [linearize_nodes(structure, k), cg_product(structure, k)]
    kernels += [
        cg_update(structure), trial_step(structure), trial_elements(structure), decide(structure),
    ]  # fmt: skip
    return kernels
