"""The program of a residual batch: which buffers, pipelines and dispatches evaluate a problem.

Element arrays that would exceed the binding limit are cut into chunks of elements; each chunk has
its own buffers and dispatch, and all of them run in one submission.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autograd_gpu.codegen.kernel import Product
from autograd_gpu.codegen.program import (
    BufferRole,
    BufferSpec,
    DispatchSpec,
    PipelineSpec,
    Program,
    SequenceSpec,
)
from autograd_gpu.codegen.render import Source

WORD = 4  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkShape:
    """Sizes of one chunk of one group, in words, and its kernels by product.

    ``words`` is the size of one number.
    """

    name: str
    count: int
    control: int
    indices: int
    data: int
    residuals: int
    jacobian: int
    words: int
    intermediate: int
    sources: dict[Product, tuple[Source, ...]]

    def buffer(self, what: str) -> str:
        """Name of one of this chunk's buffers."""
        return f"{self.name}.{what}"


def elements_per_chunk(count: int, words_per_element: Sequence[int], binding_limit: int) -> int:
    """Most elements whose largest array stays within ``binding_limit`` bytes, evenly cut."""
    widest = max(1, *words_per_element)
    largest = max(1, binding_limit // (WORD * widest))
    return math.ceil(count / math.ceil(count / largest))


def batch_program(chunks: Sequence[ChunkShape], parameter_words: int) -> Program:
    """Program with one sequence per product: ``residual``, ``cost``, ``residual_jacobian``."""
    buffers = [BufferSpec(name="parameters", size=WORD * parameter_words, role="upload")]
    pipelines: dict[str, PipelineSpec] = {}
    dispatches: dict[Product, list[DispatchSpec]] = {p: [] for p in Product}
    downloads: dict[Product, list[str]] = {p: [] for p in Product}
    for chunk in chunks:
        # With one product missing its buffer is a word that nothing binds.
        cost = chunk.sources.get(Product.COST)
        workgroups = math.ceil(chunk.count / cost[-1].workgroup_size) if cost else 0
        sizes: dict[str, tuple[int, BufferRole]] = {
            "indices": (chunk.indices, "upload"),
            "data": (chunk.data, "upload"),
            "residuals": (chunk.residuals, "download"),
            "partials": (workgroups * chunk.words, "download"),
            "jacobian": (chunk.jacobian, "download"),
        }
        buffers.append(
            BufferSpec(name=chunk.buffer("control"), size=WORD * chunk.control, role="uniform")
        )
        buffers += [
            BufferSpec(name=chunk.buffer(what), size=WORD * max(1, words), role=role)
            for what, (words, role) in sizes.items()
        ]
        if chunk.intermediate:
            size = WORD * chunk.intermediate
            buffers.append(BufferSpec(name=chunk.buffer("intermediate"), size=size, role="state"))
        for product, sources in chunk.sources.items():
            written: dict[str, None] = {}
            for source in sources:
                pipelines[source.key] = _pipeline(source)
                dispatches[product].append(_dispatch(chunk, source))
                written |= dict.fromkeys(source.arrays[4:])
            written.pop("intermediate", None)
            downloads[product] += [chunk.buffer(what) for what in written]
    return Program(
        buffers=tuple(buffers),
        pipelines=tuple(pipelines.values()),
        sequences={
            product.value: SequenceSpec(
                dispatches=tuple(dispatches[product]), downloads=tuple(downloads[product])
            )
            for product in Product
            if dispatches[product] or not chunks
        },
    )


def _pipeline(source: Source) -> PipelineSpec:
    return PipelineSpec(
        name=source.key,
        source=source.source,
        entry_point=source.entry_point,
        bindings=source.bindings,
        workgroup_size=source.workgroup_size,
    )


def _dispatch(chunk: ChunkShape, source: Source) -> DispatchSpec:
    """A kernel, or one stage of it, over the elements of a chunk."""
    return DispatchSpec(
        pipeline=source.key,
        buffers=tuple(
            what if what == "parameters" else chunk.buffer(what) for what in source.arrays
        ),
        invocations=chunk.count,
    )
