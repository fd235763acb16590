"""Films: the points that solves pass, kept by a callback and drawn when they are over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.demos import scenes
from autograd_gpu.errors import MissingDependencyError

FloatArray = NDArray[np.float64]
Values = Mapping[str, FloatArray]
MOST_FRAMES = 40
LINGER = 10
"""How often the last frame is shown."""


class Reel:
    """Points in the order in which solves accepted them; a callback of ``ag.solve``."""

    def __init__(self) -> None:
        self.points: list[Values] = []

    def __call__(self, record: Any, values: Values) -> None:
        """Keep the start and every accepted point."""
        if record.accepted or record.iteration == 0:
            self.add(values)

    def add(self, values: Values) -> None:
        """Keep a point."""
        self.points.append({name: np.array(array) for name, array in values.items()})

    def frames(self, most: int = MOST_FRAMES) -> list[Values]:
        """Points for a film of about so many frames, the first and the last among them.

        Many points are thinned out; few are blended into the next, so that leaps can be followed.
        """
        last = len(self.points) - 1
        if last < 1:
            return list(self.points)
        if last >= most:
            chosen = np.linspace(0, last, most).round().astype(int)
            return [self.points[k] for k in chosen]
        between = most // last
        frames: list[Values] = []
        for now, following in zip(self.points, self.points[1:], strict=False):
            for t in np.arange(between) / between:
                frames.append({k: v + t * (following[k] - v) for k, v in now.items()})
        return [*frames, self.points[-1]]


def drawn(
    worlds: Sequence[Sequence[scenes.Body]], camera: scenes.Camera, size: tuple[int, int]
) -> list[scenes.Image]:
    """Pictures of scenes, all seen by one camera that has every one of them in its frame."""
    everything = [body.vertices for bodies in worlds for body in bodies]
    view = scenes.fit_view(everything, camera, size[0] / size[1])
    renderer: scenes.Renderer | None = None
    images: list[scenes.Image] = []
    for bodies in worlds:
        image, renderer = scenes.draw(bodies, view, size, renderer)
        images.append(image)
    return images


def plotted(
    frames: Sequence[Values], paint: Callable[[Any, Values], None], size: tuple[int, int]
) -> list[scenes.Image]:
    """Pictures of axes that a function draws on."""
    images: list[scenes.Image] = []
    for values in frames:
        figure = scenes.empty_figure(size)
        figure.set_facecolor("white")
        paint(figure.add_subplot(), values)
        figure.canvas.draw()
        images.append(np.array(figure.canvas.buffer_rgba(), dtype=np.uint8)[..., :3])
    return images


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
    ).quantize(256, Image.Quantize.MAXCOVERAGE)
    images = [
        Image.fromarray(frame).quantize(palette=first, dither=Image.Dither.NONE) for frame in frames
    ]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=round(1000 * seconds), loop=0
    )
