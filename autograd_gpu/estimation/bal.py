"""Bundles in the text format of "Bundle adjustment in the large" (BAL).

The first line has the numbers of cameras, points and observations; then a line ``camera point x y``
for each observation, then nine numbers for each camera and three for each point, mostly one a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from autograd_gpu.estimation.bundle import Bundle, FloatArray
from autograd_gpu.estimation.text_lines import Lines, Path, opened


def read_bal(path: Path) -> Bundle:
    """Read a bundle; ``.gz`` and ``.bz2`` are unpacked.

    Raises:
        FileFormatError: a line that does not fit; names file and line.
        OSError: the file cannot be opened.
    """
    with opened(path, "rt") as file:
        lines = Lines(path, file)
        rows = iter(lines)
        nothing: list[str] = []
        header = next(rows, nothing)
        if len(header) != 3:
            lines.refuse("expected the numbers of cameras, points and observations")
        cameras, points, count = (lines.integer(w, "a number of the first line") for w in header)
        if not min(cameras, points, count) > 0:
            lines.refuse("expected at least one camera, point and observation")
        indices = np.empty((count, 2), np.int64)
        observed = np.empty((count, 2))
        seen = 0
        for words in islice(rows, count):
            indices[seen], observed[seen] = _observation(lines, words, cameras, points)
            seen += 1
        if seen < count:
            lines.refuse(f"the file ends after {seen} of {count} observations")
        numbers = _numbers(lines, rows, 9 * cameras + 3 * points)
        return Bundle(
            cameras=numbers[: 9 * cameras].reshape(-1, 9),
            points=numbers[9 * cameras :].reshape(-1, 3),
            camera_of=indices[:, 0],
            point_of=indices[:, 1],
            observed=observed,
        )


def _observation(
    lines: Lines, words: list[str], cameras: int, points: int
) -> tuple[tuple[int, int], FloatArray]:
    if len(words) != 4:
        lines.refuse("expected an observation: camera point x y")
    camera, point = lines.integer(words[0], "a camera"), lines.integer(words[1], "a point")
    if camera >= cameras or point >= points:
        lines.refuse(f"camera {camera} and point {point}, of {cameras} cameras and {points} points")
    return (camera, point), lines.numbers(words[2:], 2, "pixels")


def _numbers(lines: Lines, rows: Iterator[list[str]], count: int) -> FloatArray:
    found = np.empty(count)
    filled = 0
    for words in rows:
        if filled + len(words) > count:
            lines.refuse(f"more than the {count} numbers of cameras and points")
        found[filled : filled + len(words)] = lines.numbers(
            words, len(words), "of cameras or points"
        )
        filled += len(words)
    if filled < count:
        lines.refuse(f"the file ends after {filled} of {count} numbers of cameras and points")
    return found


def write_bal(path: Path, bundle: Bundle) -> None:
    """Write a bundle; numbers are such that ``read_bal`` gives the same ones."""
    with opened(path, "wt") as file:
        file.write(f"{len(bundle.cameras)} {len(bundle.points)} {len(bundle.observed)}\n")
        for camera, point, (x, y) in zip(
            bundle.camera_of.tolist(), bundle.point_of.tolist(), bundle.observed.tolist(),
            strict=True,
        ):  # fmt: skip
            file.write(f"{camera} {point} {x!r} {y!r}\n")
        for numbers in (bundle.cameras, bundle.points):
            file.writelines(f"{value!r}\n" for value in numbers.ravel().tolist())
