"""Levenberg-Marquardt steps that stay on the device; the host reads one small record a step."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codegen.coarse_program import coarse_program
from ..codegen.solve_layout import STATE_WORDS
from ..codegen.solve_program import solve_program
from ..errors import InputError
from .batch import FloatArray
from .coarse_tables import CoarseTables
from .device import Device
from .node_tables import NodeTables, upload_numbers
from .program_runner import ProgramRunner
from .schedules import DETERMINISTIC
from .step_record import StepRecord

SECONDS_PER_SUBMIT = 0.1
"""A submission is cut to about this, so that watchdogs and Ctrl-C are served."""

LONGEST_SUBMIT = 32
"""CG iterations of a submission at most; on a fast device encoding must overlap with work."""

FIRST_GUESS = 64
"""CG iterations submitted with the first step."""


class DeviceSolve:
    """One problem's solve on one device.

    Buffers and pipelines are made here, and once more if a coarse space is added.

    Raises:
        InputError: a schedule whose sums differ from run to run.

    Attributes:
        cut_short: whether the last step's CG ended for want of iterations submitted with it.
    """

    def __init__(self, device: Device, tables: NodeTables) -> None:
        other = [s.accumulate for s in tables.schedules if s.accumulate not in DETERMINISTIC]
        if other:
            raise InputError(
                f"a solve on the device with accumulation {other[0]!r}; expected "
                f"{' or '.join(DETERMINISTIC)}, which have the same bits in every run"
            )
        self._tables = tables
        self._runner = ProgramRunner(device, solve_program(tables.sizes))
        self._runner.upload("control", tables.control)
        self._runner.upload("tables", tables.tables)
        upload_numbers(self._runner, tables)
        self._half = 0
        self._read: NDArray[Any] | None = None  # both halves, as they came with the last record
        self._expected = FIRST_GUESS
        self._seconds_per_iteration = 0.0
        self._coarse: CoarseTables | None = None
        self.cut_short = False

    @property
    def alive(self) -> bool:
        """Whether its buffers are still there: the device was not opened again since."""
        return self._runner.alive

    def rebind(self, tables: NodeTables) -> None:
        """Go on with tables of the same structure and other data; only what differs is uploaded."""
        before, self._tables = self._tables, tables
        differs = np.flatnonzero(before.tables != tables.tables)
        if differs.size:
            first, last = int(differs[0]), int(differs[-1]) + 1
            self._runner.upload("tables", tables.tables[first:last], offset=4 * first)
        if not np.array_equal(before.numbers, tables.numbers):
            upload_numbers(self._runner, tables)

    @property
    def runner(self) -> ProgramRunner:
        """What executes the program; for measurements of single sequences."""
        return self._runner

    def start(
        self,
        parameters: FloatArray,
        damping: float,
        linear_tolerance: float,
        min_gain: float,
    ) -> None:
        """Upload the start point and reset the state."""
        packed = self._tables.pack(parameters)
        self._runner.upload("parameters", np.concatenate([packed, packed]))
        state = np.zeros(STATE_WORDS, np.float32)
        state[0:4] = damping, 2.0, linear_tolerance**2, min_gain
        self._runner.upload("state", state)
        self._half, self._read = 0, None
        self._expected = FIRST_GUESS

    @property
    def coarse(self) -> CoarseTables | None:
        """The coarse space, if there is one by now."""
        return self._coarse

    def add_coarse_space(self, tables: CoarseTables) -> None:
        """Make what steps with a coarse correction need; the state of the solve stays."""
        self._runner.extend(coarse_program(tables.sizes))
        self._runner.upload("coarse", tables.words)
        self._coarse = tables

    def step(self, max_linear_iterations: int, coarse: bool = False) -> StepRecord:
        """Linearize, run CG, try the step, decide: one read-back.

        Args:
            max_linear_iterations: of CG.
            coarse: precondition with the coarse space too, which was added before.
        """
        planned = min(max_linear_iterations, self._expected)
        began = time.perf_counter()
        sequences = ["linearize", "coarse"] if coarse else ["linearize"]
        iteration = "coarse_cg" if coarse else "cg"
        for first in range(0, planned, self._per_submit()):
            count = min(self._per_submit(), planned - first)
            sequences += [iteration] * count
            if first + count < planned:
                self._runner.run(sequences)
                sequences = []
        number = self._tables.number_format
        downloads = self._runner.run([*sequences, "trial"], number.dtype)
        record, self._read = number.decode(downloads["record"]), downloads.get("parameters")
        self._seconds_per_iteration = (time.perf_counter() - began) / (planned + 4)
        used = int(record[5])
        finished = record[11] > 0.0
        self.cut_short = not finished and planned < max_linear_iterations
        # No read-back inside CG: guess from the last step, and more where it was not enough.
        self._expected = int(1.25 * used) + 8 if finished else 2 * planned
        self._half = int(record[12])
        change, gain = float(record[1]), float(record[3])
        if not math.isfinite(change):
            gain = math.nan
        elif not math.isfinite(gain):  # nothing was promised
            gain = 0.0
        finite = math.isfinite(change)
        precision = self._tables.structure.precision
        return StepRecord(
            cost=float(record[0]),
            cost_before=float(record[10]),
            change=change,
            damping=float(record[2]),
            gain=gain,
            predicted=float(record[4]),
            linear_iterations=used,
            accepted=bool(record[6]),
            gradient_norm=float(record[7]),
            step_norm=float(np.sqrt(record[8])),
            parameter_norm=float(np.sqrt(record[9])),
            trouble="" if finite else f"the cost is not finite in {precision}",
        )

    def _per_submit(self) -> int:
        """CG iterations in one submission: few enough that the device works while we encode."""
        if self._seconds_per_iteration <= 0.0:
            return 32
        bounded = int(SECONDS_PER_SUBMIT / self._seconds_per_iteration)
        return max(1, min(LONGEST_SUBMIT, bounded))

    def parameters(self) -> FloatArray:
        """The last accepted point; a small one is here already, even if the device is not."""
        both = self._read
        if both is None:
            both = self._runner.read("parameters", self._tables.number_format.dtype)
        return self._tables.unpack(both.reshape(2, -1)[self._half])

    def statement_counts(self) -> dict[str, int]:
        """Kernel name -> number of computed values in its text."""
        declared = f": {self._tables.structure.real.type} = "
        return {p.name: p.source.count(declared) for p in self._runner.program.pipelines}

    def close(self) -> None:
        """Free the buffers."""
        self._runner.release()
