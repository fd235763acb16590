"""Going on after a fault of a device: it was lost, its memory ran out, it rejected a text.

A solve goes on from the last accepted point: on the device opened again if that was lost once, on
the CPU if it is lost again or fails otherwise in the middle of a solve. What fails before a solve
has begun is an error for whoever asked for that device, and goes to the CPU for whoever did not.
What happened stands in the solution's report.
"""

from __future__ import annotations

import math
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace

from autograd_gpu.errors import DeviceError, DeviceLostError, KernelError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.choice import BackendChoice, bytes_of_elements, choose_backend
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.analysis import Analysis
from autograd_gpu.solvers.driver import Engine
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.solution import KernelSummary
from autograd_gpu.solvers.step_control import LARGEST_DAMPING

FAULTS = (DeviceError, KernelError, MemoryError)
"""What a solve may outlive; what goes to the device can exhaust the memory of the host too."""

SECONDS_BETWEEN_SAVES = 0.25
"""Large points that live on a device are read back this often: what a lost device can cost. …"""

SHARE_OF_SAVES = 0.02
"""… Or more often, where that takes no more than this part of the time."""

Make = Callable[[BackendChoice, FloatArray, float | None], Engine]
"""Makes an engine: where, from which point, with which damping (None for that of the options)."""


def with_damping(options: SolverOptions, damping: float | None) -> SolverOptions:
    """Options of a solve that goes on with the damping that it had."""
    if damping is None or not isinstance(options, LevenbergMarquardtOptions):
        return options
    return replace(options, initial_damping=min(damping, LARGEST_DAMPING))


class Recovery:
    """Where one solve runs, and what became of that.

    Args:
        choice: where it is to run.
        free: whether the package chose that; then the CPU may do what the device cannot.
        resident: whether the whole solve is to stay on the device.

    Attributes:
        choice: where it runs now.
        resident: whether it still stays there; where memory is short, steps are taken on the host
            and batches go to the device in pieces.
        faults: what happened and how the solve went on, in order.
        device_bytes, peak_device_bytes: of all buffers on the device, as `look_at_memory` saw them
            last; 0 without a device.
    """

    def __init__(self, choice: BackendChoice, free: bool, resident: bool = False) -> None:
        self.resident = resident
        self._asked = choice
        self._free = free
        self._lost = 0
        self.choice = choice
        self.faults: list[str] = []
        self.device_bytes = self.peak_device_bytes = 0
        self._generation = 0 if choice.device is None else choice.device.generation

    def look_at_memory(self) -> None:
        """Note what the device's memory holds, while the solve still has its buffers."""
        if self.choice.device is not None:
            memory = self.choice.device.memory.report()
            self.device_bytes = memory.bytes
            self.peak_device_bytes = max(self.peak_device_bytes, memory.peak)

    @contextmanager
    def of(self, analysis: Analysis) -> Generator[None]:
        """While a problem is solved; the next solve tries again where it is asked to."""
        budget = analysis.memory_budget
        try:
            yield
        finally:
            analysis.move(self._asked, None)
            analysis.memory_budget = budget

    def engine(self, make: Make, analysis: Analysis, start: FloatArray) -> Engine:
        """An engine that outlives its device, if it has one."""
        if not self.on_a_device:
            return make(self.choice, start, None)
        return Recovering(make, analysis, start, self)

    def move(
        self,
        error: Exception,
        analysis: Analysis,
        when: str,
        point: str,
        *,
        begun: bool = False,
    ) -> None:
        """Find where to go on.

        Args:
            error: what happened.
            analysis: of the problem; what it has on the device is dropped.
            when: for the report, such as ``at step 3``.
            point: for the report: from where it goes on.
            begun: whether there is a result that would be lost.

        Raises:
            Exception: ``error`` itself, if there is nowhere.
        """
        if not self.on_a_device:
            raise error
        before, name = self.choice, self.device_name
        why = _reason(error)
        in_use = self._bytes_of(analysis)
        analysis.drop(before)
        if isinstance(error, MemoryError):
            let_go(error)
            shortage = self._with_less_memory(analysis, in_use)
            if shortage is not None:
                what, how = shortage
                self.faults.append(f"{name} {what} {when}; resumed from {point} {how}: {why}")
                return
        self.leave(error, analysis, when, point, begun=begun)

    def note_shortage(self, error: Exception, when: str, how: str) -> None:
        """Book that memory ran out, and ``how`` whoever asks goes on."""
        name = self.device_name if self.on_a_device else "the host"
        self.faults.append(
            f"{name} ran out of memory {when}; resumed from the last accepted points with {how}: "
            f"{_reason(error)}"
        )

    def leave(
        self,
        error: Exception,
        analysis: Analysis,
        when: str,
        point: str,
        *,
        begun: bool = False,
    ) -> None:
        """``move`` where less memory is no way out."""
        before, name, why = self.choice, self.device_name, _reason(error)
        if isinstance(error, DeviceLostError):
            what = f"{name} was lost {when}"
            try:
                if before.device is not None and self._opened_again(before.device):
                    how = "on the device, opened again"
                    self.faults.append(f"{what}; resumed from {point} {how}: {why}")
                    return
            except DeviceError as refused:
                why = f"{why}; {refused}"
        elif self._free or begun:
            what = f"{name} failed {when}"
        else:
            raise error
        moved = choose_backend("auto", "float64", None, 0)
        self.choice = replace(moved, reason=f"{before.reason}; {what}, so on the CPU")
        # Whoever asks for the device while this solve runs gets what has taken its place.
        analysis.move(self._asked, self.choice)
        self.faults.append(f"{what}; resumed from {point} on the CPU: {why}")
        warnings.warn(self.faults[-1], RuntimeWarning, stacklevel=2)

    @property
    def on_a_device(self) -> bool:
        """Whether there is another place to go on."""
        return self.choice.device is not None or self.choice.backend == "jax"

    @property
    def device_name(self) -> str:
        """Of what it runs on."""
        if self.choice.device is not None:
            return self.choice.device.name
        from autograd_gpu.runtime.jax_calls import device_name

        return device_name()

    def _bytes_of(self, analysis: Analysis) -> int:
        """What its batches take, or all buffers where their device keeps an account."""
        if self.choice.device is not None:
            return self.choice.device.memory.bytes
        sizes = bytes_of_elements(self.choice, analysis.groups)
        return sum(g.count * size for g, size in zip(analysis.groups, sizes, strict=True))

    def _with_less_memory(self, analysis: Analysis, in_use: int) -> tuple[str, str] | None:
        """Go on with steps on the host, or in smaller pieces, as words; None if nothing is left."""
        if self.resident:
            self.resident = False
            return "has no room for the whole solve", "with steps on the host"
        if analysis.spare_memory(in_use):
            return "ran out of memory", "in smaller pieces"
        return None

    def _opened_again(self, device: Device) -> bool:
        """Open a lost device again, once; who else works on it may have done so already."""
        if device.generation == self._generation:
            self._lost += 1
            if self._lost > 1:
                return False
            device.reopen()
        self._generation = device.generation
        return True


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def let_go(error: BaseException) -> None:
    """Free what the frames hold in which memory ran out, as long as their traceback lives."""
    at: BaseException | None = error
    while at is not None:
        traceback.clear_frames(at.__traceback__)
        at = at.__cause__ or at.__context__


class Recovering:
    """An engine that is made again elsewhere when its device fails.

    Args:
        make: makes it.
        analysis: the problem; borrowed.
        start: all parameters, flat.
        recovery: where; shared by all stages of a solve.
    """

    def __init__(
        self, make: Make, analysis: Analysis, start: FloatArray, recovery: Recovery
    ) -> None:
        self._make = make
        self._analysis = analysis
        self._recovery = recovery
        self._point = start
        self._saved_at = time.perf_counter()
        self._interval = 0.0
        self._saved_step = self._step = 0
        self._damping: float | None = None
        self._engine: Engine | None = None
        try:
            self._engine = make(recovery.choice, start, None)
        except FAULTS as error:
            self._again(error, "before the first step")

    @property
    def engine(self) -> Engine:
        """The engine that runs now."""
        assert self._engine is not None
        return self._engine

    @property
    def description(self) -> str:
        """Device or processor."""
        return self.engine.description

    @property
    def unknowns(self) -> int:
        """Number of parameters that are not frozen."""
        return self.engine.unknowns

    @property
    def rounding(self) -> float:
        """Relative rounding of the cost."""
        return self.engine.rounding

    def start(self) -> StepRecord:
        """Evaluate the start."""
        try:
            return self.engine.start()
        except FAULTS as error:
            return self._again(error, "at the start")

    def step(self) -> StepRecord:
        """Try one step; on another engine, from the last accepted point, if a device fails."""
        self._step += 1
        while True:  # `_again` raises when there is nowhere to go on
            try:
                record = self.engine.step()
                break
            except FAULTS as error:
                begun = self._again(error, f"at step {self._step}")
                if begun.lost:
                    return begun
        if record.accepted and self._late():
            # The step is done; without its device the next one will say so.
            with suppress(*FAULTS):
                self._save()
        if math.isfinite(record.damping) and record.damping > 0.0:
            self._damping = record.damping
        return record

    def parameters(self) -> FloatArray:
        """The last accepted point."""
        while True:
            try:
                return self.engine.parameters()
            except FAULTS as error:
                self._again(error, "after the last step")

    def linear_solver(self) -> tuple[str, str]:
        """What solves the linear systems, and why."""
        return self.engine.linear_solver()

    def kernels(self) -> tuple[KernelSummary, ...]:
        """Generated kernels of the engine that runs now."""
        return self.engine.kernels()

    def close(self) -> None:
        """Free the engine."""
        if self._engine is not None:
            self._engine.close()

    # -- points --------------------------------------------------------------------------------

    def _late(self) -> bool:
        return time.perf_counter() - self._saved_at >= self._interval

    def _save(self) -> None:
        began = time.perf_counter()
        self._point = self.engine.parameters()
        self._saved_step = self._step
        self._saved_at = time.perf_counter()
        taken = self._saved_at - began
        self._interval = min(SECONDS_BETWEEN_SAVES, taken / SHARE_OF_SAVES)

    def _rescue(self) -> str:
        """Take the last accepted point along, if it can be had; from where the solve goes on."""
        if self._engine is None:
            return "the start"
        try:
            self._point = self._engine.parameters()
            return "the last accepted point"
        except FAULTS:
            if self._saved_step == 0:
                return "the start"
            return f"the point after step {self._saved_step}"

    def _again(self, error: Exception, when: str) -> StepRecord:
        """An engine elsewhere at the last point; what its start says."""
        while True:
            point = self._rescue()
            self.close()
            self._engine = None
            self._recovery.move(error, self._analysis, when, point, begun=self._step > 0)
            try:
                self._engine = self._make(self._recovery.choice, self._point, self._damping)
                return self._engine.start()
            except FAULTS as another:
                error = another
