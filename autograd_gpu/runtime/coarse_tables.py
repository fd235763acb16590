"""Aggregates of a coarse space and the lists of what couples them, built once per problem."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement, pairwise

import numpy as np
from numpy.typing import NDArray

from ..codegen.coarse_layout import (
    LARGEST_SPACE,
    MODE_BITS,
    PIECE_WORDS,
    SMALLEST_AGGREGATE,
    Header,
    SetWord,
    header_words,
    set_word,
)
from ..codegen.coarse_program import CoarseSizes, aggregate_bases
from ..codegen.coarse_space import CoarseStructure, NodeModes
from ..codegen.incidence import WORKGROUP_SIZE
from .batch import IndexArray
from .node_tables import NodeTables

PIECE = 2048
"""Elements that one workgroup sums at most: enough to pay for its 256 threads' reduction, and few
enough that the pairs of a large problem fill a GPU."""

USUAL_SPACE = 768
"""Coarse unknowns at most, unless told otherwise."""


class CoarseTables:
    """Structure, sizes and lists of one problem's coarse space.

    Args:
        tables: of the problem.
        modes: motions of the nodes of each set.
        unknowns: coarse unknowns at most, up to ``LARGEST_SPACE``.
    """

    def __init__(
        self, tables: NodeTables, modes: Sequence[NodeModes], unknowns: int = USUAL_SPACE
    ) -> None:
        self._tables = tables
        self.structure = CoarseStructure(solve=tables.structure, modes=tuple(modes))
        self._sizes = aggregate_sizes(self.structure, tables.sizes.nodes, unknowns)
        bases = aggregate_bases(self.structure, tables.sizes.nodes, self._sizes)
        self._bases, self._count = bases, bases[-1]
        pairs, pieces, lists = self._pieces()
        self._fill(pairs, pieces, lists)

    def _aggregates(self, node_set: int, nodes: IndexArray) -> IndexArray:
        return self._bases[node_set] + nodes // self._sizes[node_set]

    def _pieces(self) -> tuple[IndexArray, list[tuple[int, ...]], list[IndexArray]]:
        """Pair of each piece; (kind, later, earlier, first, last) of each; lists one by one.

        Lists of elements are numbered from 0 on; nodes are runs, without a list.
        """
        pieces: list[tuple[int, ...]] = []
        lists: list[IndexArray] = []
        total = 0
        for kind, (g, later, earlier) in enumerate(self.structure.pairs):
            keys, elements = self._coupled(g, later, earlier)
            order = np.argsort(keys, kind="stable")
            keys = keys[order]
            lists.append(elements[order])
            for first, last in _cut(keys):
                pair = divmod(int(keys[first]), self._count)
                pieces.append((kind, *pair, total + first, total + last))
            total += len(keys)
        kind = len(self.structure.pairs)
        for k, modes in enumerate(self.structure.modes):
            if modes.count:
                nodes = self._tables.sizes.nodes[k]
                keys = self._aggregates(k, np.arange(nodes))
                pieces += [
                    (kind, int(keys[first]), int(keys[first]), first, last)
                    for first, last in _cut(keys)
                ]
                kind += 1
        codes = np.array([p[1] * (p[1] + 1) // 2 + p[2] for p in pieces], np.int64)
        order = np.argsort(codes, kind="stable")
        return codes[order], [pieces[k] for k in order], lists

    def _coupled(self, g: int, later: int, earlier: int) -> tuple[IndexArray, IndexArray]:
        """Pairs of aggregates, as later · count + earlier, and the elements that couple them."""
        places = self._tables.places_of(g)
        groups = [self._aggregates(k, nodes) for k, nodes in places]
        sets = [k for k, _ in places]
        if later == earlier:
            own = [a for a, k in zip(groups, sets, strict=True) if k == later]
            inside = np.logical_and.reduce([a == own[0] for a in own])
            # Most elements lie within one aggregate and need no search for duplicates.
            within, across = np.flatnonzero(inside), np.flatnonzero(~inside)
            codes = [
                np.maximum(a[across], b[across]) * self._count + np.minimum(a[across], b[across])
                for a, b in combinations_with_replacement(own, 2)
            ]
            keys = [own[0][within] * (self._count + 1)]
        else:
            within, across = np.zeros(0, np.int64), np.arange(len(groups[0]))
            codes = [
                a * self._count + b
                for a, i in zip(groups, sets, strict=True)
                if i == later
                for b, j in zip(groups, sets, strict=True)
                if j == earlier
            ]
            keys = [np.zeros(0, np.int64)]
        count = max(1, len(groups[0]))
        found = np.unique(np.concatenate([c * count + across for c in codes]))
        return np.concatenate([*keys, found // count]), np.concatenate([within, found % count])

    def _fill(
        self, pairs: IndexArray, pieces: list[tuple[int, ...]], lists: list[IndexArray]
    ) -> None:
        structure, solve = self.structure, self._tables.sizes
        start = header_words(len(solve.nodes))
        masks: list[int] = []
        words: list[NDArray[np.uint32]] = []
        for k, nodes in enumerate(structure.solve.node_sets):
            masks.append(start)
            if nodes.masked:
                words.append(self._tables.mask(k))
                start += len(words[-1])
        elements = np.concatenate([*lists, np.zeros(0, np.int64)])
        table = np.array(pieces, np.int64)
        listed = table[:, 0] < len(structure.pairs)
        table[listed, 3:5] += start
        words.append(elements.astype(np.uint32))
        pair_table = start + len(elements)
        every = np.arange(self._count * (self._count + 1) // 2 + 1)
        words.append(np.searchsorted(pairs, every).astype(np.uint32))
        piece_table = pair_table + len(every)
        words.append(table.astype(np.uint32).ravel())
        unknown_table = piece_table + PIECE_WORDS * len(pieces)
        sizes = CoarseSizes(
            solve=solve,
            structure=structure,
            aggregate_nodes=self._sizes,
            pieces=len(pieces),
            table_words=0,
        )
        words.append(self._unknowns(sizes).astype(np.uint32).ravel())
        header = np.zeros(header_words(len(solve.nodes)), np.uint32)
        blocks, slots, diagonal, _ = sizes.sum_bases
        header[Header.UNKNOWNS] = sizes.unknowns
        header[Header.AGGREGATES] = self._count
        header[Header.UNKNOWN_TABLE] = unknown_table
        header[Header.PAIR_TABLE] = pair_table
        header[Header.PIECE_TABLE] = piece_table
        header[Header.PIECES] = len(pieces)
        header[Header.INVERSE] = sizes.inversion_steps % 2 * sizes.unknowns**2
        header[Header.BLOCKS], header[Header.SLOTS] = blocks, slots
        header[Header.DIAGONAL] = diagonal
        for k in range(len(solve.nodes)):
            header[set_word(k, SetWord.SIZE)] = self._sizes[k]
            header[set_word(k, SetWord.AGGREGATES)] = self._bases[k + 1] - self._bases[k]
            header[set_word(k, SetWord.FIRST_AGGREGATE)] = self._bases[k]
            header[set_word(k, SetWord.FIRST_UNKNOWN)] = sizes.unknown_bases[k]
            header[set_word(k, SetWord.CHUNK)] = sizes.chunk_nodes(k)
            header[set_word(k, SetWord.SUMS)] = sizes.chunk_bases[k]
            header[set_word(k, SetWord.MASK)] = masks[k]
            header[set_word(k, SetWord.LANES)] = sizes.row_lanes(k)
        self.words = np.concatenate([header, *words])
        self.sizes = CoarseSizes(
            solve=solve,
            structure=structure,
            aggregate_nodes=self._sizes,
            pieces=len(pieces),
            table_words=self.words.size,
        )

    def _unknowns(self, sizes: CoarseSizes) -> IndexArray:
        """Aggregate and mode of each unknown, and the sums of chunks that it totals."""
        rows = [np.zeros((0, 4), np.int64)]
        for k, modes in enumerate(self.structure.modes):
            per = self._sizes[k] // sizes.chunk_nodes(k)
            chunks = -(-sizes.solve.nodes[k] // sizes.chunk_nodes(k))
            local = np.arange(self._bases[k + 1] - self._bases[k])[:, None]
            mode = np.arange(modes.count)[None, :]
            columns = (
                ((self._bases[k] + local) << MODE_BITS) + mode,
                sizes.chunk_bases[k] + local * per * modes.count + mode,
                np.minimum(per, chunks - local * per) + 0 * mode,
                modes.count + 0 * local + 0 * mode,
            )
            rows.append(np.stack(columns, axis=-1).reshape(-1, 4))
        found = np.concatenate(rows)
        # What fills up the last tile totals nothing; its stride is not 0, so that loops end.
        filled = np.zeros((sizes.unknowns - len(found), 4), np.int64)
        filled[:, 3] = 1
        return np.concatenate([found, filled])


def _cut(keys: IndexArray) -> list[tuple[int, int]]:
    """Runs of equal keys, cut to the length of a piece."""
    if not len(keys):
        return []
    starts = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
    return [
        (first, min(first + PIECE, last))
        for begin, last in pairwise(starts)
        for first in range(begin, last, PIECE)
    ]


def aggregate_sizes(
    structure: CoarseStructure, nodes: Sequence[int], unknowns: int
) -> tuple[int, ...]:
    """Nodes per aggregate of each set: the smallest sizes whose modes are at most ``unknowns``.

    The set with most unknowns gives way first.
    """
    limit = min(unknowns, LARGEST_SPACE)
    sizes = [SMALLEST_AGGREGATE] * len(nodes)

    def rows(k: int) -> int:
        return structure.modes[k].count * -(-nodes[k] // sizes[k])

    while sum(rows(k) for k in range(len(nodes))) > limit:
        k = max(range(len(nodes)), key=rows)
        if rows(k) <= structure.modes[k].count:
            break
        if sizes[k] < WORKGROUP_SIZE:
            sizes[k] *= 2
        else:
            sizes[k] = -(-5 * sizes[k] // (4 * WORKGROUP_SIZE)) * WORKGROUP_SIZE
    return tuple(sizes)
