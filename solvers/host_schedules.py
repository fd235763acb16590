"""Schedules of sums on the host: JᵀJ from entries or by blocks, elements alone or side by side.

What executors of the CPU ask ``runtime.schedule_choice`` with, and what they do with the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autograd_gpu.codegen.kernel import Product, SlotKind
from autograd_gpu.codegen.lanes import fits_lanes
from autograd_gpu.runtime.batch import BoundGroup
from autograd_gpu.runtime.block_assembly import BlockAssembly, SharedAssembly
from autograd_gpu.runtime.schedule_choice import ScheduleChooser, identity_of
from autograd_gpu.runtime.schedule_features import features_of
from autograd_gpu.runtime.schedules import AssemblyFeatures, Decision, GroupFeatures
from autograd_gpu.solvers.normal_equations import Gram, RowGram, nearly_full

if TYPE_CHECKING:
    from autograd_gpu.solvers.analysis import Analysis


def host_chooser() -> ScheduleChooser:
    """Chooses for sums on the host."""
    return ScheduleChooser("assembly", identity_of(None))


def group_features(group: BoundGroup, assembly: AssemblyFeatures | None = None) -> GroupFeatures:
    """What a schedule of a group on the host is chosen by."""
    slots = group.kernel(Product.RESIDUAL_JACOBIAN).slots
    read = sum(s.ambient for s in slots if s.kind is SlotKind.PARAMETER)
    return features_of(group, "float64", read, assembly=assembly)


def host_features(analysis: Analysis) -> list[GroupFeatures]:
    """Features of all groups of a problem, with what summing their JᵀJ takes."""
    if analysis.energies or analysis.has_long_rows:
        return [group_features(g) for g in analysis.groups]
    blocks = analysis.unknown_blocks
    full = nearly_full(analysis.column_count, blocks.fill)
    possible = blocks.shared if full else blocks.possible
    found: list[GroupFeatures] = []
    for group, places in zip(analysis.groups, blocks.groups, strict=True):
        kernel = group.kernel(Product.RESIDUAL_JACOBIAN)
        assembly = AssemblyFeatures(
            products=places.count * int(places.products.sum()),
            # Where all elements share their blocks, nothing is looked up.
            incidences=0 if full else places.count * len(places.columns),
            by_entries=blocks.by_entries(places),
            blocks_possible=possible,
            lanes_possible=fits_lanes(kernel, "float64") and group.external is None,
        )
        found.append(group_features(group, assembly))
    return found


def assembly_decisions(analysis: Analysis) -> tuple[Decision, ...]:
    """The schedules of sums on the host, and why."""
    return host_chooser().decide(host_features(analysis))


def gram_of(analysis: Analysis, materialise: str) -> Gram:
    """What sums JᵀJ: from entries of J (``jacobian``) or by blocks (``jtj-blocks``)."""
    if materialise == "jtj-blocks":
        blocks = analysis.unknown_blocks
        if nearly_full(analysis.column_count, blocks.fill):
            return SharedAssembly(blocks.starts, blocks.groups)
        return BlockAssembly(blocks.starts, blocks.groups)
    return RowGram(
        analysis.indptr, analysis.indices, analysis.column_count,
        select=lambda values, residuals: (analysis.free_values(values), residuals),
    )  # fmt: skip


def chosen_gram(analysis: Analysis) -> Gram:
    """What sums JᵀJ of a problem without energies."""
    decisions = assembly_decisions(analysis)
    return gram_of(analysis, decisions[0].schedule.materialise if decisions else "jacobian")


def measured_lanes(groups: Sequence[BoundGroup]) -> tuple[int, ...] | None:
    """Elements side by side, per group, if that was measured; None to go by their number."""
    if any(g.lengths is not None or g.external is not None for g in groups):
        return None
    measured = host_chooser().recall([group_features(g) for g in groups])
    return None if measured is None else tuple(s.workgroup_size for s in measured[0][0])
