"""Pictures: files of the right size that show the mesh, with either renderer."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from autograd_gpu.errors import (
    AutogradGpuError,
    IndexRangeError,
    InputError,
    MissingDependencyError,
    ShapeError,
)

if find_spec("matplotlib") is None:
    pytest.skip("pictures need the extra [demos]", allow_module_level=True)

from autograd_gpu.demos import pictures, scenes


def octahedron(levels: int = 3):
    """A sphere-like mesh that does not depend on the mesh package: a subdivided octahedron."""
    v = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    f = np.array(
        [[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]]
    )
    for _ in range(levels):
        pairs = np.sort(np.concatenate([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]]), axis=1)
        edges, place = np.unique(pairs, axis=0, return_inverse=True)
        middle = v[edges].sum(axis=1)
        a, b, c = (place.reshape(3, -1) + len(v)).astype(int)
        v = np.concatenate([v, middle / np.linalg.norm(middle, axis=1, keepdims=True)])
        f = np.concatenate(
            [np.stack(t, axis=1) for t in ((f[:, 0], a, c), (a, f[:, 1], b), (c, b, f[:, 2]))]
            + [np.stack((a, b, c), axis=1)]
        )
    return v, f


def pixels(path: Path) -> np.ndarray:
    image_module = pytest.importorskip("PIL.Image")
    with image_module.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def foreground(image: np.ndarray) -> np.ndarray:
    """Pixels that are coloured: backgrounds and texts are grey."""
    return np.ptp(image, axis=2) > 40


@pytest.fixture(params=["pygfx", "matplotlib"])
def renderer(request):
    if request.param == "pygfx" and not scenes.adapter_exists():
        pytest.skip("pygfx has no adapter here")
    return request.param


def test_mesh_fills_the_middle_of_the_picture(tmp_path, renderer):
    path = tmp_path / "new folder" / "mesh.png"
    used = pictures.render_mesh(
        path, *octahedron(), title="sphere", size=(320, 240), renderer=renderer
    )
    image = pixels(path)
    mask = foreground(image)
    assert used == renderer
    assert image.shape == (240, 320, 3)
    assert image.std() > 10
    # A sphere whose diameter is the picture's height over the margin.
    area = np.pi / 4 * (240 / scenes.MARGIN) ** 2
    assert mask.sum() == pytest.approx(area, rel=0.08)
    rows, columns = np.nonzero(mask)
    assert rows.mean() == pytest.approx(120, abs=3)
    assert columns.mean() == pytest.approx(160, abs=3)


def test_renderers_agree(tmp_path):
    if not scenes.adapter_exists():
        pytest.skip("pygfx has no adapter here")
    v, f = octahedron()
    v *= [1.0, 0.6, 1.7]
    colors = 0.2 + 0.6 * (v - v.min(axis=0)) / np.ptp(v, axis=0)
    images = []
    for name in ("pygfx", "matplotlib"):
        path = tmp_path / f"{name}.png"
        pictures.render_mesh(path, v, f, colors=colors, size=(240, 240), renderer=name)
        images.append(pixels(path))
    assert np.abs(images[0] - images[1]).mean() < 6


def test_colors_show_where_the_vertices_are(tmp_path, renderer):
    v, f = octahedron()
    colors = np.where(v[:, :1] > 0, [[0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9]])
    path = tmp_path / "colors.png"
    # Seen from +z with y up, +x is on the right.
    pictures.render_mesh(
        path, v, f, colors=colors, camera=(0.0, 0.0), size=(200, 200), renderer=renderer
    )
    image = pixels(path)
    assert image[100, 140, 0] > 2 * image[100, 140, 2]
    assert image[100, 60, 2] > 2 * image[100, 60, 0]


def test_before_and_after_differ_and_marks_show(tmp_path, renderer):
    v, f = octahedron()
    stretched = v * [1.0, 1.5, 1.0]
    both = tmp_path / "marks.png"
    plain = tmp_path / "plain.png"
    arguments = {"size": (600, 300), "renderer": renderer}
    pictures.render_before_after(plain, (v, f), (stretched, f), **arguments)
    used = pictures.render_before_after(
        both, (v, f), (stretched, f), handles=np.flatnonzero(v[:, 1] > 0.8), fixed=[3], **arguments
    )
    image, unmarked = pixels(both), pixels(plain)
    left, right = image[:, :300], image[:, 300:]
    assert used == renderer
    assert image.shape == (300, 600, 3)
    assert (np.abs(left - right).max(axis=2) > 20).sum() > 2000

    def height(panel):
        inside = np.ptp(panel[40:260], axis=2) > 60
        return np.ptp(np.nonzero(inside)[0])

    orange = (image[..., 0] > image[..., 2] + 80) & (image[..., 0] > 120)
    assert orange[:250, :300].sum() > 50 and orange[:250, 300:].sum() > 50
    assert height(unmarked[:, 300:]) > 1.2 * 300 / 2 / scenes.MARGIN


def test_spot_ships_with_the_demos(tmp_path, renderer):
    lines = (Path(pictures.__file__).parent / "data" / "spot.obj").read_text().splitlines()
    v = np.array([line.split()[1:4] for line in lines if line.startswith("v ")], dtype=float)
    f = np.array(
        [[c.split("/")[0] for c in line.split()[1:]] for line in lines if line.startswith("f ")],
        dtype=int,
    )
    assert v.shape == (2930, 3) and f.shape == (5856, 3)
    pictures.render_mesh(tmp_path / "spot.png", v, f - 1, size=(400, 300), renderer=renderer)
    share = foreground(pixels(tmp_path / "spot.png")).mean()
    assert 0.15 < share < 0.5


def test_without_adapter_matplotlib_draws(tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "adapter_exists", lambda: False)
    used = pictures.render_mesh(tmp_path / "mesh.png", *octahedron(1), size=(80, 60))
    assert used == "matplotlib"


def test_failing_pygfx_warns_and_matplotlib_draws(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no such feature")

    monkeypatch.setattr(scenes, "adapter_exists", lambda: True)
    monkeypatch.setattr(scenes, "draw_with_pygfx", fail)
    with pytest.warns(RuntimeWarning, match="no such feature"):
        used = pictures.render_mesh(tmp_path / "mesh.png", *octahedron(1), size=(80, 60))
    assert used == "matplotlib"


def test_convergence_plot(tmp_path):
    histories = {"Levenberg-Marquardt": [10.0, 1.0, 0.1, 0.01], "Adam": [10.0, 9.0, 8.5, 8.2, 0.0]}
    path = tmp_path / "convergence.png"
    pictures.plot_convergence(path, histories, title="two methods", size=(400, 300))
    other = tmp_path / "difference.png"
    pictures.plot_convergence(other, histories, minimum=0.01, size=(400, 300))
    image = pixels(path)
    assert image.shape == (300, 400, 3)
    assert foreground(image).sum() > 200
    assert (image != pixels(other)).any()


def test_wrong_input_is_named(tmp_path):
    v, f = octahedron(1)
    path = tmp_path / "never.png"
    with pytest.raises(IndexRangeError, match="before: faces refer to vertices"):
        pictures.render_before_after(path, (v, f + 1), (v, f))
    with pytest.raises(IndexRangeError, match="handles"):
        pictures.render_before_after(path, (v, f), (v, f), handles=[len(v)])
    with pytest.raises(ShapeError, match="vertices have shape"):
        pictures.render_mesh(path, v[:, :2], f)
    with pytest.raises(ShapeError, match="colors have shape"):
        pictures.render_mesh(path, v, f, colors=v[:3])
    v[4, 1] = np.nan
    with pytest.raises(InputError, match="vertex 4"):
        pictures.render_mesh(path, v, f)
    with pytest.raises(InputError, match="histories"):
        pictures.plot_convergence(path, {"empty": []})
    assert not path.exists()


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"autograd-gpu\[demos\]") as caught:
        pictures.plot_convergence(tmp_path / "never.png", {"a": [1.0]})
    assert isinstance(caught.value, AutogradGpuError)


@pytest.mark.wgsl
def test_own_devices_work_before_and_after_a_picture(tmp_path):
    """Drawing and computing share one process: neither may spoil the other's device."""
    if not scenes.adapter_exists():
        pytest.skip("no adapter here")
    script = f"""
import numpy as np, wgpu
from autograd_gpu.demos.pictures import render_mesh

def double(device):
    code = '''@group(0) @binding(0) var<storage, read_write> x: array<f32>;
    @compute @workgroup_size(4) fn main(@builtin(global_invocation_id) i: vec3u) {{
        x[i.x] = 2.0 * x[i.x];
    }}'''
    data = np.arange(4, dtype=np.float32)
    usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
    buffer = device.create_buffer_with_data(data=data, usage=usage)
    module = device.create_shader_module(code=code)
    stage = {{"module": module, "entry_point": "main"}}
    pipeline = device.create_compute_pipeline(layout="auto", compute=stage)
    entry = {{"binding": 0, "resource": {{"buffer": buffer, "offset": 0, "size": 16}}}}
    group = device.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=[entry])
    encoder = device.create_command_encoder()
    work = encoder.begin_compute_pass()
    work.set_pipeline(pipeline)
    work.set_bind_group(0, group)
    work.dispatch_workgroups(1)
    work.end()
    device.queue.submit([encoder.finish()])
    result = np.frombuffer(device.queue.read_buffer(buffer), np.float32)
    assert (result == 2 * data).all(), result

adapter = wgpu.gpu.request_adapter_sync()
device = adapter.request_device_sync()
double(device)
v = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], float)
for name in "ab":
    used = render_mesh({str(tmp_path)!r} + f"/{{name}}.png", v, [[0, 1, 2]], size=(64, 48))
    assert used == "pygfx", used
    double(device)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
