"""Bridges to SymPy, networkx and JAX, each of which loads when it is first needed."""

from __future__ import annotations

from .jax_bridge import as_jax
from .jax_tracing import from_jax
from .networkx_graphs import draw, to_networkx
from .sympy_expressions import Symbolic, to_sympy
from .sympy_writer import from_sympy

__all__ = ["Symbolic", "as_jax", "draw", "from_jax", "from_sympy", "to_networkx", "to_sympy"]
