"""Bridges to SymPy, networkx and JAX, each of which loads when it is first needed."""

from __future__ import annotations

from .networkx_graphs import draw, to_networkx
from .sympy_expressions import Symbolic, to_sympy
from .sympy_writer import from_sympy

__all__ = ["Symbolic", "draw", "from_sympy", "to_networkx", "to_sympy"]
