"""Residuals and cost in float64, Jacobians in float32 until those are not good enough."""

from __future__ import annotations

from collections.abc import Sequence

from ..codegen.kernel import Product
from ..codegen.render import Source
from .batch import BoundGroup, FloatArray, Session, SessionContext
from .device import Device
from .wgsl_backend import open_wgsl


class MixedSession(SessionContext):
    """A problem on a device in two precisions.

    A step computed from a float32 Jacobian still leads to the minimum of the float64 cost: what it
    lacks is a part in 1e7 of itself, and the next step makes up for it. Where that no longer helps,
    ``refine`` turns to float64 Jacobians; ``prepare``, which begins a solve, turns back.

    Args:
        groups, parameter_count: as for every session.
        precision: ``float64-native`` or ``float64-emulated``.
        device: where.
        memory_budget: bytes for all of it; None for what the device has.
    """

    def __init__(
        self,
        groups: Sequence[BoundGroup],
        parameter_count: int,
        precision: str,
        device: Device,
        memory_budget: int | None = None,
    ) -> None:
        self._groups = tuple(groups)
        self._parameter_count = parameter_count
        self._precision = precision
        self._device = device
        # Residuals in float64, Jacobians in float32, and later in float64.
        self._share = None if memory_budget is None else memory_budget // 3
        self._corrected = any(g.topology.losses.count for g in groups)
        fine = (Product.RESIDUAL,)
        self._residuals = open_wgsl(groups, parameter_count, precision, device, fine, self._share)
        coarse = (Product.RESIDUAL_JACOBIAN,)
        self._coarse = open_wgsl(groups, parameter_count, "float32", device, coarse, self._share)
        self._fine: Session | None = None
        self._refined = False

    @property
    def description(self) -> str:
        """Device and API."""
        return self._device.name

    @property
    def refined(self) -> bool:
        """Whether Jacobians come in float64."""
        return self._refined

    def prepare(self) -> None:
        """Begin a solve: Jacobians in float32."""
        self._refined = False

    def warm_up(self) -> None:
        """Compile Jacobians in float64 too."""
        self.refine()
        self.prepare()

    def refine(self) -> None:
        """Give Jacobians in float64 from now on."""
        if self._fine is None:
            self._fine = open_wgsl(
                self._groups,
                self._parameter_count,
                self._precision,
                self._device,
                (Product.RESIDUAL_JACOBIAN,),
                self._share,
            )
        self._refined = True

    def rebind(self, groups: Sequence[BoundGroup]) -> bool:
        """Upload other data of the same groups."""
        self._groups = tuple(groups)
        made = (self._residuals, self._coarse, self._fine)
        return all(session.rebind(groups) for session in made if session is not None)

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals, in float64."""
        return self._residuals.residuals(parameters)

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖² over all groups, in float64."""
        return self._residuals.cost(parameters)

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, in float64 but for those that a robust loss corrects, and J's values."""
        if self._refined and self._fine is not None:
            return self._fine.residual_jacobian(parameters)
        residuals, values = self._coarse.residual_jacobian(parameters)
        return (residuals if self._corrected else self.residuals(parameters)), values

    def sources(self) -> Sequence[Source]:
        """Generated text of each distinct kernel made so far."""
        fine = self._fine.sources() if self._fine else ()
        return (*self._residuals.sources(), *self._coarse.sources(), *fine)

    def close(self) -> None:
        """Free the buffers."""
        for session in (self._residuals, self._coarse, self._fine):
            if session is not None:
                session.close()
