"""Nonlinear least squares over ``Value``s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autograd_gpu.solvers.compiled_residuals import CompiledResiduals, Residuals
from autograd_gpu.solvers.solution import Solution
from autograd_gpu.solvers.solve import solve

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device


class NonlinearLeastSquares:
    """Minimises ½‖r‖² over Values; residuals are compiled once, here.

    Args:
        params: the unknowns, leaf Values.
        residuals, backend, batch_size, fallback_threshold, precision, device: as for
            ``CompiledResiduals.compile``.

    Attributes:
        compiled: the residuals.
    """

    def __init__(
        self,
        params: Sequence[Any],
        residuals: Residuals,
        backend: str = "auto",
        batch_size: int = 1024,
        fallback_threshold: int = 10,
        precision: str = "auto",
        device: Device | str | None = None,
    ) -> None:
        self.compiled = CompiledResiduals.compile(
            params, residuals, backend, batch_size, fallback_threshold, precision, device
        )

    def solve(self, linear_solver: str = "auto", **options: Any) -> Solution:
        """Solve from the present numbers and write the solution back into the Values.

        Args:
            linear_solver: as for ``ag.solve``. ``auto`` keeps linear algebra on the CPU: kernels
                that gather tens of scalars one by one gain nothing from a solve on the device.
            options: other arguments of ``ag.solve``: ``method``, ``options``, ``callback``, ….

        Returns:
            The solution; ``values["x"]`` are the numbers in the order of the parameters. They are
            written whatever the status: the last accepted point.
        """
        compiled = self.compiled
        compiled.refresh()
        choice = compiled.executor.choice
        if choice.backend == "wgsl" and linear_solver == "auto":
            linear_solver = "sparse-cholesky"
        solution = solve(
            compiled.problem,
            linear_solver=linear_solver,
            backend=choice.backend,
            precision=choice.precision,
            device=choice.device,
            **options,
        )
        for value, number in zip(compiled.params, solution.values["x"], strict=True):
            if value.requires_grad:
                value.data = float(number)
        return solution
