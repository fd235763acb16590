"""Live progress of a solve on the terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from autograd_gpu.solvers.solution import IterationRecord


class SolveProgress:
    """A rich progress bar with cost and gradient; on a pipe it prints nothing until the end."""

    def __init__(self, max_iterations: int, title: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress: Any = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("cost {task.fields[cost]:.6g}  |g| {task.fields[gradient]:.2g}"),
        )
        self._task: Any = self._progress.add_task(
            title, total=max_iterations, cost=float("nan"), gradient=float("nan")
        )

    def update(self, record: IterationRecord) -> None:
        """Show an iteration."""
        self._progress.update(
            self._task,
            completed=record.iteration,
            cost=record.cost,
            gradient=record.gradient_norm,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
