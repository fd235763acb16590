"""Batches of many topologies on one backend, small ones on the CPU, and the sentence that says so.

Residuals built one by one fall into groups of very different sizes. A group worth a kernel runs
on the backend in launches of at most ``batch_size`` elements; a group that is not, or that the
backend cannot take, is evaluated by NumPy, which compiles nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..codegen.kernel import Product
from ..codegen.render import Source
from ..errors import DeviceError, InputError, KernelError
from ..ops import NODE_OPS
from .batch import BoundGroup, FloatArray, HostArrays, Session, SessionContext
from .choice import BackendChoice, choose_backend, open_session
from .device import Device
from .numpy_backend import NumpySession


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """How groups are cut and which of them are worth a kernel.

    Attributes:
        batch_size: most elements in one launch.
        fallback_threshold: groups of fewer elements are evaluated by NumPy.

    Raises:
        InputError: ``batch_size`` below 1 or ``fallback_threshold`` below 0.
    """

    batch_size: int = 1024
    fallback_threshold: int = 10

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("fallback_threshold", 0)):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
                raise InputError(f"{name}={value!r}: expected a whole number of at least {least}")


def fallback_reason(group: BoundGroup, backend: str, limits: BatchLimits) -> str | None:
    """Why NumPy evaluates a group; None if the backend does."""
    if backend == "numpy":
        return None
    if group.count < limits.fallback_threshold:
        return f"fewer than fallback_threshold={limits.fallback_threshold} residuals"
    nodes = group.kernel(Product.RESIDUAL_JACOBIAN).graph.nodes
    for op in sorted({node.op for node in nodes} & NODE_OPS.keys()):
        if not getattr(NODE_OPS[op], backend):
            return f"{backend} has no {op!r}"
    return None


def choose_or_fall_back(
    backend: str, precision: str, device: Device | None, residuals: int
) -> BackendChoice:
    """``choose_backend``, but the CPU where there is no GPU, and it says so.

    Raises:
        InputError: unknown backend or precision.
    """
    try:
        return choose_backend(backend, precision, device, residuals)
    except DeviceError as error:
        choice = choose_backend("auto", "float64", None, 0)
        return replace(choice, reason=f"fell back to the CPU: {error}")


class BatchExecutor(SessionContext):
    """A session over groups of all sizes.

    Args:
        groups: in the order in which results are wanted.
        parameter_count: numbers in the parameter vector.
        choice: backend of the groups that are worth a kernel.
        limits: what is worth one.

    Attributes:
        choice: what evaluates those groups indeed; NumPy if there are none.
        reasons: for each group, why NumPy evaluates it, or None.
    """

    def __init__(
        self,
        groups: Sequence[BoundGroup],
        parameter_count: int,
        choice: BackendChoice,
        limits: BatchLimits | None = None,
    ) -> None:
        self._groups = list(groups)
        self._host = HostArrays(groups, np.dtype(np.float64))
        limits = limits or BatchLimits()
        self.reasons = [fallback_reason(g, choice.backend, limits) for g in groups]
        self._members = [k for k, why in enumerate(self.reasons) if why is None]
        self._rest = [k for k, why in enumerate(self.reasons) if why is not None]
        self._sessions: list[tuple[Session, list[int]]] = []
        self.choice = choice
        if self._members:
            session = self._open(parameter_count, limits)
            self._sessions.append((session, self._members))
        else:
            self.choice = BackendChoice(
                backend="numpy", precision="float64", reason="no group is worth a kernel"
            )
        if self._rest:
            small = [self._groups[k] for k in self._rest]
            session = NumpySession(small, parameter_count, "float64")
            self._sessions.append((session, self._rest))

    def _open(self, parameter_count: int, limits: BatchLimits) -> Session:
        parts = [
            group.part(start, min(start + limits.batch_size, group.count))
            for group in (self._groups[k] for k in self._members)
            for start in range(0, group.count, limits.batch_size)
        ]
        try:
            return open_session(self.choice, parts, parameter_count)
        except (DeviceError, KernelError) as error:
            if self.choice.backend != "wgsl":
                raise
            self.choice = choose_or_fall_back("auto", "float64", None, 0)
            why = f"fell back to the CPU: {str(error).splitlines()[0]}"
            self.choice = replace(self.choice, reason=why)
            return open_session(self.choice, parts, parameter_count)

    @property
    def reason(self) -> str:
        """What runs where, and why."""
        parts: list[str] = []
        if self._members:
            count = sum(self._groups[k].count for k in self._members)
            parts.append(f"{count} residuals on {self.choice.backend} ({self.choice.reason})")
        for why in dict.fromkeys(self.reasons[k] for k in self._rest):
            chosen = [self._groups[k].count for k in self._rest if self.reasons[k] == why]
            parts.append(
                f"{sum(chosen)} residuals of {len(chosen)} topologies on the CPU by NumPy ({why})"
            )
        return "; ".join(parts)

    @property
    def description(self) -> str:
        """Devices."""
        return " and ".join(dict.fromkeys(s.description for s, _ in self._sessions))

    def prepare(self) -> None:
        """Compile what a solve needs."""
        for session, _ in self._sessions:
            session.prepare()

    def warm_up(self) -> None:
        """Compile everything that a solve may need."""
        for session, _ in self._sessions:
            session.warm_up()

    def sources(self) -> Sequence[Source]:
        """Generated text of each distinct kernel compiled so far."""
        return tuple(source for session, _ in self._sessions for source in session.sources())

    def _collect(
        self,
        values: FloatArray,
        members: Sequence[int],
        target: Callable[[int], NDArray[np.floating]],
    ) -> None:
        """Copy one session's results to where they belong among all groups."""
        first = 0
        for k in members:
            out = target(k)
            out[:] = values[first : first + out.size]
            first += out.size

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals."""
        for session, members in self._sessions:
            self._collect(session.residuals(parameters), members, self._host.group_residuals)
        return self._host.residuals.astype(np.float64, copy=False)

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, and the Jacobian's values."""
        for session, members in self._sessions:
            residuals, values = session.residual_jacobian(parameters)
            self._collect(residuals, members, self._host.group_residuals)
            self._collect(values, members, self._host.group_jacobian)
        return (
            self._host.residuals.astype(np.float64, copy=False),
            self._host.jacobian.astype(np.float64, copy=False),
        )

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖² over all groups."""
        return sum(session.cost(parameters) for session, _ in self._sessions)

    def close(self) -> None:
        """Free what the sessions own."""
        for session, _ in self._sessions:
            session.close()


class GPUBatchExecutor(BatchExecutor):
    """Batches on a GPU, and on the CPU where there is none or a group is too small.

    Args:
        groups: bound groups, such as ``CompiledResiduals.groups``.
        parameter_count: numbers in the parameter vector.
        batch_size, fallback_threshold: as for ``BatchLimits``.
        device: the default one if None.
    """

    def __init__(
        self,
        groups: Sequence[BoundGroup],
        parameter_count: int,
        batch_size: int = 1024,
        fallback_threshold: int = 10,
        device: Device | None = None,
    ) -> None:
        rows = sum(g.count * g.residual_size for g in groups)
        choice = choose_or_fall_back("wgsl", "auto", device, rows)
        limits = BatchLimits(batch_size=batch_size, fallback_threshold=fallback_threshold)
        super().__init__(groups, parameter_count, choice, limits)
