"""How long work takes: what trials of schedules are timed with.

A device times itself by timestamps; on the host, and on a device without them, a time is the
difference between more and less of the same work, in which submission and read-back cancel.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from autograd_gpu.runtime.closing import Closing
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.device_stopwatch import DeviceStopwatch, can_time
from autograd_gpu.runtime.program_runner import ProgramRunner

WARM_UP = 0.4
"""Seconds of the same work before a GPU is timed, whose clocks rise meanwhile and fall in pauses;
after a shorter pause, as long as that."""

SHORT_PAUSE = 0.01
"""Seconds in which clocks do not fall."""

BURST = 0.02
"""Seconds of work between two looks at the clock, about."""

MOST_UNITS = 4096
"""Units of work in one submission, at most: the host encodes each."""

Work = Callable[[int], None]
"""Does so many units of work, and waits for them."""


class Slope:
    """Seconds of one unit of work, as often as asked: the slope of time between two amounts.

    Args:
        work: what is timed; runs a few units here, which compiles it.
        clock: seconds.
    """

    def __init__(self, work: Work, clock: Callable[[], float] = time.perf_counter) -> None:
        self._work = work
        self._clock = clock
        work(1)  # compiles
        once = self._time(1)
        self._more = 0
        if once < BURST:
            many = int(np.clip(BURST / max(once, 1e-6), 2, 200))
            # The first unit pays for the way to the device and back; now that is known.
            self._more = int(np.clip(BURST * many / max(self._time(many), 1e-6), 2, 400))

    def __call__(self) -> float:
        """One time, positive."""
        once = self._time(1)
        if not self._more:  # so much work that submitting it does not count
            return once
        all_of_it = self._time(1 + self._more)
        slope = (all_of_it - once) / self._more
        # Where something else took the processor meanwhile, a difference may be negative.
        return slope if slope > 0.0 else all_of_it / (1 + self._more)

    def _time(self, units: int) -> float:
        began = self._clock()
        self._work(units)
        return max(self._clock() - began, 1e-9)


class Warmth:
    """Keeps the clocks of a device up; shared by its trials.

    Args:
        needed: whether there are clocks that fall.
    """

    def __init__(self, needed: bool) -> None:
        self._needed = needed
        self._cold = WARM_UP
        self._last = time.perf_counter()

    def up(self, work: Work) -> None:
        """Before a time is taken."""
        if not self._needed:
            return
        pause = time.perf_counter() - self._last
        self._cold = min(WARM_UP, self._cold + (pause if pause > SHORT_PAUSE else 0.0))
        began = time.perf_counter()
        units = 1
        while (passed := time.perf_counter() - began) < self._cold:
            work(units)
            units = min(2 * units, 64) if time.perf_counter() - began - passed < BURST else 1
        self._cold = 0.0

    def down(self) -> None:
        """After it was."""
        self._last = time.perf_counter()


class TimedProgram(Closing):
    """A program whose sequences are timed, by the device's own clock if it has one.

    Args:
        runner: of the program.
        warmth: of the device.
        owner: is closed with the trial.
    """

    def __init__(self, runner: ProgramRunner, warmth: Warmth, owner: Closing | DeviceSolve) -> None:
        self._runner = runner
        self._warmth = warmth
        self._owner = owner
        self._watch = DeviceStopwatch(runner) if can_time(runner) else None
        self._units: dict[tuple[str, ...], int] = {}
        self._slopes: dict[tuple[str, ...], Slope] = {}

    def seconds(self, sequences: tuple[str, ...]) -> float:
        """Of the sequences once."""
        self._warmth.up(lambda count: self._work(sequences, count))
        try:
            if self._watch is None:
                return self._slope(sequences)()
            if sequences not in self._units:
                units, once = 1, self._watch.seconds(sequences)
                while once < BURST / 4 and units < MOST_UNITS:
                    units *= 4
                    once = self._watch.seconds(sequences * units)
                self._units[sequences] = units
            units = self._units[sequences]
            return max(self._watch.seconds(sequences * units), 1e-9) / units
        finally:
            self._warmth.down()

    def _work(self, sequences: tuple[str, ...], count: int) -> None:
        self._runner.run(sequences * count)
        self._runner.read("parameters", size=4)

    def _slope(self, sequences: tuple[str, ...]) -> Slope:
        if sequences not in self._slopes:
            self._slopes[sequences] = Slope(lambda count: self._work(sequences, count))
        return self._slopes[sequences]

    def close(self) -> None:
        """Free the buffers."""
        if self._watch is not None:
            self._watch.close()
        self._owner.close()
