"""How a residual group is computed: the choices, what they depend on, and the decision.

A schedule says what is kept per element (nothing, J, or JᵀJ and Jᵀr), how contributions reach the
sums of the nodes, and how many threads work side by side. Executors ask ``schedule_choice``, which
takes what was measured for problems like this one, or else the least estimate of
``schedule_costs``. A learned model would take the same features and replace those estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autograd_gpu.codegen.incidence import WORKGROUP_SIZE
from autograd_gpu.codegen.lanes import FEWEST_ELEMENTS, LANES
from autograd_gpu.codegen.scatter_kernels import ACCUMULATIONS, SHARED_WORDS
from autograd_gpu.errors import InputError

MATERIALISATIONS = ("nothing", "jacobian", "jtj-blocks")
WORKGROUP_SIZES = (64, 128, 256)
DETERMINISTIC = ("gather", "two-level")
"""Accumulations that give the same bits in every run; others are taken on request only."""

TEAMS = ((24.0, 1), (96.0, 8), (384.0, 32), (float("inf"), 128))
"""(mean terms of a node's sum up to, threads that share it)."""

PURPOSES = ("solve", "gradient", "assembly")
"""Steps of a device-resident solve; single gradients on a device; JᵀJ on the host."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Schedule:
    """How one residual group is computed.

    Attributes:
        materialise: what is stored per element: ``nothing`` (J is recomputed by whoever needs
            it), ``jacobian``, or ``jtj-blocks`` (entries of the element's JᵀJ and Jᵀr).
        accumulate: ``gather``, ``two-level``, ``atomic-native`` or ``atomic-cas``. In a resident
            solve ``two-level`` cuts the lists of heavy nodes into slices; otherwise all but
            ``gather`` compute each element once and store nothing.
        workgroup_size: threads of a workgroup of the kernels over the group's elements, and, of the
            heaviest group, of all others; on the host, elements computed side by side.

    Raises:
        InputError: an unknown word, or a combination that does not exist.
    """

    materialise: str = "nothing"
    accumulate: str = "gather"
    workgroup_size: int = WORKGROUP_SIZE

    def __post_init__(self) -> None:
        if self.materialise not in MATERIALISATIONS:
            raise InputError(
                f"schedule: materialise={self.materialise!r}; expected one of "
                f"{', '.join(MATERIALISATIONS)}"
            )
        if self.accumulate not in ACCUMULATIONS:
            raise InputError(
                f"schedule: accumulate={self.accumulate!r}; expected one of "
                f"{', '.join(ACCUMULATIONS)}"
            )
        if self.accumulate not in DETERMINISTIC and self.materialise != "nothing":
            raise InputError(
                f"schedule: accumulate={self.accumulate!r} computes each element once and stores "
                f"nothing; got materialise={self.materialise!r}, expected 'nothing'"
            )
        size = self.workgroup_size
        if size < 1 or size > WORKGROUP_SIZE or size & (size - 1):
            raise InputError(
                f"schedule: workgroup_size={size}; expected a power of two up to {WORKGROUP_SIZE}"
            )

    def __str__(self) -> str:
        return f"{self.materialise}, {self.accumulate}, {self.workgroup_size} threads"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFeatures:
    """Nodes that elements of a group gather at one place.

    Attributes:
        node_set: which set of nodes.
        nodes: number of nodes in the set.
        width: components of a node.
        columns: local columns of J at this place.
        entries: entries of J in those columns.
        most: elements that the node with the most of them sees.
    """

    node_set: int
    nodes: int
    width: int
    columns: int
    entries: int
    most: int


@dataclass(frozen=True, kw_only=True)
class GroupFeatures:
    """What a schedule is chosen by; numbers per element unless said otherwise.

    Attributes:
        name: of the group.
        topology: key of its graph.
        elements: elements of the group.
        operations: of residuals and Jacobian, functions weighted by what they cost.
        residuals: residuals.
        entries: entries of J that are not structurally zero.
        varying: entries of J that differ from element to element.
        block_entries: entries of JᵀJ (its lower triangle) that do.
        parameters: numbers gathered from parameters.
        data: numbers of data.
        precision: of numbers: ``float32``, ``float64``, ``float64-native``, ``float64-emulated``.
        places: nodes that an element gathers; empty on the host.
        assembly: on the host, what summing JᵀJ takes.
    """

    name: str
    topology: str
    elements: int
    operations: int
    residuals: int
    entries: int
    varying: int
    block_entries: int
    parameters: int
    data: int
    precision: str
    places: tuple[PlaceFeatures, ...] = ()
    assembly: AssemblyFeatures | None = None

    @property
    def word_bytes(self) -> int:
        """Bytes of a number."""
        return 4 if self.precision == "float32" else 8

    @property
    def valences(self) -> tuple[float, ...]:
        """Elements that a node sees in the mean, per place."""
        return tuple(self.elements / max(1, p.nodes) for p in self.places)

    @property
    def largest_valence(self) -> float:
        """Elements that the busiest node of all places sees; 0 on the host."""
        return float(max((p.most for p in self.places), default=0))

    @cached_property
    def record_words(self) -> dict[str, int]:
        """Numbers stored per element by materialisation."""
        return {
            "nothing": 0,
            "jacobian": -(-(self.varying + self.residuals) // 4) * 4,
            "jtj-blocks": -(-(self.block_entries + self.parameters) // 4) * 4,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AssemblyFeatures:
    """What summing JᵀJ of a group on the host takes.

    Attributes:
        products: multiply-adds of sums by blocks.
        incidences: (element, block) pairs, each looked up once.
        by_entries: multiply-adds of sums over entries of J.
        blocks_possible: sums by blocks can be made at all.
        lanes_possible: the kernel can compute several elements side by side.
    """

    products: int
    incidences: int
    by_entries: int
    blocks_possible: bool
    lanes_possible: bool


@dataclass(frozen=True, slots=True)
class Alternative:
    """A schedule and the seconds that it takes, estimated and, if it was tuned, measured."""

    schedule: Schedule
    estimated: float
    measured: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The schedule of a group, and why.

    Attributes:
        features: of the group.
        schedule: what is used.
        source: ``model``, ``measured`` or ``asked for``.
        reason: a sentence.
        alternatives: what else there was, the least estimate first.
    """

    features: GroupFeatures
    schedule: Schedule
    source: str
    reason: str
    alternatives: tuple[Alternative, ...] = ()


Chooser = Callable[[Sequence[GroupFeatures]], Sequence[Schedule]]
"""Asks for the schedules of all groups of a problem."""


def heavy_from(workgroup_size: int = WORKGROUP_SIZE) -> int:
    """Incidences from which a node's list is sliced: as many as a workgroup walks in four turns."""
    return 4 * workgroup_size


def team_of(mean_terms: float, workgroup_size: int = WORKGROUP_SIZE) -> int:
    """Threads that share one node's sum."""
    wanted = next(team for limit, team in TEAMS if mean_terms <= limit)
    return min(wanted, workgroup_size)


def alternatives(
    features: GroupFeatures, purpose: str, *, atomics: Sequence[str] = ()
) -> tuple[Schedule, ...]:
    """Schedules that a group may have, those that differ from run to run left out.

    Args:
        features: of the group.
        purpose: one of ``PURPOSES``.
        atomics: non-deterministic accumulations to add, for comparisons.
    """
    if purpose == "assembly":
        return _host_alternatives(features)
    stored = MATERIALISATIONS if features.varying else MATERIALISATIONS[:1]
    found = [
        Schedule(materialise=m, workgroup_size=size) for size in WORKGROUP_SIZES for m in stored
    ]
    if purpose == "solve":
        found += [replace(s, accumulate="two-level") for s in found if has_heavy_nodes(features, s)]
    if purpose == "gradient":
        others = ("two-level", *atomics) if two_level_fits(features) else tuple(atomics)
        found += [
            Schedule(accumulate=a, workgroup_size=size) for size in WORKGROUP_SIZES for a in others
        ]
    return tuple(found)


def has_heavy_nodes(features: GroupFeatures, schedule: Schedule) -> bool:
    """Whether there are lists that a resident solve would slice."""
    heavy = heavy_from(schedule.workgroup_size)
    return any(place.most >= heavy for place in features.places)


def has_own_kernels(schedule: Schedule, purpose: str) -> bool:
    """Whether kernels over the elements of a group alone store or sum something for it.

    They have workgroups of the size that its schedule says. Kernels that gather, and those that
    sum slices of lists in a solve, serve several groups and have the size of the heaviest one.
    """
    sums = purpose == "gradient" and schedule.accumulate != "gather"
    return purpose != "assembly" and (sums or schedule.materialise != "nothing")


def two_level_fits(features: GroupFeatures, workgroup_size: int = WORKGROUP_SIZE) -> bool:
    """Whether a workgroup's contributions to one component fit into shared memory."""
    sets = [p.node_set for p in features.places]
    numbers = max(map(sets.count, sets), default=0) * workgroup_size
    return numbers * features.word_bytes <= 4 * SHARED_WORDS


def _host_alternatives(features: GroupFeatures) -> tuple[Schedule, ...]:
    assembly = features.assembly
    by_blocks = assembly is not None and assembly.blocks_possible
    side_by_side = assembly is not None and assembly.lanes_possible
    return tuple(
        Schedule(materialise=m, workgroup_size=lanes)
        for m in (("jacobian", "jtj-blocks") if by_blocks else ("jacobian",))
        for lanes in ((LANES, 1) if side_by_side else (1,))
    )


def lanes_of(elements: int, *, possible: bool) -> int:
    """Elements that the host computes side by side: as many as pay for compiling twice as long."""
    return LANES if possible and elements >= FEWEST_ELEMENTS else 1
