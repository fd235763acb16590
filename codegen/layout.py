"""The control block: how a kernel finds its inputs and where it writes, as plain integers.

One kernel text serves every problem with its topology, since base offsets, strides and the batch
length are words of a small block and not part of the text. Words come in fours so that the block
is an ``array<vec4<u32>>`` in a uniform buffer.

| words | meaning |
|---|---|
| 0 | batch length |
| 1, 2 | residuals: stride between components, between elements |
| 3 | 0, which compilers do not know: double-float arithmetic hides what they must not reorder |
| 4, 5 | Jacobian entries: stride between entries, between elements |
| 6 | long rows: capacity, the items for which an element has room |
| 7 | long rows: 1 + position in ``indices`` of the number of items of each element |
| 8 + 4k … | slot k |

A parameter slot is (base, offset, stride, index): the block of element e is
``indices[index - 1 + e]`` if index > 0, else ``offset + stride * e`` (a whole array, a slice, or
with stride 0 one shared block); its first number is ``parameters[base + block * ambient]``.
A data slot is (base, component stride, element stride, 0).

Of a long row, item i of element e is for parameters (base, element stride, item stride, index) the
block ``indices[index - 1 + element stride * e + item stride * i]``, and for data (base, component
stride, element stride, item stride).
"""

from __future__ import annotations

from dataclasses import dataclass

HEADER_WORDS = 8
SLOT_WORDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotWords:
    """The four words of one slot, as described above."""

    base: int
    first: int
    second: int
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlBlock:
    """Values of a kernel's control block."""

    count: int
    residual_strides: tuple[int, int]
    jacobian_strides: tuple[int, int]
    slots: tuple[SlotWords, ...]
    lengths: int = 0
    capacity: int = 0

    def words(self) -> list[int]:
        """The words in order."""
        words = [self.count, *self.residual_strides, 0]
        words += [*self.jacobian_strides, self.capacity, self.lengths]
        for slot in self.slots:
            words += [slot.base, slot.first, slot.second, slot.index]
        return words
