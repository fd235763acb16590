"""A method on mixed precision: it moves up to float64 Jacobians where float32 ones stagnate.

`MovingUp` puts a solve before it that stays on the device, all in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.mixed_session import MixedSession
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.driver import Engine
from autograd_gpu.solvers.host_engine import NormalEquationsEngine
from autograd_gpu.solvers.solution import KernelSummary
from autograd_gpu.solvers.termination import ROUNDING

Inner = TypeVar("Inner", bound=Engine)

STAGNANT_CHANGE = 1e-9
"""An accepted step that lowers the cost by less than this part of it."""
STAGNANT_PROMISE = 1e-6
"""A rejected step of which the model promised less than this part of the cost."""


class _Around(Generic[Inner]):
    """An engine that passes on to another one what it does not do itself.

    Args:
        engine: owned.
    """

    def __init__(self, engine: Inner) -> None:
        self._engine = engine
        self._steps = 0
        self._moved_at: int | None = None

    @property
    def description(self) -> str:
        """Device."""
        return self._engine.description

    @property
    def unknowns(self) -> int:
        """Number of parameters that are not frozen."""
        return self._engine.unknowns

    @property
    def rounding(self) -> float:
        """Relative rounding of the cost."""
        return self._engine.rounding

    def start(self) -> StepRecord:
        """Evaluate the start."""
        return self._engine.start()

    def parameters(self) -> FloatArray:
        """The last accepted point."""
        return self._engine.parameters()

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels used so far."""
        return self._engine.kernels()

    def close(self) -> None:
        """Close the engine at work."""
        self._engine.close()


class MixedEngine(_Around[NormalEquationsEngine]):
    """Steps of an engine, the stagnant ones taken again with float64 Jacobians.

    Args:
        engine: owned.
        session: that the engine evaluates with; borrowed.
    """

    def __init__(self, engine: NormalEquationsEngine, session: MixedSession) -> None:
        super().__init__(engine)
        self._session = session

    def warm_up(self) -> None:
        """Compile everything that a solve may need."""
        self._engine.warm_up()

    def step(self) -> StepRecord:
        """Try one step; if it brings nothing and came from float32, another one from float64."""
        self._steps += 1
        record = self._engine.step()
        if record.lost or self._session.refined or not _stagnant(record):
            return record
        self._session.refine()
        self._moved_at = self._steps
        trouble = self._engine.relinearize()
        if trouble:
            return replace(record, trouble=trouble, lost=True)
        return self._engine.step()

    def linear_solver(self) -> tuple[str, str]:
        """What solves the linear systems, and where the precision of their matrix changed."""
        name, why = self._engine.linear_solver()
        why = why.rstrip(".")
        if self._moved_at is None:
            return name, f"{why}; Jacobians in float32 throughout"
        return name, (
            f"{why}; Jacobians in float64 from step {self._moved_at} on, "
            "where float32 ones brought no more"
        )


def _stagnant(record: StepRecord, change: float = STAGNANT_CHANGE) -> bool:
    if record.accepted:
        return -record.change <= change * record.cost_before
    return record.predicted <= STAGNANT_PROMISE * record.cost


class MovingUp(_Around[Engine]):
    """Steps on the device in float32 until they stagnate, then those of a more precise engine.

    Args:
        resident: the engine on the device; owned, and closed at the move.
        higher: makes the engine that goes on from a point with a damping factor: on the host in
            mixed precision, or on the device in float64.
        damping: the factor at the start.
    """

    def __init__(
        self, resident: Engine, higher: Callable[[FloatArray, float], Engine], damping: float
    ) -> None:
        super().__init__(resident)
        self._resident = resident.linear_solver()
        self._higher = higher
        self._damping = damping
        self._kernels: tuple[KernelSummary, ...] = ()

    @property
    def rounding(self) -> float:
        """Relative rounding of the cost where the solve ends."""
        return ROUNDING["mixed"]

    def warm_up(self) -> tuple[Engine, Engine]:
        """The engine on the device, and one that may go on after it, which the caller closes."""
        return self._engine, self._higher(self._engine.parameters(), self._damping)

    def step(self) -> StepRecord:
        """Try one step; one that float32 cannot judge is followed by one that can."""
        self._steps += 1
        record = self._engine.step()
        if self._moved_at is not None or record.lost:
            return record
        if not (record.exhausted or _stagnant(record, ROUNDING["float32"])):
            if record.accepted:
                self._damping = record.damping
            return record
        self._resident, self._kernels = self._engine.linear_solver(), self._engine.kernels()
        point = self._engine.parameters()
        self._engine.close()
        self._engine = self._higher(point, self._damping)
        self._moved_at = self._steps
        begun = self._engine.start()
        return begun if begun.lost else self._engine.step()

    def linear_solver(self) -> tuple[str, str]:
        """What solves the linear systems now; what did so on the device, and until when."""
        name, why = self._engine.linear_solver()
        if self._moved_at is None:
            return name, f"{why.rstrip('.')}; all in float32, which did not stagnate"
        return name, (
            f"{why.rstrip('.')}; before step {self._moved_at}, where float32 brought no more, "
            f"{self._resident[0]}, all in float32"
        )

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels used so far."""
        return (*self._kernels, *super().kernels())
