"""Compare two backends on a user's own problem: residuals and Jacobian, entry by entry.

Two right implementations differ by rounding, which a residual may amplify: q - p of nearby points
loses digits that no backend can keep. So a difference counts as explained if it is no larger than
rounding at the scale of the entries, plus what the reference itself changes by when parameters and
data move by the rounding of the precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from autograd_gpu.codegen.kernel import Product
from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import BoundGroup, DataBinding, FloatArray, RowDataBinding, Session
from autograd_gpu.runtime.choice import BackendChoice, choose_backend, open_session
from autograd_gpu.solvers.evaluation import current_parameters

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.problem import Problem

ROUNDINGS = 64.0
"""Roundings of the coarser precision, at the scale of the entries, that need no explanation."""

AMPLIFICATION = 16.0
"""How many times the change under rounded inputs is explained: a few probes miss the worst signs,
and every intermediate is rounded too."""

_PROBES = 3
# Subnormal numbers may be flushed to zero.
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Difference:
    """The entry of one group that two backends disagree about most.

    Attributes:
        excess: difference over what rounding explains; up to 1 is right.
        element, row: of the worst entry; ``column`` is the residual's own, -1 for a residual.
        got, reference: the two numbers.
    """

    excess: float
    element: int
    row: int
    column: int
    got: float
    reference: float

    @property
    def ok(self) -> bool:
        """Whether rounding explains the difference."""
        return self.excess <= 1.0

    def __str__(self) -> str:
        column = f", column {self.column}" if self.column >= 0 else ""
        return (
            f"{self.excess:.2g} of what rounding explains, at element {self.element}, "
            f"residual {self.row}{column}: {self.got:.9g} against {self.reference:.9g}"
        )


@dataclass(frozen=True, slots=True)
class GroupAudit:
    """Result for one residual group."""

    name: str
    residuals: Difference
    jacobian: Difference

    @property
    def ok(self) -> bool:
        """Whether residuals and Jacobian agree."""
        return self.residuals.ok and self.jacobian.ok


@dataclass(frozen=True, slots=True)
class Audit:
    """Results of all groups; ``print`` it.

    Attributes:
        backend, reference: what was compared, with precision and device.
        groups: in the order added.
    """

    backend: str
    reference: str
    groups: tuple[GroupAudit, ...]

    @property
    def ok(self) -> bool:
        """Whether every group agrees."""
        return all(g.ok for g in self.groups)

    def __str__(self) -> str:
        lines = [f"{self.backend} against {self.reference}"]
        for group in self.groups:
            lines.append(f"  {group.name}: {'ok' if group.ok else 'WRONG'}")
            lines.append(f"    residuals: {group.residuals}")
            lines.append(f"    Jacobian:  {group.jacobian}")
        return "\n".join(lines)


def audit(
    problem: Problem,
    backend: str,
    precision: str,
    against: str,
    reference_precision: str,
    device: Device | str | None,
) -> Audit:
    """Compare at the problem's current parameters; see ``Problem.audit``."""
    analysis = problem.analysis()
    if analysis.energies:
        raise InputError(
            f"audit: compares residuals, and {analysis.energies[0].name!r} is an energy; compare "
            "problem.evaluate(backend=…) of two backends"
        )
    opened = problem.device(device)
    rows = analysis.row_count
    choice = choose_backend(backend, precision, opened, rows)
    on_reference = opened if against in ("wgsl", "gpu") else None
    reference = choose_backend(against, reference_precision, on_reference, rows)
    if choice.session_key == reference.session_key:
        raise InputError(
            f"audit: both sides are {choice.backend} in {choice.precision}; name another backend, "
            "precision or reference to compare with"
        )
    tested, trusted = analysis.session(choice), analysis.session(reference)
    single = "float32" in (choice.precision, reference.precision)
    rounding = float(np.finfo(np.float32 if single else np.float64).eps)
    x = current_parameters(problem)
    if single:
        x = x.astype(np.float32).astype(np.float64)
    got, expected = _evaluated(tested, x), _evaluated(trusted, x)
    explained = _explained(analysis, reference, x, expected, rounding)
    return Audit(
        backend=f"{choice.backend}, {choice.precision}, {tested.description}",
        reference=f"{reference.backend}, {reference.precision}, {trusted.description}",
        groups=_compared(analysis.groups, got, expected, explained, rounding),
    )


_Numbers = tuple[FloatArray, FloatArray]


@np.errstate(all="ignore")
def _evaluated(session: Session, x: FloatArray) -> _Numbers:
    residuals, jacobian = session.residual_jacobian(x)
    return residuals.astype(np.float64), jacobian.astype(np.float64)


def _explained(
    analysis: Analysis, choice: BackendChoice, x: FloatArray, at: _Numbers, rounding: float
) -> _Numbers:
    """How far rounding of parameters and data moves the reference."""
    generator = np.random.default_rng(0)

    def rounded(values: FloatArray) -> FloatArray:
        return values * (1.0 + rounding * generator.uniform(-1.0, 1.0, values.shape))

    residuals, jacobian = np.zeros_like(at[0]), np.zeros_like(at[1])
    for _ in range(_PROBES):
        groups = [
            replace(
                group,
                bindings=tuple(
                    # What all elements share of a long row are the numbers of its items.
                    replace(b, values=rounded(b.values))
                    if isinstance(b, DataBinding)
                    or (isinstance(b, RowDataBinding) and not b.shared)
                    else b
                    for b in group.bindings
                ),
            )
            for group in analysis.groups
        ]
        session = open_session(choice, groups, analysis.parameter_count)
        try:
            moved = _evaluated(session, rounded(x))
        finally:
            session.close()
        for largest, new, old in zip((residuals, jacobian), moved, at, strict=True):
            np.fmax(largest, np.abs(new - old), out=largest)
    return residuals, jacobian


def _compared(
    groups: Sequence[BoundGroup],
    got: _Numbers,
    expected: _Numbers,
    explained: _Numbers,
    rounding: float,
) -> tuple[GroupAudit, ...]:
    result: list[GroupAudit] = []
    first = [0, 0]
    for group in groups:
        entries = group.kernel(Product.RESIDUAL_JACOBIAN).entries
        places = (
            [(row, -1) for row in range(group.residual_size)],
            [
                (e.row, e.column)
                for e in entries
                for _ in range(group.capacity if e.per_item else 1)
            ],
        )
        found: list[Difference] = []
        for k, place in enumerate(places):
            own = slice(first[k], first[k] + group.count * len(place))
            first[k] = own.stop
            sides = (side[k][own].reshape(group.count, -1) for side in (got, expected, explained))
            found.append(_worst(group, place, *sides, rounding=rounding))
        result.append(GroupAudit(group.name, *found))
    return tuple(result)


@np.errstate(all="ignore")
def _worst(
    group: BoundGroup,
    places: list[tuple[int, int]],
    got: FloatArray,
    expected: FloatArray,
    explained: FloatArray,
    rounding: float,
) -> Difference:
    """The entry with the largest excess; arrays are (elements, entries of an element)."""
    if got.size == 0:
        return Difference(0.0, 0, 0, -1, 0.0, 0.0)
    finite = np.where(np.isfinite(expected), np.abs(expected), 0.0)
    scale = np.maximum(np.abs(expected), np.sqrt(np.mean(np.square(finite), axis=1, keepdims=True)))
    # By chance the probes may cancel in one element; they do not in all.
    usual = np.sqrt(np.mean(np.square(explained), axis=0))
    explained = np.maximum(explained, np.where(np.isfinite(usual), usual, 0.0))
    bound = ROUNDINGS * rounding * scale + AMPLIFICATION * explained + _TINY
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    excess = np.where(same, 0.0, np.abs(got - expected) / bound)
    # NaN on one side only, or infinity, is the worst there is.
    excess = np.where(np.isfinite(excess), excess, np.inf)
    element, entry = np.unravel_index(int(np.argmax(excess)), excess.shape)
    row, column = places[int(entry)]
    return Difference(
        excess=float(excess[element, entry]),
        element=group.element(int(element)),
        row=row,
        column=column,
        got=float(got[element, entry]),
        reference=float(expected[element, entry]),
    )
