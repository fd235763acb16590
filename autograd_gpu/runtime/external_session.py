"""A session in which some groups are answered by functions on the host, not by kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..codegen.render import Source
from .batch import BoundGroup, FloatArray, HostArrays, Session, SessionContext


class ExternalSession(SessionContext):
    """Kernels of one session and functions of the host, in the order of the groups.

    Args:
        groups: of the problem; those with ``external`` are the host's.
        inner: session over the others, in order; None if there are none. Owned from here on.
    """

    def __init__(self, groups: Sequence[BoundGroup], inner: Session | None) -> None:
        self._groups = list(groups)
        self._inner = inner
        self._host = HostArrays(groups, np.dtype(np.float64))

    @property
    def description(self) -> str:
        """Processor or device, and what the host adds."""
        names = ", ".join(repr(g.name) for g in self._groups if g.external is not None)
        host = f"external residuals {names} by NumPy on the CPU"
        return host if self._inner is None else f"{self._inner.description}; {host}"

    def prepare(self) -> None:
        """Compile what a solve needs."""
        if self._inner is not None:
            self._inner.prepare()

    def rebind(self, groups: Sequence[BoundGroup]) -> bool:
        """Other data for the kernels and for the functions; in place where the kernels can."""
        self._groups = list(groups)
        traced = [g for g in groups if g.external is None]
        return self._inner is None or self._inner.rebind(traced)

    def warm_up(self) -> None:
        """Compile everything that a solve may need."""
        if self._inner is not None:
            self._inner.warm_up()

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals."""
        found = None if self._inner is None else self._inner.residuals(parameters)
        self._merge(parameters, found, None)
        return self._host.residuals.astype(np.float64, copy=False)

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, and the Jacobian's values."""
        found = (None, None)
        if self._inner is not None:
            found = self._inner.residual_jacobian(parameters)
        self._merge(parameters, *found, with_jacobian=True)
        return (
            self._host.residuals.astype(np.float64, copy=False),
            self._host.jacobian.astype(np.float64, copy=False),
        )

    def _merge(
        self,
        parameters: FloatArray,
        residuals: FloatArray | None,
        jacobian: FloatArray | None,
        with_jacobian: bool = False,
    ) -> None:
        row = entry = 0
        for k, group in enumerate(self._groups):
            own, values = self._host.group_residuals(k), self._host.group_jacobian(k)
            if group.external is not None:
                own[:], derivatives = group.external.at(parameters)
                if with_jacobian:
                    values[:] = derivatives
                continue
            assert residuals is not None
            own[:] = residuals[row : row + own.size]
            row += own.size
            if with_jacobian:
                assert jacobian is not None
                values[:] = jacobian[entry : entry + values.size]
                entry += values.size

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖², under robust losses ½Σρ(‖r‖²), over all groups."""
        total = 0.0 if self._inner is None else self._inner.cost(parameters)
        for group in self._groups:
            if group.external is not None:
                residuals, _ = group.external.at(parameters)
                total += 0.5 * float(residuals @ residuals)
        return total

    def sources(self) -> Sequence[Source]:
        """Generated text of the kernels."""
        return () if self._inner is None else self._inner.sources()

    def close(self) -> None:
        """Free the inner session."""
        if self._inner is not None:
            self._inner.close()
