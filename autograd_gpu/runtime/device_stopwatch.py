"""Device time of whole submissions, by two timestamps around one pass.

What the host needs to encode, submit and wait does not count, so that short kernels can be
compared while other work takes the processor. (`DeviceClock` times single kernels, each in a pass
of its own, without what lies between them.)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .adapters import load_wgpu, timestamp_period
from .closing import Closing
from .device_clock import FEATURE, encode
from .program_runner import ProgramRunner


class DeviceStopwatch(Closing):
    """Times sequences of one program; on a device with `can_time`.

    Args:
        runner: of the program; borrowed.
    """

    def __init__(self, runner: ProgramRunner) -> None:
        wgpu = load_wgpu()
        device = runner.device
        self._runner = runner
        self._tick = 1e-9 * timestamp_period(device.queue)
        self._queries = device.wgpu_device.create_query_set(type=wgpu.QueryType.timestamp, count=2)
        usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
        self._ticks = device.wgpu_device.create_buffer(size=16, usage=usage)

    def seconds(self, sequences: Sequence[str]) -> float:
        """Run sequences in order, without their downloads, and wait for them.

        Raises:
            DeviceError: the device fails.
        """
        device = self._runner.device
        launches = self._runner.launches(sequences)
        try:
            encoder = device.wgpu_device.create_command_encoder()
            compute = encoder.begin_compute_pass(
                timestamp_writes={
                    "query_set": self._queries,
                    "beginning_of_pass_write_index": 0,
                    "end_of_pass_write_index": 1,
                }
            )
            encode(compute, launches)
            compute.end()
            encoder.resolve_query_set(self._queries, 0, 2, self._ticks, 0)
            device.queue.submit([encoder.finish()])
            device.count(submits=1, dispatches=len(launches))
            begin, end = np.frombuffer(device.queue.read_buffer(self._ticks), np.uint64).tolist()
        except Exception as error:  # wgpu, the driver and CFFI share no class of errors
            raise device.work_error(
                "timing " + ", ".join(dict.fromkeys(sequences)), error
            ) from error
        return self._tick * max(0, end - begin)

    def close(self) -> None:
        """Free its buffer and queries."""
        self._ticks.destroy()
        self._queries.destroy()


def can_time(runner: ProgramRunner) -> bool:
    """Whether the device of a program has timestamps."""
    return FEATURE in runner.device.capabilities
