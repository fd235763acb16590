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
    return _loaded("sympy", "to_sympy and from_sympy", "sympy")


def load_networkx() -> Any:
    """The package ``networkx``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    return _loaded("networkx", "to_networkx and draw", "networkx")


def load_figure() -> tuple[Any, Any]:
    """Matplotlib's class of figures, and of the canvas that writes them to files.

    Raises:
        MissingDependencyError: it is not installed.
    """
    figure = _loaded("matplotlib.figure", "draw", "matplotlib")
    canvas = _loaded("matplotlib.backends.backend_agg", "draw", "matplotlib")
    return figure.Figure, canvas.FigureCanvasAgg


def _loaded(module: str, what: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"ag.interop: {what} need the package {package}: pip install autograd-gpu[interop]"
        ) from error
