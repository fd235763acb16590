"""``ag.solve_batch``: many copies of one small problem, solved in one go."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.runtime.choice import choose_backend
from autograd_gpu.solvers.batch_levenberg_marquardt import BatchLevenbergMarquardt
from autograd_gpu.solvers.batch_pieces import run_in_pieces
from autograd_gpu.solvers.external import ExternalGroup
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.recovery import Recovery
from autograd_gpu.solvers.residual_group import DataRows, ResidualGroup
from autograd_gpu.solvers.selection import finite_array
from autograd_gpu.solvers.solution import NamedValues

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis

LARGEST_UNKNOWNS = 256
"""Unknowns of a copy: above, its dense JᵀJ is no small matrix, and `solve` knows sparse ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSolution:
    """Results of all copies, each at its last accepted point.

    Attributes:
        values: parameter name -> ``(copies, …)`` as the problem's array is shaped.
        costs, initial_costs: ½Σρ(‖r‖²) of each copy.
        gradient_norms: largest entry of |Jᵀr| of each copy.
        iterations: steps tried by each copy.
        statuses: why each copy ended; ``Status`` objects.
        backend, precision, device, backend_reason: what evaluated, and why that.
        unknowns: of one copy.
        seconds: for all of them.
        faults: what happened to the device, and how the solve went on.
    """

    values: Mapping[str, FloatArray]
    costs: FloatArray
    initial_costs: FloatArray
    gradient_norms: FloatArray
    iterations: IndexArray
    statuses: NDArray[np.object_]
    backend: str
    precision: str
    device: str
    backend_reason: str
    unknowns: int
    seconds: float
    faults: tuple[str, ...] = ()

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Which copies met a tolerance."""
        return np.array([s.converged for s in self.statuses], np.bool_)

    @property
    def success(self) -> bool:
        """Whether all did."""
        return bool(self.converged.all())

    def report(self) -> str:
        """How many copies ended how, and where."""
        from rich.console import Console
        from rich.table import Table

        table = Table(show_header=False, title="autograd_gpu solve_batch", title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        count = len(self.statuses)
        rate = count / self.seconds if self.seconds > 0.0 else float("inf")
        ended = Counter(status.value for status in self.statuses)
        table.add_row("copies", f"{count} of {self.unknowns} unknowns each")
        table.add_row("status", ", ".join(f"{n} {name}" for name, n in ended.most_common()))
        finite = self.costs[np.isfinite(self.costs)]
        if len(finite):
            low, middle, high = np.quantile(finite, [0.0, 0.5, 1.0])
            table.add_row("cost", f"{low:.3g} to {high:.3g}, median {middle:.3g}")
        spread = np.quantile(self.iterations, [0.0, 0.5, 1.0])
        table.add_row("iterations", "{:.0f} to {:.0f}, median {:.0f}".format(*spread[[0, 2, 1]]))
        table.add_row("evaluated by", f"{self.backend}, {self.precision}, {self.device}")
        table.add_row("", self.backend_reason)
        for fault in self.faults:
            table.add_row("fault", fault)
        table.add_row("linear solver", "dense Cholesky of every copy, threads over copies")
        table.add_row("time", f"{self.seconds:.3g} s, {rate:.3g} copies a second")
        out = io.StringIO()
        Console(file=out, width=100, highlight=False).print(table)
        return out.getvalue()


def solve_batch(
    problem: Problem,
    parameters: Mapping[str, ArrayLike] | None = None,
    data: Mapping[str, Mapping[str, ArrayLike] | ArrayLike] | None = None,
    options: LevenbergMarquardtOptions | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> BatchSolution:
    """Solve N independent copies of a problem, each with its own damping and end.

    Args:
        problem: the template; what a copy does not replace is as it stands there, frozen blocks,
            weights and robust losses included. Its own numbers stay as they are.
        parameters: name -> start values of every copy, ``(N, …)`` with the array's shape.
        data: residuals name -> {argument: ``(N, …)`` with the argument's shape}, or just the array
            where there is one data argument; as in ``Problem.update``, one more dimension.
        options: of Levenberg-Marquardt; ``max_seconds`` is for all copies.
        backend: as in ``solve``.
        precision: of residuals and Jacobians; ``mixed`` is not to be had.
        device: for ``wgsl``: a device, or part of an adapter's name.

    Raises:
        InputError: nothing differs by copy, unknown names, NaN or infinity, or a template with
            energies, bounds, constraints, external residuals, rows of varying length, too many
            unknowns, or options that a batch lacks.
        ShapeError: an array does not fit, or numbers of copies differ.
        DeviceMemoryError: not even one copy fits.

    Where memory runs out, or a budget is set, copies go through in pieces. What they come to has
    the same bits, but for an ulp of elementary functions on ``numba``, and for rounding on ``jax``.
    """
    chosen = options or LevenbergMarquardtOptions()
    _check(problem, chosen, precision)
    began = time.perf_counter()
    analysis = problem.analysis()
    if analysis.column_count > LARGEST_UNKNOWNS:
        raise InputError(
            f"solve_batch: the problem has {analysis.column_count} unknowns, expected at most "
            f"{LARGEST_UNKNOWNS}; solve larger ones one by one with ag.solve"
        )
    starts = _starts(problem, parameters or {})
    rows = _rows(problem, analysis, data or {})
    count = _count({**starts, **{name: values for name, (_, values) in rows.items()}})
    start = [
        starts.get(
            a.name, np.broadcast_to(problem.values_of(a), (count, *problem.values_of(a).shape))
        )
        for a in problem.arrays
    ]
    size = count * analysis.row_count
    choice = choose_backend(backend, precision, problem.device(device), size)
    by_slot = {place: values for place, values in rows.values()}
    run = BatchLevenbergMarquardt(analysis, choice, by_slot, start, chosen)
    recovery = Recovery(choice, free=backend == "auto" and device is None)
    pieces = run_in_pieces(run, recovery, problem.memory_budget)
    states, choice = run.states, recovery.choice
    shapes = {a.name: problem.values_of(a).shape for a in problem.arrays}
    return BatchSolution(
        values=NamedValues(
            {
                a.name: v.reshape(count, *shapes[a.name])
                for a, v in zip(problem.arrays, run.values, strict=True)
            }
        ),
        costs=states.cost,
        initial_costs=states.initial_cost,
        gradient_norms=states.gradient_norm,
        iterations=states.iterations,
        statuses=states.status,
        backend=choice.backend,
        precision=choice.precision,
        device=run.description if pieces == 1 else f"{run.description}, in {pieces} pieces",
        backend_reason=choice.reason,
        unknowns=analysis.column_count,
        seconds=time.perf_counter() - began,
        faults=tuple(recovery.faults),
    )


def _check(problem: Problem, options: LevenbergMarquardtOptions, precision: str) -> None:
    if not isinstance(problem, Problem):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(f"solve_batch: got {type(problem).__name__}, expected an ag.Problem")
    if type(options) is not LevenbergMarquardtOptions:
        raise InputError(
            f"solve_batch, options: got {type(options).__name__}, expected "
            "ag.LevenbergMarquardtOptions"
        )
    if options.step_control != "nielsen" or options.graduation is not None:
        raise InputError(
            "solve_batch: has step_control='nielsen' alone, and no graduation; leave both out"
        )
    if precision == "mixed":
        raise InputError("solve_batch: precision='mixed'; expected 'float32' or 'float64'")
    if problem.energies:
        raise InputError(
            f"solve_batch: {problem.energies[0].name!r} is an energy; expected residuals alone"
        )
    if problem.bounds or problem.constraints:
        names = [*problem.bounds, *(c.group.name for c in problem.constraints)]
        raise InputError(f"solve_batch: {names[0]!r} has bounds, which a batch does not keep")
    for group in problem.groups:
        if isinstance(group, ExternalGroup):
            raise InputError(
                f"solve_batch: residuals {group.name!r} are external; expected traced ones"
            )
        if group.given_as is not None:
            raise InputError(
                f"solve_batch: residuals {group.given_as!r} have rows of varying length; expected "
                "the same for every copy"
            )


def _starts(problem: Problem, given: Mapping[str, ArrayLike]) -> dict[str, FloatArray]:
    """Start values by parameter name, ``(N, …)``."""
    arrays = {a.name: a for a in problem.arrays}
    found: dict[str, FloatArray] = {}
    for name, value in given.items():
        what = f"solve_batch, parameters {name!r}"
        if name not in arrays:
            known = ", ".join(map(repr, arrays))
            raise InputError(f"{what}: the problem has {known}")
        array = arrays[name]
        found[name] = _stack(value, problem.values_of(array).shape, what)
        if array.chart is not None:
            array.chart.check(found[name].reshape(-1, array.width), what)
    return found


_Place = tuple[int, int]


def _rows(
    problem: Problem,
    analysis: Analysis,
    given: Mapping[str, Mapping[str, ArrayLike] | ArrayLike],
) -> dict[str, tuple[_Place, FloatArray]]:
    """What differs by copy: for each argument its (group, slot) and rows (N, rows, size)."""
    groups = {g.name: k for k, g in enumerate(problem.groups)}
    found: dict[str, tuple[_Place, FloatArray]] = {}
    for name, arguments in given.items():
        if name not in groups:
            known = ", ".join(map(repr, groups))
            raise InputError(f"solve_batch, data: no residuals {name!r}; the problem has {known}")
        k = groups[name]
        group = problem.groups[k]
        named = _data_arguments(group)
        if not isinstance(arguments, Mapping):
            if len(named) != 1:
                raise InputError(
                    f"solve_batch, data, residuals {name!r}: has data arguments {sorted(named)}; "
                    "pass {argument: array}"
                )
            arguments = {next(iter(named)): arguments}
        for argument, value in arguments.items():
            what = f"solve_batch, data, residuals {name!r}, argument {argument!r}"
            if argument not in named:
                raise InputError(f"{what}: expected one of {sorted(named)}")
            position, rows = named[argument]
            shape = rows.values.shape[1:] if rows.shared else rows.values.shape
            values = _stack(value, shape, what)
            slots = group.topology.arguments
            if position in slots:  # an argument that changes nothing has no slot
                flat = values.reshape(len(values), len(rows.values), -1)
                found[what] = ((k, slots.index(position)), flat)
            else:
                found[what] = ((k, -1), values.reshape(len(values), 1, -1))
    return found


def _data_arguments(group: ResidualGroup) -> dict[str, tuple[int, DataRows]]:
    found: dict[str, tuple[int, DataRows]] = {}
    for k, (argument, value) in enumerate(zip(group.graph.arguments, group.arguments, strict=True)):
        if isinstance(value, DataRows):
            found[argument.name] = (k, value)
    return found


def _stack(value: Any, shape: tuple[int, ...], what: str) -> FloatArray:
    values = finite_array(value, what)
    if values.ndim != len(shape) + 1 or values.shape[1:] != shape:
        expected = ", ".join(map(str, ("copies", *shape)))
        raise ShapeError(f"{what}: got shape {values.shape}, expected ({expected})")
    return values


def _count(stacks: Mapping[str, FloatArray]) -> int:
    """Number of copies; all arrays must agree."""
    if not stacks:
        raise InputError(
            "solve_batch: nothing differs by copy; pass parameters={name: (N, …)} or "
            "data={residuals: {argument: (N, …)}}"
        )
    (first, values), *others = stacks.items()
    for name, other in others:
        if len(other) != len(values):
            raise ShapeError(
                f"solve_batch: {name} has {len(other)} copies, {first} has {len(values)}"
            )
    if len(values) == 0:
        raise InputError("solve_batch: there are no copies")
    return len(values)
