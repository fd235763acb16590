"""A program: buffers, pipelines and dispatch lists, described by data alone.

A runtime (Python over wgpu, or a page's JavaScript over WebGPU) allocates the buffers, compiles
the pipelines, and runs named sequences of dispatches. Nothing here touches a device, and the
JSON form carries everything that a runtime needs.

Rules that hold on every runtime:

* all bindings are in group 0, and the binding number is the position;
* a dispatch over n invocations launches ``workgroup_grid(n, workgroup_size)`` workgroups. Above
  65 535 workgroups the grid is two-dimensional and a few invocations lie beyond n, so a kernel
  computes its element as ``gid.x + gid.y * num_workgroups.x * workgroup_size`` and returns where
  that is not below n;
* the dispatches of a sequence see each other's writes, in order.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from autograd_gpu.errors import DeviceLimitError, InputError

BufferRole = Literal["upload", "state", "download", "uniform"]
BindingKind = Literal["uniform", "read", "write"]

# What every WebGPU device grants without asking, browsers included.
MAX_STORAGE_BUFFERS = 8
MAX_WORKGROUP_SIZE = 256
MAX_WORKGROUPS_PER_DIMENSION = 65_535

JSON_FORMAT = 1


def workgroup_grid(
    invocations: int,
    workgroup_size: int,
    max_per_dimension: int = MAX_WORKGROUPS_PER_DIMENSION,
) -> tuple[int, int]:
    """Number of workgroups (x, y) that cover ``invocations`` invocations.

    One row while that fits; else the fewest rows, all of one length, so that less than one
    row's worth of workgroups is idle.

    Raises:
        DeviceLimitError: if a two-dimensional grid cannot cover them.
    """
    groups = -(-invocations // workgroup_size)
    rows = -(-groups // max_per_dimension)
    if rows > max_per_dimension:
        raise DeviceLimitError(
            f"{invocations} invocations in workgroups of {workgroup_size} need {groups} "
            f"workgroups, a two-dimensional grid has at most {max_per_dimension}²; "
            "split the batch"
        )
    return -(-groups // rows), rows


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferSpec:
    """A buffer: its name, its size in bytes (a positive multiple of 4) and its role.

    Roles: ``upload`` is written by the host and read by kernels; ``state`` lives on the device,
    kernels read and write it (a host may set its first content, and read it back); ``download`` is
    written by kernels and read back by the host; ``uniform`` holds small parameters written by the
    host.
    Buffers start out filled with zeros.
    """

    name: str
    size: int
    role: BufferRole


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """A compute kernel: WGSL source, entry point, and the kind of each binding of group 0."""

    name: str
    source: str
    entry_point: str
    bindings: tuple[BindingKind, ...]
    workgroup_size: int

    @property
    def storage_buffers(self) -> int:
        """Number of bindings that count towards the storage-buffer limit."""
        return sum(kind != "uniform" for kind in self.bindings)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSpec:
    """One launch of a pipeline: buffer names by binding position, and how many invocations."""

    pipeline: str
    buffers: tuple[str, ...]
    invocations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """Dispatches that run in order in one submission, then the buffers that are read back."""

    dispatches: tuple[DispatchSpec, ...] = ()
    downloads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Buffers, pipelines, and named sequences of dispatches over them; checked when built.

    Raises:
        InputError: on unknown or doubled names, bindings that do not fit the roles, sizes that
            are not positive, or a written buffer that is bound twice in one dispatch.
        DeviceLimitError: on a pipeline beyond what every WebGPU device grants.
    """

    buffers: tuple[BufferSpec, ...]
    pipelines: tuple[PipelineSpec, ...]
    sequences: Mapping[str, SequenceSpec] = field(hash=False)

    def __post_init__(self) -> None:
        # A private copy: the caller's dict may change later, this program must not.
        object.__setattr__(self, "sequences", dict(self.sequences))
        _check_unique("buffer", (buffer.name for buffer in self.buffers))
        _check_unique("pipeline", (pipeline.name for pipeline in self.pipelines))
        for buffer in self.buffers:
            _check_buffer(buffer)
        for pipeline in self.pipelines:
            _check_pipeline(pipeline)
        buffers = {buffer.name: buffer for buffer in self.buffers}
        pipelines = {pipeline.name: pipeline for pipeline in self.pipelines}
        for name, sequence in self.sequences.items():
            for k, dispatch in enumerate(sequence.dispatches):
                _check_dispatch(f"sequence {name!r}, dispatch {k}", dispatch, buffers, pipelines)
            _check_downloads(f"sequence {name!r}", sequence.downloads, buffers)

    def to_json(self) -> str:
        """JSON text of the program, for a cache on disk or a page's runtime."""
        return json.dumps(
            {
                "format": JSON_FORMAT,
                "buffers": [dataclasses.asdict(buffer) for buffer in self.buffers],
                "pipelines": [dataclasses.asdict(pipeline) for pipeline in self.pipelines],
                "sequences": {
                    name: dataclasses.asdict(sequence) for name, sequence in self.sequences.items()
                },
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Program:
        """The program that ``to_json`` wrote.

        Raises:
            InputError: if the text is not such a program; and whatever ``Program`` raises.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != JSON_FORMAT:
                raise InputError(
                    f"program JSON has format {data['format']!r}, this version reads "
                    f"{JSON_FORMAT}; generate it again"
                )
            return cls(
                buffers=tuple(BufferSpec(**buffer) for buffer in data["buffers"]),
                pipelines=tuple(
                    PipelineSpec(**_with_tuple(pipeline, "bindings"))
                    for pipeline in data["pipelines"]
                ),
                sequences={
                    name: SequenceSpec(
                        dispatches=tuple(
                            DispatchSpec(**_with_tuple(dispatch, "buffers"))
                            for dispatch in sequence["dispatches"]
                        ),
                        downloads=tuple(sequence["downloads"]),
                    )
                    for name, sequence in data["sequences"].items()
                },
            )
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"not the JSON of a program ({type(error).__name__}: {error}); "
                "expected what Program.to_json writes"
            ) from error


def _with_tuple(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``row`` with the list called ``name`` as a tuple: JSON has no tuples."""
    return {**row, name: tuple(row[name])}


def _check_unique(what: str, names: Iterable[str]) -> None:
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled:
        raise InputError(f"{what} names must differ, got twice: {', '.join(map(repr, doubled))}")


def _check_buffer(buffer: BufferSpec) -> None:
    if buffer.role not in get_args(BufferRole):
        raise InputError(
            f"buffer {buffer.name!r}: unknown role {buffer.role!r}; "
            f"expected one of {', '.join(get_args(BufferRole))}"
        )
    if buffer.size <= 0 or buffer.size % 4:
        raise InputError(
            f"buffer {buffer.name!r}: size is {buffer.size} bytes, expected a positive multiple "
            "of 4 (WebGPU copies whole words); pad it"
        )


def _check_pipeline(pipeline: PipelineSpec) -> None:
    where = f"pipeline {pipeline.name!r}"
    for k, kind in enumerate(pipeline.bindings):
        if kind not in get_args(BindingKind):
            raise InputError(
                f"{where}, binding {k}: unknown kind {kind!r}; "
                f"expected one of {', '.join(get_args(BindingKind))}"
            )
    if pipeline.storage_buffers > MAX_STORAGE_BUFFERS:
        raise DeviceLimitError(
            f"{where} binds {pipeline.storage_buffers} storage buffers, a browser grants "
            f"{MAX_STORAGE_BUFFERS}; pack several arrays into one buffer"
        )
    if not 1 <= pipeline.workgroup_size <= MAX_WORKGROUP_SIZE:
        raise DeviceLimitError(
            f"{where} has workgroup size {pipeline.workgroup_size}, every device grants "
            f"1 to {MAX_WORKGROUP_SIZE}; choose one in that range"
        )


def _check_dispatch(
    where: str,
    dispatch: DispatchSpec,
    buffers: Mapping[str, BufferSpec],
    pipelines: Mapping[str, PipelineSpec],
) -> None:
    pipeline = pipelines.get(dispatch.pipeline)
    if pipeline is None:
        raise InputError(
            f"{where}: unknown pipeline {dispatch.pipeline!r}; known are {_listed(pipelines)}"
        )
    if len(dispatch.buffers) != len(pipeline.bindings):
        raise InputError(
            f"{where}: pipeline {pipeline.name!r} has {len(pipeline.bindings)} bindings, got "
            f"{len(dispatch.buffers)} buffers; name one buffer per binding"
        )
    if dispatch.invocations < 1:
        raise InputError(
            f"{where}: {dispatch.invocations} invocations of {pipeline.name!r}, expected at "
            "least 1; leave an empty dispatch out"
        )
    workgroup_grid(dispatch.invocations, pipeline.workgroup_size)
    bound = Counter(dispatch.buffers)
    for k, (name, kind) in enumerate(zip(dispatch.buffers, pipeline.bindings, strict=True)):
        buffer = buffers.get(name)
        if buffer is None:
            raise InputError(
                f"{where}, binding {k}: unknown buffer {name!r}; known are {_listed(buffers)}"
            )
        _check_binding(f"{where}, binding {k} of {pipeline.name!r}", kind, buffer, bound[name])


def _check_binding(where: str, kind: BindingKind, buffer: BufferSpec, times_bound: int) -> None:
    if (kind == "uniform") != (buffer.role == "uniform"):
        raise InputError(
            f"{where} is of kind {kind!r}, buffer {buffer.name!r} has role {buffer.role!r}; "
            "uniform bindings and uniform buffers go together"
        )
    if kind == "write" and buffer.role == "upload":
        raise InputError(
            f"{where} writes buffer {buffer.name!r}, whose role is 'upload'; "
            "give it the role 'state' or 'download'"
        )
    if kind == "write" and times_bound > 1:
        raise InputError(
            f"{where} writes buffer {buffer.name!r}, which is bound {times_bound} times in this "
            "dispatch; WebGPU allows a written buffer one binding, so use one binding for both"
        )


def _check_downloads(
    where: str, downloads: tuple[str, ...], buffers: Mapping[str, BufferSpec]
) -> None:
    _check_unique(f"{where}: download", downloads)
    for name in downloads:
        buffer = buffers.get(name)
        if buffer is None:
            raise InputError(
                f"{where}: unknown download buffer {name!r}; known are {_listed(buffers)}"
            )
        if buffer.role not in ("download", "state"):
            raise InputError(
                f"{where} reads back buffer {name!r}, whose role is {buffer.role!r}; "
                "expected role 'download' or 'state'"
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
