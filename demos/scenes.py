"""Scenes for pictures: shaded surfaces, one camera, and two renderers that draw them alike.

pygfx draws where a GPU adapter exists, matplotlib elsewhere. Both get the same bodies, the same
camera and the same lights, so a picture shows the same thing on every machine. The drawing
libraries load when first used; they come with the extra ``autograd-gpu[demos]``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from autograd_gpu.errors import IndexRangeError, InputError, MissingDependencyError, ShapeError

Renderer = Literal["pygfx", "matplotlib"]
Camera = Literal["auto"] | tuple[float, float]
Color = tuple[float, float, float]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Image = NDArray[np.uint8]

BACKGROUND_TOP = (0.975, 0.978, 0.985)
BACKGROUND_BOTTOM = (0.865, 0.875, 0.895)
FIELD_OF_VIEW = np.radians(26.0)
# Half the picture's height over that of the mesh: leaves room for a title.
MARGIN = 1.22
AUTO_ANGLES = (145.0, 18.0)
# Directions to the lights in the camera's axes (right, up, towards the eye), with their strengths.
KEY_LIGHT, KEY_STRENGTH = (-0.45, 0.75, 0.55), 0.80
FILL_LIGHT, FILL_STRENGTH = (0.85, 0.05, 0.45), 0.24
AMBIENT_STRENGTH = 0.33
GAMMA = 2.2


@dataclass(frozen=True, kw_only=True)
class Body:
    """A shaded surface: vertices (n, 3), faces (m, 3), colours (n, 3) in 0..1, sRGB."""

    vertices: FloatArray
    faces: IntArray
    colors: FloatArray


@dataclass(frozen=True, kw_only=True)
class View:
    """A perspective camera: rows of ``axes`` are right, up and towards the eye."""

    axes: FloatArray
    target: FloatArray
    distance: float

    @property
    def eye(self) -> FloatArray:
        """Position of the eye, (3,)."""
        return self.target + self.distance * self.axes[2]


def checked_body(
    name: str,
    vertices: ArrayLike,
    faces: ArrayLike,
    color: Color,
    colors: ArrayLike | None = None,
) -> Body:
    """Copy a mesh into arrays, or raise an error that says what is wrong with it."""
    v = np.array(vertices, dtype=np.float64)
    f = np.array(faces, dtype=np.int64)
    for label, array in (("vertices", v), ("faces", f)):
        if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0:
            raise ShapeError(f"{name}: {label} have shape {array.shape}, expected (n, 3) with n>0")
    if f.min() < 0 or f.max() >= len(v):
        raise IndexRangeError(
            f"{name}: faces refer to vertices {f.min()}..{f.max()}, the mesh has 0..{len(v) - 1}"
        )
    if not np.isfinite(v).all():
        row = int(np.flatnonzero(~np.isfinite(v).all(axis=1))[0])
        raise InputError(f"{name}: vertex {row} is {v[row]}; a picture needs finite coordinates")
    if colors is None:
        return Body(vertices=v, faces=f, colors=np.tile(np.array(color), (len(v), 1)))
    c = np.array(colors, dtype=np.float64)
    if c.shape != v.shape:
        raise ShapeError(f"{name}: colors have shape {c.shape}, expected {v.shape}")
    return Body(vertices=v, faces=f, colors=np.clip(c, 0.0, 1.0))


def checked_indices(name: str, rows: ArrayLike | None, count: int | None = None) -> IntArray:
    """Copy vertex indices into a flat array; IndexRangeError where one is not below ``count``."""
    indices = np.asarray([] if rows is None else rows, dtype=np.int64).ravel()
    if count is not None and indices.size and (indices.min() < 0 or indices.max() >= count):
        raise IndexRangeError(
            f"{name}: indices {indices.min()}..{indices.max()}, the mesh has vertices "
            f"0..{count - 1}"
        )
    return indices


def vertex_normals(vertices: FloatArray, faces: IntArray) -> FloatArray:
    """Area-weighted mean of the incident faces' normals, (n, 3), length 1 (0 where undefined)."""
    corners = vertices[faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(total, faces[:, k], normals)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return total / np.where(length > 0, length, 1.0)


def marker_radius(body: Body) -> float:
    """Small against the mesh, and no larger than what keeps neighbouring markers apart."""
    v, f = body.vertices, body.faces
    lengths: FloatArray = np.linalg.norm(v[f[:, 0]] - v[f[:, 1]], axis=1)
    edge = float(lengths.mean())
    diagonal = float(np.linalg.norm(v.max(axis=0) - v.min(axis=0)))
    return min(max(0.4 * edge, 0.009 * diagonal), 0.02 * diagonal)


def both_sides(name: str, vertices: ArrayLike, faces: ArrayLike, color: Color) -> list[Body]:
    """A sheet that is seen from both sides: two layers, the lower one turned inside out, darker."""
    front = checked_body(name, vertices, faces, color)
    dark = (0.75 * color[0], 0.75 * color[1], 0.75 * color[2])
    # Apart by what a depth buffer can tell.
    apart = 0.003 * float(np.ptp(front.vertices, axis=0).max())
    normals = vertex_normals(front.vertices, front.faces)
    return [
        checked_body(name, front.vertices + apart * normals, front.faces, color),
        checked_body(name, front.vertices - apart * normals, front.faces[:, ::-1], dark),
    ]


def tubes(starts: FloatArray, ends: FloatArray, radius: float, colors: ArrayLike) -> Body:
    """One body of a six-sided tube from each start to each end; colours (n, 3), or one."""
    axis = ends - starts
    length = np.linalg.norm(axis, axis=1, keepdims=True)
    axis = axis / np.where(length > 0, length, 1.0)
    aside = np.where(np.abs(axis[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    u = np.cross(axis, aside)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    v = np.cross(axis, u)
    angle = np.arange(6) * np.pi / 3.0
    circle = radius * (
        np.cos(angle)[None, :, None] * u[:, None] + np.sin(angle)[None, :, None] * v[:, None]
    )
    vertices = np.concatenate([starts[:, None] + circle, ends[:, None] + circle], axis=1)
    k, n = np.arange(6), (np.arange(6) + 1) % 6
    sides = np.concatenate([np.stack([k, n, n + 6], 1), np.stack([k, n + 6, k + 6], 1)])
    faces = sides[None] + 12 * np.arange(len(starts))[:, None, None]
    tint = np.broadcast_to(np.asarray(colors, dtype=np.float64), (len(starts), 3))
    return Body(
        vertices=vertices.reshape(-1, 3),
        faces=faces.reshape(-1, 3).astype(np.int64),
        colors=np.repeat(tint, 12, axis=0),
    )


def dots(centers: FloatArray, radius: float, colors: ArrayLike) -> Body:
    """One body of an octahedron at each centre, for thousands of points; colours (n, 3), or one."""
    unit = np.concatenate([np.eye(3), -np.eye(3)])
    signs = [(a, b, c) for a in (0, 3) for b in (1, 4) for c in (2, 5)]
    corners = [(a, b, c) if (a + b + c) % 2 else (a, c, b) for a, b, c in signs]
    faces = np.array(corners)[None] + 6 * np.arange(len(centers))[:, None, None]
    tint = np.broadcast_to(np.asarray(colors, dtype=np.float64), (len(centers), 3))
    return Body(
        vertices=(centers[:, None] + radius * unit[None]).reshape(-1, 3),
        faces=faces.reshape(-1, 3).astype(np.int64),
        colors=np.repeat(tint, 6, axis=0),
    )


def spheres(centers: FloatArray, radius: float, color: Color, fineness: int = 1) -> Body:
    """One body of a sphere at each centre, of 8 × 12 patches times the fineness squared."""
    rings, segments = 8 * fineness, 12 * fineness
    theta = np.linspace(0.0, np.pi, rings + 1)[:, None]
    phi = np.linspace(0.0, 2.0 * np.pi, segments, endpoint=False)[None, :]
    unit = np.stack(
        np.broadcast_arrays(
            np.sin(theta) * np.sin(phi), np.cos(theta), np.sin(theta) * np.cos(phi)
        ),
        axis=-1,
    ).reshape(-1, 3)
    ring, segment = np.divmod(np.arange(rings * segments), segments)
    a = ring * segments + segment
    b = ring * segments + (segment + 1) % segments
    faces = np.concatenate(
        [
            np.stack([a, a + segments, b], axis=1),
            np.stack([b, a + segments, b + segments], axis=1),
        ]
    )
    count = len(centers)
    vertices = (centers[:, None, :] + radius * unit[None]).reshape(-1, 3)
    offsets = (np.arange(count) * len(unit))[:, None, None]
    return Body(
        vertices=vertices,
        faces=(faces[None] + offsets).reshape(-1, 3).astype(np.int64),
        colors=np.tile(np.array(color), (len(vertices), 1)),
    )


def fit_view(clouds: Sequence[FloatArray], camera: Camera, aspect: float) -> View:
    """Place the nearest camera in the given direction that has every point in its frame."""
    azimuth, elevation = np.radians(AUTO_ANGLES if camera == "auto" else camera)
    towards = np.array(
        [
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ]
    )
    right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
    axes = np.stack([right, np.cross(towards, right), towards])
    points = np.concatenate(list(clouds)) @ axes.T
    middle = 0.5 * (points.min(axis=0) + points.max(axis=0))
    x, y, z = (points - middle).T
    slope = np.tan(FIELD_OF_VIEW / 2)
    # A point is in the frame where |y| <= (distance - z) slope;
    needed = np.maximum(np.abs(y), np.abs(x) / aspect) * MARGIN / slope + z
    return View(axes=axes, target=middle @ axes, distance=max(float(needed.max()), 1e-9))


def draw(
    bodies: Sequence[Body], view: View, size: tuple[int, int], renderer: Renderer | None
) -> tuple[Image, Renderer]:
    """Draw a scene; returns (height, width, 3) bytes and which renderer drew it."""
    if renderer == "matplotlib" or (renderer is None and not adapter_exists()):
        return draw_with_matplotlib(bodies, view, size), "matplotlib"
    try:
        return draw_with_pygfx(bodies, view, size), "pygfx"
    except (RuntimeError, ImportError) as error:
        if renderer == "pygfx":
            raise
        warnings.warn(
            f"pygfx could not draw ({error}); matplotlib draws instead", RuntimeWarning, 3
        )
        return draw_with_matplotlib(bodies, view, size), "matplotlib"


def adapter_exists() -> bool:
    """Whether pygfx is installed and wgpu finds an adapter that it can draw with."""
    if find_spec("pygfx") is None or find_spec("rendercanvas") is None:
        return False
    # EGL complains on stderr for each adapter where this is unset; any folder will do.
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())
    wgpu: Any = importlib.import_module("wgpu")
    return len(wgpu.gpu.enumerate_adapters_sync()) > 0


def draw_with_pygfx(bodies: Sequence[Body], view: View, size: tuple[int, int]) -> Image:
    """Draw with a GPU adapter; RuntimeError where pygfx or its device refuses."""
    gfx: Any = importlib.import_module("pygfx")
    offscreen: Any = importlib.import_module("rendercanvas.offscreen")
    canvas = offscreen.OffscreenRenderCanvas(size=size, pixel_ratio=1)
    # Drawn at twice the resolution and averaged: smooth silhouettes on every adapter.
    renderer = gfx.renderers.WgpuRenderer(canvas, pixel_ratio=2)
    scene = gfx.Scene()
    scene.add(gfx.Background.from_color(BACKGROUND_BOTTOM, BACKGROUND_TOP))
    for body in bodies:
        geometry = gfx.Geometry(
            indices=body.faces.astype(np.int32),
            positions=body.vertices.astype(np.float32),
            normals=vertex_normals(body.vertices, body.faces).astype(np.float32),
            colors=_linear(body.colors).astype(np.float32),
        )
        material = gfx.MeshPhongMaterial(color_mode="vertex", shininess=24, specular="#222222")
        scene.add(gfx.Mesh(geometry, material))
    scene.add(gfx.AmbientLight("#ffffff", AMBIENT_STRENGTH * np.pi))
    for direction, strength in ((KEY_LIGHT, KEY_STRENGTH), (FILL_LIGHT, FILL_STRENGTH)):
        light = gfx.DirectionalLight("#ffffff", strength * np.pi)
        light.local.position = view.target + np.array(direction) @ view.axes
        light.target = gfx.WorldObject()
        light.target.local.position = view.target
        scene.add(light)
    # pygfx applies its angle to the mean of width and height, the fit above to the height.
    aspect = size[0] / size[1]
    angle = 2 * np.arctan(np.tan(FIELD_OF_VIEW / 2) * (1 + aspect) / 2)
    camera = gfx.PerspectiveCamera(
        float(np.degrees(angle)),
        aspect,
        depth_range=(view.distance * 0.01, view.distance * 4),
    )
    camera.local.position = view.eye
    camera.look_at(view.target)
    canvas.request_draw(lambda: renderer.render(scene, camera))
    image = np.array(canvas.draw(), dtype=np.uint8)[..., :3]
    canvas.close()
    return image


def draw_with_matplotlib(bodies: Sequence[Body], view: View, size: tuple[int, int]) -> Image:
    """Gouraud-shaded triangles, painted from the farthest to the nearest."""
    collections: Any = matplotlib_module("collections")
    tri: Any = matplotlib_module("tri")
    offsets = np.cumsum([0, *[len(body.vertices) for body in bodies]])
    vertices = np.concatenate([body.vertices for body in bodies])
    faces = np.concatenate([b.faces + k for b, k in zip(bodies, offsets, strict=False)])
    normals = np.concatenate([vertex_normals(body.vertices, body.faces) for body in bodies])
    shaded = _shade(np.concatenate([body.colors for body in bodies]), normals @ view.axes.T)

    local = (vertices - view.target) @ view.axes.T
    depth = view.distance - local[:, 2]
    scale = size[1] / (2 * np.tan(FIELD_OF_VIEW / 2))
    x = size[0] / 2 + scale * local[:, 0] / depth
    y = size[1] / 2 + scale * local[:, 1] / depth
    order = np.argsort(-depth[faces].mean(axis=1), kind="stable")

    # As with pygfx: drawn at twice the resolution and averaged.
    figure = empty_figure(size)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, size[0]), ylim=(0, size[1]))
    axes.axis("off")
    ramp = np.linspace(BACKGROUND_TOP, BACKGROUND_BOTTOM, size[1])[:, None, :]
    axes.imshow(ramp, extent=(0, size[0], 0, size[1]), aspect="auto")
    mesh = collections.TriMesh(tri.Triangulation(x, y, faces[order]))
    mesh.set_facecolor(shaded)
    axes.add_collection(mesh, autolim=False)
    figure.set_dpi(200)
    figure.canvas.draw()
    fine = np.asarray(figure.canvas.buffer_rgba(), dtype=np.float64)[..., :3]
    pairs = fine[: 2 * size[1], : 2 * size[0]].reshape(size[1], 2, size[0], 2, 3)
    return np.rint(pairs.mean(axis=(1, 3))).astype(np.uint8)


def _linear(colors: FloatArray) -> FloatArray:
    """Linear intensities of sRGB colours: light adds up only in these. The gamma is rounded."""
    return colors**GAMMA


def _shade(colors: FloatArray, normals: FloatArray) -> FloatArray:
    """Lambertian colours (n, 4) of vertices with the given normals in the camera's axes."""
    light = np.full(len(normals), AMBIENT_STRENGTH)
    for direction, strength in ((KEY_LIGHT, KEY_STRENGTH), (FILL_LIGHT, FILL_STRENGTH)):
        unit = np.array(direction) / np.linalg.norm(direction)
        light += strength * np.maximum(normals @ unit, 0.0)
    shaded = np.clip(_linear(colors) * light[:, None], 0.0, 1.0) ** (1 / GAMMA)
    return np.column_stack([shaded, np.ones(len(shaded))])


def empty_figure(size: tuple[int, int]) -> Any:
    """Make a figure of that many pixels on the Agg canvas, without pyplot's global state."""
    figure = matplotlib_module("figure").Figure(figsize=(size[0] / 100, size[1] / 100), dpi=100)
    matplotlib_module("backends.backend_agg").FigureCanvasAgg(figure)
    return figure


def require_matplotlib() -> None:
    """Raise MissingDependencyError if it is not installed; it is not loaded, which takes long."""
    if importlib.util.find_spec("matplotlib") is None:
        raise _without_matplotlib("there is no such module")


def matplotlib_module(module: str) -> Any:
    """Import ``matplotlib.<module>``, or raise MissingDependencyError naming the extra."""
    try:
        return importlib.import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise _without_matplotlib(str(error)) from error


def _without_matplotlib(why: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"pictures need matplotlib, which cannot be imported ({why}); "
        "pip install 'autograd-gpu[demos]'"
    )
