"""Pictures of meshes and of convergence, drawn off-screen.

The drawing libraries load when first used; they come with the extra ``autograd-gpu[demos]``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from autograd_gpu.demos.scenes import (
    Body,
    Camera,
    Color,
    Image,
    Renderer,
    checked_body,
    checked_indices,
    draw,
    empty_figure,
    fit_view,
    marker_radius,
    matplotlib_module,
    spheres,
)
from autograd_gpu.errors import InputError

BEFORE_COLOR = (0.74, 0.75, 0.78)
AFTER_COLOR = (0.42, 0.62, 0.86)
HANDLE_COLOR = (0.91, 0.38, 0.16)
FIXED_COLOR = (0.16, 0.19, 0.27)
TEXT_COLOR = (0.15, 0.17, 0.21)


def render_mesh(
    path: str | os.PathLike[str],
    vertices: ArrayLike,
    faces: ArrayLike,
    *,
    colors: ArrayLike | None = None,
    title: str | None = None,
    size: tuple[int, int] = (800, 600),
    camera: Camera = "auto",
    renderer: Renderer | None = None,
) -> Renderer:
    """Write a picture of a triangle mesh to ``path`` and return which renderer drew it.

    Args:
        path: file to write; its suffix gives the format (.png, .jpg, …).
        vertices: (n, 3), any length unit; y points up.
        faces: (m, 3) vertex indices, anticlockwise seen from outside.
        colors: (n, 3) colour of each vertex in 0..1; one calm blue where None.
        title: a line above the mesh.
        size: width and height, pixels.
        camera: (azimuth, elevation) of the eye in degrees, seen from the mesh, azimuth from +z
            towards +x; "auto" is a three-quarter view.
        renderer: force one; None takes pygfx where an adapter exists, else matplotlib.

    Raises:
        ShapeError, IndexRangeError, InputError: arrays that are not a mesh.
        MissingDependencyError: matplotlib is not installed.
    """
    body = checked_body("vertices, faces", vertices, faces, AFTER_COLOR, colors)
    view = fit_view([body.vertices], camera, size[0] / size[1])
    image, used = draw([body], view, size, renderer)
    _compose(path, [image], [title], {})
    return used


def render_before_after(
    path: str | os.PathLike[str],
    before: tuple[ArrayLike, ArrayLike],
    after: tuple[ArrayLike, ArrayLike],
    *,
    handles: ArrayLike | None = None,
    fixed: ArrayLike | None = None,
    titles: tuple[str, str] = ("before", "after"),
    size: tuple[int, int] = (1200, 600),
    camera: Camera = "auto",
    renderer: Renderer | None = None,
) -> Renderer:
    """Write two meshes side by side, seen by one camera, and return which renderer drew them.

    Args:
        path: file to write; its suffix gives the format.
        before: vertices (n, 3) and faces (m, 3) of the left mesh.
        after: vertices (n, 3) and faces (m, 3) of the right mesh.
        handles: indices of the vertices that were moved, drawn as orange spheres in both.
        fixed: indices of the vertices that were held, drawn as dark spheres in both.
        titles: a line above each mesh.
        size: width and height of the whole picture, pixels.
        camera: as in :func:`render_mesh`.
        renderer: as in :func:`render_mesh`.

    Raises:
        ShapeError, IndexRangeError, InputError: arrays that are not a mesh, or indices outside it.
        MissingDependencyError: matplotlib is not installed.
    """
    bodies = [
        checked_body("before", *before, BEFORE_COLOR),
        checked_body("after", *after, AFTER_COLOR),
    ]
    panel = (size[0] // 2, size[1])
    view = fit_view([body.vertices for body in bodies], camera, panel[0] / panel[1])
    radius = marker_radius(bodies[0])
    marks = {"handles": (handles, HANDLE_COLOR), "fixed": (fixed, FIXED_COLOR)}
    legend = {
        name: color for name, (rows, color) in marks.items() if checked_indices(name, rows).size
    }
    images: list[Image] = []
    used: Renderer | None = renderer
    for body in bodies:
        scene = [body]
        for name, (rows, color) in marks.items():
            indices = checked_indices(name, rows, len(body.vertices))
            if indices.size:
                scene.append(spheres(body.vertices[indices], radius, color))
        # The second panel is drawn by whatever drew the first, so that both look alike.
        image, used = draw(scene, view, panel, used)
        images.append(image)
    assert used is not None
    _compose(path, images, list(titles), legend)
    return used


def render_row(
    path: str | os.PathLike[str],
    scenes: Sequence[Sequence[Body]],
    titles: Sequence[str | None],
    *,
    legend: Mapping[str, Color] | None = None,
    panel: tuple[int, int] = (480, 480),
    cameras: Sequence[Camera] | Camera = "auto",
    renderer: Renderer | None = None,
) -> Renderer:
    """Write scenes side by side and return which renderer drew them.

    Args:
        path: file to write; its suffix gives the format.
        scenes: for each panel the bodies in it.
        titles: a line above each panel.
        legend: name to colour, below.
        panel: width and height of one panel, pixels.
        cameras: one for all panels, which then share their scale, or one for each.
        renderer: as in :func:`render_mesh`.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    aspect = panel[0] / panel[1]
    if isinstance(cameras, str) or not isinstance(cameras[0], str | tuple):
        shared: Any = cameras
        everything = [body.vertices for bodies in scenes for body in bodies]
        views = [fit_view(everything, shared, aspect)] * len(scenes)
    else:
        each: Any = cameras
        views = [
            fit_view([body.vertices for body in bodies], camera, aspect)
            for bodies, camera in zip(scenes, each, strict=True)
        ]
    images: list[Image] = []
    used = renderer
    for bodies, view in zip(scenes, views, strict=True):
        image, used = draw(bodies, view, panel, used)
        images.append(image)
    assert used is not None
    _compose(path, images, titles, legend or {})
    return used


def plot_convergence(
    path: str | os.PathLike[str],
    histories: Mapping[str, Sequence[float]],
    *,
    minimum: float | None = None,
    title: str | None = None,
    size: tuple[int, int] = (800, 500),
) -> None:
    """Write a plot of cost against iteration, with a logarithmic cost axis.

    Args:
        path: file to write; its suffix gives the format.
        histories: label to the costs ½‖r‖², one for each iteration, the initial cost first.
        minimum: the known minimum of the cost; where given, the plot shows cost − minimum.
        title: a line above the plot.
        size: width and height, pixels.

    Costs (or differences) that are zero or below cannot be shown on the axis and are left out.

    Raises:
        InputError: no history, or none with a positive cost.
        MissingDependencyError: matplotlib is not installed.
    """
    offset = 0.0 if minimum is None else minimum
    curves = {
        label: np.asarray(costs, dtype=np.float64) - offset for label, costs in histories.items()
    }
    if not any(bool((curve > 0).any()) for curve in curves.values()):
        raise InputError(
            f"plot_convergence: none of the {len(curves)} histories has a cost above "
            f"{offset:g}; pass costs, the initial cost first"
        )
    figure = empty_figure(size)
    axes = figure.add_axes((0.11, 0.13, 0.85, 0.76))
    axes.set_facecolor("white")
    for curve, style in zip(curves.items(), _line_styles(), strict=False):
        label, costs = curve
        iterations = np.flatnonzero(costs > 0)
        axes.semilogy(iterations, costs[iterations], label=label, markersize=4, lw=1.8, **style)
    axes.set_xlabel("iteration")
    axes.set_ylabel("cost ½‖r‖²" if minimum is None else "cost − minimum")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, which="major", color="0.88", lw=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    if title is not None:
        axes.set_title(title, color=TEXT_COLOR)
    save_figure(figure, path)


def figure_row(panels: Sequence[Callable[[Any], None]], size: tuple[int, int] = (1200, 560)) -> Any:
    """Make a figure with axes side by side, each drawn on by a function."""
    figure = empty_figure(size)
    figure.set_facecolor("white")
    for k, paint in enumerate(panels):
        paint(figure.add_subplot(1, len(panels), k + 1))
    figure.tight_layout()
    return figure


def _line_styles() -> list[dict[str, str]]:
    """Colour and marker of each curve: told apart in print and by the colour-blind."""
    colors = ["#3b6fb6", "#e8622a", "#2f9e77", "#8a5fbf", "#c9a227", "#444b59"]
    return [
        {"color": color, "marker": marker, "linestyle": line}
        for line in ("-", "--")
        for color, marker in zip(colors, "osD^vP", strict=True)
    ]


def _compose(
    path: str | os.PathLike[str],
    panels: Sequence[Image],
    titles: Sequence[str | None],
    legend: Mapping[str, Color],
) -> None:
    """Put the panels side by side, write titles and legend over them, and save."""
    height, width = panels[0].shape[:2]
    figure = empty_figure((width * len(panels), height))
    for k, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        figure.figimage(panel, xo=k * width, yo=0, origin="upper")
        if title is not None:
            figure.text(
                (k + 0.5) / len(panels), 0.955, title, ha="center", va="center", size=15,
                color=TEXT_COLOR,
            )  # fmt: skip
    if legend:
        lines: Any = matplotlib_module("lines")
        marks = [
            lines.Line2D([], [], ls="", marker="o", ms=8, color=color, label=name)
            for name, color in legend.items()
        ]
        figure.legend(handles=marks, loc="lower center", ncols=len(marks), frameon=False)
    save_figure(figure, path)


def save_figure(figure: Any, path: str | os.PathLike[str]) -> None:
    """Write a figure, and the folder that it goes into."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(os.fspath(path), dpi=100)
