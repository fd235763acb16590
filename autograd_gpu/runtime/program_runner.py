"""Executes a Program on a wgpu device: allocate once, then upload, submit and read back."""

from __future__ import annotations

import contextlib
import threading
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from autograd_gpu.codegen.program import (
    MAX_WORKGROUPS_PER_DIMENSION,
    BufferSpec,
    DispatchSpec,
    PipelineSpec,
    Program,
    workgroup_grid,
)
from autograd_gpu.errors import DeviceError, DeviceLostError, InputError, ShapeError
from autograd_gpu.events import listening, report, timed
from autograd_gpu.runtime.adapters import load_wgpu
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.device_clock import FEATURE, DeviceClock, Launch, encode
from autograd_gpu.runtime.pipelines import CompiledPipeline

ALIGNMENT = 16
"""Of what is read back, in bytes: wgpu maps at multiples of 8; 16 lets every NumPy type view it."""

LARGEST_TRANSFER = 1 << 26
"""Bytes that travel at once: what is larger goes in parts, so that the copies which the host and
the driver keep of what travels stay small."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """Part of a download: ``size`` bytes that go to ``offset`` in the staging buffer.

    Attributes:
        name, buffer: what is read.
        begin: first byte in it.
        offset: in the staging buffer.
        size: bytes.
    """

    name: str
    buffer: Any
    begin: int
    offset: int
    size: int


class ProgramRunner:
    """A program bound to a device.

    Buffers, pipelines and bind groups are created here, once; running creates none. The runner
    owns its buffers and frees them in ``release`` (or at the end of a ``with`` block); the
    pipelines belong to the device. Calls from several threads take turns.

    Raises:
        KernelError: if a pipeline does not compile.
        DeviceLimitError: if a buffer or pipeline is larger than the device allows.
    """

    def __init__(self, device: Device, program: Program) -> None:
        self._device = device
        self._program = program
        self._lock = threading.Lock()
        self._released = False
        self._generation = device.generation
        self._specs: dict[str, BufferSpec] = {spec.name: spec for spec in program.buffers}
        self._buffers: dict[str, Any] = {}
        self._staging: Any = None
        self._clock: DeviceClock | None = None
        self._staging_size = 0
        # Also given back where nobody calls `release`: the device's account refers to them.
        self._owned: list[Any] = []
        weakref.finalize(self, _give_back_all, device, self._owned).atexit = False
        for spec in program.buffers:
            device.check_buffer(spec)
        device.begin_pipelines(program.pipelines)
        try:
            self._allocate()
            self._launches = self._bind(_compiled(device, program))
        except BaseException:
            self._free()
            raise

    def extend(self, program: Program) -> None:
        """Go on with a larger program: its further buffers and pipelines are made, once.

        Buffers that both programs have keep what they hold.

        Raises:
            InputError: if a buffer of the present program is missing in the new one, or differs.
            KernelError, DeviceLimitError: as at construction; the present program then stays.
        """
        for spec in self._program.buffers:
            if spec not in program.buffers:
                raise InputError(
                    f"extend: buffer {spec.name!r} ({spec.size} bytes, role {spec.role!r}) is not "
                    "in the new program; a larger program keeps every buffer as it is"
                )
        for spec in program.buffers:
            self._device.check_buffer(spec)
        compiled = _compiled(self._device, program)
        with self._lock:
            self._check_alive()
            before = self._program, self._specs, dict(self._buffers)
            try:
                self._program = program
                self._specs = {spec.name: spec for spec in program.buffers}
                self._allocate()
                self._launches = self._bind(compiled)
            except BaseException:
                for name, buffer in self._buffers.items():
                    if name not in before[2]:
                        self._give_back(buffer)
                self._program, self._specs, self._buffers = before
                raise

    @property
    def device(self) -> Device:
        """The device that the program runs on."""
        return self._device

    @property
    def alive(self) -> bool:
        """Whether it can run: not released, and its device not opened again since."""
        return not self._released and self._generation == self._device.generation

    @property
    def program(self) -> Program:
        """The program as given."""
        return self._program

    def upload(self, name: str, array: ArrayLike, *, offset: int | None = None) -> None:
        """Copy ``array`` into buffer ``name`` before the next run.

        The array's bytes are taken as they are (C order), and must be exactly as many as the
        buffer has; with ``offset`` (bytes, a multiple of 4) they may cover a part of it.

        Raises:
            InputError: if there is no such buffer, or the host may not write it.
            ShapeError: if the number of bytes does not fit.
        """
        spec = self._specs.get(name)
        if spec is None or spec.role == "download":
            known = ", ".join(repr(s.name) for s in self._specs.values() if s.role != "download")
            what = "no buffer" if spec is None else "role 'download', kernels write it:"
            raise InputError(f"upload to {name!r}: {what}; buffers to upload to are {known}")
        data = np.ascontiguousarray(array)
        start = 0 if offset is None else offset
        fits = data.nbytes == spec.size if offset is None else start + data.nbytes <= spec.size
        if not fits or start < 0 or start % 4 or data.nbytes % 4 or data.nbytes == 0:
            raise ShapeError(
                f"upload to {name!r}: got {data.nbytes} bytes (dtype {data.dtype}, shape "
                f"{data.shape}) at offset {start}, the buffer has {spec.size}; pass exactly as "
                "many bytes, or a part in whole words together with its offset"
            )
        with self._lock:
            self._check_alive()
            try:
                with timed("upload", name, bytes=data.nbytes, **_content(data)):
                    self._write(self._buffers[name], start, data)
            except Exception as error:  # wgpu, the driver and CFFI share no class of errors
                raise self._device.work_error(f"upload to {name!r}", error) from error
        self._device.count(bytes_up=data.nbytes)

    def run(
        self,
        sequence: str | Sequence[str],
        dtypes: DTypeLike | Mapping[str, DTypeLike] = np.uint8,
    ) -> dict[str, NDArray[Any]]:
        """Run a sequence, or several in order, in one submission, and read back its downloads.

        Args:
            sequence: name or names of the program's sequences.
            dtypes: type of the arrays returned, one for all or by buffer name (uint8 where a
                name is missing).

        Returns:
            One flat array per download buffer of the sequences. A submission without downloads
            returns at once, while the device works.

        Raises:
            InputError: if there is no such sequence.
            DeviceError: if the device fails; DeviceLostError if it is gone.
        """
        names = (sequence,) if isinstance(sequence, str) else tuple(sequence)
        self._check_names(names)
        with self._lock:
            self._check_alive()
            chunks = self._plan_downloads(names)
            try:
                parts = self._execute(names, chunks)
                if chunks and self._clock is not None:
                    self._clock.read()
            except DeviceError:
                raise
            except Exception as error:  # wgpu, the driver and CFFI share no class of errors
                raise self._device.work_error(f"sequence {', '.join(names)}", error) from error
            except BaseException:
                self._renew_staging()  # interrupted: it may be waiting to be mapped for ever
                raise
        return {name: part.view(_dtype_of(name, dtypes)) for name, part in parts.items()}

    def read(self, name: str, dtype: DTypeLike = np.uint8, size: int | None = None) -> NDArray[Any]:
        """Read a "state" buffer back, or its first ``size`` bytes, after all work submitted so far.

        Raises:
            InputError: if there is no such buffer, or it is not kept on the device.
            DeviceError: if the device fails; DeviceLostError if it is gone.
        """
        spec = self._specs.get(name)
        if spec is None or spec.role != "state":
            known = ", ".join(repr(s.name) for s in self._specs.values() if s.role == "state")
            raise InputError(f"read of {name!r}: state buffers are {known}")
        with self._lock:
            self._check_alive()
            try:
                # Not all of the buffer, which may be larger than what was asked for.
                wanted = spec.size if size is None else size
                with timed("download", name, bytes=wanted):
                    data = self._device.queue.read_buffer(self._buffers[name], 0, wanted)
            except Exception as error:  # wgpu, the driver and CFFI share no class of errors
                raise self._device.work_error(f"read of {name!r}", error) from error
        self._device.count(readbacks=1, bytes_down=len(data))
        return np.frombuffer(data, dtype)

    def launches(self, sequences: Sequence[str]) -> list[Launch]:
        """The dispatches of sequences in order, for whoever encodes them otherwise.

        Raises:
            InputError: if there is no such sequence.
            DeviceLostError: if the device is gone.
        """
        self._check_names(sequences)
        with self._lock:
            self._check_alive()
            return [launch for name in sequences for launch in self._launches[name]]

    def _check_names(self, sequences: Sequence[str]) -> None:
        for name in sequences:
            if name not in self._program.sequences:
                known = ", ".join(map(repr, self._program.sequences))
                raise InputError(f"unknown sequence {name!r}; the program has {known}")

    def release(self) -> None:
        """Free the buffers. Releasing twice is allowed; running afterwards is an error."""
        with self._lock:
            self._free()

    def __enter__(self) -> ProgramRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    # -- construction ------------------------------------------------------------------------

    def _allocate(self) -> None:
        usage = load_wgpu().BufferUsage
        usages = {
            "upload": usage.STORAGE | usage.COPY_DST,
            "state": usage.STORAGE | usage.COPY_DST | usage.COPY_SRC,
            "download": usage.STORAGE | usage.COPY_SRC | usage.COPY_DST,
            "uniform": usage.UNIFORM | usage.COPY_DST,
        }
        for spec in self._program.buffers:
            if spec.name not in self._buffers:
                self._buffers[spec.name] = self._create(spec.name, spec.size, usages[spec.role])
        # One staging buffer that holds what the hungriest sequence reads back, up to a limit, so
        # that no run has to allocate; what does not fit is read back in parts.
        needed = max(
            (
                sum(_aligned(self._specs[name].size) for name in sequence.downloads)
                for sequence in self._program.sequences.values()
            ),
            default=0,
        )
        limit = min(self._device.limits["max-buffer-size"], LARGEST_TRANSFER)
        needed = min(needed, limit // ALIGNMENT * ALIGNMENT)
        if needed > self._staging_size:
            if self._staging is not None:
                self._give_back(self._staging)
            self._staging_size = needed
            self._staging = self._make_staging(needed)

    def _bind(self, compiled: Mapping[str, CompiledPipeline]) -> dict[str, tuple[Launch, ...]]:
        specs = {spec.name: spec for spec in self._program.pipelines}
        groups: dict[tuple[Any, ...], Any] = {}
        launches: dict[str, tuple[Launch, ...]] = {}
        rows = min(
            self._device.limits["max-compute-workgroups-per-dimension"],
            MAX_WORKGROUPS_PER_DIMENSION,
        )
        for name, sequence in self._program.sequences.items():
            resolved: list[Launch] = []
            for dispatch in sequence.dispatches:
                spec = specs[dispatch.pipeline]
                key = (spec.bindings, dispatch.buffers)
                if key not in groups:
                    groups[key] = self._bind_group(compiled[spec.name], spec, dispatch)
                grid = workgroup_grid(dispatch.invocations, spec.workgroup_size, rows)
                resolved.append(
                    Launch(
                        name=spec.name,
                        pipeline=compiled[spec.name].pipeline,
                        bind_group=groups[key],
                        grid=grid,
                        invocations=dispatch.invocations,
                    )
                )
            launches[name] = tuple(resolved)
        return launches

    def _bind_group(
        self, compiled: CompiledPipeline, spec: PipelineSpec, dispatch: DispatchSpec
    ) -> Any:
        entries = [
            {
                "binding": k,
                "resource": {
                    "buffer": self._buffers[name],
                    "offset": 0,
                    "size": self._specs[name].size,
                },
            }
            for k, name in enumerate(dispatch.buffers)
        ]
        try:
            return self._device.wgpu_device.create_bind_group(
                label=spec.name, layout=compiled.bind_group_layout, entries=entries
            )
        except load_wgpu().GPUError as error:
            raise self._device.work_error(f"the bindings of {spec.name!r}", error) from error

    # -- running -----------------------------------------------------------------------------

    def _write(self, buffer: Any, start: int, data: NDArray[Any]) -> None:
        """Copy an array to a buffer; a large one in parts that are on their way one by one."""
        queue = self._device.queue
        if data.nbytes <= LARGEST_TRANSFER:
            queue.write_buffer(buffer, start, data)
            return
        words = data.reshape(-1).view(np.uint8)
        for first in range(0, words.size, LARGEST_TRANSFER):
            queue.write_buffer(buffer, start + first, words[first : first + LARGEST_TRANSFER])
            # Or the driver's copies of all parts would wait for the next run.
            self._device.submit(self._device.wgpu_device.create_command_encoder())

    def _plan_downloads(self, names: tuple[str, ...]) -> list[list[_Copy]]:
        """Downloads of the sequences, each buffer once, in groups that fit the staging buffer."""
        sequences = self._program.sequences
        wanted = dict.fromkeys(name for seq in names for name in sequences[seq].downloads)
        chunks: list[list[_Copy]] = []
        end = self._staging_size
        for name in wanted:
            total, begin = self._specs[name].size, 0
            if end + total > self._staging_size:
                end = self._staging_size  # whole in the next group, if it fits there
            while begin < total:
                if end >= self._staging_size:
                    chunks.append([])
                    end = 0
                size = min(total - begin, self._staging_size - end)
                chunks[-1].append(_Copy(name, self._buffers[name], begin, end, size))
                begin += size
                end += _aligned(size)
        return chunks

    def _execute(
        self, names: tuple[str, ...], chunks: list[list[_Copy]]
    ) -> dict[str, NDArray[np.uint8]]:
        launches = [launch for name in names for launch in self._launches[name]]
        parts: dict[str, NDArray[np.uint8]] = {}
        self._submit(launches, chunks[0] if chunks else [])
        for k, chunk in enumerate(chunks):
            if k:
                self._submit([], chunk)
            with timed("download", names[-1], bytes=sum(copy.size for copy in chunk)):
                self._read_staging(chunk, parts)
        return parts

    def _submit(self, launches: list[Launch], copies: list[_Copy]) -> None:
        encoder = self._device.wgpu_device.create_command_encoder()
        if launches:
            clock = self._running_clock()
            if clock is None:
                compute = encoder.begin_compute_pass()
                encode(compute, launches)
                compute.end()
            else:
                clock.encode(encoder, launches)
        for copy in copies:
            encoder.copy_buffer_to_buffer(
                copy.buffer, copy.begin, self._staging, copy.offset, copy.size
            )
        self._device.submit(encoder)
        self._device.count(submits=1, dispatches=len(launches))
        for launch in launches if listening() else ():
            report("dispatch", launch.name, invocations=launch.invocations)

    def _running_clock(self) -> DeviceClock | None:
        """What times dispatches, while somebody listens and if the device can."""
        if self._clock is None and listening() and FEATURE in self._device.capabilities:
            self._clock = DeviceClock(self._device, self._lock)
        return self._clock if listening() else None

    def _read_staging(self, copies: list[_Copy], parts: dict[str, NDArray[np.uint8]]) -> None:
        """Add what lies in the staging buffer to ``parts``."""
        size = copies[-1].offset + copies[-1].size
        # NOSYNC: wgpu-py would submit an empty command buffer first, although the copy that is
        # waited for has just been submitted; measured 70 µs on a software device.
        self._staging.map_async("READ_NOSYNC", 0, size).sync_wait()
        try:
            mapped = np.frombuffer(self._staging.read_mapped(0, size, copy=False), np.uint8)
            for copy in copies:
                whole = self._specs[copy.name].size
                if copy.name not in parts:
                    parts[copy.name] = np.empty(whole, np.uint8)
                target = parts[copy.name][copy.begin : copy.begin + copy.size]
                target[:] = mapped[copy.offset : copy.offset + copy.size]
        finally:
            self._staging.unmap()
        self._device.count(readbacks=1, bytes_down=sum(copy.size for copy in copies))

    def _renew_staging(self) -> None:
        """Another staging buffer in the place of one whose state is not known."""
        if self._staging is not None:
            self._give_back(self._staging, keep=False)
            self._staging = None
            self._staging = self._make_staging(self._staging_size)

    def _make_staging(self, size: int) -> Any:
        usage = load_wgpu().BufferUsage
        return self._create("staging", size, usage.MAP_READ | usage.COPY_DST)

    def _create(self, name: str, size: int, usage: int) -> Any:
        buffer = self._device.create_buffer(name, size, usage)
        self._owned.append(buffer)
        return buffer

    def _give_back(self, buffer: Any, *, keep: bool = True) -> None:
        self._owned.remove(buffer)
        self._device.give_back(buffer, keep=keep)

    def _check_alive(self) -> None:
        if self._released:
            raise DeviceError("this ProgramRunner has been released; construct another one")
        if self._generation != self._device.generation:
            raise DeviceLostError(
                f"{self._device.name} was lost and opened again since this work was set up; "
                "values on it are gone: set it up again"
            )

    def _free(self) -> None:
        self._released = True
        if self._clock is not None:
            # A device that is lost has no times to tell.
            with contextlib.suppress(Exception):
                self._clock.read()
                self._clock.close()
            self._clock = None
        self._launches = {}
        _give_back_all(self._device, self._owned)
        self._buffers = {}
        self._staging = None


def _give_back_all(device: Device, buffers: list[Any]) -> None:
    while buffers:
        device.give_back(buffers.pop())


def _compiled(device: Device, program: Program) -> dict[str, CompiledPipeline]:
    """Pipelines of a program by name."""
    found = device.pipelines(program.pipelines)
    return {spec.name: one for spec, one in zip(program.pipelines, found, strict=True)}


def _content(data: NDArray[Any]) -> dict[str, int]:
    """Checksum of what is uploaded, by which repetitions are found, while somebody listens."""
    return {"checksum": zlib.crc32(data.data.cast("B"))} if listening() else {}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _dtype_of(name: str, dtypes: DTypeLike | Mapping[str, DTypeLike]) -> DTypeLike:
    if isinstance(dtypes, Mapping):
        by_name = cast("Mapping[str, DTypeLike]", dtypes)
        return by_name.get(name, np.uint8)
    return dtypes
