"""``as_jax``: one name for graphs, problems and the solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.solution import Solution
from autograd_gpu.solvers.solve import solve

from ..errors import InputError
from ..ir import Graph
from .jax_graphs import graph_as_jax
from .jax_problems import JaxResiduals
from .jax_solves import JaxMinimum


@overload
def as_jax(what: Graph) -> Callable[..., Any]: ...
@overload
def as_jax(what: Problem) -> JaxResiduals: ...
@overload
def as_jax(what: Callable[..., Solution], problem: Problem, **keywords: Any) -> JaxMinimum: ...
def as_jax(what: Any, problem: Problem | None = None, **keywords: Any) -> Any:
    """A pure JAX function, which composes with ``jit``, ``grad``, ``vmap`` and the rest.

    Args:
        what:

            * a graph: a function of one array per argument, of one element (``jax.vmap`` makes a
              batch); its derivatives, to any order, follow the op table, singular points included;
            * a problem: ``residuals(values, data=None)``, all residuals at ``{name: array}``, in
              the order of ``Problem.evaluate``; ½‖·‖² is the cost, robust losses included, and
              ``.cost(values, data=None)`` adds the energies. Data arguments are those of
              ``Problem.update``; those of rows of varying length stay as they are;
            * ``ag.solve``, with a problem: ``minimum(data=None)``, ``{name: array}`` at the
              minimum, from the problem's start. Its reverse-mode derivatives by the data come from
              the implicit function theorem. It is called on the host, where it runs on whatever
              backend ``ag.solve`` takes; ``jax.vmap`` solves one after another.
        problem: what to solve, copied now.
        keywords: of ``ag.solve``; without ``options`` the tolerances are tight.

    What comes back is in the type that the arrays given promote to. On a manifold ``values`` are
    ambient numbers, and derivatives are by those.

    Raises:
        InputError: something else; to solve, a problem on a manifold, with bounds or
            constraints, or ``backend="jax"``.
        MissingDependencyError: JAX is not installed.
    """
    if what is solve:
        if not isinstance(problem, Problem):
            raise InputError(
                f"as_jax(ag.solve, problem): got {type(problem).__name__}, expected an ag.Problem"
            )
        return JaxMinimum(problem, **keywords)
    if problem is not None or keywords:
        raise InputError("as_jax: a problem and keywords go with ag.solve, as the first argument")
    if isinstance(what, Graph):
        return graph_as_jax(what)
    if isinstance(what, Problem):
        return JaxResiduals(what)
    raise InputError(
        f"as_jax: got {type(what).__name__}, expected a graph, an ag.Problem, or ag.solve"
    )
