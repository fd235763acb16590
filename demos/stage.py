"""What all stories share: options of the command line, solves that say what happens, films."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import autograd_gpu as ag
from autograd_gpu.cli import print_table
from autograd_gpu.demos import films, pictures, scenes
from autograd_gpu.demos.films import Reel, Values
from autograd_gpu.meshes import Mesh

FloatArray = NDArray[np.float64]
Segments = tuple[FloatArray, FloatArray]
"""Starts and ends, (n, 3)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a story runs, and what it leaves behind.

    Attributes:
        out: folder for pictures, made when first needed.
        backend: as for ``ag.solve``.
        progress: bars while solving.
        show: open what was solved in polyscope at the end.
        record: write films (GIF) of the solves as well.
        written: files so far.
        reel: points that solves passed since the last film.

    Raises:
        InputError: ``out`` is, or lies in, a file.
        MissingDependencyError: no Matplotlib, or no polyscope to ``show`` in.
    """

    out: Path = Path("out")
    backend: str = "auto"
    progress: bool = True
    show: bool = False
    record: bool = False
    written: list[Path] = field(default_factory=list[Path])
    began: float = field(default_factory=time.perf_counter)
    reel: Reel = field(default_factory=Reel)

    def __post_init__(self) -> None:
        # What is missing is said now, and not after the solve.
        for folder in (self.out, *self.out.parents):
            if folder.exists() and not folder.is_dir():
                raise ag.InputError(
                    f"--out: {str(folder)!r} is a file, and pictures go into a folder; name another"
                )
        scenes.require_matplotlib()
        if self.show:
            ag.meshes.require_polyscope()

    @property
    def callback(self) -> Reel | None:
        """For ``ag.solve``: keeps the points that a film will show; None if there is none."""
        return self.reel if self.record else None

    def solve(
        self, title: str, problem: ag.Problem, options: Any = None, small: bool = False
    ) -> ag.Solution:
        """Solve with a progress bar, and say in two lines what happened.

        Where the problem is ``small``, ``auto`` is NumPy: compiling would take longer.
        """
        backend = "numpy" if small and self.backend == "auto" else self.backend
        solution = ag.solve(
            problem, options=options, backend=backend, progress=self.progress,
            callback=self.callback,
        )  # fmt: skip
        print(
            f"{title}: cost {solution.initial_cost:.5g} → {solution.cost:.5g} in "
            f"{solution.iterations} iterations, {solution.timings['total']:.1f} s; "
            f"{solution.message}\n    {solution.residual_count} residuals, "
            f"{solution.parameter_count} unknowns; {solution.backend} {solution.precision}, "
            f"{solution.linear_solver}"
        )
        return solution

    def path(self, name: str) -> Path:
        """A file to write, listed at the end."""
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / name
        self.written.append(path)
        return path

    def film(
        self,
        name: str,
        scene: Callable[[Values], Sequence[scenes.Body]],
        camera: scenes.Camera = "auto",
        size: tuple[int, int] = (480, 400),
        always: bool = False,
    ) -> None:
        """With ``record`` (or ``always``), draw the points of the reel as scenes, and empty it."""
        if self.record or always:
            worlds = [scene(values) for values in self.reel.frames()]
            self._write(name, films.drawn(worlds, camera, size))

    def film_of_mesh(
        self, name: str, parameter: str, faces: NDArray[np.int64], camera: scenes.Camera
    ) -> None:
        """As ``film``, of a mesh whose vertices are a parameter."""
        color = pictures.AFTER_COLOR
        self.film(
            name, lambda v: [scenes.checked_body(parameter, v[parameter], faces, color)], camera
        )

    def film_of_plot(
        self,
        name: str,
        paint: Callable[[Any, Values], None],
        size: tuple[int, int] = (520, 460),
    ) -> None:
        """As ``film``, of axes that a function draws on."""
        if self.record:
            self._write(name, films.plotted(self.reel.frames(), paint, size))

    def _write(self, name: str, images: Sequence[scenes.Image]) -> None:
        films.save_gif(self.path(name), [*images, *[images[-1]] * films.LINGER], 0.08)
        self.reel.points.clear()

    def close(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> list[Path]:
        """Print the table that ends a story, and where its pictures are."""
        print_table(title, columns, rows)
        return self.end()

    def end(self) -> list[Path]:
        """Say how long it took, and where the pictures are."""
        spent = time.perf_counter() - self.began
        print(f"{spent:.1f} s; wrote {', '.join(map(str, self.written))}")
        return self.written

    def open_window(self, **things: Mesh | FloatArray | Segments) -> None:
        """Show things in polyscope, where ``--show`` asks for it: meshes, points (n, 3), segments.

        Meshes stand side by side, the rest where it is.
        """
        if not self.show:
            return
        window, shift = ag.meshes.require_polyscope(), 0.0
        window.init()
        for name, thing in things.items():
            if isinstance(thing, Mesh):
                moved = Mesh(thing.vertices + np.array([shift, 0.0, 0.0]), thing.faces)
                ag.meshes.to_polyscope(moved, name, smooth_shade=True)
                shift += 1.2 * float(np.ptp(thing.vertices[:, 0]))
            elif isinstance(thing, tuple):
                rows = np.arange(len(thing[0]))
                pairs = np.column_stack([rows, rows + len(rows)])
                window.register_curve_network(name, np.concatenate(thing), pairs)
            else:
                window.register_point_cloud(name, thing)
        window.show()
