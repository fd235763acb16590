"""Parameter arrays of a problem: their numbers, bounds, and which blocks are held."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu.charts import chart_of
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.solvers.bounds import ArrayBounds, array_bounds
from autograd_gpu.solvers.selection import ParameterArray, finite_array, index_array


@dataclass(slots=True)
class StoredArray:
    """One parameter array as it stands.

    Attributes:
        handle: what the user selects from.
        values: current numbers, ``handle``'s shape.
        frozen: ``(blocks,)``, which are held constant.
        bounds: None if there are none.
    """

    handle: ParameterArray
    values: FloatArray
    frozen: NDArray[np.bool_]
    bounds: ArrayBounds | None = None


class ParameterStore(Mapping[str, StoredArray]):
    """Parameter arrays by name, in the order added."""

    def __init__(self) -> None:
        self._stored: dict[str, StoredArray] = {}

    def __getitem__(self, name: str) -> StoredArray:
        return self._stored[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def copy(self) -> ParameterStore:
        """The same handles, with numbers and masks that go their own way."""
        made = ParameterStore()
        # Numbers are replaced as a whole, never written into, so both may hold the same array.
        made._stored = {k: replace(v, frozen=v.frozen.copy()) for k, v in self._stored.items()}
        return made

    def add(
        self,
        name: str,
        array: ArrayLike,
        manifold: object | None,
        bounds: tuple[ArrayLike | None, ArrayLike | None] | None,
    ) -> ParameterArray:
        """See ``Problem.parameters``."""
        if manifold is not None and bounds is not None:
            raise InputError(
                f"parameters {name!r}: bounds on a manifold have no meaning; leave one out"
            )
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"parameters: got {type(name).__name__} as the name, expected a string; call "
                'problem.parameters("x", array)'
            )
        what = f"parameters {name!r}"
        if name in self._stored:
            raise InputError(
                f"{what}: the problem already has parameters of this name; choose another, or "
                f"replace their numbers by problem.update({name}=...)"
            )
        values = finite_array(array, what)
        if not 1 <= values.ndim <= 3 or values.size == 0:
            raise ShapeError(
                f"{what}: got shape {values.shape}, expected (n,), (n, k) or (n, r, c) with n > 0"
            )
        shape = () if values.shape[1:] == (1,) else values.shape[1:]
        chart = None
        if manifold is not None:
            if len(shape) > 1:
                raise ShapeError(
                    f"{what}: got shape {values.shape}, expected (n, ambient) on a manifold"
                )
            chart = chart_of(manifold, shape[0] if shape else 1, what)
        if chart is not None:
            chart.check(values, what)
        box = None if bounds is None else array_bounds(bounds, values.shape, what)
        if box is not None:
            box.check(values, what)
        handle = ParameterArray(name, shape, len(values), chart)
        self._stored[name] = StoredArray(handle, values, np.zeros(len(values), np.bool_), box)
        return handle

    def named(self, name: str) -> ParameterArray:
        """The handle of a name; InputError if there is none."""
        if name not in self._stored:
            known = ", ".join(map(repr, self._stored))
            raise InputError(f"no parameters {name!r}; the problem has {known}")
        return self._stored[name].handle

    def owns(self, array: ParameterArray) -> bool:
        """Whether ``array`` is one of these."""
        stored = self._stored.get(array.name)
        return stored is not None and stored.handle is array

    def of(self, array: ParameterArray) -> StoredArray:
        """What is stored of a handle; InputError if it is another problem's."""
        if not isinstance(array, ParameterArray) or not self.owns(array):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"{array!r} is not a parameter array of this problem; pass what "
                "problem.parameters(...) returned, and blocks of it apart: freeze(x, [0, 1])"
            )
        return self._stored[array.name]

    def values_of(self, array: ParameterArray) -> FloatArray:
        """Current numbers of a handle; a copy."""
        return self.of(array).values.copy()

    def hold(self, array: ParameterArray, rows: Any, held: bool) -> None:
        """Freeze or release blocks: an index, a list of them, a mask, a slice, or None for all."""
        stored = self.of(array)
        what = f"{'freeze' if held else 'unfreeze'}, parameters {array.name!r}"
        if rows is None:
            rows = slice(None)
        if isinstance(rows, int | np.integer) and not isinstance(rows, bool):
            rows = [int(cast(int, rows))]
        chosen: slice | IndexArray = (
            cast(slice, rows) if isinstance(rows, slice) else index_array(rows, array.blocks, what)
        )
        stored.frozen[chosen] = held

    def point(self) -> tuple[FloatArray, dict[str, int]]:
        """All parameters, flat, and where each array begins."""
        bases: dict[str, int] = {}
        flat: list[FloatArray] = []
        for name, stored in self._stored.items():
            bases[name] = sum(len(f) for f in flat)
            flat.append(stored.values.ravel())
        return np.concatenate(flat), bases

    def checked_values(self, name: str, array: ArrayLike) -> FloatArray:
        """Numbers fit to take the place of a parameter array's; see ``Problem.update``."""
        if name not in self._stored:
            known = ", ".join(map(repr, self._stored))
            raise InputError(f"update: no parameters {name!r}; the problem has {known}")
        what, old = f"update, parameters {name!r}", self._stored[name]
        values = finite_array(array, what)
        if values.shape != old.values.shape:
            raise ShapeError(
                f"{what}: got shape {values.shape}, expected {old.values.shape}; for another size, "
                "make another Problem"
            )
        chart = old.handle.chart
        if chart is not None:
            chart.check(values, what)
        if old.bounds is not None:
            old.bounds.check(values, what)
        return values
