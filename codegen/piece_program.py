"""The program of products gathered piece by piece: a range of nodes with what they sum at a time.

A piece has its own control block and table; parameters, vectors and results are whole. A piece's
nodes count from 0 in it: the control block moves the base of their set to the first of them, and
the table has the numbers of their neighbours less that first one, modulo 2³². So kernels are those
of whole products, every sum has its order, and results have the same bits however they are cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autograd_gpu.codegen.incidence import SolveStructure
from autograd_gpu.codegen.program import (
    BufferRole,
    BufferSpec,
    DispatchSpec,
    PipelineSpec,
    Program,
    SequenceSpec,
)
from autograd_gpu.codegen.scatter_kernels import OperatorStructure, gather_nodes
from autograd_gpu.codegen.solve_program import pipeline_of

WORD = 4

GATHERED = ("gradient", "jtj_product")
"""Products that can be gathered in pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceShape:
    """A piece as the program sees it.

    Attributes:
        node_set: whose nodes.
        nodes: how many, at most.
        buffer: number of the buffers that hold its control block and its table; pieces that
            share them run one after another, each uploaded before it runs.
        table_words: of its table, at most.
    """

    node_set: int
    nodes: int
    buffer: int
    table_words: int


def control_buffer(number: int) -> str:
    """Name of a piece's control block."""
    return f"control.{number}"


def table_buffer(number: int) -> str:
    """Name of a piece's table."""
    return f"tables.{number}"


def whole_structure(structure: SolveStructure) -> OperatorStructure:
    """What the kernels of a piece are generated from."""
    gather = ("gather",) * len(structure.groups)
    return OperatorStructure(solve=structure, accumulations=gather, teams=())


def piece_vectors(products: Sequence[str]) -> dict[str, BufferRole]:
    """Buffers that hold a vector each, and their roles."""
    found: dict[str, BufferRole] = {"parameters": "state", "result": "download"}
    if "jtj_product" in products:
        found["vectors"] = "state"
    return found


def piece_program(
    structure: SolveStructure,
    components: int,
    pieces: Sequence[PieceShape],
    products: Sequence[str] = GATHERED,
) -> Program:
    """Buffers, pipelines and sequences: each product, each product of one piece, ``result``.

    Args:
        structure: of the problem; nothing in it is stored.
        components: numbers of a vector.
        pieces: in the order in which they run.
        products: those of ``GATHERED`` that are wanted.
    """
    whole = whole_structure(structure)
    buffers = [
        BufferSpec(name=name, size=WORD * max(1, components), role=role)
        for name, role in piece_vectors(products).items()
    ]
    for number in sorted({piece.buffer for piece in pieces}):
        words = max(piece.table_words for piece in pieces if piece.buffer == number)
        control = 4 * WORD * whole.control_rows
        buffers += [
            BufferSpec(name=control_buffer(number), size=control, role="uniform"),
            BufferSpec(name=table_buffer(number), size=WORD * max(1, words), role="upload"),
        ]
    pipelines: list[PipelineSpec] = []
    sequences = {"result": SequenceSpec(downloads=("result",))}
    for product in products:
        kernels = [gather_nodes(whole, product, k) for k in range(len(structure.node_sets))]
        pipelines += [pipeline_of(kernel) for kernel in kernels]
        dispatches: list[DispatchSpec] = []
        for number, piece in enumerate(pieces):
            kernel = kernels[piece.node_set]
            renamed = {
                "control": control_buffer(piece.buffer),
                "tables": table_buffer(piece.buffer),
            }
            dispatches.append(
                DispatchSpec(
                    pipeline=kernel.name,
                    buffers=tuple(renamed.get(b, b) for b in kernel.buffers),
                    invocations=piece.nodes * structure.node_sets[piece.node_set].team,
                )
            )
            sequences[f"{product}.{number}"] = SequenceSpec(dispatches=(dispatches[-1],))
        sequences[product] = SequenceSpec(dispatches=tuple(dispatches))
    return Program(buffers=tuple(buffers), pipelines=tuple(pipelines), sequences=sequences)
