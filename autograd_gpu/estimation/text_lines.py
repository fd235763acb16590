"""Lines of a text file, numbered, and errors that name them."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Iterator, Sequence
from os import PathLike, fspath
from typing import IO, NoReturn

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import FileFormatError

FloatArray = NDArray[np.float64]
Path = str | PathLike[str]


def opened(path: Path, mode: str) -> IO[str]:
    """A text file, compressed if its name ends in ``.bz2`` or ``.gz``; mode ``rt`` or ``wt``."""
    name = fspath(path)
    if name.endswith(".bz2"):
        return bz2.open(name, mode, encoding="utf-8")  # pyright: ignore[reportReturnType, reportCallIssue, reportArgumentType, reportUnknownVariableType]
    if name.endswith(".gz"):
        return gzip.open(name, mode, encoding="utf-8")  # pyright: ignore[reportReturnType, reportCallIssue, reportArgumentType, reportUnknownVariableType]
    return open(name, mode, encoding="utf-8")


class Lines:
    """The lines of a file that say something, word by word; the last one is known by number."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self._path = fspath(path)
        self._file = file
        self.number = 0
        self._text = ""

    def __iter__(self) -> Iterator[list[str]]:
        for number, line in enumerate(self._file, 1):
            self.number, self._text = number, line.strip()
            if self._text and not self._text.startswith("#"):
                yield self._text.split()

    def refuse(self, what: str) -> NoReturn:
        """Complain of the last line.

        Raises:
            FileFormatError: names file and line.
        """
        raise FileFormatError(
            f"{self._path}:{self.number}: {what}; the line is {self._text!r:.120}"
        )

    def numbers(self, words: Sequence[str], count: int, what: str) -> FloatArray:
        """Exactly ``count`` finite numbers."""
        if len(words) != count:
            self.refuse(f"got {len(words)} numbers, expected {count}: {what}")
        try:
            values = np.array([float(w) for w in words])
        except ValueError as error:
            self.refuse(f"{error}, expected {count} numbers: {what}")
        if not np.isfinite(values).all():
            self.refuse(f"NaN or infinity, expected {count} finite numbers: {what}")
        return values

    def integer(self, word: str, what: str) -> int:
        """A whole number that is not negative."""
        if not word.isascii() or not word.isdigit():
            self.refuse(f"got {word!r} as {what}, expected a whole number")
        return int(word)
