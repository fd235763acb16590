"""A coarse space on the device: a few motions of every aggregate of nodes, as structure and as IR.

M⁻¹ = B⁻¹ + P (PᵀAP)⁻¹ Pᵀ with A = JᵀJ + λD, B its diagonal blocks, and P the motions of the
nodes, cut to aggregates. An aggregate is a run of consecutive nodes of one set, in the order that
keeps neighbours near: the partial sums of Pᵀw then fall out of the workgroups that compute w.

Rigid motions depend on positions: a node's *arm* is its position less that of the node in the
middle of its aggregate. Any other centre gives the same space, less well conditioned.

Source: Nicolaides 1987, "Deflation of conjugate gradients with applications to boundary value
problems" (the space); Smith, Bjørstad, Gropp 1996, "Domain decomposition" (additive).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from autograd_gpu.codegen.element_parts import Contribution, ElementParts
from autograd_gpu.codegen.incidence import SolveStructure
from autograd_gpu.ir import Argument, Builder, Graph
from autograd_gpu.rewrite import RULES, simplify


class Motion(StrEnum):
    """How the numbers of a parameter array follow when things move."""

    POSITION = "position"
    ROTATION = "rotation"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeEntry:
    """P[component, mode] is ``sign``, times coordinate ``axis`` of the arm if there is one."""

    component: int
    mode: int
    sign: float = 1.0
    axis: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeModes:
    """Motions of one node.

    Attributes:
        count: number of modes.
        entries: what is not zero in P.
        position: first component of the position that arms are made of; None without rotations.
    """

    count: int
    entries: tuple[ModeEntry, ...]
    position: int | None = None


NO_MODES = NodeModes(count=0, entries=())

# (component, axis, sign) of e_c × p, the velocity of a rotation about axis c.
_ABOUT = (((1, 2, -1.0), (2, 1, 1.0)), ((0, 2, 1.0), (2, 0, -1.0)), ((0, 1, -1.0), (1, 0, 1.0)))


def node_modes(widths: Sequence[int], motions: Sequence[Motion]) -> NodeModes:
    """Modes of a node of several arrays: rigid motions if one of them is a position.

    Three translations, three rotations, and a constant for each number that neither moves nor
    turns; without a position, a constant for each number.

    Args:
        widths: numbers per block of each array.
        motions: what each array is; at most one position.
    """
    starts = [sum(widths[:k]) for k in range(len(widths))]
    position = next((s for s, m in zip(starts, motions, strict=True) if m is Motion.POSITION), None)
    entries: list[ModeEntry] = []
    count = 0 if position is None else 6
    for start, width, motion in zip(starts, widths, motions, strict=True):
        if motion is Motion.POSITION:
            entries += [ModeEntry(component=start + c, mode=c) for c in range(3)]
            entries += [
                ModeEntry(component=start + a, mode=3 + c, sign=sign, axis=axis)
                for c in range(3)
                for a, axis, sign in _ABOUT[c]
            ]
        elif motion is Motion.ROTATION and position is not None:
            entries += [ModeEntry(component=start + c, mode=3 + c) for c in range(3)]
        else:
            entries += [ModeEntry(component=start + c, mode=count + c) for c in range(width)]
            count += width
    return NodeModes(count=count, entries=tuple(entries), position=position)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarseStructure:
    """Everything that the text of the coarse kernels depends on.

    Attributes:
        solve: the problem.
        modes: per node set; none where there is no coarse space.
    """

    solve: SolveStructure
    modes: tuple[NodeModes, ...]

    @property
    def most(self) -> int:
        """Largest number of modes of a node."""
        return max(m.count for m in self.modes)

    @property
    def pairs(self) -> tuple[tuple[int, int, int], ...]:
        """(group, later set, earlier or same set) whose elements couple the two sets' modes."""
        found: list[tuple[int, int, int]] = []
        for g, group in enumerate(self.solve.groups):
            sets = sorted({s.node_set for s in group.places if self.modes[s.node_set].count})
            found += [(g, a, b) for a in sets for b in sets if b <= a]
        return tuple(found)


# Argument positions after the slots in a graph of an element, beyond those of `incidence`.
ARM, SIDE, FREE = 3, 4, 5
FREE_STRIDE = 32
"""FREE is indexed by place · 32 + component."""


def _mode_rows(
    parts: ElementParts, coarse: CoarseStructure, node_set: int, side: int
) -> list[dict[int, int]]:
    """J P of one element as rows over the modes of the aggregate on one side of a pair."""
    b, group = parts.builder, parts.group
    places = [s.place for s in group.places if s.node_set == node_set]
    rows: list[dict[int, int]] = [{} for _ in parts.rows]
    for place in places:
        for i, own in enumerate(parts.own_rows(place)):
            if coarse.solve.node_sets[node_set].masked:
                own = {
                    a: b.apply("mul", x, b.input(parts.extra + FREE, place * FREE_STRIDE + a))
                    for a, x in own.items()
                }
            for mode, x in _times_modes(parts, coarse.modes[node_set], place, own).items():
                # Is this place in the aggregate at all? Sure where it is the only one of its set.
                if len(places) > 1:
                    x = b.apply("mul", x, b.input(parts.extra + SIDE, 2 * place + side))
                rows[i][mode] = b.apply("add", rows[i][mode], x) if mode in rows[i] else x
    return rows


def _times_modes(
    parts: ElementParts, modes: NodeModes, place: int, own: dict[int, int]
) -> dict[int, int]:
    b = parts.builder
    row: dict[int, int] = {}
    for entry in modes.entries:
        if entry.component in own:
            arm = None
            if entry.axis is not None:
                arm = b.input(parts.extra + ARM, 3 * place + entry.axis)
            x = _scaled(b, own[entry.component], entry, arm)
            row[entry.mode] = b.apply("add", row[entry.mode], x) if entry.mode in row else x
    return row


def _scaled(b: Builder, x: int, entry: ModeEntry, arm: int | None) -> int:
    if arm is not None:
        x = b.apply("mul", x, arm)
    return x if entry.sign == 1.0 else b.apply("neg", x)


@lru_cache(maxsize=128)
def element_block(coarse: CoarseStructure, g: int, later: int, earlier: int) -> Contribution:
    """What an element of group ``g`` adds to the block of PᵀJᵀJP between two aggregates.

    Targets are row-major positions in that block, modes of set ``later`` × modes of ``earlier``.
    """
    parts = ElementParts(coarse.solve.groups[g])
    first = _mode_rows(parts, coarse, later, 0)
    second = _mode_rows(parts, coarse, earlier, 1)
    columns = coarse.modes[earlier].count
    outputs: list[int] = []
    targets: list[int] = []
    for m in range(coarse.modes[later].count):
        for n in range(columns):
            pairs = [(x[m], y[n]) for x, y in zip(first, second, strict=True) if m in x and n in y]
            node = parts.total(pairs)
            if parts.builder.literal(node) != 0.0:
                outputs.append(node)
                targets.append(m * columns + n)
    places = len(parts.group.places)
    extra = (
        Argument("arm", (3 * places,)),
        Argument("side", (2 * places,)),
        Argument("free", (FREE_STRIDE * places,)),
    )
    return Contribution(parts.freeze(outputs, "coarse", extra), tuple(targets))


NODE_VECTOR, NODE_ARM = 0, 1
"""Arguments of the graphs of a node: a vector over its components or modes, and its arm."""


def _freeze_node(b: Builder, outputs: Sequence[int], size: int, name: str) -> Graph:
    arguments = [Argument("vector", (size,)), Argument("arm", (3,))]
    return simplify(Graph.build(b, outputs, arguments, None, name))


def _arm(b: Builder, entry: ModeEntry) -> int | None:
    return None if entry.axis is None else b.input(NODE_ARM, entry.axis)


@lru_cache(maxsize=128)
def restriction(modes: NodeModes, width: int) -> Graph:
    """Pᵀv of one node."""
    b = Builder(RULES)
    sums = [b.constant(0.0)] * modes.count
    for entry in modes.entries:
        x = _scaled(b, b.input(NODE_VECTOR, entry.component), entry, _arm(b, entry))
        sums[entry.mode] = b.apply("add", sums[entry.mode], x)
    return _freeze_node(b, sums, width, "restriction")


@lru_cache(maxsize=128)
def prolongation(modes: NodeModes, width: int) -> Graph:
    """P y at one node."""
    b = Builder(RULES)
    sums = [b.constant(0.0)] * width
    for entry in modes.entries:
        x = _scaled(b, b.input(NODE_VECTOR, entry.mode), entry, _arm(b, entry))
        sums[entry.component] = b.apply("add", sums[entry.component], x)
    return _freeze_node(b, sums, modes.count, "prolongation")


@lru_cache(maxsize=128)
def damping_block(modes: NodeModes, width: int) -> Contribution:
    """PᵀDP of one node, D diagonal; targets are row-major positions, modes × modes."""
    b = Builder(RULES)
    rows: list[dict[int, int]] = [{} for _ in range(width)]
    one = b.constant(1.0)
    for entry in modes.entries:
        rows[entry.component][entry.mode] = _scaled(b, one, entry, _arm(b, entry))
    outputs: list[int] = []
    targets: list[int] = []
    for m in range(modes.count):
        for n in range(modes.count):
            total = b.constant(0.0)
            for a, row in enumerate(rows):
                if m in row and n in row:
                    d = b.apply("mul", b.input(NODE_VECTOR, a), row[m])
                    total = b.apply("add", total, b.apply("mul", d, row[n]))
            if b.literal(total) != 0.0:
                outputs.append(total)
                targets.append(m * modes.count + n)
    return Contribution(_freeze_node(b, outputs, width, "damping"), tuple(targets))
