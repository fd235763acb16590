"""``as_jax``: one name for graphs, problems and the solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from autograd_gpu.solvers.problem import Problem

from ..errors import InputError
from ..ir import Graph
from .jax_graphs import graph_as_jax
from .jax_problems import JaxResiduals


@overload
def as_jax(what: Graph) -> Callable[..., Any]: ...
@overload
def as_jax(what: Problem) -> JaxResiduals: ...
def as_jax(what: Any) -> Any:
    """A pure JAX function, which composes with ``jit``, ``grad``, ``vmap`` and the rest.

    Args:
        what:

            * a graph: a function of one array per argument, of one element (``jax.vmap`` makes a
              batch); its derivatives, to any order, follow the op table, singular points included;
            * a problem: ``residuals(values, data=None)``, all residuals at ``{name: array}``, in
              the order of ``Problem.evaluate``; ½‖·‖² is the cost, robust losses included, and
              ``.cost(values, data=None)`` adds the energies. Data
              arguments are those of ``Problem.update``; those of rows of varying length stay.

    What comes back is in the type that the arrays given promote to.

    Raises:
        InputError: something else.
        MissingDependencyError: JAX is not installed.
    """
    if isinstance(what, Graph):
        return graph_as_jax(what)
    if isinstance(what, Problem):
        return JaxResiduals(what)
    raise InputError(f"as_jax: got {type(what).__name__}, expected a graph or an ag.Problem")
