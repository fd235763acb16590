"""Residuals built one by one from ``Value``s, as batches: one kernel a topology.

Recorded residuals are grouped by structure, groups of equal canonical form are merged, and the
result is a ``Problem`` whose elements carry the positions in which the user wrote them. Nothing
is frozen: parameters and data are read from the Values at every evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from autograd_gpu.codegen.kernel import (
    Product,
    Topology,
    data_slot,
    make_kernel,
    parameter_slot,
    topology_of,
)
from autograd_gpu.codegen.render import Source, render
from autograd_gpu.errors import InputError, ShapeError
from autograd_gpu.recording import Recording
from autograd_gpu.runtime.batch import BoundGroup, FloatArray, IndexArray
from autograd_gpu.runtime.batch_executor import (
    BatchExecutor,
    BatchLimits,
    choose_or_fall_back,
    fallback_reason,
)
from autograd_gpu.runtime.choice import BackendChoice
from autograd_gpu.runtime.closing import Closing
from autograd_gpu.scalar_groups import ScalarGroup, group_residuals, numbers_of
from autograd_gpu.solvers.evaluation import Evaluation
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.residual_group import DataRows, GroupArgument, ResidualGroup
from autograd_gpu.solvers.selection import ParameterArray, finite_array
from autograd_gpu.trace import call_residual, flatten_result, function_name
from autograd_gpu.value import Value, entered

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device

Residuals = Callable[[Any], Any] | Sequence[Any]
GIVEN_AS = "residuals"


@dataclass(frozen=True, slots=True)
class _Batch:
    """Residuals of one topology; columns are those of its slots that hold data."""

    topology: Topology
    residuals: IndexArray
    gathered: tuple[tuple[bool, IndexArray], ...]


def checked_parameters(params: Sequence[Any]) -> tuple[Value, ...]:
    """The unknowns, each once.

    Raises:
        InputError: not a sequence of leaf Values, none, or one of them twice.
    """
    values = tuple(params)
    if not values:
        raise InputError("params: got no Values, expected at least one unknown")
    seen: dict[int, int] = {}
    for k, value in enumerate(values):
        if not isinstance(value, Value):
            raise InputError(f"params: entry {k} is {value!r:.80}, expected an ag.Value")
        if value.op is not None:
            raise InputError(f"params: entry {k} is the result of an operation, expected a leaf")
        if id(value) in seen:
            raise InputError(
                f"params: entries {seen[id(value)]} and {k} are the same Value; pass each once"
            )
        seen[id(value)] = k
    return values


def record_residuals(
    params: tuple[Value, ...], residuals: Residuals
) -> tuple[Recording, list[int]]:
    """Call the user's function once and keep what it did: the recording, and each residual's row.

    Raises:
        TraceError: a branch on a Value, or a number of one; names the line.
        InputError: no residuals.
    """
    recording = Recording(params)
    with entered(recording):
        if callable(residuals):
            title = function_name(residuals)
            result: Any = call_residual(residuals, [list(params)], title)
        else:
            title, result = GIVEN_AS, residuals
        if isinstance(result, list | tuple) and not result:
            raise InputError(f"residual function {title!r} returned no residuals")
        items, _ = flatten_result(result, title)
        rows = [
            recording.row_of(item) if isinstance(item, Value) else recording.number_row(item)
            for item in items
        ]
    return recording, rows


def _merged(groups: Sequence[ScalarGroup]) -> list[_Batch]:
    """One batch a topology: groups whose canonical forms are equal become one."""
    found: dict[bytes, list[tuple[Topology, ScalarGroup]]] = {}
    for group in groups:
        slots = [parameter_slot(())] * group.parameters.shape[1]
        slots += [data_slot(())] * group.data.shape[1]
        topology = topology_of(group.graph, slots)
        found.setdefault(topology.serial, []).append((topology, group))
    batches: list[_Batch] = []
    for members in found.values():
        columns: list[tuple[bool, IndexArray]] = []
        for slot in range(len(members[0][0].slots)):
            parts: list[IndexArray] = []
            is_data = False
            for topology, group in members:
                p = group.parameters.shape[1]
                argument = topology.arguments[slot]
                is_data = argument >= p
                parts.append(
                    group.data[:, argument - p] if is_data else group.parameters[:, argument]
                )
            columns.append((is_data, np.concatenate(parts)))
        first = members[0][0]
        topology = replace(first, arguments=tuple(range(len(first.slots))))
        positions = np.concatenate([group.residuals for _, group in members])
        batches.append(_Batch(topology, positions, tuple(columns)))
    return batches


def _rows_of(column: IndexArray, numbers: FloatArray) -> DataRows:
    shared = bool(column[0] == column[-1] and (column == column[0]).all())
    return DataRows(numbers[column[:1]] if shared else numbers[column], shared)


def _add(problem: Problem, x: ParameterArray, batch: _Batch, numbers: FloatArray) -> ResidualGroup:
    arguments: list[GroupArgument] = [
        _rows_of(column, numbers) if is_data else x[column] for is_data, column in batch.gathered
    ]
    group = ResidualGroup(
        name=f"topology_{batch.topology.key[:8]}",
        graph=batch.topology.graph,
        topology=batch.topology,
        arguments=tuple(arguments),
        count=len(batch.residuals),
        elements=batch.residuals,
        given_as=GIVEN_AS,
    )
    problem.add_group(group)
    return group


class CompiledResiduals(Closing):
    """Compiled residuals over Values; make it with ``CompiledResiduals.compile``.

    Attributes:
        params: the unknowns, in the order of the Jacobian's columns.
        problem: the batches as a ``Problem``; its residuals are in the order of the user's.
    """

    backend = "auto"

    def __init__(
        self, params: tuple[Value, ...], residuals: Residuals, limits: BatchLimits
    ) -> None:
        self.params = params
        self._recording, rows = record_residuals(params, residuals)
        self._batches = _merged(group_residuals(self._recording, rows))
        self._numbers = numbers_of(self._recording)
        self._limits = limits
        self.problem = Problem()
        self.problem.batch_limits = limits
        self._x = self.problem.parameters("x", self.numbers_of_parameters())
        self._groups = [_add(self.problem, self._x, b, self._numbers) for b in self._batches]
        held = [k for k, value in enumerate(params) if not value.requires_grad]
        if held:
            self.problem.freeze(self._x, held)
        self.choice: BackendChoice | None = None

    @classmethod
    def compile(
        cls,
        params: Sequence[Any],
        residuals: Residuals,
        backend: str | None = None,
        batch_size: int = 1024,
        fallback_threshold: int = 10,
        precision: str = "auto",
        device: Device | str | None = None,
    ) -> CompiledResiduals:
        """Record, group and print the kernels; machine code is made when first evaluated.

        Args:
            params: leaf Values, the unknowns; one with ``requires_grad=False`` is held constant.
            residuals: function of the list of Values, called once, that returns residuals in a
                (nested) list; or such a list, built before. Other Values in it are data.
            backend: as for ``ag.solve``; a GPU that is not there is replaced by the CPU.
            batch_size: most residuals in one launch.
            fallback_threshold: a topology of fewer residuals is evaluated on the CPU by NumPy,
                which compiles nothing; ``reason`` says so.
            precision: as for ``ag.solve``.
            device: as for ``ag.solve``.

        Raises:
            TraceError: a branch on a Value, or a number read from one, in ``residuals``.
            InputError: no parameters or residuals, a parameter twice, an unknown backend.
        """
        limits = BatchLimits(batch_size=batch_size, fallback_threshold=fallback_threshold)
        compiled = cls(checked_parameters(params), residuals, limits)
        opened = compiled.problem.device(device)
        compiled.choice = choose_or_fall_back(
            backend or cls.backend, precision, opened, compiled.residual_count
        )
        compiled.kernels  # noqa: B018 - text is generated here, so that errors show here
        return compiled

    def numbers_of_parameters(self) -> FloatArray:
        """Present numbers of the parameters, (n,)."""
        return np.array([value.number for value in self.params], np.float64)

    @property
    def residual_count(self) -> int:
        """Number of residuals, m."""
        return sum(len(b.residuals) for b in self._batches)

    @property
    def kernel_count(self) -> int:
        """Number of distinct topologies, each of which has one kernel."""
        return len(self._batches)

    @property
    def kernel_reuse_factor(self) -> float:
        """Residuals per kernel, on average."""
        return self.residual_count / self.kernel_count

    @property
    def groups(self) -> tuple[BoundGroup, ...]:
        """One bound group a topology."""
        return self.problem.analysis().groups

    @cached_property
    def kernels(self) -> tuple[Source, ...]:
        """Text of each topology's residuals and Jacobian; of the IR where NumPy evaluates it."""
        choice = self._chosen
        texts: list[Source] = []
        for group in self.groups:
            kernel = make_kernel(group.topology, Product.RESIDUAL_JACOBIAN)
            if choice.backend == "numpy" or fallback_reason(group, choice.backend, self._limits):
                text = str(kernel.graph)
                source = Source(
                    kernel=kernel, target="numpy", precision="float64", source=text,
                    entry_point=kernel.name,
                )  # fmt: skip
            else:
                source = render(kernel, choice.backend, choice.precision)
            texts.append(source)
        return tuple(texts)

    @property
    def _chosen(self) -> BackendChoice:
        if self.choice is None:
            raise InputError("use CompiledResiduals.compile(params, residuals) to make one")
        return self.choice

    @property
    def executor(self) -> BatchExecutor:
        """What runs the batches; opened at first use."""
        session = self.problem.analysis().session(self._chosen)
        return cast(BatchExecutor, session)

    @property
    def reason(self) -> str:
        """What runs where, and why: the backend, and which residuals fall back to the CPU."""
        return self.executor.reason

    def evaluate(self, params: Sequence[Any] | ArrayLike | None = None) -> Evaluation:
        """Residuals (m,), Jacobian (m, n) in CSR, cost ½‖r‖² and gradient (n,).

        Args:
            params: Values or numbers in the order of the parameters given to ``compile``; their
                present numbers by default. Data Values are read anew in any case.

        Raises:
            ShapeError: not one per parameter.
            InputError: NaN or infinity.
        """
        self.refresh(params)
        choice = self._chosen
        found = self.problem.evaluate(choice.backend, choice.precision, choice.device)
        executor = self.executor
        return replace(
            found,
            jacobian=self._all_columns(found.jacobian),
            backend=executor.choice.backend,
            precision=executor.choice.precision,
            reason=executor.reason,
        )

    def _all_columns(self, jacobian: Any) -> Any:
        """The Jacobian with an empty column for each parameter held constant."""
        n = len(self.params)
        if jacobian.shape[1] == n:
            return jacobian
        from scipy.sparse import csr_array

        columns = self.problem.analysis().free_positions[jacobian.indices]
        shape = (jacobian.shape[0], n)
        return csr_array((jacobian.data, columns, jacobian.indptr), shape=shape)

    def refresh(self, params: Sequence[Any] | ArrayLike | None = None) -> None:
        """Bring the present numbers of parameters and data into ``problem``."""
        self.problem.update(x=self._given(params))
        numbers = numbers_of(self._recording)
        changed = numbers != self._numbers
        if not changed.any():
            return
        self._numbers = numbers
        new: dict[str, dict[str, FloatArray]] = {}
        for batch, group in zip(self._batches, self._groups, strict=True):
            for k, (is_data, column) in enumerate(batch.gathered):
                if is_data and changed[column].any():
                    rows = _rows_of(column, numbers)
                    name = group.graph.arguments[k].name
                    given = rows.values[0] if rows.shared else rows.values
                    new.setdefault(group.name, {})[name] = given
        self.problem.update(data=new)

    def _given(self, params: Sequence[Any] | ArrayLike | None) -> FloatArray:
        if params is None:
            return self.numbers_of_parameters()
        if isinstance(params, list | tuple):
            items = cast("Sequence[Any]", params)
            params = [v.number if isinstance(v, Value) else v for v in items]
        numbers = finite_array(params, "params")
        if numbers.shape != (len(self.params),):
            raise ShapeError(
                f"params: got shape {numbers.shape}, expected ({len(self.params)},), one for "
                "each parameter given to compile"
            )
        return numbers

    def close(self) -> None:
        """Free compiled batches and buffers."""
        self.problem.analysis().close()


class CompiledResidualsGPU(CompiledResiduals):
    """``CompiledResiduals`` with ``backend="wgsl"`` unless another is named."""

    backend = "wgsl"
