"""A sketch of a bracket, drawn badly and put right by its constraints.

Points, and the radii of circles, are unknowns; distance, angle, tangent, parallel, perpendicular,
equal, horizontal, vertical, coincident, on-circle, symmetric and fixed are residual functions of
one line each. ``autograd-gpu demo sketch``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.demos import pictures
from autograd_gpu.demos.sketch_constraints import CONSTRAINTS
from autograd_gpu.demos.stage import Stage

FloatArray = NDArray[np.float64]
OPTIONS = ag.LevenbergMarquardtOptions(function_tolerance=1e-14, damping="identity")

# Points as drawn by hand: the base plate (a b c d), the upper circle's tangents (e f), a slot,
# the centres of the circles (m and n are the upper two), a hexagon around n, an axis (s t).
POINTS = {
    "a": (-4.2, -0.3), "b": (4.1, 0.2), "c": (3.6, 1.3), "d": (-4.3, 0.8),
    "e": (1.9, 4.3), "f": (-1.6, 4.6), "m": (0.3, 4.2), "n": (0.6, 3.9), "p": (-2.7, 0.6),
    "q": (3.1, 0.3), "g": (2.2, 1.2), "h": (-2.4, 0.8), "s": (0.1, -1.0), "t": (0.2, 7.0),
    **{f"h{k}": (0.2 + (1 + 0.2 * (k % 2)) * np.cos(k), 3.9 + np.sin(k)) for k in range(6)},
}  # fmt: skip
CIRCLES = {"outer": ("m", 2.2), "left": ("p", 0.5), "right": ("q", 0.3), "inner": ("n", 0.8)}
LINES = ["ab", "bc", "cd", "da", "ge", "hf"]
HEXAGON = [f"h{k}" for k in range(6)]

SKETCH: list[tuple[Any, ...]] = [
    ("fixed", "s", (0.0, -1.0)), ("vertical", "s", "t"), ("distance", "s", "t", 8.0),
    ("horizontal", "a", "b"), ("parallel", "a", "b", "d", "c"),
    ("perpendicular", "a", "b", "b", "c"),
    ("equal", "a", "d", "b", "c"), ("distance", "a", "b", 8.0), ("distance", "b", "c", 1.0),
    ("symmetric", "a", "b", "s", "t"), ("on line", "s", "a", "b"),
    ("symmetric", "p", "q", "s", "t"), ("distance", "p", "q", 6.0),
    ("distance on", "p", "a", "b", 0.5), ("radius", "left", 0.25), ("equal radii", "left", "right"),
    ("on line", "m", "s", "t"), ("distance on", "m", "a", "b", 4.5), ("radius", "outer", 1.5),
    ("on line", "g", "c", "d"), ("on line", "h", "c", "d"), ("symmetric", "g", "h", "s", "t"),
    ("on circle", "e", "outer"), ("on circle", "f", "outer"),
    ("tangent", "g", "e", "outer"), ("tangent", "h", "f", "outer"),
    ("angle", "b", "a", "g", "e", 105.0),
    *[("on circle", v, "inner") for v in HEXAGON], ("radius", "inner", 0.9),
    *[("equal", *HEXAGON[k : k + 2], HEXAGON[k + 1], HEXAGON[(k + 2) % 6]) for k in range(5)],
    ("horizontal", "h0", "h3"), ("coincident", "n", "m"),
]  # fmt: skip


def build() -> tuple[ag.Problem, FloatArray, FloatArray]:
    """One residual group per kind of constraint, whatever the number of constraints."""
    names, rings = list(POINTS), list(CIRCLES)
    points, radii = np.array(list(POINTS.values())), np.array([r for _, r in CIRCLES.values()])
    problem = ag.Problem()
    p, r = problem.parameters("p", points), problem.parameters("r", radii)
    kinds = dict.fromkeys(row[0] for row in SKETCH)
    for kind in kinds:
        residual, layout = CONSTRAINTS[kind]
        rows = [row[1:] for row in SKETCH if row[0] == kind]
        arguments: list[Any] = []
        for k, part in enumerate(layout):
            column = [row[k] for row in rows]
            if part == "point":
                arguments.append(p[[names.index(name) for name in column]])
            elif part == "circle":
                arguments.append(p[[names.index(CIRCLES[name][0]) for name in column]])
                arguments.append(r[[rings.index(name) for name in column]])
            else:
                arguments.append(np.array(column, dtype=np.float64))
        problem.add_residuals(residual, *arguments, name=kind)
    return problem, points, radii


def draw(axes: Any, points: FloatArray, radii: FloatArray, title: str) -> None:
    """Lines, circles and points of a sketch."""
    at = dict(zip(POINTS, points, strict=True))
    pairs = [*LINES, *[(HEXAGON[k], HEXAGON[(k + 1) % 6]) for k in range(6)]]
    for first, second in pairs:
        axes.plot(*np.stack([at[first], at[second]]).T, color="#3b6fb6", lw=2.0)
    axes.plot(*np.stack([at["s"], at["t"]]).T, color="0.6", lw=1.0, ls="-.")
    turn = np.linspace(0, 2 * np.pi, 200)
    for (centre, _), radius in zip(CIRCLES.values(), radii, strict=True):
        thin = {"lw": 1.0, "ls": ":", "color": "0.6"} if radius is radii[3] else {"lw": 2.0}
        circle = at[centre] + radius * np.column_stack([np.cos(turn), np.sin(turn)])
        axes.plot(*circle.T, **{"color": "#2f9e77", **thin})
    axes.plot(*points.T, "o", ms=4, color="#e8622a")
    axes.set(xlim=(-5.2, 5.2), ylim=(-1.6, 7.4), aspect="equal")
    axes.set_title(title, color=pictures.TEXT_COLOR)
    axes.axis("off")


def main(stage: Stage) -> None:
    """Solve the sketch, count what is still free, draw it before and after."""
    problem, points, radii = build()
    before = problem.evaluate(backend="numpy")
    s = stage.solve("sketch", problem, OPTIONS, small=True)
    problem.update(p=s.values["p"], r=s.values["r"])
    after = problem.evaluate(backend="numpy")
    jacobian: Any = after.jacobian
    rank = int(np.linalg.matrix_rank(jacobian.toarray(), tol=1e-8))
    figure = pictures.figure_row(
        [lambda axes: draw(axes, points, radii, "as drawn"),
         lambda axes: draw(axes, s.values["p"], s.values["r"].ravel(), "as constrained")],
    )  # fmt: skip
    pictures.save_figure(figure, stage.path("sketch.png"))
    stage.film_of_plot("sketch.gif", lambda axes, v: draw(axes, v["p"], v["r"].ravel(), ""))
    at = np.column_stack([s.values["p"], np.zeros(len(points))])
    names = list(POINTS)
    ends = [[names.index(k) for k in pair] for pair in LINES]
    stage.open_window(points=at, lines=(at[[e[0] for e in ends]], at[[e[1] for e in ends]]))
    rows, start = list[list[str]](), 0
    for group in problem.groups:
        end = start + group.count * group.residual_size
        worst = [np.abs(e.residuals[start:end]).max() for e in (before, after)]
        rows.append([group.name, str(group.count), f"{worst[0]:.3f}", f"{worst[1]:.1e}"])
        start = end
    print(f"{s.parameter_count} unknowns, {rank} independent equations of {s.residual_count}: "
          f"{s.parameter_count - rank} degrees of freedom are left")  # fmt: skip
    stage.close("Constraints", ["kind", "count", "largest error as drawn", "solved"], rows)
