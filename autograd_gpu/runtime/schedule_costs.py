"""Seconds that a schedule takes, estimated from features of a group and a profile of the device.

A kernel takes as long as the slowest of three: its arithmetic, its memory traffic, and the longest
sum that one thread walks alone. The numbers of the profiles were fitted to measurements
(``benchmarks/results``, docs/performance.md); they order schedules, they do not predict times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from autograd_gpu.runtime.node_slices import slice_length
from autograd_gpu.runtime.schedules import (
    GroupFeatures,
    PlaceFeatures,
    Schedule,
    heavy_from,
    lanes_of,
    team_of,
)

PRODUCTS_PER_LINEARIZATION = 40
"""Products JᵀJ v in a step of a resident solve; 37 (W3) to 156 (W2_s7) were seen."""

CACHED = 0.25
"""Share of gathered parameters that comes from memory; the rest neighbours have just loaded."""

SCATTERED = 2.0
"""Traffic of records at nodes of another set than that by which elements are sorted."""


SPREAD = 2.0
"""Longest list over the mean one in meshes and bundles, to whose means the profiles were fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What the estimates know of a device.

    Attributes:
        kind: ``gpu``, ``software`` or ``host``.
        operations: weighted operations a second.
        bytes: bytes a second from memory.
        threads: threads that run at once.
        step: seconds of one turn of a loop over incidences, loads waited for.
        operation: seconds of an operation that waits for the one before.
        dispatch: seconds of a dispatch with nothing to do.
        load: seconds that a thread waits for four words of a record.
        shared: operations that a contribution through shared memory is worth.
        shared_step: seconds of one addition from shared memory.
        atomics: native atomic additions a second, without contention.
        contended: seconds of an addition to a word that others add to as well.
        swaps: as ``atomics``, by compare and swap.
        contended_swap: as ``contended``, by compare and swap.
        native: operations of float32 that one of the device's own float64 takes.
        emulated: the same of double-float.
        stage_cost: weighted operations of a text that the driver compiles as fast as others beside
            it; larger ones of a resident solve are cut (``codegen.element_stages``). None: never.
    """

    kind: str
    operations: float
    bytes: float
    threads: int
    step: float
    operation: float
    dispatch: float
    load: float
    shared: float
    shared_step: float
    atomics: float
    contended: float
    swaps: float
    contended_swap: float
    native: float
    emulated: float
    stage_cost: int | None

    def rate(self, precision: str) -> float:
        """Weighted operations a second in a precision."""
        costs = {"float64-native": self.native, "float64-emulated": self.emulated}
        return self.operations / costs.get(precision, 1.0)


GPU = DeviceProfile(
    kind="gpu", operations=1.5e13, bytes=3e12, threads=270_000, step=0.2e-6, operation=2.5e-9,
    dispatch=6e-6, load=1.2e-7, shared=12.0, shared_step=2e-8, atomics=1.1e11, contended=8e-9,
    swaps=2.9e10, contended_swap=7e-6, native=10.0, emulated=20.0,
    stage_cost=500,
)  # fmt: skip
"""NVIDIA H200: W1 to W5 at level 7 (schedules.json), and springs, bundle adjustment and a curve
(accumulation.json). What it takes is the fastest of all schedules by hand but for W4's solve (1.09
times) and gradients of W1 (1.03) and W2 (1.07). Slices of heavy nodes (heavy_nodes.json) take 0.7
to 1.9 times what is estimated, and what is chosen is within 1 % of the fastest. Float64 as in
docs/precision.md.
"""

SOFTWARE = DeviceProfile(
    kind="software", operations=1.2e10, bytes=1e10, threads=16, step=0.0, operation=0.0,
    dispatch=33e-6, load=0.0, shared=45.0, shared_step=0.0, atomics=2e8, contended=0.0, swaps=1e8,
    contended_swap=0.0, native=1.4, emulated=8.0,
    stage_cost=None,
)  # fmt: skip
"""llvmpipe on two cores, from the same curve and one with 1024 blocks."""

PROFILES = MappingProxyType({"gpu": GPU, "software": SOFTWARE})

ENTRY_SECONDS = 1e-9
"""Host: a multiply-add of a sum over entries of J, its position looked up."""
BLOCK_PRODUCT_SECONDS = 0.18e-9
"""Host: a multiply-add inside a block. Fitted with the next to meshes, whose 18 to 36 multiply-adds
an incidence are half as fast by blocks, and to equal times at 60."""
LOOKUP_SECONDS = 49e-9
"""Host: finding the place of an incidence of an element and a block."""
LONE_OPERATION, LANE_OPERATION = 1.0e-9, 0.5e-9
"""Host: seconds of an operation of one element, and of one of sixteen side by side."""


def estimate(
    features: GroupFeatures, schedule: Schedule, purpose: str, profile: DeviceProfile
) -> float:
    """Seconds of one group.

    For ``solve`` a linearization with its products, for ``gradient`` one gradient, for
    ``assembly`` residuals, Jacobian and JᵀJ once.
    """
    if purpose == "assembly":
        return _assembly(features, schedule)
    if purpose == "solve":
        product = _gather(features, schedule, profile)
        return _store(features, schedule, profile) + PRODUCTS_PER_LINEARIZATION * product
    if schedule.accumulate == "gather":
        return _store(features, schedule, profile) + _gather(features, schedule, profile)
    if schedule.accumulate == "two-level":
        return _two_level(features, schedule, profile)
    return _atomic(features, schedule, profile)


def _gather(features: GroupFeatures, schedule: Schedule, profile: DeviceProfile) -> float:
    """Time of one product or gradient over all places, each node walking its list.

    Under ``two-level``, lists of heavy nodes are walked slice by slice in a dispatch before.
    """
    sets: dict[int, float] = {}
    slices = 0.0
    for place in features.places:
        heavy = place.most >= heavy_from(schedule.workgroup_size)
        if heavy and schedule.accumulate == "two-level":
            sliced, seconds = _slice_place(features, place, schedule, profile)
            slices += sliced
        else:
            seconds = _gather_place(features, place, schedule, profile)
        sets[place.node_set] = sets.get(place.node_set, 0.0) + seconds
    # A node set is a dispatch.
    nodes = sum(max(profile.dispatch, seconds) for seconds in sets.values())
    return nodes + (max(profile.dispatch, slices) if slices else 0.0)


def _gather_place(
    features: GroupFeatures, place: PlaceFeatures, schedule: Schedule, profile: DeviceProfile
) -> float:
    """Time in which all nodes of a place walk their lists."""
    team = team_of(features.elements / max(1, place.nodes), schedule.workgroup_size)
    turn, traffic, arithmetic = _visits(features, place, schedule, profile)
    return max(_longest(features, place) / team * turn, traffic, arithmetic)


def _longest(features: GroupFeatures, place: PlaceFeatures) -> float:
    """Elements of a node that others wait for; the mean where lists are about as long."""
    return max(features.elements / max(1, place.nodes), place.most / SPREAD)


def _slice_place(
    features: GroupFeatures, place: PlaceFeatures, schedule: Schedule, profile: DeviceProfile
) -> tuple[float, float]:
    """Times of the slices of a place whose heaviest nodes have them, and of its nodes after that.

    Either all nodes are about as heavy or a few are, the others being light.
    """
    size = schedule.workgroup_size
    mean = features.elements / max(1, place.nodes)
    alike = mean >= heavy_from(size)
    light = 0.0 if alike else mean
    widest = team_of(float(place.most), size)
    length = int(slice_length(np.array([place.most]), size, widest)[0])
    sums = place.most / length
    team = team_of(sums if alike else light, size)
    turn, traffic, arithmetic = _visits(features, place, schedule, profile)
    # Of each slice the threads' sums are added up in a tree.
    slices = sums * (place.nodes if alike else 1)
    depth = math.log2(size)
    added = slices * 2 * size * place.columns * profile.shared / profile.rate(features.precision)
    walk = length / size * turn + depth * place.columns * profile.shared_step
    walk_nodes = sums / team * profile.step + light / team * turn
    heavy = 1.0 if alike else min(1.0, place.most / features.elements)
    sliced = max(walk, heavy * traffic, heavy * arithmetic + added)
    return sliced, max(walk_nodes, (1 - heavy) * traffic, (1 - heavy) * arithmetic)


def _visits(
    features: GroupFeatures, place: PlaceFeatures, schedule: Schedule, profile: DeviceProfile
) -> tuple[float, float, float]:
    """Seconds of a turn that walks alone, of the traffic and of the arithmetic of all visits."""
    others = features.parameters - place.columns
    if schedule.materialise == "nothing":
        operations = features.operations + 2 * (features.entries + place.entries)
        words = features.data + 1 + CACHED * others
    elif schedule.materialise == "jacobian":
        operations = 2 * (features.entries + place.entries)
        words = features.record_words["jacobian"] + 3 + CACHED * others
    else:
        operations = 2 * place.columns * features.parameters
        # Own rows of the triangle; loads are by quads, so some more.
        share = min(1.0, 1.5 * place.columns / max(1, features.parameters))
        words = share * features.record_words["jtj-blocks"] + 3 + CACHED * others
    if schedule.materialise != "nothing" and place.nodes < max(p.nodes for p in features.places):
        words *= SCATTERED
    loads = features.record_words[schedule.materialise] / 4
    turn = profile.step + profile.operation * operations + profile.load * loads
    size = features.word_bytes
    traffic = size * (features.elements * words + place.nodes) / profile.bytes
    arithmetic = features.elements * operations / profile.rate(features.precision)
    return turn, traffic, arithmetic


def _store(features: GroupFeatures, schedule: Schedule, profile: DeviceProfile) -> float:
    """Time of storing the records, once a linearization."""
    if schedule.materialise == "nothing":
        return 0.0
    words = (
        features.record_words[schedule.materialise] + features.data + CACHED * (features.parameters)
    )
    operations = features.operations
    if schedule.materialise == "jtj-blocks":
        operations += 2 * features.residuals * (features.block_entries + features.parameters)
    traffic = features.word_bytes * features.elements * words / profile.bytes
    arithmetic = features.elements * operations / profile.rate(features.precision)
    return profile.dispatch + max(traffic, arithmetic)


def _two_level(features: GroupFeatures, schedule: Schedule, profile: DeviceProfile) -> float:
    """Elements once, sums per workgroup through shared memory, then sums over workgroups."""
    contributions = sum(p.columns for p in features.places)
    size = features.word_bytes
    operations = features.operations + 4 * features.entries + profile.shared * contributions
    workgroups = -(-features.elements // schedule.workgroup_size)
    waves = max(1.0, features.elements / profile.threads)
    longest = [_longest(features, place) for place in features.places]
    listed = max((_listed(features, p, schedule) for p in features.places), default=0.0)
    elements = max(
        features.elements * operations / profile.rate(features.precision),
        size * features.elements * (features.data + 3 * contributions) / profile.bytes,
        waves * listed * profile.shared_step,
    )
    nodes = 0.0
    for place, valence, most in zip(features.places, features.valences, longest, strict=True):
        partials = min(valence, workgroups)
        team = team_of(partials, schedule.workgroup_size)
        words = place.nodes * partials * (place.width + 1)
        walk = min(most, workgroups) / team * profile.step
        nodes += max(walk, size * words / profile.bytes)
    dispatches = 1 + len({p.node_set for p in features.places})
    return dispatches * profile.dispatch + elements + nodes


def _listed(features: GroupFeatures, place: PlaceFeatures, schedule: Schedule) -> float:
    """Additions one after the other in which a workgroup sums what its elements add at a place."""
    size = schedule.workgroup_size
    mean = features.elements / max(1, place.nodes)
    sums = max(1.0, size / mean) * place.columns
    team = 2.0 ** math.floor(math.log2(max(1.0, size / sums)))
    return min(size, _longest(features, place)) / team + math.log2(team)


def _atomic(features: GroupFeatures, schedule: Schedule, profile: DeviceProfile) -> float:
    """Elements once, each adding to its nodes in whatever order."""
    native = schedule.accumulate == "atomic-native"
    rate = profile.atomics if native else profile.swaps
    contended = profile.contended if native else profile.contended_swap
    additions = features.elements * sum(p.columns for p in features.places)
    # Few additions to a word meet; those beyond what fits side by side wait for each other.
    crowd = max(0.0, features.largest_valence - 64.0)
    arithmetic = features.elements * features.operations / profile.rate(features.precision)
    return 2 * profile.dispatch + max(arithmetic, additions / rate) + contended * crowd


def _assembly(features: GroupFeatures, schedule: Schedule) -> float:
    operation = LANE_OPERATION if schedule.workgroup_size > 1 else LONE_OPERATION
    assembly = features.assembly
    if lanes_of(features.elements, possible=True) == 1 and schedule.workgroup_size > 1:
        operation = 2 * LONE_OPERATION  # compiling takes longer than it saves
    seconds = features.elements * features.operations * operation
    if assembly is None:
        return seconds
    if schedule.materialise == "jacobian":
        return seconds + assembly.by_entries * ENTRY_SECONDS
    return (
        seconds + assembly.incidences * LOOKUP_SECONDS + assembly.products * BLOCK_PRODUCT_SECONDS
    )
