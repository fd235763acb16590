"""Gradient and JᵀJ v gathered on a device in pieces of nodes, whatever the size of the batch.

`Operators` binds all tables at once. Here a problem's tables are cut where a binding limit or a
memory budget demands it; the pieces stay on the device if they all fit, or pass through one buffer,
one after another. Every sum keeps its order, so results have the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.codegen.piece_program import (
    GATHERED,
    WORD,
    PieceShape,
    control_buffer,
    piece_program,
    piece_vectors,
    table_buffer,
    whole_structure,
)
from autograd_gpu.codegen.solve_layout import kind_row, set_row
from autograd_gpu.errors import DeviceLimitError, PrecisionError
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.runtime.closing import Closing
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.node_incidences import NodeIncidences
from autograd_gpu.runtime.number_formats import to_float32
from autograd_gpu.runtime.program_runner import ALIGNMENT, LARGEST_TRANSFER, ProgramRunner


@dataclass(frozen=True, slots=True)
class _Piece:
    """Nodes ``first`` to ``last`` of a set, and the words of their table."""

    node_set: int
    first: int
    last: int
    words: int


class GatheredProducts(Closing):
    """Jᵀr and JᵀJ v at any point, in float32, recomputed from parameters and data.

    Frozen components are exact zeros in every result, and those of a vector given are taken as
    zero. Buffers and pipelines are made here and never again.

    Args:
        device: where.
        incidences: the problem, with nothing stored; borrowed.
        memory_budget: bytes of device memory for all buffers together; None for what the device
            has, or what is left of its own budget.
        products: those of ``GATHERED`` that are asked for; a gradient needs a vector less.

    Attributes:
        streamed: whether tables are uploaded again for every product.
        pieces: how many there are.

    Raises:
        DeviceLimitError: the parameters alone are too large, or the elements of one node are.
        PrecisionError: the problem was prepared for another precision.
    """

    def __init__(
        self,
        device: Device,
        incidences: NodeIncidences,
        memory_budget: int | None = None,
        products: Sequence[str] = GATHERED,
    ) -> None:
        precision = incidences.structure.precision
        if precision != "float32":
            raise PrecisionError(
                f"products gathered in pieces are float32, got {precision}; use Operators"
            )
        self._device = device
        self._products = tuple(products)
        self._lists = incidences
        self._components = incidences.vector_starts[-1]
        self._frozen = self._frozen_components()
        limits = device.limits
        largest = min(limits["max-storage-buffer-binding-size"], limits["max-buffer-size"]) // WORD
        pieces = self._cut(largest)
        self.streamed = False
        if device.memory.budget is not None:
            left = device.memory.budget - device.memory.bytes
            memory_budget = left if memory_budget is None else min(left, memory_budget)
        if memory_budget is not None:
            room = memory_budget // WORD - self._words_beside_tables()
            if sum(p.words for p in pieces) > room:
                self.streamed = True
                pieces = self._cut(min(room, largest))
        self._pieces = pieces
        self.pieces = len(pieces)
        structure = incidences.structure
        self._shapes = [
            PieceShape(
                node_set=p.node_set,
                nodes=p.last - p.first,
                buffer=0 if self.streamed else number,
                table_words=p.words,
            )
            for number, p in enumerate(pieces)
        ]
        program = piece_program(structure, self._components, self._shapes, self._products)
        self._runner = ProgramRunner(device, program)
        if not self.streamed:
            for number in range(len(pieces)):
                self._upload(number)

    @property
    def runner(self) -> ProgramRunner:
        """What executes the program; for measurements."""
        return self._runner

    def gradient(self, parameters: FloatArray) -> FloatArray:
        """Jᵀr in the order of the problem's parameters."""
        self._runner.upload("parameters", self._packed(parameters, "parameters"))
        return self._run("gradient")

    def jtj_product(self, parameters: FloatArray, vector: FloatArray) -> FloatArray:
        """JᵀJ v, both vectors in the order of the problem's parameters."""
        self._runner.upload("parameters", self._packed(parameters, "parameters"))
        packed = self._packed(vector, "vector")
        packed[self._frozen] = 0.0
        self._runner.upload("vectors", packed)
        return self._run("jtj_product")

    def wait(self) -> None:
        """Return when the device has done all that it was given."""
        self._runner.read("parameters", size=WORD)

    def close(self) -> None:
        """Free the buffers; the device keeps its pipelines."""
        self._runner.release()

    # -- running -------------------------------------------------------------------------------

    def _packed(self, values: FloatArray, what: str) -> NDArray[np.float32]:
        given = to_float32(np.asarray(values, np.float64).ravel(), what)
        return self._lists.pack(given.astype(np.float64))

    def _run(self, product: str) -> FloatArray:
        if not self.streamed:
            result = self._runner.run([product, "result"], np.float32)
            return self._lists.unpack(result["result"])
        for number in range(len(self._pieces)):
            self._upload(number)
            self._runner.run(f"{product}.{number}")
            # What the driver copied of this table is free again before the next one comes.
            self.wait()
        return self._lists.unpack(self._runner.run("result", np.float32)["result"])

    def _upload(self, number: int) -> None:
        """A piece's table, part by part, and its control block."""
        piece, buffer = self._pieces[number], self._shapes[number].buffer
        parts, kinds, mask = self._table(piece)
        offset = 0
        for words in parts:
            self._runner.upload(table_buffer(buffer), words, offset=WORD * offset)
            offset += words.size
        self._runner.upload(control_buffer(buffer), self._control(piece, kinds, mask))

    # -- pieces --------------------------------------------------------------------------------

    def _words_of_nodes(self, node_set: int) -> IndexArray:
        """Words of the table up to each node of a set; the last entry is the total."""
        structure = self._lists.structure
        nodes = len(self._lists.new[node_set])
        total: IndexArray = (
            np.arange(nodes + 1, dtype=np.int64) * structure.node_sets[node_set].masked
        )
        for position, found in enumerate(self._lists.incidences[node_set]):
            columns = len(self._lists.columns_of_kind(node_set, position))
            starts = np.arange(nodes + 1) if found.unit else found.starts.astype(np.int64)
            total += columns * starts
            if not found.unit:
                total += np.arange(nodes + 1)  # where each list begins
        return total

    def _cut(self, largest: int) -> list[_Piece]:
        """As few pieces as there can be whose tables have at most ``largest`` words."""
        pieces: list[_Piece] = []
        for k, kinds in enumerate(self._lists.structure.kinds):
            up_to = self._words_of_nodes(k)
            beside = len(kinds) + 1  # where each kind's last list ends; no table is empty
            first, nodes = 0, len(up_to) - 1
            while first < nodes:
                most = int(up_to[first]) + largest - beside
                last = int(np.searchsorted(up_to, most, side="right")) - 1
                if last <= first:
                    needed = WORD * int(up_to[first + 1] - up_to[first] + beside)
                    raise DeviceLimitError(
                        f"the table of one node needs {needed} bytes, {self._device.name} has "
                        f"room for {WORD * largest}; raise the memory budget, or use a CPU backend"
                    )
                words = int(up_to[last] - up_to[first]) + beside
                pieces.append(_Piece(k, first, last, words))
                first = last
        return pieces

    def _words_beside_tables(self) -> int:
        """Words of all other buffers, the one for read-back included."""
        rows = whole_structure(self._lists.structure).control_rows
        vectors = len(piece_vectors(self._products))
        read_back = min(self._components, LARGEST_TRANSFER // WORD)
        return vectors * self._components + read_back + ALIGNMENT // WORD + 4 * rows

    def _table(
        self, piece: _Piece
    ) -> tuple[list[NDArray[np.uint32]], list[tuple[int, int, int]], int]:
        """Parts of a piece's table; per kind its lists, columns and length; its frozen masks."""
        lists, k = self._lists, piece.node_set
        parts: list[NDArray[np.uint32]] = []
        kinds: list[tuple[int, int, int]] = []
        size = 0

        def put(*words: NDArray[np.uint32]) -> int:
            nonlocal size
            begin = size
            for part in words:
                if part.size:  # an upload has no size of zero
                    parts.append(part)
                    size += part.size
            return begin

        for position, found in enumerate(lists.incidences[k]):
            first, last = int(found.starts[piece.first]), int(found.starts[piece.last])
            begins = 0
            if not found.unit:
                own = found.starts[piece.first : piece.last + 1] - first
                begins = put(own.astype(np.uint32))
            columns = lists.incidence_columns(k, position, first, last)
            described = lists.columns_of_kind(k, position)
            for words, (what, place, _) in zip(columns, described, strict=True):
                if what == "node" and lists.set_of_place(k, position, place) == k:
                    words -= np.uint32(piece.first)  # modulo 2³², as on the device
            kinds.append((begins, put(*columns), last - first))
        masked = lists.structure.node_sets[k].masked
        mask = put(lists.mask(k)[piece.first : piece.last]) if masked else 0
        if not size:
            put(np.zeros(1, np.uint32))
        return parts, kinds, mask

    def _control(
        self, piece: _Piece, kinds: list[tuple[int, int, int]], mask: int
    ) -> NDArray[np.uint32]:
        structure = self._lists.structure
        rows = np.zeros((whole_structure(structure).control_rows, 4), np.uint32)
        lanes = structure.lanes
        for k, start in enumerate(self._lists.vector_starts[:-1]):
            rows[set_row(k), 1] = start // lanes
        own = set_row(piece.node_set)
        width = structure.node_sets[piece.node_set].width // lanes
        rows[own, 0] = piece.last - piece.first
        rows[own, 1] += piece.first * width
        rows[own + 1, 1] = mask
        for position, (begins, columns, count) in enumerate(kinds):
            rows[kind_row(structure, piece.node_set, position), :3] = begins, columns, count
        return rows

    def _frozen_components(self) -> IndexArray:
        """Positions of frozen components in a device vector."""
        found: list[IndexArray] = [np.zeros(0, np.int64)]
        for k, nodes in enumerate(self._lists.structure.node_sets):
            if nodes.masked:
                bits = self._lists.mask(k)[:, None] >> np.arange(nodes.width, dtype=np.uint32)
                frozen: IndexArray = np.flatnonzero(bits.astype(np.int64) & 1)
                found.append(self._lists.vector_starts[k] + frozen)
        return np.concatenate(found)
