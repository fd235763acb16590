"""The picture of how a solve went."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from typing import Any

from autograd_gpu.errors import MissingDependencyError
from autograd_gpu.solvers.solution import IterationRecord, Solution


def convergence_figure(solution: Solution) -> Any:
    """Cost, gradient and damping over the iterations, and the cost by group.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingDependencyError(
            "solution.plot() draws with matplotlib, which is not installed; run: "
            "pip install autograd-gpu[plot]"
        ) from error
    groups = [g for g in solution.groups if math.isfinite(g.cost)]
    figure: Any = figures.Figure(figsize=(10.0, 3.6), layout="constrained")
    panels: Any = figure.subplots(1, 3, width_ratios=(1.3, 1.3, 1.0))
    history = solution.history
    _curve(panels[0], history, lambda r: r.cost, "cost")
    tried = [r for r in history[1:] if not r.accepted]
    if tried:
        panels[0].plot(
            [r.iteration for r in tried], [r.cost for r in tried], "x", color="tab:red",
            label=f"{len(tried)} rejected",
        )  # fmt: skip
        panels[0].legend(frameon=False)
    _curve(panels[1], history, lambda r: r.gradient_norm, "largest entry of the gradient")
    if any(r.damping > 0.0 for r in history):
        _curve(panels[1], history, lambda r: r.damping, "damping", color="tab:gray", style="--")
    panels[1].legend(frameon=False)
    names = [g.name for g in groups]
    panels[2].barh(names, [g.cost for g in groups], color="tab:blue")
    panels[2].invert_yaxis()
    panels[2].set_title("cost by group at the end", fontsize=10)
    figure.suptitle(f"{solution.status.value}, {solution.iterations} iterations", fontsize=11)
    return figure


def _curve(
    panel: Any,
    history: Sequence[IterationRecord],
    value: Callable[[IterationRecord], float],
    label: str,
    color: str = "tab:blue",
    style: str = "-",
) -> None:
    points = [(r.iteration, value(r)) for r in history]
    points = [(k, v) for k, v in points if math.isfinite(v) and v > 0.0]
    if points:
        panel.set_yscale("log")
        panel.plot(*zip(*points, strict=True), style, color=color, label=label, marker=".")
    panel.set_xlabel("iteration")
    panel.set_title(label if panel.get_title() == "" else panel.get_title(), fontsize=10)
