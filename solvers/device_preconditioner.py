"""Which preconditioner each step of a device-resident solve gets: block-Jacobi, or a coarse space.

The same rule as on the host (``AdaptiveChoice``) judges by the iterations that the last step's
record names, so nothing more is read back. What a coarse space needs is made when it is first
chosen, at most once in a solve.
"""

from __future__ import annotations

from collections.abc import Sequence

from autograd_gpu.codegen.coarse_program import CoarseSizes
from autograd_gpu.codegen.incidence import WORKGROUP_SIZE
from autograd_gpu.codegen.solve_program import SolveSizes
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.runtime.coarse_tables import USUAL_SPACE, CoarseTables
from autograd_gpu.runtime.device_solve import DeviceSolve
from autograd_gpu.runtime.node_tables import ArrayLayout, NodeTables
from autograd_gpu.runtime.step_record import StepRecord
from autograd_gpu.solvers.block_structure import modes_of
from autograd_gpu.solvers.conjugate_gradients import AdaptiveChoice

BLOCK_JACOBI = "block-Jacobi"

# A dispatch that has nothing to do takes as long as moving this many words (NVIDIA H200: about
# 8 µs beside 4.29 TB/s; W2_s5, whose vectors are short, takes 20 µs for an iteration of two).
_DISPATCH_WORDS = 8_000_000
# With fewer unknowns a correction, whose workgroups wait for each other's sums, takes several times
# as long as the iteration that it corrects. NVIDIA H200, an iteration without and with it:
# W2_s5 (61 452 unknowns) 25 and 100 µs for 0.6 times the iterations, W4_s5 (30 726) 33 and 43 µs
# for 0.65 times; W2_s7 (983 052) 89 and 150 µs for 0.7 times, and twice the decrease of the cost.
SMALLEST_PROBLEM = 200_000
# Vectors that an iteration reads or writes.
_VECTORS = 15


def coarse_tables(
    tables: NodeTables,
    arrays: Sequence[ArrayLayout],
    parameters: FloatArray,
    unknowns: int = USUAL_SPACE,
) -> CoarseTables | None:
    """The coarse space for a problem; None where it would be no use.

    Args:
        tables: of the problem.
        arrays: its parameter arrays.
        parameters: flat; what looks like positions now moves rigidly.
        unknowns: coarse unknowns at most.
    """
    if tables.structure.workgroup_size != WORKGROUP_SIZE:
        return None  # its kernels are laid out for workgroups of the usual size
    values = [
        parameters[a.base : a.base + a.blocks * a.width].reshape(a.blocks, a.width) for a in arrays
    ]
    modes = [modes_of([values[k] for k in members]) for members in tables.members]
    if not any(m.count for m in modes):
        return None
    made = CoarseTables(tables, modes, unknowns)
    # A coarse space nearly as large as the problem costs more than the problem.
    small = 4 * made.sizes.unknown_bases[-1] <= tables.sizes.components
    return made if small and made.sizes.aggregate_bases[-1] > 1 else None


class AdaptiveSteps:
    """Steps of a solve, each with the preconditioner that the last ones recommend.

    Args:
        solve: what steps.
        tables, arrays, parameters: of the problem, at the start.
        preconditioner: ``auto``, ``block-jacobi`` or ``coarse`` (if there can be such a space).
        unknowns: coarse unknowns at most.
        smallest: parameters that a problem must have for ``auto`` to try a coarse space;
            `SMALLEST_PROBLEM` if None.
    """

    def __init__(
        self,
        solve: DeviceSolve,
        tables: NodeTables,
        arrays: Sequence[ArrayLayout],
        parameters: FloatArray,
        preconditioner: str = "auto",
        unknowns: int = USUAL_SPACE,
        smallest: int | None = None,
    ) -> None:
        self._solve = solve
        self._unknowns = unknowns
        self._problem = (tables, arrays, parameters)
        least = SMALLEST_PROBLEM if smallest is None else smallest
        small = preconditioner == "auto" and tables.sizes.components < least
        never = preconditioner == "block-jacobi" or small
        self._choice = AdaptiveChoice(top=0 if never else 1)
        self._always = preconditioner == "coarse"
        self._used: dict[str, list[int]] = {}

    def step(self, max_linear_iterations: int) -> StepRecord:
        """One step; see ``DeviceSolve.step``."""
        if self._always and self._choice.top:
            self._choice.rung = 1
        coarse = self._choice.rung > 0 and self._prepared()
        record = self._solve.step(max_linear_iterations, coarse)
        if coarse and record.linear_iterations == 0 and record.gradient_norm > 0.0:
            # Rounding made the correction indefinite: without it from here on.
            self._choice.top = self._choice.rung = 0
            coarse = False
            record = self._solve.step(max_linear_iterations)
        count = record.linear_iterations
        self._used.setdefault(self._name(coarse), []).append(count)
        # Cut short, it would have cost more: what the next step will be given.
        whole = 2 * count if self._solve.cut_short else count
        self._choice.record(count, self._cost(whole, coarse))
        return record

    def warm_up(self) -> None:
        """Compile the coarse space, if a solve may come to use one."""
        if self._choice.top:
            self._prepared()

    def _prepared(self) -> bool:
        if self._solve.coarse is None:
            made = coarse_tables(*self._problem, self._unknowns)
            if made is None:
                self._choice.top = self._choice.rung = 0
                return False
            self._solve.add_coarse_space(made)
        return True

    def _cost(self, iterations: int, coarse: bool) -> float:
        sizes = self._problem[0].sizes
        cost = iterations * _iteration_words(sizes)
        space = self._solve.coarse
        if coarse and space is not None:
            cost += _coarse_words(space.sizes) + iterations * _correction_words(space.sizes)
        return float(cost)

    def _name(self, coarse: bool) -> str:
        space = self._solve.coarse
        if not coarse or space is None:
            return BLOCK_JACOBI
        unknowns = space.sizes.unknown_bases[-1]
        return f"{BLOCK_JACOBI} + coarse space of {unknowns} unknowns"

    @property
    def name(self) -> str:
        """What preconditioned, the strongest that was used."""
        return max(self._used, key=len, default=BLOCK_JACOBI)

    def describe(self) -> str:
        """What was used so far, for the report."""
        steps = "; ".join(
            f"{name}: {len(counts)} steps, {sum(counts) / len(counts):.3g} iterations on average"
            for name, counts in self._used.items()
        )
        return f"{steps}; {schedules_of(self._problem[0])}"


def schedules_of(tables: NodeTables) -> str:
    """The schedules of a solve's groups and where they come from, for the report."""
    kinds = " and ".join(dict.fromkeys(map(str, tables.schedules)))
    how = {"model": "estimated", "measured": "measured"}
    found = ", ".join(how.get(s, s) for s in tables.schedule_sources)
    return f"schedules ({found}): {kinds}"


def _iteration_words(sizes: SolveSizes) -> int:
    """Words that an iteration moves, about, with the dispatches as words."""
    dispatches = len(sizes.nodes) + 1
    numbers = _VECTORS * sizes.components + 4 * (sizes.factor_bases[-1] + sizes.record_quads)
    return _DISPATCH_WORDS * dispatches + numbers + sizes.table_words


def _correction_words(sizes: CoarseSizes) -> int:
    """Words more with a coarse space: every workgroup reads its rows of the inverse, and Pᵀw."""
    groups = sizes.solve.update_groups[-1]
    return groups * (sizes.structure.most * sizes.unknowns + sizes.chunk_bases[-1])


def _coarse_words(sizes: CoarseSizes) -> int:
    """Words and dispatches of making and inverting the coarse matrix."""
    elements = 4 * sizes.solve.record_quads + sizes.solve.table_words
    steps = sizes.inversion_steps
    return _DISPATCH_WORDS * (steps + 4) + elements + 2 * steps * sizes.unknowns**2
