"""The command line: ``autograd-gpu doctor | demo | inspect | bench``.

typer and rich load when a command runs, not with this module.
"""

# No `from __future__ import annotations`: typer reads the annotations of functions that are
# defined where typer itself is a local name, and text could not be resolved there.

import functools
import importlib
import importlib.metadata
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import autograd_gpu as ag
from autograd_gpu.demos import STORIES
from autograd_gpu.errors import AutogradGpuError, DeviceError, InputError, MissingDependencyError

DISTRIBUTION = "autograd-gpu"
TARGETS = ("wgsl", "numba", "jax", "ir")
MAIN_LIMITS = (
    "max-buffer-size",
    "max-storage-buffer-binding-size",
    "max-storage-buffers-per-shader-stage",
    "max-compute-invocations-per-workgroup",
    "max-compute-workgroup-storage-size",
)


def main() -> None:
    """Run the program; the entry point of ``autograd-gpu`` and of ``python -m autograd_gpu``."""
    build_app()()


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table as wide as the terminal, or 140 characters into a file or a pipe."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False).print(table)


def say(message: str) -> None:
    """Print a line."""
    import typer

    typer.echo(message)


def one_message(command: Callable[..., Any]) -> Callable[..., None]:
    """Let a command end with exit code 1 and one message where the package refuses something."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except AutogradGpuError as error:
            _refuse(str(error))

    return wrapper


def _refuse(message: str) -> None:
    import typer

    typer.echo(f"autograd-gpu: {message}", err=True)
    raise typer.Exit(1)


def build_app() -> Any:
    """Make the typer application (a ``typer.Typer``)."""
    import typer

    app = typer.Typer(
        name=DISTRIBUTION,
        help="Residual functions in plain Python, compiled to batched kernels, and solved.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    demos = typer.Typer(
        help="Run a story: it solves a problem, compares backends, and writes pictures.",
        no_args_is_help=True,
    )
    app.add_typer(demos, name="demo")

    @demos.command("icosphere")
    @one_message
    def icosphere(
        level: Annotated[
            int | None,
            typer.Option(
                min=0, max=8, help="Subdivisions: 10·4^level + 2 vertices; 5, or 4 if developable."
            ),
        ] = None,
        out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
        backend: Annotated[
            str, typer.Option(help="auto, numba (cpu), jax, wgsl (gpu) or numpy.")
        ] = "auto",
        show: Annotated[bool, typer.Option("--show", help="Open polyscope at the end.")] = False,
        record: Annotated[bool, typer.Option("--record", help="Write films (GIF), too.")] = False,
        developable: Annotated[
            bool, typer.Option("--developable", help="Make the sphere developable instead.")
        ] = False,
    ) -> None:
        """Pull a sphere by its poles, and turn the head of a cow, as rigidly as possible."""
        from autograd_gpu.demos import developable as other
        from autograd_gpu.demos import icosphere as demo
        from autograd_gpu.demos.stage import Stage

        stage = Stage(out=out, backend=backend, show=show, record=record)
        if developable:
            other.main(stage, level=4 if level is None else level)
        else:
            demo.main(stage, level=5 if level is None else level)

    for name, line in STORIES.items():
        demos.command(name, help=line)(one_message(_story(name)))

    @demos.command("posegraph")
    @one_message
    def posegraph(
        laps: Annotated[
            int, typer.Option(min=3, max=200, help="Laps, and poses a lap, around the sphere.")
        ] = 50,
        out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
        backend: Annotated[
            str,
            typer.Option(help="auto (here numpy: compiles nothing), numba (cpu), jax, wgsl (gpu)."),
        ] = "auto",
        show: Annotated[bool, typer.Option("--show", help="Open polyscope at the end.")] = False,
        record: Annotated[bool, typer.Option("--record", help="Write films (GIF), too.")] = False,
    ) -> None:
        """Find where a robot was that climbed a sphere, though some of what it saw is wrong."""
        from autograd_gpu.demos import posegraph as demo
        from autograd_gpu.demos.stage import Stage

        demo.main(Stage(out=out, backend=backend, show=show, record=record), laps=laps)

    @app.command()
    @one_message
    def doctor(
        full: Annotated[
            bool, typer.Option("--full", help="Measure the arithmetic of each adapter, too.")
        ] = False,
    ) -> None:
        """Say what this machine has: versions, adapters, linear solvers, threads, extras."""
        examine()
        if full:
            print_self_tests()

    @app.command()
    @one_message
    def inspect(
        function: Annotated[
            str, typer.Argument(metavar="MODULE:FUNCTION", help="A residual function.")
        ],
        width: Annotated[
            str,
            typer.Option(help="Width of each argument: 1 scalar, 3 vector, 3x3 matrix; as 3,3,1."),
        ],
        target: Annotated[str, typer.Option(help="wgsl, numba, jax, or ir (no source).")] = "wgsl",
        product: Annotated[
            str, typer.Option(help="residual, cost or residual_jacobian.")
        ] = "residual_jacobian",
        precision: Annotated[
            str, typer.Option(help="float32 or float64; by default what suits the target.")
        ] = "",
        data: Annotated[
            str, typer.Option(help="Arguments that are data, not differentiated; from 0, as 2,3.")
        ] = "",
    ) -> None:
        """Print what a residual function becomes: key, operations, Jacobian, generated source."""
        for part in inspection(function, width, target, product, precision, data):
            typer.echo(part)

    @app.command()
    @one_message
    def cache(
        clear: Annotated[bool, typer.Option("--clear", help="Remove what is kept.")] = False,
    ) -> None:
        """Say what is kept on disk for the next process, and where; or remove it."""
        if clear:
            ag.cache.clear()
        kept = [row for row in ag.cache.info() if row.where != "memory"]
        rows = [[row.name, f"{row.entries}", f"{row.size / 2**20:.1f} MiB"] for row in kept]
        title = f"Caches in {ag.cache.folder() or 'no folder'}"
        print_table(title, ["kind", "entries", "size"], rows)

    @app.command()
    @one_message
    def bench(
        level: Annotated[int, typer.Option(min=0, max=8, help="Subdivisions of the sphere.")] = 4,
    ) -> None:
        """Time evaluation and solve of the icosphere demo's sphere on each backend."""
        from autograd_gpu.demos import backends, icosphere

        backends.compare(icosphere.sphere(level).problem(), icosphere.OPTIONS)

    return app


def _story(name: str) -> Callable[..., None]:
    """The command of a demo that takes nothing but the options all stories share."""
    import typer

    def command(
        out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("out"),
        backend: Annotated[
            str, typer.Option(help="auto, numba (cpu), jax, wgsl (gpu) or numpy.")
        ] = "auto",
        show: Annotated[bool, typer.Option("--show", help="Open polyscope at the end.")] = False,
        record: Annotated[bool, typer.Option("--record", help="Write films (GIF), too.")] = False,
    ) -> None:
        from autograd_gpu.demos.stage import Stage

        module: Any = importlib.import_module(f"autograd_gpu.demos.{name}")
        module.main(Stage(out=out, backend=backend, show=show, record=record))

    return command


# -- inspect ------------------------------------------------------------------------------------


def inspection(
    function: str, width: str, target: str, product: str, precision: str, data: str
) -> list[str]:
    """What ``inspect`` prints, part by part.

    Raises:
        InputError: an option cannot be read, or there is no such function.
        TraceError: the function cannot be traced.
    """
    if target not in TARGETS:
        raise InputError(f"--target={target!r} is unknown; expected one of {', '.join(TARGETS)}")
    fn, widths = find_function(function), parse_widths(width)
    _require_arity(fn, len(widths), function)
    graph = ag.trace(fn, *widths)
    positions = _integers("--data", data)
    outside = [k for k in positions if k >= len(graph.arguments)]
    if outside:
        raise InputError(
            f"--data={data!r}: {function} has {len(graph.arguments)} arguments, counted from 0"
        )
    jacobian = ag.simplify(ag.jacobian(graph))
    parts = [
        f"topology key  {graph.key}",
        f"residual      {graph.stats}",
        f"Jacobian      {jacobian.stats}",
        f"\n# residual\n{graph}",
        f"\n# Jacobian\n{jacobian}",
    ]
    if target == "ir":
        return parts
    compile_to = {
        "wgsl": ag.compile_to_wgsl,
        "numba": ag.compile_to_numba,
        "jax": ag.compile_to_jax,
    }[target]
    wanted = precision or ("float32" if target == "wgsl" else "float64")
    source = compile_to(graph, product=product, precision=wanted, data=positions)
    return [*parts, f"\n# {target}, {product}, {wanted}\n{source.source}"]


def find_function(name: str) -> Callable[..., Any]:
    """The function at ``module:function``, the current folder included."""
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        raise InputError(f"{name!r}: expected module:function, such as my_energies:spring")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"module {module_name!r} cannot be imported from {folder!r} or the installed "
            f"packages ({error}); check the name, without .py"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(f"{name!r}: {module_name!r} has no {path!r}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{name!r} is of type {type(found).__name__}, expected a function")
    return found


def _require_arity(fn: Callable[..., Any], count: int, name: str) -> None:
    try:
        wanted = signature(fn)
    except ValueError:  # some builtins do not tell
        return
    try:
        wanted.bind(*range(count))
    except TypeError as error:
        raise InputError(
            f"--width has {count} widths, but the arguments of {name} are {wanted} ({error})"
        ) from error


def parse_widths(text: str) -> list[int | tuple[int, ...]]:
    """Read ``3,3x3,1``."""
    if not re.fullmatch(r"\s*\d+(x\d+)?(\s*,\s*\d+(x\d+)?)*\s*", text):
        raise InputError(f"--width={text!r}: expected widths such as 3,3,1 or 3,3x3")
    return [
        tuple(map(int, part.split("x"))) if "x" in part else int(part) for part in text.split(",")
    ]


def _integers(option: str, text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\s*(\d+(\s*,\s*\d+)*)?\s*", text):
        raise InputError(f"{option}={text!r}: expected positions such as 2 or 2,3")
    return tuple(int(part) for part in text.split(",") if part.strip())


# -- doctor -------------------------------------------------------------------------------------


def examine() -> None:
    """Print what ``doctor`` prints."""
    from autograd_gpu.runtime.threads import available_threads
    from autograd_gpu.solvers.sparse_cholesky import available_sparse_cholesky

    extras = requirements_by_extra()
    versions = [("Python", f"{platform.python_version()} on {platform.platform()}")]
    versions += [(name, version_of(name) or "MISSING") for name in (DISTRIBUTION, *extras[""])]
    print_table("Versions", ["package", "version"], versions)
    _print_adapters()
    print_table(
        "Sparse Cholesky, fastest first; the first one found is used",
        ["library", "found", "version, or how to install it"],
        [
            (name, "yes" if found else "no", text)
            for name, found, text in available_sparse_cholesky()
        ],
    )
    print_table(
        "Extras",
        ["extra", "state", "install with"],
        [
            (extra, _state(packages), f"pip install '{DISTRIBUTION}[{extra}]'")
            for extra, packages in extras.items()
            if extra not in ("", "test", "dev")
        ],
    )
    say(f"Numba runs on {available_threads()} threads.")


def print_self_tests() -> None:
    """Print how accurate every op is on each adapter, in each number type that it has."""
    from autograd_gpu.runtime.device import Device
    from autograd_gpu.runtime.op_accuracy import (
        SPECIAL_NAME,
        ULP,
        available_precisions,
        full_self_test,
    )

    try:
        found = ag.devices()
    except (DeviceError, MissingDependencyError):
        return
    # OpenGL shows the same devices a second time.
    direct = [info for info in found if not info.backend.startswith("OpenGL")] or found
    for info in direct:
        device = Device(info)
        verdicts = [full_self_test(device, p) for p in available_precisions(device)]
        rows: list[list[str]] = []
        for k, first in enumerate(verdicts[0].measurements):
            cells = [first.operation]
            for verdict in verdicts:
                m = verdict.measurements[k]
                if m.operation == SPECIAL_NAME:
                    text = "right" if m.passed else f"{m.error:.0f} results are wrong"
                else:
                    text = f"{m.error / ULP[verdict.precision]:.1f}"
                cells.append(text if m.passed else f"{text} FAILS")
            rows.append(cells)
        units = ", ".join(f"2^{math.log2(ULP[v.precision]):.0f} {v.precision}" for v in verdicts)
        title = f"Self-test of {device.name}: worst error by op, in units of {units}"
        print_table(title, ["op", *(v.precision for v in verdicts)], rows)
        device.close()


def requirements_by_extra() -> Mapping[str, list[str]]:
    """Names of the packages that each extra asks for; those of no extra under an empty name."""
    found: dict[str, list[str]] = {"": []}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        name = re.match(r"[\w.-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", line)
        if name is not None:
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return found


def version_of(package: str) -> str | None:
    """Installed version, None where the package is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _state(packages: Sequence[str]) -> str:
    missing = [name for name in packages if version_of(name) is None]
    return f"missing {', '.join(missing)}" if missing else "present"


def _print_adapters() -> None:
    from autograd_gpu.runtime.device import OPTIONAL_FEATURES

    try:
        adapters = ag.devices()
    except (DeviceError, MissingDependencyError) as error:
        say(f"WebGPU adapters: none; {error}")
        return
    if not adapters:
        say(
            "WebGPU adapters: none, so backend='wgsl' is not to be had and Numba does the work. "
            "Install a Vulkan driver (Debian and Ubuntu: mesa-vulkan-drivers)."
        )
        return
    rows = [
        ("adapter", *(f"{a.name}{' (software)' if a.is_software else ''}" for a in adapters)),
        ("type", *(a.adapter_type for a in adapters)),
        ("API", *(a.backend for a in adapters)),
        ("driver", *(a.driver for a in adapters)),
    ]
    for limit in MAIN_LIMITS:
        rows.append((limit, *(f"{a.limits.get(limit, 0):,}" for a in adapters)))
    for feature in OPTIONAL_FEATURES:
        rows.append((feature, *("yes" if feature in a.features else "no" for a in adapters)))
    columns = ["", "used by default", *("also here" for _ in adapters[1:])]
    print_table("WebGPU adapters: limits and the optional features in use", columns, rows)
