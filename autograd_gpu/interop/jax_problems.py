"""Problems as pure JAX functions of their parameters and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autograd_gpu.codegen.kernel import Product, make_kernel
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.residual_group import DataRows, ResidualGroup, parameter_binding
from autograd_gpu.solvers.selection import Selection

from ..errors import InputError, ShapeError
from ..runtime.jax_functions import Columns, load_jax
from .jax_graphs import as_floats, differentiable_columns

Values = Mapping[str, Any]
Data = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class _Given:
    """Blocks of every parameter array, data by (residuals, argument), and the common type."""

    blocks: dict[str, Any]
    data: dict[tuple[str, str], Any]
    dtype: Any


class JaxResiduals:
    """All residuals of a problem, as it stood when this was made; see ``as_jax``.

    Args:
        problem: copied; later changes of it are not seen.

    Attributes:
        problem: the copy.
        shapes: parameter name -> shape of its array.
        data_shapes: (residuals, argument) -> shape of the data argument, of all that can be given.
    """

    def __init__(self, problem: Problem) -> None:
        load_jax()
        self.problem = problem.copy()
        self._groups, self._energies = self.problem.groups, self.problem.energies
        for group in (*self._groups, *self._energies):
            if make_kernel(group.topology, Product.RESIDUAL).is_folded:
                raise InputError(
                    f"as_jax: residuals {group.given_as or group.name!r} loop over long rows, "
                    "which has no form as columns yet; split the rows, or use backend='jax'"
                )
        self._start = {a.name: self.problem.values_of(a) for a in self.problem.arrays}
        self._order = self.problem.analysis().given_order
        self.shapes = {name: array.shape for name, array in self._start.items()}
        self.data_shapes = {
            (group.name, title): rows.values.shape[1 if rows.shared else 0 :]
            for group in (*self._groups, *self._energies)
            if group.given_as is None
            for title, rows in data_rows(group)
        }

    def __call__(self, values: Values, data: Data | None = None) -> Any:
        """Residuals ``(rows,)`` in the order of ``Problem.evaluate``; see ``cost`` for energies.

        Args:
            values: parameter name -> array of the shape that the problem has; the problem's own
                numbers for names left out.
            data: residuals -> argument -> array, as in ``Problem.update``; likewise.
        """
        jnp = load_jax().numpy
        given = self._given(values, data)
        parts = [
            jnp.stack(self._columns(g, Product.RESIDUAL, given), axis=1).reshape(-1)
            for g in self._groups
        ]
        residuals = jnp.concatenate(parts) if parts else jnp.zeros(0, given.dtype)
        return residuals if self._order is None else residuals[jnp.asarray(self._order)]

    def cost(self, values: Values, data: Data | None = None) -> Any:
        """½Σρ(‖r‖²) over all residual blocks, and the energies; arguments as for a call."""
        given = self._given(values, data)
        groups = [(g, Product.COST) for g in self._groups]
        groups += [(g, Product.RESIDUAL) for g in self._energies]
        columns = [self._columns(group, product, given)[0] for group, product in groups]
        return sum(load_jax().numpy.sum(c) for c in columns)

    def _given(self, values: Values, data: Data | None) -> _Given:
        x, flat = self.checked(values, data)
        _, dtype = as_floats([*x.values(), *flat.values()])
        blocks = {
            name: load_jax().numpy.asarray(x.get(name, own), dtype).reshape(len(own), -1)
            for name, own in self._start.items()
        }
        return _Given(blocks, flat, dtype)

    def checked(
        self, values: Values, data: Data | None
    ) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
        """What was given, flat, with names and shapes checked.

        Raises:
            InputError: no such parameters, residuals or data argument.
            ShapeError: another shape than the problem's.
        """
        jnp = load_jax().numpy
        x = {name: jnp.asarray(array) for name, array in values.items()}
        _check("parameters", x, self.shapes)
        flat = {
            (group, title): jnp.asarray(array)
            for group, of_group in (data or {}).items()
            for title, array in of_group.items()
        }
        _check("data", flat, self.data_shapes)
        return x, flat

    def _columns(self, group: ResidualGroup, product: Product, given: _Given) -> Columns:
        """Outputs of a product of one group, ``(count,)`` each."""
        jnp = load_jax().numpy
        slots: list[Columns] = []
        for a in group.topology.arguments:
            argument = group.arguments[a]
            if isinstance(argument, Selection):
                slots.append(_gathered(given.blocks[argument.array.name], argument, group.count))
            else:
                assert isinstance(argument, DataRows)  # long rows were refused
                title = group.graph.arguments[a].name
                rows = given.data.get((group.name, title), argument.values)
                flat = jnp.asarray(rows, given.dtype).reshape(len(argument.values), -1)
                slots.append(list(flat.T))
        columns = differentiable_columns(make_kernel(group.topology, product).graph)(slots)
        return [jnp.broadcast_to(c.astype(given.dtype), (group.count,)) for c in columns]


def data_rows(group: ResidualGroup) -> list[tuple[str, DataRows]]:
    """The data arguments of a group, by the names that ``Problem.update`` knows."""
    pairs = zip(group.graph.arguments, group.arguments, strict=True)
    return [(a.name, given) for a, given in pairs if isinstance(given, DataRows)]


def _gathered(blocks: Any, selection: Selection, count: int) -> Columns:
    """Columns of a selection: ``(count,)`` each, ``(1,)`` of a block that all share."""
    first = selection.offset
    if selection.indices is None and selection.stride in (0, 1):
        return list(blocks[first : first + (count if selection.stride else 1)].T)
    indices = parameter_binding(selection, 0).block_of(count)
    return list(blocks[load_jax().numpy.asarray(indices)].T)


def _check(what: str, given: Mapping[Any, Any], shapes: Mapping[Any, tuple[int, ...]]) -> None:
    for name, array in given.items():
        if name not in shapes:
            known = ", ".join(map(repr, shapes)) or "none"
            raise InputError(f"as_jax, {what}: no {name!r}; the problem has {known}")
        if array.shape != shapes[name]:
            raise ShapeError(
                f"as_jax, {what} {name!r}: got shape {array.shape}, expected {shapes[name]}"
            )
