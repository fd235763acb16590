"""Where everything lives in the buffers of a coarse space: one truth for text and data.

``coarse`` (u32) begins with a header, then a row of words per node set; lists follow. Offsets into
``coarse_sums`` (f32) are words of it; ``coarse_matrix`` (f32) holds two square matrices, between
which the inversion goes to and fro.
"""

from __future__ import annotations

from enum import IntEnum

TILE = 16
"""The matrix is inverted in blocks of this many rows; a workgroup is one tile of threads."""

STRIP = 8
"""Tiles of a block row that one workgroup works on, so that it inverts the pivot block once."""

LARGEST_SPACE = 1024
"""Coarse unknowns at most: each workgroup of an update keeps that many words."""

SMALLEST_AGGREGATE = 16
"""Nodes; fewer would give a workgroup more rows of the coarse system than it has threads."""

PIECE_WORDS = 5
"""Kind, later aggregate, earlier aggregate, first and last entry of a list."""

UNKNOWN_WORDS = 4
"""Aggregate · 16 + mode, then the sums of chunks that it totals: first word, count, stride."""

MODE_BITS = 4


class Header(IntEnum):
    """Words at the start of ``coarse``."""

    UNKNOWNS = 0
    AGGREGATES = 1
    UNKNOWN_TABLE = 2
    PAIR_TABLE = 3
    PIECE_TABLE = 4
    PIECES = 5
    INVERSE = 6
    """First word of the inverse in ``coarse_matrix``."""
    BLOCKS = 7
    """First word of the pieces' blocks in ``coarse_sums``."""
    SLOTS = 8
    """First word of the two pairs of vectors (Pᵀr, Pᵀs) in ``coarse_sums``."""
    DIAGONAL = 9
    """First word of the matrix's diagonal in ``coarse_sums``; the step counters follow it."""


class SetWord(IntEnum):
    """Words of a node set."""

    SIZE = 0
    """Nodes of an aggregate."""
    AGGREGATES = 1
    FIRST_AGGREGATE = 2
    FIRST_UNKNOWN = 3
    CHUNK = 4
    """Nodes whose part of Pᵀw one workgroup of a product sums."""
    SUMS = 5
    """First word of those sums in ``coarse_sums``."""
    MASK = 6
    """First word of the masks of frozen components in ``coarse``."""
    LANES = 7
    """Threads that share a row of the coarse system in an update."""


def set_word(node_set: int, word: SetWord) -> int:
    """Position of a node set's word in ``coarse``."""
    return len(Header) + len(SetWord) * node_set + word


def header_words(node_sets: int) -> int:
    """Words before the lists."""
    return len(Header) + len(SetWord) * node_sets
