"""What all stories share: options of the command line, a solve that says what happens, films."""

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
from autograd_gpu.demos import pictures, scenes
from autograd_gpu.errors import MissingDependencyError
from autograd_gpu.meshes import Mesh

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Where a story runs, and what it leaves behind.

    Attributes:
        out: folder for pictures, made when first needed.
        backend: as for ``ag.solve``.
        progress: bars while solving.
        show: open the last meshes in polyscope.
        record: write a film (GIF) as well.
        written: files so far.
    """

    out: Path = Path("out")
    backend: str = "auto"
    progress: bool = True
    show: bool = False
    record: bool = False
    written: list[Path] = field(default_factory=list[Path])
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        # What is missing is said now, and not after the solve.
        scenes.matplotlib_module("figure")
        if self.show:
            ag.meshes.require_polyscope()

    def solve(
        self, title: str, problem: ag.Problem, options: Any = None, small: bool = False
    ) -> ag.Solution:
        """Solve with a progress bar, and say in two lines what happened.

        Where the problem is ``small``, ``auto`` is NumPy: compiling would take longer.
        """
        backend = "numpy" if small and self.backend == "auto" else self.backend
        solution = ag.solve(problem, options=options, backend=backend, progress=self.progress)
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

    def film(self, name: str, frames: Sequence[scenes.Image], seconds: float = 0.08) -> None:
        """Write pictures as a GIF that plays forever."""
        save_gif(self.path(name), frames, seconds)

    def close(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
    ) -> list[Path]:
        """Print the table that ends a story, and where its pictures are."""
        print_table(title, columns, rows)
        spent = time.perf_counter() - self.began
        print(f"{spent:.1f} s; wrote {', '.join(map(str, self.written))}")
        return self.written

    def open_window(self, **meshes: Mesh) -> None:
        """Show meshes side by side in polyscope, where ``--show`` asks for it."""
        if not self.show:
            return
        shift = 0.0
        for name, mesh in meshes.items():
            moved = Mesh(mesh.vertices + np.array([shift, 0.0, 0.0]), mesh.faces)
            ag.meshes.to_polyscope(moved, name, smooth_shade=True)
            shift += 1.2 * float(np.ptp(mesh.vertices[:, 0]))
        ag.meshes.require_polyscope().show()


def save_gif(path: Path, frames: Sequence[scenes.Image], seconds: float) -> None:
    """Write frames (height, width, 3) of bytes as an endless GIF.

    Raises:
        MissingDependencyError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            f"films need pillow ({error}); pip install 'autograd-gpu[demos]'"
        ) from error
    # One palette for all frames: colours do not flicker, and the file is small.
    first = Image.fromarray(
        np.concatenate([frames[k] for k in (0, len(frames) // 2, -1)])
    ).quantize(128)
    images = [
        Image.fromarray(frame).quantize(palette=first, dither=Image.Dither.NONE) for frame in frames
    ]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=round(1000 * seconds), loop=0
    )


def turntable(
    vertices: Callable[[float], FloatArray],
    faces: NDArray[np.int64],
    camera: scenes.Camera,
    frames: int = 24,
    size: tuple[int, int] = (480, 400),
) -> list[scenes.Image]:
    """Pictures of a mesh whose vertices are a function of time from 0 to 1, and back to 0."""
    times = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(frames) / frames)
    clouds = [vertices(float(t)) for t in times]
    view = scenes.fit_view(clouds, camera, size[0] / size[1])
    renderer: scenes.Renderer | None = None
    images: list[scenes.Image] = []
    for cloud in clouds:
        body = scenes.checked_body("film", cloud, faces, pictures.AFTER_COLOR)
        image, renderer = scenes.draw([body], view, size, renderer)
        images.append(image)
    return images
