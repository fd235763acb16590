"""An opened WebGPU device: granted limits and features, compiled pipelines, counters."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autograd_gpu.codegen.program import BindingKind, BufferSpec, PipelineSpec
from autograd_gpu.errors import DeviceError, DeviceLimitError, DeviceLostError, DeviceMemoryError
from autograd_gpu.events import timed
from autograd_gpu.runtime.adapters import AdapterInfo, find_adapter, load_wgpu
from autograd_gpu.runtime.device_errors import (
    allocation_error,
    is_out_of_memory,
    pipeline_error,
    work_error,
)
from autograd_gpu.runtime.device_memory import DeviceMemory
from autograd_gpu.runtime.pipelines import CompiledPipeline, Pipelines

# Used where the adapter has them; everything else stays off, as in a browser.
OPTIONAL_FEATURES = ("timestamp-query", "shader-f64", "shader-float32-atomic", "subgroup")
RAISED_LIMITS = (
    "max-storage-buffer-binding-size",
    "max-buffer-size",
    "max-storage-buffers-per-shader-stage",
)

_LAYOUT_TYPES: dict[BindingKind, str] = {
    "uniform": "uniform",
    "read": "read-only-storage",
    "write": "storage",
}


@dataclass(slots=True)
class DeviceCounters:
    """What a device has been asked to do so far; bytes are those of host data."""

    dispatches: int = 0
    submits: int = 0
    readbacks: int = 0
    buffers_created: int = 0
    pipelines_created: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    def snapshot(self) -> DeviceCounters:
        """A copy that does not change any more."""
        return replace(self)


class Device:
    """A WebGPU device, opened when first used.

    Args:
        adapter: a part of the adapter's name, an ``AdapterInfo``, or None for the default.
        limits: limits to ask for, by WebGPU's name with dashes; lower ones than the adapter's
            make any machine behave like a smaller one, such as a browser.
        features: optional features to use where the adapter has them; None for all that this
            package knows how to use.
        memory_budget: most bytes of all buffers together; None for what the device has. Batches
            that do not fit go through in pieces.

    A device owns its compiled pipelines; buffers belong to whoever created them. All methods
    may be called from several threads.

    Attributes:
        counters: what it has been asked to do.
        memory: bytes of the buffers on it, now and at most.
        generation: how often it was opened again.

    Raises:
        DeviceError: when first used, if there is no such adapter or it refuses;
            DeviceMemoryError for want of memory.
        DeviceLimitError: when first used, if a limit is above the adapter's.
    """

    def __init__(
        self,
        adapter: str | AdapterInfo | None = None,
        limits: Mapping[str, int] | None = None,
        features: Iterable[str] | None = None,
        memory_budget: int | None = None,
    ) -> None:
        self._adapter = adapter
        self._wanted_limits = {k.replace("_", "-"): int(v) for k, v in (limits or {}).items()}
        self._wanted_features = tuple(OPTIONAL_FEATURES if features is None else features)
        self._lock = threading.RLock()
        self._opened: tuple[AdapterInfo, Any] | None = None
        self._closed = False
        self._doubtful = False  # since memory ran out in the middle of some work
        self._layouts: dict[tuple[BindingKind, ...], tuple[Any, Any]] = {}
        self.counters = DeviceCounters()
        self._pipelines = Pipelines()
        self.memory = DeviceMemory(memory_budget)
        self.generation = 0

    # -- what was opened ---------------------------------------------------------------------

    @property
    def adapter(self) -> AdapterInfo:
        """The adapter that the device runs on."""
        return self._open()[0]

    @property
    def wgpu_device(self) -> Any:
        """The device object of wgpu itself, to share with a renderer."""
        return self._open()[1]

    @property
    def queue(self) -> Any:
        """The queue object of wgpu for this device."""
        return self._open()[1].queue

    @property
    def name(self) -> str:
        """The adapter's name and the graphics API in use."""
        return f"{self.adapter.name} ({self.adapter.backend})"

    @property
    def capabilities(self) -> frozenset[str]:
        """Optional features that kernels on this device may use."""
        return frozenset(map(str, self.wgpu_device.features))

    @property
    def limits(self) -> dict[str, int]:
        """Limits in force, by WebGPU's name with dashes; sizes in bytes."""
        return {str(name): int(value) for name, value in self.wgpu_device.limits.items()}

    def __repr__(self) -> str:
        if self._opened is None:
            return f"Device({self._adapter!r}, not opened)"
        return f"Device({self.name!r})"

    def _open(self) -> tuple[AdapterInfo, Any]:
        with self._lock:
            if self._closed:
                raise DeviceError("this device has been closed; open another Device")
            if self._opened is None:
                self._opened = self._request()
            return self._opened

    def _request(self) -> tuple[AdapterInfo, Any]:
        info, adapter = find_adapter(self._adapter)
        limits = {limit: info.limits[limit] for limit in RAISED_LIMITS}
        for limit, value in self._wanted_limits.items():
            if limit not in info.limits:
                raise DeviceLimitError(
                    f"unknown limit {limit!r}; {info.name!r} knows {', '.join(info.limits)}"
                )
            if limit.startswith("max-") and value > info.limits[limit]:
                raise DeviceLimitError(
                    f"limit {limit} = {value} asked for, {info.name!r} grants at most "
                    f"{info.limits[limit]}; ask for less, or choose another adapter"
                )
            limits[limit] = value
        features = [feature for feature in self._wanted_features if feature in info.features]
        try:
            device = adapter.request_device_sync(required_features=features, required_limits=limits)
        except Exception as error:  # as drivers fail in their own ways
            kind = DeviceMemoryError if is_out_of_memory(error) else DeviceError
            raise kind(
                f"{info.name!r} ({info.backend}) refused to open a device: {error}; update its "
                "driver, or choose another adapter from ag.devices()"
            ) from error
        return info, device

    def close(self) -> None:
        """Free the device and everything on it. Closing twice is allowed."""
        self._pipelines.close()
        with self._lock:
            self._closed = True
            self._layouts.clear()
            if self._opened is not None:
                self._opened[1].destroy()
                self._opened = None
                self.memory.cleared()

    def reopen(self) -> None:
        """Open the device anew after it was lost; whatever was made on it is of no use any more.

        Raises:
            DeviceError: it was closed, or the adapter refuses.
        """
        with self._lock:
            lost = self._opened
            self._opened = None
            self._pipelines.clear()
            self._layouts.clear()
            self.memory.cleared()
            self.generation += 1
            if lost is not None:
                lost[1].destroy()
                lost = None
            gc.collect()  # buffers among what has failed
            self._open()

    def revive(self) -> bool:
        """Open the device anew if it was lost when its memory ran out.

        wgpu gives up a device for which it cannot make room while data travel.

        Returns:
            whether it was; then whatever was made on it is of no use any more.

        Raises:
            DeviceError: it was closed, or the adapter refuses.
        """
        with self._lock:
            if not self._doubtful:
                return False
            self._doubtful = False
            try:
                usage = load_wgpu().BufferUsage.COPY_DST
                self.wgpu_device.create_buffer(label="alive", size=16, usage=usage).destroy()
            except load_wgpu().GPUError as error:
                if not is_out_of_memory(error):
                    self.reopen()
                    return True
            return False

    def count(self, **increments: int) -> None:
        """Add to the counters, safely from several threads."""
        with self._lock:
            for counter, increment in increments.items():
                setattr(self.counters, counter, getattr(self.counters, counter) + increment)

    # -- making things -----------------------------------------------------------------------

    def check_buffer(self, spec: BufferSpec) -> None:
        """Refuse a buffer that is larger than this device allows.

        Raises:
            DeviceLimitError: naming the buffer, its size and the limit.
        """
        binding = "uniform" if spec.role == "uniform" else "storage"
        limits = self.limits
        for limit in ("max-buffer-size", f"max-{binding}-buffer-binding-size"):
            if spec.size > limits[limit]:
                raise DeviceLimitError(
                    f"buffer {spec.name!r} ({spec.role}) needs {spec.size} bytes, {self.name} has "
                    f"{limit} = {limits[limit]}; use fewer elements, float32, or another device"
                )

    def create_buffer(self, name: str, size: int, usage: int) -> Any:
        """A wgpu buffer of ``size`` bytes or a few more; `give_back` ends the ownership.

        It is new and filled with zeros, or one that was given back, cleared.

        Raises:
            DeviceMemoryError: the device is out of memory, or the budget is spent.
            DeviceLimitError: it refuses the size.
            DeviceLostError: it is gone.
        """
        used = self.memory.take(size, usage)
        if used is not None:
            encoder = self.wgpu_device.create_command_encoder()
            encoder.clear_buffer(used)
            try:
                self.submit(encoder)
            except Exception as error:  # as drivers fail in their own ways
                raise allocation_error(self.name, name, size, error) from error
            return used
        if not self.memory.make_room(size):
            raise DeviceMemoryError(
                f"buffer {name!r} needs {size} bytes, the memory_budget of {self.name} is "
                f"{self.memory.budget}, of which {self.memory.bytes} are in use; raise it, free "
                "other problems, or use fewer elements"
            )
        wgpu = load_wgpu()
        create = self.wgpu_device.create_buffer
        try:
            try:
                buffer = create(label=name, size=size, usage=usage)
            except wgpu.GPUError as error:
                if not is_out_of_memory(error):
                    raise
                self.memory.trim()
                buffer = create(label=name, size=size, usage=usage)
        except wgpu.GPUError as error:
            raise allocation_error(self.name, name, size, error) from error
        self.count(buffers_created=1)
        self.memory.created(buffer, size, usage)
        return buffer

    def submit(self, encoder: Any) -> None:
        """Hand in what was encoded.

        A loss that wgpu knows of is an error of ``finish``. Submitting to a lost device is none:
        wgpu-native ends the process there. So nothing is handed in without an encoder, nor after
        another thread has closed the device or opened it again.

        Raises:
            DeviceLostError: another thread has.
        """
        generation = self.generation
        commands = encoder.finish()
        with self._lock:
            if self._opened is None or self.generation != generation:
                raise DeviceLostError(
                    f"{self._adapter!r} was lost: it was closed or opened again meanwhile; values "
                    "on it are gone: set the work up again"
                )
            self.queue.submit([commands])

    def give_back(self, buffer: Any, *, keep: bool = True) -> None:
        """End the ownership of a buffer of `create_buffer`; without ``keep`` it is destroyed."""
        self.memory.give_back(buffer, keep=keep)

    def pipeline(self, spec: PipelineSpec) -> CompiledPipeline:
        """The compiled form of ``spec``, from the cache where it has been compiled before.

        Raises:
            KernelError: with source and line, if the source does not compile.
            DeviceLimitError: if it needs more storage buffers or a larger workgroup than the
                device has.
        """
        return self.pipelines([spec])[0]

    def pipelines(self, specs: Sequence[PipelineSpec]) -> list[CompiledPipeline]:
        """The compiled forms of several pipelines; those that are new are compiled in parallel.

        wgpu and drivers work without Python's lock, so threads help as far as there are processors.

        Raises:
            KernelError, DeviceLimitError: as ``pipeline``, for the first one at fault.
        """
        # Opened here: a driver that is loaded in a thread of the pool was seen to abort.
        self._open()
        return self._pipelines.get(specs, self._compile)

    def begin_pipelines(self, specs: Sequence[PipelineSpec]) -> None:
        """Start to compile pipelines that `pipelines` will be asked for, the longest text first."""
        self._open()
        self._pipelines.begin(specs, self._compile)

    def _compile(self, spec: PipelineSpec) -> CompiledPipeline:
        self._check_pipeline(spec)
        wgpu = load_wgpu()
        device = self.wgpu_device
        try:
            bind_group_layout, pipeline_layout = self._layout(spec.bindings)
            with timed("compile", spec.name, target="wgsl", characters=len(spec.source)):
                module = device.create_shader_module(label=spec.name, code=spec.source)
                pipeline = device.create_compute_pipeline(
                    label=spec.name,
                    layout=pipeline_layout,
                    compute={"module": module, "entry_point": spec.entry_point},
                )
        except (wgpu.GPUError, wgpu.GPUPipelineError) as error:
            raise pipeline_error(self.name, spec, error) from error
        self.count(pipelines_created=1)
        return CompiledPipeline(pipeline, bind_group_layout)

    def _check_pipeline(self, spec: PipelineSpec) -> None:
        limits = self.limits
        for what, needed, limit in (
            ("storage buffers", spec.storage_buffers, "max-storage-buffers-per-shader-stage"),
            ("invocations a workgroup", spec.workgroup_size, "max-compute-workgroup-size-x"),
            (
                "invocations a workgroup",
                spec.workgroup_size,
                "max-compute-invocations-per-workgroup",
            ),
        ):
            if needed > limits[limit]:
                raise DeviceLimitError(
                    f"pipeline {spec.name!r} uses {needed} {what}, {self.name} has "
                    f"{limit} = {limits[limit]}; generate it for these limits"
                )

    def _layout(self, bindings: tuple[BindingKind, ...]) -> tuple[Any, Any]:
        # layout="auto" would drop the bindings that a kernel does not use, and then refuse bind
        # groups that have them; one layout per tuple of kinds also lets pipelines share groups.
        with self._lock:
            if bindings not in self._layouts:
                compute = load_wgpu().ShaderStage.COMPUTE
                group = self.wgpu_device.create_bind_group_layout(
                    entries=[
                        {
                            "binding": k,
                            "visibility": compute,
                            "buffer": {"type": _LAYOUT_TYPES[kind]},
                        }
                        for k, kind in enumerate(bindings)
                    ]
                )
                layout = self.wgpu_device.create_pipeline_layout(bind_group_layouts=[group])
                self._layouts[bindings] = (group, layout)
            return self._layouts[bindings]

    def work_error(self, what: str, error: Exception) -> DeviceError:
        """The package's error for a failure of wgpu's in the middle of ``what``."""
        found = work_error(self.name, what, error)
        self._doubtful |= isinstance(found, DeviceMemoryError)
        return found


_default_device: Device | None = None
_default_lock = threading.Lock()


def default_device() -> Device:
    """The device that is used where none is passed; the same one for the whole process."""
    global _default_device
    with _default_lock:
        if _default_device is None:
            _default_device = Device()
        return _default_device


def set_default_device(device: Device | None) -> None:
    """Use ``device`` where none is passed; None goes back to the machine's default adapter.

    The device that was the default before stays open.
    """
    global _default_device
    with _default_lock:
        _default_device = device
