"""Loading the libraries at the other end of a bridge."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import MissingDependencyError


def load_sympy() -> Any:
    """The package ``sympy``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module("sympy")
    except ImportError as error:
        raise _missing("to_sympy and from_sympy", "sympy") from error


def load_networkx() -> Any:
    """The package ``networkx``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return import_module("networkx")
    except ImportError as error:
        raise _missing("to_networkx and draw", "networkx") from error


def load_figure() -> tuple[Any, Any]:
    """Matplotlib's class of figures, and of the canvas that writes them to files.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        figure: Any = import_module("matplotlib.figure")
        canvas: Any = import_module("matplotlib.backends.backend_agg")
    except ImportError as error:
        raise _missing("draw", "matplotlib") from error
    return figure.Figure, canvas.FigureCanvasAgg


def _missing(what: str, package: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"ag.interop: {what} need the package {package}: pip install autograd-gpu[interop]"
    )
