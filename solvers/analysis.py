"""What a problem looks like to a solver: columns, sparsity, bound groups, sessions."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.kernel import Product, SlotKind
from autograd_gpu.errors import InputError
from autograd_gpu.ragged import Ragged
from autograd_gpu.runtime.batch import (
    BoundGroup,
    FloatArray,
    IndexArray,
    ParameterBinding,
    RowBinding,
    Session,
)
from autograd_gpu.runtime.batch_executor import BatchExecutor
from autograd_gpu.runtime.choice import BackendChoice, open_session
from autograd_gpu.runtime.external_session import ExternalSession
from autograd_gpu.runtime.host_assembly import HostAssembly
from autograd_gpu.runtime.numpy_backend import NumpySession
from autograd_gpu.solvers.bounds import make_box
from autograd_gpu.solvers.external import BoundExternal, ExternalGroup
from autograd_gpu.solvers.host_schedules import chosen_gram, gram_of, measured_lanes
from autograd_gpu.solvers.normal_equations import Gram, NormalEquations, RowGram
from autograd_gpu.solvers.resident_solves import ResidentSolves
from autograd_gpu.solvers.residual_group import ResidualGroup, binding_of
from autograd_gpu.solvers.retraction import Movable, Retraction
from autograd_gpu.solvers.selection import ParameterArray
from autograd_gpu.solvers.unknown_blocks import UnknownBlocks, unknown_blocks

if TYPE_CHECKING:
    from autograd_gpu.solvers.problem import Problem

LEAST_BUDGET = 1 << 14
"""Bytes: a device that has no more room than that has none."""

Pattern = tuple[IndexArray, IndexArray, NDArray[np.bool_] | None]


class Analysis:
    """Structure of one problem; dropped when the problem's structure or data change.

    Owns the sessions opened on it (compiled kernels, uploaded data, buffers), resident solves that
    wait for the next one, and the symbolic phase of the normal equations.

    Args:
        problem: its structure is read once.
        further: residual groups after those of the problem.

    Raises:
        InputError: the problem has no parameters or no residuals.
    """

    def __init__(self, problem: Problem, further: Sequence[ResidualGroup] = ()) -> None:
        if not problem.groups and not problem.energies:
            raise InputError(
                "the problem has no residuals; call problem.add_residuals(fn, …) first"
            )
        self.arrays = problem.arrays
        self.base: dict[str, int] = {}
        self._columns: dict[str, IndexArray] = {}
        total = free = 0
        for array in problem.arrays:
            self.base[array.name] = total
            total += array.blocks * array.width
            frozen = problem.frozen_of(array)
            columns = np.full((array.blocks, array.tangent), -1, np.int64)
            varying = int((~frozen).sum()) * array.tangent
            columns[~frozen] = np.arange(free, free + varying).reshape(-1, array.tangent)
            self._columns[array.name] = columns
            free += varying
        self.bounds = problem.bounds
        self.box = make_box(self.arrays, self.bounds, self._columns, self.base)
        self.parameter_count = total
        self.column_count = free
        given = (*problem.groups, *further)
        self.groups = tuple(self._bind(g) for g in given)
        self.energies = tuple(self._bind(g) for g in problem.energies)
        self._given_as = [g.given_as or g.name for g in given]
        self.has_losses = any(g.topology.losses.count for g in self.groups)
        self._first_columns = {
            self.base[a.name]: self._columns[a.name][:, 0] for a in problem.arrays
        }
        self._sessions: dict[tuple[object, ...], Session] = {}
        self._inherited: dict[tuple[object, ...], Session] = {}
        self._moved: dict[tuple[object, ...], BackendChoice] = {}
        self._retractions: dict[tuple[object, ...], Retraction] = {}
        self._limits = problem.batch_limits
        self.memory_budget = problem.memory_budget
        self._origin: Analysis | None = None
        self.residents = ResidentSolves()

    def _bind(self, group: ResidualGroup) -> BoundGroup:
        ordered = [group.arguments[a] for a in group.topology.arguments]
        external = None
        if isinstance(group, ExternalGroup):
            external = BoundExternal(group.external, self.base)
        return BoundGroup(
            name=group.name,
            external=external,
            topology=group.topology,
            count=group.count,
            elements=group.elements,
            loss_scale=(
                None
                if group.loss_scale is None
                else group.topology.arguments.index(group.loss_scale)
            ),
            bindings=tuple(binding_of(g, self.base) for g in ordered),
            lengths=group.lengths,
            capacity=group.capacity,
        )

    @property
    def external_names(self) -> list[str]:
        """Groups that a user's function on the host gives."""
        return [g.name for g in self.groups if g.external is not None]

    def rebound(
        self, groups: Sequence[BoundGroup], energies: Sequence[BoundGroup] | None = None
    ) -> Analysis:
        """The same problem with other numbers in its data; symbolic phases are shared.

        Args:
            groups: of the same topologies and parameters, in the same order.
            energies: the same of energies; as they are if None.

        Returns:
            an analysis whose sessions are its own; the caller closes it.
        """
        other = copy(self)
        other._origin = self._origin or self
        other.groups = tuple(groups)
        other.energies = self.energies if energies is None else tuple(energies)
        other._sessions, other._retractions, other._inherited = {}, {}, {}
        other.residents = ResidentSolves()
        return other

    def updated(self, problem: Problem, in_use: bool) -> Analysis:
        """``rebound`` to the data that the problem has now.

        Args:
            problem: it.
            in_use: whether a solve still works with the sessions here; otherwise they are handed
                on, and take the new data in the memory that they have.
        """
        groups = [self._bind(g) for g in problem.groups]
        other = self.rebound(groups, [self._bind(g) for g in problem.energies])
        if not in_use:
            other._inherited = {**self._inherited, **self._sessions}
            self._sessions, self._inherited = {}, {}
            other.residents = self.residents.handed_on()
        return other

    def columns_of(self, array: ParameterArray) -> IndexArray:
        """Columns of each block of ``array``, ``(blocks, tangent)``, -1 where frozen; a copy."""
        return self._columns[array.name].copy()

    @cached_property
    def movable(self) -> tuple[Movable, ...]:
        """Blocks that are not frozen, array by array."""
        result: list[Movable] = []
        for array in self.arrays:
            columns = self._columns[array.name]
            blocks = np.flatnonzero(columns[:, 0] >= 0)
            first = self.base[array.name] + blocks * array.width
            result.append(
                Movable(
                    name=array.name,
                    positions=first[:, None] + np.arange(array.width),
                    columns=columns[blocks],
                    chart=array.chart,
                )
            )
        return tuple(result)

    @cached_property
    def free_positions(self) -> IndexArray:
        """Positions among all parameters of those in blocks that are not frozen.

        Without manifolds, that of each Jacobian column.
        """
        return np.concatenate([m.positions.ravel() for m in self.movable])

    @cached_property
    def row_count(self) -> int:
        """Number of residuals."""
        return sum(g.count * g.residual_size for g in self.groups)

    @cached_property
    def _pattern(self) -> Pattern:
        if self._origin is not None:
            return self._origin._pattern
        return self.pattern_of(self.groups)

    def pattern_of(self, groups: Sequence[BoundGroup]) -> Pattern:
        """(indptr, indices, kept) of J; ``kept`` marks values whose column is not frozen."""
        counts: list[IndexArray] = []
        columns: list[IndexArray] = []
        for group in groups:
            kernel = group.kernel(Product.RESIDUAL_JACOBIAN)
            starts = kernel.value_starts(group.capacity)
            cols = np.empty((group.count, starts[-1]), np.int64)
            # Entries are row-major, so the number kept per residual row is a sum over a run.
            in_row = np.zeros((group.count, kernel.residual_size), np.int64)
            per_column = self._local_columns(group)
            for k, entry in enumerate(kernel.entries):
                place = slice(starts[k], starts[k + 1])
                cols[:, place] = per_column[entry.column]
                in_row[:, entry.row] += np.count_nonzero(cols[:, place] >= 0, axis=1)
            counts.append(in_row.ravel())
            columns.append(cols.ravel())
        flat = np.concatenate([np.empty(0, np.int64), *columns])
        kept = flat >= 0
        indptr = np.cumsum(np.concatenate([np.zeros(1, np.int64), *counts]))
        if kept.all():
            return indptr, flat, None
        return indptr, flat[kept], kept

    def _local_columns(self, group: BoundGroup) -> list[IndexArray]:
        """Global column of each local column, per element: ``(count, 1)``.

        Of a long row ``(count, capacity)``; items that do not exist have none, as frozen blocks.
        """
        result: list[IndexArray] = []
        for slot, binding in zip(group.topology.slots, group.bindings, strict=True):
            if slot.kind is SlotKind.DATA:
                continue
            if isinstance(binding, RowBinding):
                first = self._first_columns[binding.base][binding.indices]
                first = np.where(group.valid, first, -1)
            else:
                assert isinstance(binding, ParameterBinding)
                first = self._first_columns[binding.base][binding.block_of(group.count), None]
            result += [np.where(first >= 0, first + k, -1) for k in range(slot.tangent)]
        return result

    @cached_property
    def has_long_rows(self) -> bool:
        """Whether a kernel loops over long rows; whole solves on a device do without loops."""
        return any(g.lengths is not None for g in self.groups)

    @property
    def indptr(self) -> IndexArray:
        """Row starts of J in CSR."""
        return self._pattern[0]

    @property
    def indices(self) -> IndexArray:
        """Columns of J's entries."""
        return self._pattern[1]

    def free_values(self, values: FloatArray) -> FloatArray:
        """A session's Jacobian values without those of frozen columns."""
        kept = self._pattern[2]
        return values if kept is None else values[kept]

    def columns_of_elements(self, group: BoundGroup) -> IndexArray:
        """Column of each local column of a group's elements, ``(count, n)``, -1 where frozen."""
        columns = self._local_columns(group)
        return np.concatenate(columns, axis=1) if columns else np.empty((group.count, 0), np.int64)

    @cached_property
    def _energy_pattern(self) -> tuple[IndexArray, IndexArray]:
        """A row for every element of an energy, with all columns that it depends on."""
        parts = [self.columns_of_elements(g) for g in self.energies]
        counts = np.concatenate([(p >= 0).sum(axis=1) for p in parts])
        columns = np.concatenate([p[p >= 0] for p in parts])
        return np.concatenate([[0], np.cumsum(counts)]), columns

    @cached_property
    def unknown_blocks(self) -> UnknownBlocks:
        """Blocks of unknowns that elements gather as a whole."""
        if self._origin is not None:
            return self._origin.unknown_blocks
        columns = {self.base[a.name]: self._columns[a.name] for a in self.arrays}
        return unknown_blocks(self.groups, columns, self.column_count)

    @cached_property
    def normal_equations(self) -> NormalEquations:
        """Symbolic phase of JᵀJ, and of the Hessians of energies.

        To the pattern of J belongs a row for every element of an energy, whose values are zero.
        """
        if self._origin is not None:
            return self._origin.normal_equations
        return NormalEquations(self._gram())

    def _gram(self) -> Gram:
        """What sums JᵀJ: by shared blocks, by blocks, or by entries of J."""
        if self.energies:
            return self._gram_with_energies()
        # Elements over long rows have as many columns as they have items.
        return gram_of(self, "jacobian") if self.has_long_rows else chosen_gram(self)

    def _gram_with_energies(self) -> Gram:
        indptr, indices = self._energy_pattern
        rows, entries = np.zeros(len(indptr) - 1), np.zeros(len(indices))
        return RowGram(
            np.concatenate([self.indptr, self.indptr[-1] + indptr[1:]]),
            np.concatenate([self.indices, indices]),
            self.column_count,
            select=lambda values, residuals: (
                np.concatenate([self.free_values(values), entries]),
                np.concatenate([residuals, rows]),
            ),
        )

    @cached_property
    def _products(self) -> HostAssembly:
        """Products with J."""
        if self._origin is not None:
            return self._origin._products
        return HostAssembly(self.indptr, self.indices, self.column_count)

    def product(self, values: FloatArray, direction: FloatArray) -> FloatArray:
        """J·direction, one number a residual; `values` of J as a session gives them."""
        return self._products.product(self.free_values(values), direction)

    def drop(self, choice: BackendChoice) -> None:
        """Free what there is for a backend choice: its device was lost, or cannot do the work."""
        for kept in (self._sessions, self._inherited, self._retractions):
            owned = kept.pop(choice.session_key, None)
            if owned is not None:
                owned.close()
        self.residents.drop(choice.session_key)
        if self._origin is not None:
            self._origin.drop(choice)

    def spare_memory(self, in_use: int) -> bool:
        """Let new sessions take half of what there was, as that was too much.

        Args:
            in_use: bytes that were in use without a budget.

        Returns:
            False if that is less than any piece is worth.
        """
        budget = (in_use if self.memory_budget is None else self.memory_budget) // 2
        if budget < LEAST_BUDGET:
            return False
        self.memory_budget = budget
        return True

    def move(self, choice: BackendChoice, to: BackendChoice | None) -> None:
        """Answer for ``choice`` as for another one; None ends that."""
        if to is None:
            self._moved.pop(choice.session_key, None)
        else:
            self._moved[choice.session_key] = to

    def session(self, choice: BackendChoice) -> Session:
        """The session for a backend choice; opened at first use."""
        choice = self._moved.get(choice.session_key, choice)
        key = choice.session_key
        if key not in self._sessions:
            self._sessions[key] = self._rebound_session(key) or self._new_session(choice)
        return self._sessions[key]

    def _rebound_session(self, key: tuple[object, ...]) -> Session | None:
        """The session of the analysis before, with the data of this one; None if it cannot."""
        session = self._inherited.pop(key, None)
        if session is None:
            return None
        rebound = False
        try:
            rebound = session.rebind(self.groups)
        finally:
            if not rebound:
                session.close()
        return session if rebound else None

    def _new_session(self, choice: BackendChoice) -> Session:
        traced = [g for g in self.groups if g.external is None]
        session = self._opened(choice, traced)
        if len(traced) < len(self.groups):
            session = ExternalSession(self.groups, session if traced else None)
        return session

    def retraction(self, choice: BackendChoice) -> Retraction:
        """What moves the parameters by a step; made at first use."""
        if self._origin is not None:
            return self._origin.retraction(choice)
        choice = self._moved.get(choice.session_key, choice)
        key = choice.session_key
        if key not in self._retractions:
            self._retractions[key] = Retraction(self.movable, choice)
        return self._retractions[key]

    def _opened(self, choice: BackendChoice, groups: Sequence[BoundGroup]) -> Session:
        if not groups:  # energies have sessions of their own
            return NumpySession((), self.parameter_count, "float64")
        if self._limits is None:
            lanes = measured_lanes(groups) if choice.backend == "numba" else None
            count, budget = self.parameter_count, self.memory_budget
            return open_session(choice, groups, count, lanes, budget)
        return BatchExecutor(groups, self.parameter_count, choice, self._limits)

    @cached_property
    def given_order(self) -> IndexArray | None:
        """For each residual as the caller sees it, its row here; None if they are the same.

        The batches of a ragged group stand here one after another, and the caller's elements in
        the order given.
        """
        if all(g.elements is None for g in self.groups):
            return None
        order: list[IndexArray] = []
        first = 0
        for _, members in groupby(
            zip(self._given_as, self.groups, strict=True), key=lambda pair: pair[0]
        ):
            batches = [group for _, group in members]
            elements = [np.arange(g.count) if g.elements is None else g.elements for g in batches]
            sizes = [np.full(g.count, g.residual_size) for g in batches]
            starts = first + np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
            sorting = np.argsort(np.concatenate(elements), kind="stable")
            rows = np.arange(first, int(starts[-1]), dtype=np.int64)
            chosen = Ragged(starts - first, rows).take(sorting)
            order.append(chosen.values)
            first = int(starts[-1])
        return np.concatenate(order)

    def locate_row(self, row: int) -> str:
        """``residuals 'springs', element 12, component 0`` for a row of J."""
        for group in self.groups:
            size = group.count * group.residual_size
            if row < size:
                element, component = divmod(row, group.residual_size)
                number = group.element(element)
                return f"residuals {group.name!r}, element {number}, component {component}"
            row -= size
        return f"row {row}"

    def locate_energy(self, element: int) -> str:
        """``energy 'bending', element 12`` for an element among those of all energies."""
        for group in self.energies:
            if element < group.count:
                return f"energy {group.name!r}, element {group.element(element)}"
            element -= group.count
        return f"element {element} of the energies"

    def forget_schedules(self) -> None:
        """Choose the schedules of sums on the host again, when they are next needed."""
        if self._origin is not None:
            self._origin.forget_schedules()
        self.__dict__.pop("normal_equations", None)
        self.residents.give_up()
        for key in [k for k in self._sessions if k[0] == "numba"]:
            self._sessions.pop(key).close()

    def close(self) -> None:
        """Free the sessions."""
        for owned in (
            *self._sessions.values(), *self._inherited.values(), *self._retractions.values()
        ):  # fmt: skip
            owned.close()
        self._sessions.clear()
        self._inherited.clear()
        self._retractions.clear()
        self.residents.close()
