"""GPU kernels through wgpu: a batch program, its data, and results brought to the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..codegen.batch_program import WORD, ChunkShape, batch_program, elements_per_chunk
from ..codegen.kernel import Product
from ..codegen.layout import ControlBlock, SlotWords
from ..codegen.render import Source, render_stages
from .batch import (
    BoundGroup,
    FloatArray,
    HostArrays,
    ParameterBinding,
    RowBinding,
    RowDataBinding,
    Session,
    SessionContext,
)
from .device import Device, default_device
from .number_formats import FORMATS, check_lossless
from .program_runner import ProgramRunner
from .streamed_session import bytes_per_element, numbers_per_element, within_budget


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A range of one group's elements with what is uploaded once for it."""

    shape: ChunkShape
    group: int
    start: int
    stop: int
    control: NDArray[np.uint32]
    indices: NDArray[np.uint32]
    data: NDArray[Any]


def _pack(
    group: BoundGroup, precision: str
) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[Any]]:
    """Control block, indices and data of a (part of a) group, component-major for coalescing."""
    n = group.count
    indices: list[NDArray[Any]] = []
    data: list[NDArray[Any]] = []
    words: list[SlotWords] = []
    index_total = data_total = 0
    for position, binding in enumerate(group.bindings):
        if isinstance(binding, ParameterBinding):
            index = 0
            if binding.indices is not None:
                index = index_total + 1
                indices.append(binding.indices.astype(np.uint32))
                index_total += n
            words.append(
                SlotWords(
                    base=binding.base, first=binding.offset, second=binding.stride, index=index
                )
            )
        elif isinstance(binding, RowBinding):
            words.append(SlotWords(base=binding.base, first=1, second=n, index=index_total + 1))
            indices.append(binding.indices.T.ravel().astype(np.uint32))
            index_total += binding.indices.size
        elif isinstance(binding, RowDataBinding):
            what = f"residuals {group.name!r}, data slot {position}"
            check_lossless(binding.values, what, precision)
            rows, items, size = binding.values.shape
            stride = 0 if binding.shared else 1
            words.append(SlotWords(base=data_total, first=rows * items, second=stride, index=rows))
            columns = np.ascontiguousarray(binding.values.T).ravel()  # size, items, rows
            data.append(FORMATS[precision].encode(columns, what).ravel())
            data_total += rows * items * size
        else:
            rows = binding.values
            what = f"residuals {group.name!r}, data slot {position}"
            check_lossless(rows, what, precision)
            words.append(
                SlotWords(base=data_total, first=len(rows), second=0 if binding.shared else 1)
            )
            columns = np.ascontiguousarray(rows.T).ravel()
            data.append(FORMATS[precision].encode(columns, what).ravel())
            data_total += rows.size
    if group.lengths is not None:
        indices.append(group.lengths.astype(np.uint32))
    block = ControlBlock(
        count=n,
        residual_strides=(n, 1),
        jacobian_strides=(n, 1),
        slots=tuple(words),
        lengths=0 if group.lengths is None else index_total + 1,
        capacity=group.capacity,
    )
    # A reversed slice has a negative stride; u32 arithmetic wraps, so two's complement is right.
    control = np.array(block.words(), np.int64).astype(np.uint32)
    # A binding cannot be empty, so an unused array has one word.
    return (
        control,
        np.concatenate(indices) if indices else np.zeros(1, np.uint32),
        np.concatenate(data) if data else np.zeros(2, np.float32),
    )


class WgslSession(SessionContext):
    """Runs generated WGSL kernels; pipelines and buffers are made here and never again.

    Only ``products`` can be evaluated: fewer of them are compiled sooner. A cost without a kernel
    of its own is summed from the residuals.
    """

    def __init__(
        self,
        groups: Sequence[BoundGroup],
        parameter_count: int,
        precision: str,
        device: Device | None = None,
        products: Iterable[Product] = tuple(Product),
        op_budget: int | None = None,
    ) -> None:
        self._products = tuple(products)
        self._device = device or default_device()
        self._format = FORMATS[precision]
        self._op_budget = op_budget
        self._groups = list(groups)
        self._host = HostArrays(groups, np.dtype(np.float64))
        self._sources: dict[str, Source] = {}
        self._chunks = [c for k in range(len(groups)) for c in self._cut(k, precision)]
        words = max(1, parameter_count) * self._format.words
        program = batch_program([c.shape for c in self._chunks], words)
        self._precision = precision
        self._runner = ProgramRunner(self._device, program)
        for chunk in self._chunks:
            self._runner.upload(chunk.shape.buffer("control"), chunk.control)
            self._runner.upload(chunk.shape.buffer("indices"), chunk.indices)
            self._runner.upload(chunk.shape.buffer("data"), chunk.data)

    def rebind(self, groups: Sequence[BoundGroup]) -> bool:
        """Upload other data of the same groups to the buffers that exist."""
        self._groups = list(groups)
        for chunk in self._chunks:
            part = self._groups[chunk.group].part(chunk.start, chunk.stop)
            _, _, data = _pack(part, self._precision)
            self._runner.upload(chunk.shape.buffer("data"), data)
        return True

    @property
    def description(self) -> str:
        """Device and API."""
        return self._device.name

    @property
    def runner(self) -> ProgramRunner:
        """The program with its buffers; owned by this session."""
        return self._runner

    def sources(self) -> Sequence[Source]:
        """Generated text of each distinct kernel."""
        return tuple(self._sources.values())

    def close(self) -> None:
        """Free the buffers; the device keeps its pipelines."""
        self._runner.release()

    def _cut(self, k: int, precision: str) -> list[_Chunk]:
        group = self._groups[k]
        sources = {
            p: render_stages(group.kernel(p), "wgsl", precision, self._op_budget)
            for p in self._products
        }
        self._sources.update({s.key: s for stages in sources.values() for s in stages})
        varying = 0
        if Product.RESIDUAL_JACOBIAN in sources:
            kernel = group.kernel(Product.RESIDUAL_JACOBIAN)
            varying = kernel.value_starts(group.capacity, varying=True)[-1]
        cells = max(stages[0].cells for stages in sources.values())
        gathers, columns = numbers_per_element(group)
        limit = self._device.limits["max-storage-buffer-binding-size"]
        words = self._format.words
        numbers = (columns, group.residual_size, varying, cells)
        widths = (gathers, *(words * n for n in numbers))
        step = elements_per_chunk(group.count, widths, limit)
        chunks: list[_Chunk] = []
        for start in range(0, group.count, step):
            stop = min(start + step, group.count)
            control, indices, data = _pack(group.part(start, stop), precision)
            shape = ChunkShape(
                name=f"group{k}.{start}",
                count=stop - start,
                control=control.size,
                indices=indices.size,
                data=data.nbytes // WORD,
                residuals=words * group.residual_size * (stop - start),
                jacobian=words * varying * (stop - start),
                words=words,
                intermediate=words * cells * (stop - start),
                sources=sources,
            )
            chunks.append(_Chunk(shape, k, start, stop, control, indices, data))
        return chunks

    def _run(self, product: Product, parameters: FloatArray) -> dict[str, FloatArray]:
        encoded = self._format.encode(parameters, "parameters")
        if encoded.size:
            self._runner.upload("parameters", encoded)
        results = self._runner.run(product.value, self._format.dtype)
        return {name: self._format.decode(values) for name, values in results.items()}

    def _collect_residuals(self, results: dict[str, FloatArray]) -> FloatArray:
        for chunk in self._chunks:
            group = self._groups[chunk.group]
            out = self._host.group_residuals(chunk.group).reshape(group.count, -1)
            columns = results[chunk.shape.buffer("residuals")].reshape(group.residual_size, -1)
            out[chunk.start : chunk.stop] = columns.T
        return cast(FloatArray, self._host.residuals)

    def residuals(self, parameters: FloatArray) -> FloatArray:
        """All residuals."""
        return self._collect_residuals(self._run(Product.RESIDUAL, parameters))

    def cost(self, parameters: FloatArray) -> float:
        """½‖r‖² over all groups; partial sums of 256 elements are added in float64 on the host."""
        if Product.COST not in self._products:
            residuals = self.residuals(parameters)
            return 0.5 * float(residuals @ residuals)
        results = self._run(Product.COST, parameters)
        return float(sum(np.sum(part) for part in results.values()))

    def residual_jacobian(self, parameters: FloatArray) -> tuple[FloatArray, FloatArray]:
        """All residuals, and the Jacobian's values."""
        results = self._run(Product.RESIDUAL_JACOBIAN, parameters)
        for chunk in self._chunks:
            group = self._groups[chunk.group]
            kernel = group.kernel(Product.RESIDUAL_JACOBIAN)
            starts = kernel.value_starts(group.capacity)
            widths = np.diff(starts)
            varies = np.repeat([e.output is not None for e in kernel.entries], widths)
            stored = np.flatnonzero(varies)
            if len(stored):
                out = self._host.group_jacobian(chunk.group).reshape(group.count, starts[-1])
                columns = results[chunk.shape.buffer("jacobian")].reshape(len(stored), -1)
                out[chunk.start : chunk.stop, stored] = columns.T
        return self._collect_residuals(results), cast(FloatArray, self._host.jacobian)


def open_wgsl(
    groups: Sequence[BoundGroup],
    parameter_count: int,
    precision: str,
    device: Device,
    products: Sequence[Product],
    memory_budget: int | None = None,
) -> Session:
    """A session on a device, in pieces where its memory or a budget is too small for all at once.

    Args:
        groups: what to evaluate.
        parameter_count: length of the parameter vector.
        precision: of the kernels.
        products: that can be asked for.
        device: whose own budget, as far as it is not spent, counts too.
        memory_budget: bytes for this session.

    Raises:
        DeviceMemoryError: not even one element fits.
    """
    number = WORD * FORMATS[precision].words
    sizes = [bytes_per_element(g, "wgsl", precision, number, products) for g in groups]
    limits = [memory_budget]
    if device.memory.budget is not None:
        limits.append(device.memory.budget - device.memory.bytes)
    budget = min((limit for limit in limits if limit is not None), default=None)

    def whole(pieces: Sequence[BoundGroup]) -> Session:
        device.revive()  # where a larger piece took all memory, and the device with it
        return WgslSession(pieces, parameter_count, precision, device, products)

    beside = number * max(1, parameter_count)
    return within_budget(groups, sizes, beside, budget, whole, device.name)
