"""The command line: what it prints, and how it refuses."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

from autograd_gpu import cli
from autograd_gpu.demos import backends, icosphere
from autograd_gpu.errors import DeviceError
from autograd_gpu.solvers.sparse_cholesky import available_sparse_cholesky

SPRING = "autograd_gpu.meshes.energies:spring"


def call(*arguments: str):
    return CliRunner().invoke(cli.build_app(), list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("command", [(), ("demo",), ("demo", "icosphere"), ("inspect",)])
def test_help_names_options(command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_module_and_entry_point_are_one_program():
    result = subprocess.run(
        [sys.executable, "-m", "autograd_gpu", "inspect", SPRING, "--width", "3,3,1"],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert result.stdout == call("inspect", SPRING, "--width", "3,3,1").output


# -- inspect ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "expected"),
    [("wgsl", "@compute"), ("numba", "def "), ("ir", "# Jacobian")],
)
def test_inspect_prints_key_operations_and_source(target, expected):
    result = call("inspect", SPRING, "--width", "3,3,1", "--target", target, "--data", "2")
    assert result.exit_code == 0
    assert "topology key" in result.output and "Graph(spring(" in result.output
    assert expected in result.output


def test_inspect_reads_modules_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_energies.py").write_text("def turned(m, v):\n    return m @ v\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_energies", raising=False)
    result = call(
        "inspect", "my_energies:turned", "--width", "3x3,3", "--target", "numba",
        "--product", "residual", "--precision", "float32",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "m: (3, 3)" in result.output and "float32" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("spring", "--width", "3"), "expected module:function"),
        (("no_such_module:f", "--width", "3"), "cannot be imported"),
        (("math:no_such", "--width", "3"), "has no 'no_such'"),
        (("math:pi", "--width", "3"), "expected a function"),
        (("math:sin", "--width", "1"), "ag.* functions"),
        ((SPRING, "--width", "3;3"), "expected widths"),
        ((SPRING, "--width", "3,3"), "missing a required argument: 'rest'"),
        ((SPRING, "--width", "3,3,1", "--target", "cuda"), "expected one of wgsl, numba, jax, ir"),
        ((SPRING, "--width", "3,3,1", "--product", "hessian"), "hessian"),
        ((SPRING, "--width", "3,3,1", "--precision", "float16"), "float16"),
        ((SPRING, "--width", "3,3,1", "--data", "7"), "has 3 arguments"),
        ((SPRING, "--width", "3,3,1", "--data", "x"), "expected positions"),
    ],
)
def test_inspect_refuses_in_one_message(arguments, message):
    result = call("inspect", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("autograd-gpu: ") and "Traceback" not in result.stderr


# -- doctor -------------------------------------------------------------------------------------


def test_doctor_tells_what_is_there(monkeypatch):
    result = call("doctor")
    assert result.exit_code == 0
    for name in ("Python", "numpy", "numba", "wgpu", "threads", "Extras", "demos"):
        assert name in result.output
    for library, _, _ in available_sparse_cholesky():
        assert library in result.output


@pytest.mark.wgsl
def test_doctor_measures_every_op_on_request(monkeypatch):
    llvmpipe = [info for info in cli.ag.devices() if "llvmpipe" in info.name][:1]
    monkeypatch.setattr(cli.ag, "devices", lambda: llvmpipe)
    output = call("doctor", "--full").output
    assert "float64-emulated" in output and "NaN and infinity" in output
    for op in ("add", "hypot", "softplus"):
        assert f"│ {op} " in output
    assert "FAILS" not in output


@pytest.mark.parametrize("failure", ["none", "driver"])
def test_doctor_without_an_adapter_says_so_and_succeeds(failure, monkeypatch):
    def broken():
        raise DeviceError("the driver is broken")

    monkeypatch.setattr(cli.ag, "devices", list if failure == "none" else broken)
    result = call("doctor")
    assert result.exit_code == 0
    assert "WebGPU adapters: none" in result.output


def test_extras_are_read_from_the_package(monkeypatch):
    extras = cli.requirements_by_extra()
    assert {"numpy", "numba", "wgpu"} <= set(extras[""])
    assert {"fast", "demos", "jax", "interop"} <= set(extras)
    monkeypatch.setattr(cli, "version_of", lambda name: None if name == "jax" else "1")
    output = call("doctor").output
    assert "missing jax" in output


# -- demo and bench -----------------------------------------------------------------------------


def test_demo_passes_its_options_on(tmp_path, monkeypatch):
    got = []
    monkeypatch.setattr(icosphere, "main", lambda stage, level: got.append((stage, level)))
    options = ["--level", "2", "--out", str(tmp_path), "--backend", "cpu", "--record"]
    result = call("demo", "icosphere", *options)
    assert result.exit_code == 0
    ((stage, level),) = got
    assert (level, stage.out, stage.backend, stage.record) == (2, tmp_path, "cpu", True)


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the extra [demos]")
def test_demo_refuses_an_unknown_backend(tmp_path):
    result = call("demo", "icosphere", "--level", "0", "--out", str(tmp_path), "--backend", "cuda")
    assert result.exit_code == 1
    assert "backend='cuda' is unknown" in result.stderr


def test_unknown_demos_and_levels_are_usage_errors():
    assert call("demo", "teapot").exit_code == 2
    assert call("demo", "icosphere", "--level", "-1").exit_code == 2


def test_bench_prints_a_table(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", (("numba", "float64"), ("numpy", "float64")))
    result = call("bench", "--level", "1")
    assert result.exit_code == 0
    assert "numba float64" in result.output and "Winner here" in result.output
