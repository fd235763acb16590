"""The layer table of docs/architecture.md, held by reading every import in the source.

Imports inside functions count too: an arrow that points up is one whenever it is followed.
A new module directly in autograd_gpu/ belongs to the language (L0) unless FACE names it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INNER_FOLDERS = ("codegen", "templates", "solvers", "meshes", "demos")

# Modules of the public face: they re-export or drive everything, so they may import everything.
FACE = {"autograd_gpu", "autograd_gpu.__main__", "autograd_gpu.cli"}

# Layer: (layers of the project that it may import, libraries at module level, libraries inside
# functions, where they load when first used).
ALLOWED: dict[str, tuple[set[str], set[str], set[str]]] = {
    "language": ({"language"}, {"numpy"}, {"platformdirs"}),
    "codegen": ({"language", "codegen"}, {"numpy", "jinja2"}, {"jinja2", "scipy"}),
    "runtime": (
        {"language", "codegen", "runtime"},
        {"numpy"},
        {"scipy", "wgpu", "numba", "llvmlite", "jax", "threadpoolctl"},
    ),
    "solvers": (
        {"language", "codegen", "runtime", "solvers"},
        {"numpy"},
        {"scipy", "pypardiso", "sksparse", "threadpoolctl", "pyamg", "rich", "matplotlib"},
    ),
    "interop": (
        {"language", "codegen", "runtime", "solvers", "interop"},
        {"numpy"},
        {"scipy", "networkx", "sympy", "jax", "matplotlib"},
    ),
    "estimation": ({"language", "runtime", "solvers", "estimation"}, {"numpy"}, set()),
    "meshes": (
        {"language", "face", "meshes"},
        {"numpy"},
        {"scipy", "trimesh", "meshio", "pyvista", "polyscope"},
    ),
    "demos": (
        {"language", "face", "estimation", "meshes", "demos"},
        {"numpy"},
        {"scipy", "matplotlib", "pygfx", "rendercanvas", "wgpu", "PIL"},
    ),
    "face": (
        {
            "language",
            "codegen",
            "runtime",
            "solvers",
            "interop",
            "estimation",
            "meshes",
            "demos",
            "face",
        },
        {"numpy"},
        {"typer", "rich", "wgpu", "numba", "jax", "scipy", "click"},
    ),
}

# An engine belongs to the modules that name it, and to these.
ENGINE_OWNERS = {
    "wgpu": {"autograd_gpu.runtime.adapters"},
    "numba": {
        "autograd_gpu.runtime.assembly_kernels",
        "autograd_gpu.runtime.lane_functions",
        "autograd_gpu.runtime.machine_code",
    },
    "jax": set[str](),
}


@dataclass(frozen=True)
class Import:
    """One import of one module: who, what, where, and whether inside a function."""

    importer: str
    target: str
    line: int
    inside_function: bool
    typing_only: bool

    def __str__(self) -> str:
        return f"{self.importer} line {self.line} imports {self.target}"


@cache
def project_modules() -> dict[str, Path]:
    """Dotted name, as installed, to file."""
    roots = {"autograd_gpu": ROOT / "autograd_gpu"}
    roots |= {f"autograd_gpu.{folder}": ROOT / folder for folder in INNER_FOLDERS}
    modules: dict[str, Path] = {}
    for package, folder in roots.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            modules[".".join((package, *parts))] = path
    return modules


class _Reader(ast.NodeVisitor):
    """Collects the imports of a module, spelled absolutely."""

    def __init__(self, module: str, path: Path) -> None:
        self.module = module
        self.package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        self.depth = 0
        self.typing_depth = 0
        self.found: list[Import] = []

    def add(self, target: str, node: ast.AST) -> None:
        line = getattr(node, "lineno", 0)
        self.found.append(Import(self.module, target, line, self.depth > 0, self.typing_depth > 0))

    def visit(self, node: ast.AST) -> None:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        self.depth += inside
        super().visit(node)
        self.depth -= inside

    def visit_If(self, node: ast.If) -> None:
        typing_only = "TYPE_CHECKING" in ast.unparse(node.test)
        self.typing_depth += typing_only
        for child in node.body:
            self.visit(child)
        self.typing_depth -= typing_only
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            package = self.package.split(".")
            package = package[: len(package) - node.level + 1]
            base = ".".join([*package, *([base] if base else [])])
        for alias in node.names:
            name = f"{base}.{alias.name}"
            self.add(name if name in project_modules() else base, node)

    def visit_Call(self, node: ast.Call) -> None:
        # importlib.import_module("wgpu") is an import by another spelling.
        called = ast.unparse(node.func)
        if called.endswith(("import_module", "__import__")) and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.JoinedStr):
                argument = argument.values[0]
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                self.add(argument.value.rstrip("."), node)
        self.generic_visit(node)


@cache
def imports_of(module: str, path: Path) -> tuple[Import, ...]:
    reader = _Reader(module, path)
    reader.visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return tuple(reader.found)


def all_imports() -> Iterator[Import]:
    for module, path in project_modules().items():
        yield from imports_of(module, path)


def layer_of(module: str) -> str:
    if module in FACE:
        return "face"
    area = module.split(".")[1]
    if area == "templates":
        return "codegen"
    return area if area in ALLOWED else "language"


def is_of_project(item: Import) -> bool:
    return item.target.split(".")[0] == "autograd_gpu"


def violations(module: str) -> list[str]:
    layers, at_module_level, in_functions = ALLOWED[layer_of(module)]
    wrong: list[str] = []
    for item in imports_of(module, project_modules()[module]):
        root = item.target.split(".")[0]
        if is_of_project(item):
            if layer_of(item.target) not in layers:
                wrong.append(f"{item} (layer {layer_of(item.target)})")
        elif root not in sys.stdlib_module_names and root not in at_module_level:
            if root not in in_functions:
                wrong.append(f"{item}, a library of another layer")
            elif not item.inside_function and not item.typing_only:
                wrong.append(f"{item} at module level; import it inside the function that needs it")
    return wrong


@pytest.mark.parametrize("module", project_modules())
def test_imports_point_down(module):
    assert violations(module) == []


@pytest.mark.parametrize("engine", ENGINE_OWNERS)
def test_an_engine_is_loaded_only_by_the_module_that_owns_it(engine):
    wrong = [
        str(item)
        for item in all_imports()
        if item.target.split(".")[0] == engine
        and layer_of(item.importer) == "runtime"
        and item.importer not in ENGINE_OWNERS[engine]
        and engine not in item.importer.rpartition(".")[2]
    ]
    assert wrong == []


def test_nobody_imports_a_folder_by_its_bare_name():
    """``import codegen.x`` from the repository's root makes a second copy of a module."""
    files = dict(project_modules())
    for folder in ("tests", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            files[f"{folder}.{path.stem}"] = path
    wrong = [
        str(item)
        for module, path in files.items()
        for item in imports_of(module, path)
        if item.target.split(".")[0] in INNER_FOLDERS
    ]
    assert wrong == []


def test_the_reader_sees_every_spelling(tmp_path):
    path = tmp_path / "sample.py"
    path.write_text(
        "import wgpu\n"
        "from . import ir\n"
        "from .runtime.adapters import load_wgpu\n"
        "from autograd_gpu.codegen import program\n"
        "import importlib, typing\n"
        "if typing.TYPE_CHECKING:\n    import jax\n"
        "def f():\n    import numba.cuda\n    importlib.import_module(f'scipy.{1}')\n"
    )
    found = {
        item.target: (item.inside_function, item.typing_only)
        for item in imports_of("autograd_gpu.sample", path)
    }
    assert found == {
        "wgpu": (False, False),
        "autograd_gpu.ir": (False, False),
        "autograd_gpu.runtime.adapters": (False, False),
        "autograd_gpu.codegen.program": (False, False),
        "importlib": (False, False),
        "typing": (False, False),
        "jax": (False, True),
        "numba.cuda": (True, False),
        "scipy": (True, False),
    }


def test_importing_the_package_loads_no_engine():
    heavy = ["jax", "wgpu", "numba", "scipy.sparse.linalg", "trimesh", "matplotlib", "pygfx",
             "sympy", "networkx", "pypardiso", "rich", "typer"]  # fmt: skip
    script = (
        f"import sys, autograd_gpu\nprint(*(name for name in {heavy!r} if name in sys.modules))\n"
    )
    # A coverage or debugging hook set up through the environment could import anything.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "PYTEST"))}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []
