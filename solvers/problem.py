"""A least-squares problem: parameters, and residual functions over batches of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu.errors import InputError, ShapeError, TraceError
from autograd_gpu.long_rows import LONGEST_UNROLLED_ROW
from autograd_gpu.losses import Loss
from autograd_gpu.runtime.batch import FloatArray, IndexArray
from autograd_gpu.solvers.arguments import gather
from autograd_gpu.solvers.batch_store import BatchStore
from autograd_gpu.solvers.bounds import ArrayBounds
from autograd_gpu.solvers.constraint_group import Constraint, constraint_bounds, make_constraint
from autograd_gpu.solvers.external import ExternalFunction, external_group
from autograd_gpu.solvers.group_tracing import trace_for_batch
from autograd_gpu.solvers.parameter_store import ParameterStore
from autograd_gpu.solvers.ragged_arguments import rows_of
from autograd_gpu.solvers.ragged_group import RaggedGroup
from autograd_gpu.solvers.residual_group import GroupArgument, ResidualGroup
from autograd_gpu.solvers.selection import ParameterArray, Selection
from autograd_gpu.trace import function_name

if TYPE_CHECKING:
    from autograd_gpu.runtime.batch_executor import BatchLimits
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.solvers.analysis import Analysis
    from autograd_gpu.solvers.audit import Audit
    from autograd_gpu.solvers.covariance import Covariance
    from autograd_gpu.solvers.evaluation import Evaluation
    from autograd_gpu.solvers.explanation import Explanation
    from autograd_gpu.solvers.gradient_check import GradientCheck
    from autograd_gpu.solvers.piece_products import PieceProducts


class Problem:
    """Parameters and residuals; ``cost`` is ½Σρ(‖r‖²) over all elements, ½‖r‖² without losses.

    Energies that are no squares of residuals may be added to it.

    Arrays are copied when they are given and never changed. A problem is described once and can
    be evaluated and solved many times; compiled kernels are kept with it.

    Attributes:
        batch_limits: how batches are cut, and which are too small for a kernel; None for one
            launch a group.
        memory_budget: bytes of arrays on the backend at a time, set before the first evaluation;
            batches that do not fit go through in pieces. None for no limit.
        revision: counts changes of structure and data.
        alone: held by whoever solves or evaluates; another thread waits for its turn.
    """

    def __init__(self) -> None:
        self._parameters = ParameterStore()
        self._batches = BatchStore()
        self._analysis: Analysis | None = None
        self.revision = 0
        self.alone = threading.RLock()
        self._solves = 0
        self._retired: list[Analysis] = []
        self._devices: dict[str, Device] = {}
        self.batch_limits: BatchLimits | None = None
        self.memory_budget: int | None = None

    def copy(self) -> Problem:
        """The problem as it stands, from which changes of this one stay away, and the reverse.

        Parameter arrays are the same objects: what selects from them serves both.
        """
        made = Problem()
        made._parameters = self._parameters.copy()
        made._batches = self._batches.copy()
        made._devices = dict(self._devices)
        made.batch_limits = self.batch_limits
        made.memory_budget = self.memory_budget
        return made

    # -- description ---------------------------------------------------------------------------

    def parameters(
        self,
        name: str,
        array: ArrayLike,
        manifold: object | None = None,
        bounds: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    ) -> ParameterArray:
        """Add a parameter array.

        Args:
            name: key in ``Solution.values``.
            array: start values, ``(n,)`` for n scalars, ``(n, k)`` for n vectors, ``(n, r, c)``
                for n matrices; copied as float64.
            manifold: what blocks live on, one of ``ag.manifolds`` or your own: a class or an
                object with ``ambient``, ``tangent`` and a traced ``plus(x, delta)``. The array
                is ``(n, ambient)`` (``(n,)`` if that is 1) of points on it. Steps, Jacobians and
                covariances are in its tangent coordinates.
            bounds: ``(lower, upper)``, each None, a number, or what broadcasts to the array;
                infinite where there is none. ``array`` lies between them, and so does every point
                that a solve accepts. Not on a manifold.

        Raises:
            InputError: the name is taken, NaN or infinity in the array, rows that do not lie on
                the manifold (to 1e-6), or bounds that cross or leave the array outside.
            ShapeError: no rows, or more than three dimensions, another width than the
                manifold's, or bounds of another shape.
        """
        handle = self._parameters.add(name, array, manifold, bounds)
        self._forget()
        return handle

    def add_residuals(
        self,
        fn: Callable[..., Any],
        *arguments: Any,
        weight: ArrayLike | None = None,
        loss: Loss | Callable[[Any], Any] | None = None,
        name: str | None = None,
    ) -> None:
        """Add one residual block per element of a batch.

        Args:
            fn: residual of one element, in plain Python; traced now, once.
            arguments: parameter arrays or selections of them, arrays with one row per element,
                numbers or ``ag.shared(array)`` for what all elements share; ``x[Ragged]`` and
                ``Ragged`` give the function a sequence, whose length varies by element.
            weight: multiplies the residual: a number, ``(count,)``, or a matrix square root
                ``(m, m)`` or ``(count, m, m)``. In ``update`` it is the data argument
                ``weight`` (``weight_of_residual`` if ``fn`` has an argument ``weight``).
            loss: a loss of ``ag.losses``, or a function ρ(s); acts on s = ‖r‖² of each element,
                weight included, and the cost is ½Σρ(s). In ``update`` its parameters are data
                arguments, such as ``loss_delta``.
            name: for reports; the function's name by default.

        Raises:
            TraceError: the function cannot be traced.
            ShapeError, IndexRangeError, InputError: an argument does not fit.
        """
        title = self._batches.free_name(name or function_name(fn), named=name is not None)
        what = f"residuals {title!r}"
        self._batches.residuals[title] = trace_for_batch(
            fn, arguments, self._parameters, title, what, weight=weight, loss=loss
        )
        self._forget()

    def add_energy(
        self,
        fn: Callable[..., Any],
        *arguments: Any,
        weight: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        """Add an energy that is no square of residuals: one number per element of a batch.

        The cost is then ½Σρ(‖r‖²) + ΣE, minimised by ``method="newton"`` (the default, as soon as
        there are energies) or by a method that takes gradients alone.

        Args:
            fn: energy of one element, in plain Python; traced now, once. Infinity or NaN, better
                a large number, say where it is not defined: no step is kept there.
            arguments: as for ``add_residuals``.
            weight: multiplies the energy: a number, or ``(count,)``; in ``update`` the data
                argument ``weight``.
            name: for reports, unique among residuals and energies; the function's by default.

        Raises:
            TraceError: the function cannot be traced.
            ShapeError: it returns more than one number, or an argument does not fit.
            IndexRangeError, InputError: an argument does not fit.
        """
        title = self._batches.free_name(name or function_name(fn), named=name is not None)
        what = f"energy {title!r}"
        group = trace_for_batch(
            fn, arguments, self._parameters, title, what, weight=weight, grids=False
        )
        size = group.parts[0].residual_size
        if size != 1:
            raise ShapeError(
                f"{what}: returns {size} numbers, expected one, the energy of an element; for a "
                "sum of squares call problem.add_residuals"
            )
        if any(part.lengths is not None for part in group.parts):
            raise TraceError(
                f"{what}: loops over rows of more than {LONGEST_UNROLLED_ROW} items have no second "
                "derivatives; shorten the rows, or use ag.Ragged(…, unroll=True)"
            )
        self._batches.energies[title] = group
        self._forget()

    def add_constraint(
        self,
        fn: Callable[..., Any],
        *arguments: Any,
        kind: str | None = None,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        """Demand lower ≤ c ≤ upper of one function per element of a batch.

        Args:
            fn: c of one element, in plain Python; traced now, once.
            arguments: as for ``add_residuals``, without ``Ragged``.
            kind: ``equality`` (c = 0, the default) or ``inequality`` (c ≥ 0); without bounds.
            lower: a number, one for each component of c, one an element, or
                ``(count, components)``; None if there is none.
            upper: as ``lower``; where both are equal the constraint is an equality.
            name: key in ``Solution.multipliers``, unique among residuals, energies and
                constraints; the function's by default.

        Raises:
            TraceError: the function cannot be traced.
            ShapeError, IndexRangeError, InputError: an argument or a bound does not fit.
        """
        title = self._batches.free_name(name or function_name(fn), named=name is not None)
        what = f"constraint {title!r}"
        bounds = constraint_bounds(kind, lower, upper, what)
        group = trace_for_batch(fn, arguments, self._parameters, title, what)
        if isinstance(group, RaggedGroup):
            raise InputError(
                f"{what}: an argument is ragged; add one constraint for each length of row"
            )
        self._batches.constraints[title] = make_constraint(group, bounds)
        self._forget()

    def add_external(self, fn: ExternalFunction, *arguments: Any, name: str | None = None) -> None:
        """Add residuals of a NumPy function that gives its own Jacobian, on any backend.

        The function runs on the host, once an evaluation, for the whole batch; everything else
        stays with the backend. It takes part in methods that step by JᵀJ. The report says so.

        Args:
            fn: takes one array an argument, ``(count, …)`` as an element's shape, or what all
                elements share; returns residuals, ``(count,)`` or ``(count, m)``, and a list with
                the derivative by each parameter argument in order, ``(count, m, width)``. Called
                now, once, at the current parameters.
            arguments: as for ``add_residuals``, but for sequences.
            name: for reports; the function's name by default.

        Raises:
            InputError: an argument does not fit, or the function returns something else.
            ShapeError, IndexRangeError: an argument, or what it returns, does not fit.
        """
        title = self._batches.free_name(name or function_name(fn), named=name is not None)
        what = f"external residuals {title!r}"
        names, gathered, count = gather(fn, arguments, self._parameters.owns, what)
        for argument_name, argument in zip(names, gathered, strict=True):
            if rows_of(argument) is not None:
                raise InputError(
                    f"{what}, argument {argument_name!r}: got rows of varying length, expected "
                    "the same for every element"
                )
        plain = cast("list[GroupArgument]", gathered)
        self._batches.residuals[title] = external_group(
            fn, names, plain, count, title, self._parameters.point()
        )
        self._forget()

    def add_group(self, group: ResidualGroup | RaggedGroup, *, energy: bool = False) -> None:
        """Add residuals, or energies, traced and bound to this problem's arrays already."""
        name = self._batches.free_name(group.name, named=True)
        (self._batches.energies if energy else self._batches.residuals)[name] = group
        self._forget()

    def add_made_constraint(self, constraint: Constraint) -> None:
        """Add a constraint that is traced and bound to this problem's arrays already."""
        name = self._batches.free_name(constraint.group.name, named=True)
        self._batches.constraints[name] = constraint
        self._forget()

    def save(self, path: str | PathLike[str]) -> None:
        """Write the problem to a file: a zip of JSON and NumPy arrays, without pickle.

        Args:
            path: of the file, which is written whole or not at all.

        Raises:
            InputError: something that a file cannot hold, such as a manifold of your own.
            OSError: the folder cannot be written to.
        """
        from autograd_gpu.solvers.problem_archive import write_problem

        arrays = {
            name: (stored.handle, stored.values, stored.frozen, stored.bounds)
            for name, stored in self._parameters.items()
        }
        batches = self._batches
        groups = {"residuals": batches.residuals, "energies": batches.energies}
        write_problem(path, arrays, groups, batches.constraints)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The problem that ``save`` wrote; runs none of the code that described it.

        Raises:
            InputError: no such file, another format or version, or a damaged one.
        """
        from autograd_gpu.solvers.problem_archive import read_problem

        problem = cls()
        read_problem(path, problem)
        return problem

    def array(self, name: str) -> ParameterArray:
        """The parameter array of a name, as ``parameters`` returned it.

        Raises:
            InputError: there is none.
        """
        return self._parameters.named(name)

    def freeze(self, array: ParameterArray, rows: Any = None) -> None:
        """Hold blocks constant: ``rows`` is an index list, a mask, a slice, or None for all."""
        self._parameters.hold(array, rows, True)
        self._forget()

    def unfreeze(self, array: ParameterArray, rows: Any = None) -> None:
        """Let blocks vary again; ``rows`` as for ``freeze``."""
        self._parameters.hold(array, rows, False)
        self._forget()

    def owns(self, array: ParameterArray) -> bool:
        """Whether ``array`` is one of this problem's parameter arrays."""
        return self._parameters.owns(array)

    def update(
        self,
        data: Mapping[str, Mapping[str, ArrayLike] | ArrayLike] | None = None,
        **parameters: ArrayLike,
    ) -> None:
        """Replace numbers, keeping the structure; nothing is traced or compiled again.

        A callback of ``solve`` may call it with data that follow the point (correspondences): the
        solve goes on from there. Start values do not move a solve that runs.

        Args:
            data: group name -> {argument name: array}, or just the array where the group has a
                single data argument. Shapes must stay as they were.
            parameters: parameter name -> new start values.

        Raises:
            InputError: unknown names, NaN or infinity, or rows that do not lie on their manifold.
            ShapeError: another shape than before.
        """
        if not isinstance({} if data is None else data, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(
                f"update, data: got {type(data).__name__}, expected {{residuals: array}} or "
                "{residuals: {argument: array}}"
            )
        fresh = {
            name: self._parameters.checked_values(name, array) for name, array in parameters.items()
        }
        batches = self._batches.with_data(data or {})
        for name, values in fresh.items():
            self._parameters[name].values = values
        self._batches.take(batches)
        if batches:
            before = self._analysis
            rebound = None if before is None else before.updated(self, self._solves > 0)
            self._forget()
            self._analysis = rebound

    # -- what others read ----------------------------------------------------------------------

    @property
    def groups(self) -> tuple[ResidualGroup, ...]:
        """Batches of one topology in the order added; a ragged group is one for each length."""
        return tuple(part for group in self._batches.residuals.values() for part in group.parts)

    @property
    def energies(self) -> tuple[ResidualGroup, ...]:
        """Batches of energies, of one output each, in the order added; as ``groups``."""
        return tuple(part for group in self._batches.energies.values() for part in group.parts)

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """Constraints in the order added."""
        return tuple(self._batches.constraints.values())

    @property
    def arrays(self) -> tuple[ParameterArray, ...]:
        """Parameter arrays in the order added."""
        return tuple(stored.handle for stored in self._parameters.values())

    def values_of(self, array: ParameterArray) -> FloatArray:
        """Current values of a parameter array; a copy."""
        return self._parameters.values_of(array)

    def frozen_of(self, array: ParameterArray) -> NDArray[np.bool_]:
        """Mask of the blocks held constant; a copy."""
        return self._parameters.of(array).frozen.copy()

    @property
    def bounds(self) -> dict[str, ArrayBounds]:
        """Bounds by name of the parameter array, of those that have any."""
        return {n: a.bounds for n, a in self._parameters.items() if a.bounds is not None}

    def columns(self, array: ParameterArray) -> IndexArray:
        """Jacobian columns of each block of ``array``, -1 where frozen.

        ``(blocks, width)``, one for each number; on a manifold ``(blocks, tangent)``, one for each
        tangent coordinate.
        """
        self._parameters.of(array)
        return self.analysis().columns_of(array)

    def device(self, wanted: Device | str | None) -> Device | None:
        """A device for part of an adapter's name; opened once per problem and name."""
        from autograd_gpu.runtime.device import Device

        if not isinstance(wanted, str):
            return wanted
        if wanted not in self._devices:
            self._devices[wanted] = Device(wanted)
        return self._devices[wanted]

    def analysis(self) -> Analysis:
        """Structure of the problem as it stands; made once, until the problem changes."""
        from autograd_gpu.solvers.analysis import Analysis

        if self._analysis is None:
            self._analysis = Analysis(self)
        return self._analysis

    def augmented_analysis(self) -> Analysis:
        """Structure of the problem with constraints as residuals at its end; the caller closes it.

        Without constraints it is ``analysis()``, which the problem keeps.
        """
        from autograd_gpu.solvers.analysis import Analysis

        if not self._batches.constraints:
            return self.analysis()
        return Analysis(self, [c.group for c in self.constraints])

    def _forget(self) -> None:
        self.revision += 1
        if self._analysis is not None:
            self._retired.append(self._analysis)
            self._analysis = None
        self._close_retired()

    def _close_retired(self) -> None:
        """Free what is out of date, unless a solve that began with it still runs."""
        if not self._solves:
            while self._retired:
                self._retired.pop().close()

    @contextmanager
    def in_use(self) -> Generator[None]:
        """Keep the sessions of a running solve, whatever its callback updates."""
        self._solves += 1
        try:
            yield
        finally:
            self._solves -= 1
            self._close_retired()

    # -- numbers -------------------------------------------------------------------------------

    def evaluate(
        self, backend: str = "auto", precision: str = "auto", device: Device | str | None = None
    ) -> Evaluation:
        """Residuals, Jacobian, gradient and cost at the current parameters.

        Raises:
            InputError: unknown backend or precision, or a problem without residuals.
        """
        from autograd_gpu.solvers.evaluation import evaluate

        return evaluate(self, backend, precision, device)

    def products(
        self,
        backend: str = "auto",
        precision: str = "auto",
        device: Device | str | None = None,
        memory_budget: int | None = None,
    ) -> PieceProducts:
        """Cost, gradient and JᵀJ v at the current parameters in bounded memory, without J.

        Args:
            backend: as in ``solve``.
            precision: as in ``solve``.
            device: as in ``solve``.
            memory_budget: bytes of what is in memory at a time beside the vectors; None for the
                problem's.

        Raises:
            InputError: an unknown option, or a problem with energies or outside residuals.
            DeviceMemoryError: not even one element fits.
        """
        from autograd_gpu.solvers.piece_products import PieceProducts

        return PieceProducts(self, backend, precision, device, memory_budget)

    def check_gradients(self, samples: int = 64, seed: int = 0) -> GradientCheck:
        """Compare every Jacobian with central differences at (up to ``samples``) elements."""
        from autograd_gpu.solvers.gradient_check import check_gradients

        return check_gradients(self, samples, seed)

    def covariance(
        self,
        *blocks: Selection | ParameterArray,
        null_space: str = "error",
        variance: float = 1.0,
    ) -> Covariance:
        """Covariance (JᵀJ)⁻¹ of chosen blocks, in float64, at the current parameters.

        It is the covariance of a least-squares estimate where residuals are divided by their
        standard deviations and the parameters are at the minimum: call
        ``problem.update(x=solution.values["x"])`` first.

        Args:
            blocks: parameter arrays or selections of them, such as ``x[[0, 7]]``.
            null_space: ``error``, or ``pseudo-inverse`` to leave out directions that change no
                residual.
            variance: of a residual; 2·cost / (residuals - parameters) estimates it.

        Raises:
            InputError: nothing chosen, or not parameters of this problem.
            SolveError: JᵀJ is singular; the message has the dimension of its null space.
        """
        from autograd_gpu.solvers.covariance import covariance

        return covariance(self, blocks, null_space, variance)

    def audit(
        self,
        backend: str = "auto",
        precision: str = "auto",
        against: str = "numpy",
        reference_precision: str = "float64",
        device: Device | str | None = None,
    ) -> Audit:
        """Compare residuals and Jacobian of two backends at the current parameters.

        Args:
            backend: what to test, as in ``solve``.
            precision: of that.
            against: backend to trust; NumPy needs no compiler.
            reference_precision: of that.
            device: for ``wgsl``: a device, or part of an adapter's name.

        Returns:
            for each group the worst residual and the worst Jacobian entry, with what rounding of
            the coarser precision explains as the unit; print it, or ask ``.ok``.

        Raises:
            InputError: unknown backend or precision, both sides the same, or no residuals.
        """
        from autograd_gpu.solvers.audit import audit

        return audit(self, backend, precision, against, reference_precision, device)

    def explain(
        self, backend: str = "auto", precision: str = "auto", device: Device | str | None = None
    ) -> Explanation:
        """How each residual group is computed, what else there was, and why it was chosen.

        Args:
            backend: as for ``ag.solve``.
            precision: as for ``ag.solve``.
            device: as for ``ag.solve``.

        Returns:
            schedules with estimates and, after ``ag.tune``, measurements; print it, or ask
            ``.decisions`` or ``.as_dict()``.
        """
        from autograd_gpu.solvers.explanation import explain

        return explain(self, backend, precision, device)

    def __repr__(self) -> str:
        arrays = ", ".join(f"{n} {a.values.shape}" for n, a in self._parameters.items())
        return f"Problem(parameters: {arrays or 'none'}; {self._batches})"

    def _repr_html_(self) -> str:
        """For notebooks: parameters and groups with their sizes."""
        from autograd_gpu.solvers.notebook import problem_html

        return problem_html(self)
