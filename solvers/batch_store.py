"""Batches of a problem by name: residuals, energies and constraints."""

from __future__ import annotations

from collections.abc import Mapping

from numpy.typing import ArrayLike

from autograd_gpu.errors import InputError
from autograd_gpu.solvers.constraint_group import Constraint
from autograd_gpu.solvers.external import same_data
from autograd_gpu.solvers.ragged_group import RaggedGroup
from autograd_gpu.solvers.residual_group import ResidualGroup

Batch = ResidualGroup | RaggedGroup


class BatchStore:
    """What a problem sums, in the order added; one name stands for one batch of any kind.

    Attributes:
        residuals: name -> batch whose squares are summed.
        energies: name -> batch summed as it is.
        constraints: name -> batch with the bounds that it keeps.
    """

    def __init__(self) -> None:
        self.residuals: dict[str, Batch] = {}
        self.energies: dict[str, Batch] = {}
        self.constraints: dict[str, Constraint] = {}

    def copy(self) -> BatchStore:
        """The same batches, which may be replaced without a change here."""
        made = BatchStore()
        made.residuals = dict(self.residuals)
        made.energies = dict(self.energies)
        made.constraints = dict(self.constraints)
        return made

    def free_name(self, wanted: str, *, named: bool) -> str:
        """``wanted``, or with a number if it is taken and the user did not choose it.

        Raises:
            InputError: the user chose it (``named``) and it is taken.
        """
        taken = self.residuals.keys() | self.energies.keys() | self.constraints.keys()
        if wanted not in taken:
            return wanted
        if named:
            raise InputError(
                f"residuals {wanted!r}: the problem already has a group of this name; choose "
                "another"
            )
        k = 2
        while f"{wanted}_{k}" in taken:
            k += 1
        return f"{wanted}_{k}"

    def with_data(
        self, data: Mapping[str, Mapping[str, ArrayLike] | ArrayLike]
    ) -> dict[str, Batch | Constraint]:
        """Batches whose data differ from what they are, and constraints.

        Raises:
            InputError: no batch of a name, or see ``ResidualGroup.with_data``.
        """
        before = {**self.residuals, **self.energies, **self.constraints}
        changed: dict[str, Batch | Constraint] = {}
        for name, new in data.items():
            if name not in before:
                known = ", ".join(map(repr, before))
                raise InputError(f"update: no residuals {name!r}; the problem has {known}")
            old = before[name]
            if isinstance(old, Constraint):
                changed[name] = old.with_data(new)
                continue
            batch = old.with_data(new)
            if not same_data(old, batch):
                changed[name] = batch
        return changed

    def take(self, changed: Mapping[str, Batch | Constraint]) -> None:
        """Put what ``with_data`` made in the place of those of the same names."""
        for name, batch in changed.items():
            if isinstance(batch, Constraint):
                self.constraints[name] = batch
            else:
                (self.residuals if name in self.residuals else self.energies)[name] = batch

    def __str__(self) -> str:
        parts = [f"residuals: {_counts(self.residuals) or 'none'}"]
        if self.energies:
            parts.append(f"energies: {_counts(self.energies)}")
        if self.constraints:
            groups = {name: c.group for name, c in self.constraints.items()}
            parts.append(f"constraints: {_counts(groups)}")
        return "; ".join(parts)


def _counts(batches: Mapping[str, Batch]) -> str:
    return ", ".join(f"{name} × {batch.count}" for name, batch in batches.items())
