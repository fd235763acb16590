"""``ag.solve`` as a JAX function of data, differentiated by the implicit function theorem.

At a minimum x(d) of the cost c(x, d) the gradient vanishes, so with H = ∂²c/∂x² the derivative is
∂x/∂d = -H⁻¹ ∂²c/∂x∂d. H is the whole Hessian, not JᵀJ: residuals need not vanish. A cotangent v of
x thus gives -(∂²c/∂x∂d)ᵀ H⁻¹ v, one linear solve.

The solve and the factorisation of H run on the host in float64, through ``pure_callback``; products
with H and with mixed derivatives are JAX code, so derivatives of derivatives exist too.
Source: Krantz and Parks 2002, "The implicit function theorem"; Blondel et al. 2022, §2.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from autograd_gpu.codegen.kernel import Product, make_kernel, topology_of
from autograd_gpu.codegen.second_order import SecondOrder, second_order
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.solution import Solution
from autograd_gpu.solvers.solve import solve

from ..errors import InputError, SolveError
from ..runtime.batch import BoundGroup, FloatArray
from ..runtime.jax_functions import load_jax
from ..runtime.numpy_backend import NumpySession
from .jax_graphs import as_floats
from .jax_problems import Data, JaxResiduals

WORST_SOLVE = 1e-6
"""Relative residual of a linear solve beyond which the matrix counts as singular."""

Blocks = dict[str, Any]
"""An array for each parameter name, of the problem's shapes."""

TIGHT = LevenbergMarquardtOptions(
    max_iterations=200,
    function_tolerance=1e-14,
    gradient_tolerance=1e-12,
    parameter_tolerance=1e-12,
)
MOST_POLISHING_STEPS = 5
"""Of Newton's method after a solve, until the gradient is rounding: the theorem speaks of minima,
and where costs differ by a rounding, x may be off by its square root."""


class JaxMinimum:
    """The minimum of a problem as a function of its data; see ``as_jax``.

    Args:
        problem: copied; later changes of it are not seen.
        keywords: of ``ag.solve``.

    Raises:
        InputError: parameters on a manifold or with bounds, constraints, or ``backend="jax"``.
    """

    def __init__(self, problem: Problem, **keywords: Any) -> None:
        self._residuals = JaxResiduals(problem)
        self._host = _Host(self._residuals.problem, keywords)

    def __call__(self, data: Data | None = None) -> Blocks:
        """Parameter name -> array at the minimum.

        Args:
            data: residuals -> argument -> array, as in ``Problem.update``; weights and parameters
                of losses are such arguments. What is left out keeps the problem's numbers.
        """
        _, flat = self._residuals.checked({}, data)
        names = list(flat)
        given, dtype = as_floats(list(flat.values()))
        return _Implicit(self._residuals, self._host, names, dtype).function(given)


class _Implicit:
    """``data arrays -> minimum`` and its reverse-mode derivative.

    Args:
        residuals: the problem in JAX.
        host: the problem outside.
        names: residuals and argument of each data array.
        dtype: of all arrays.
    """

    def __init__(
        self, residuals: JaxResiduals, host: _Host, names: list[tuple[str, str]], dtype: Any
    ) -> None:
        jax = load_jax()
        self._residuals, self._host, self._names, self._dtype = residuals, host, names, dtype
        self._shapes = {k: jax.ShapeDtypeStruct(s, dtype) for k, s in residuals.shapes.items()}
        # NumPy's: an array that JAX made inside a trace does not outlive it, and this does.
        self._free = {name: mask.astype(dtype) for name, mask in host.free.items()}
        self.function = jax.custom_vjp(self._minimum)
        self.function.defvjp(self._forward, self._backward)

    def _nested(self, data: Sequence[Any]) -> dict[str, dict[str, Any]]:
        made: dict[str, dict[str, Any]] = {}
        for (group, argument), array in zip(self._names, data, strict=True):
            made.setdefault(group, {})[argument] = array
        return made

    def _on_host(self, function: Callable[..., Blocks], *arguments: Any) -> Blocks:
        """A function of the host, ``(…, data)``; under ``vmap`` one call after another."""

        def call(*numbers: Any) -> Blocks:
            blocks = function(*numbers[:-1], self._nested(numbers[-1]))
            return {name: array.astype(self._dtype) for name, array in blocks.items()}

        return load_jax().pure_callback(call, self._shapes, *arguments, vmap_method="sequential")

    def _gradient(self, x: Blocks, data: list[Any]) -> Blocks:
        slope = load_jax().grad(self._residuals.cost)(x, self._nested(data))
        return _times(slope, self._free)

    def _minimum(self, data: list[Any]) -> Blocks:
        return self._on_host(self._host.minimum, data)

    def _forward(self, data: list[Any]) -> tuple[Blocks, tuple[Blocks, list[Any]]]:
        # Not the callback itself: derivatives of derivatives come back here.
        x = self.function(data)
        return x, (x, data)

    def _backward(self, saved: tuple[Blocks, list[Any]], cotangent: Blocks) -> tuple[list[Any]]:
        jax = load_jax()
        x, data = saved

        def at_data(z: Blocks) -> Blocks:
            return self._gradient(z, data)

        def at_x(d: list[Any]) -> Blocks:
            return self._gradient(x, d)

        def product(v: Blocks) -> Blocks:
            """H on free numbers, the identity on frozen ones."""
            inside = _times(v, self._free)
            image = jax.jvp(at_data, (x,), (inside,))[1]
            return {name: image[name] + (v[name] - inside[name]) for name in v}

        def factorised(_: Any, right: Blocks) -> Blocks:
            return self._on_host(self._host.hessian_solve, x, right, data)

        right = _times(cotangent, self._free)
        solved = jax.lax.custom_linear_solve(product, right, factorised, symmetric=True)
        (by_data,) = jax.vjp(at_x, data)[1](solved)
        return ([-g for g in by_data],)


def _times(a: Blocks, b: Blocks) -> Blocks:
    return {name: a[name] * b[name] for name in a}


class _Host:
    """Solves and factorises, in float64; a private problem, one caller at a time.

    Attributes:
        free: parameter name -> 1 where a number may move, 0 where its block is frozen.
    """

    def __init__(self, problem: Problem, keywords: dict[str, Any]) -> None:
        if any(array.chart is not None for array in problem.arrays):
            raise InputError(
                "as_jax(ag.solve, problem): the problem has parameters on a manifold, by which "
                "minima are not differentiated yet"
            )
        if problem.bounds:
            raise InputError(
                f"as_jax(ag.solve, problem): parameters {next(iter(problem.bounds))!r} have "
                "bounds, where the gradient need not vanish; freeze what lies at its bound, and "
                "leave the bounds out"
            )
        if problem.constraints:
            raise InputError(
                "as_jax(ag.solve, problem): the problem has constraints, whose multipliers the "
                "derivative of a minimum leaves out; make them residuals with a large weight"
            )
        if keywords.get("backend") == "jax":
            raise InputError(
                "as_jax(ag.solve, problem): backend 'jax' cannot run inside a callback of JAX; "
                "leave it to 'auto', or take 'numba' or 'wgsl'"
            )
        self._problem = problem
        self._keywords: dict[str, Any] = {"precision": "float64", **keywords}
        if "method" not in keywords:
            self._keywords.setdefault("options", TIGHT)
        self._lock = threading.Lock()
        self.free: dict[str, FloatArray] = {}
        for array in problem.arrays:
            mask = np.ones_like(problem.values_of(array))
            mask[problem.frozen_of(array)] = 0.0
            self.free[array.name] = mask

    def minimum(self, data: Data) -> Blocks:
        """The minimum for these data, from the problem's start.

        Raises:
            SolveError: the solve did not converge.
        """
        with self._lock:
            self._update(data)
            solution: Solution = solve(self._problem, **self._keywords)
            if not solution.success:
                raise SolveError(
                    "as_jax(ag.solve, problem): no minimum to differentiate: "
                    f"{solution.status.value}, {solution.message}; pass options with more "
                    "iterations"
                )
            return self._by_name(self._polished(self._flat(solution.values)))

    def hessian_solve(self, values: Blocks, right: Blocks, data: Data) -> Blocks:
        """H⁻¹ right at a point; frozen blocks give 0.

        Raises:
            SolveError: H is singular.
        """
        with self._lock:
            self._update(data)
            free = self._problem.analysis().free_positions
            _, hessian = self._derivatives(self._flat(values))
            result = np.zeros(self._problem.analysis().parameter_count)
            result[free] = _solved(hessian, self._flat(right)[free])
            return self._by_name(result)

    def _flat(self, blocks: Mapping[str, Any]) -> FloatArray:
        arrays = self._problem.arrays
        return np.concatenate([np.ravel(np.asarray(blocks[a.name], np.float64)) for a in arrays])

    def _by_name(self, flat: FloatArray) -> Blocks:
        base = self._problem.analysis().base
        return {
            name: flat[base[name] : base[name] + mask.size].reshape(mask.shape)
            for name, mask in self.free.items()
        }

    def _polished(self, x: FloatArray) -> FloatArray:
        free = self._problem.analysis().free_positions
        gradient, hessian = self._derivatives(x)
        for _ in range(MOST_POLISHING_STEPS):
            try:
                step = _solved(hessian, gradient)
            except SolveError:
                break  # a minimum that is no point: as good as the solve left it
            trial = x.copy()
            trial[free] -= step
            after = self._derivatives(trial)
            if not np.linalg.norm(after[0]) < np.linalg.norm(gradient):
                break
            x, (gradient, hessian) = trial, after
        return x

    def _update(self, data: Data) -> None:
        numbers = {
            group: {name: np.asarray(array, np.float64) for name, array in of_group.items()}
            for group, of_group in data.items()
        }
        if numbers:
            self._problem.update(data=numbers)

    def _derivatives(self, parameters: FloatArray) -> tuple[FloatArray, Any]:
        """Gradient and Hessian (sparse CSC) of the cost, by the columns of J."""
        from scipy.sparse import csc_array

        analysis = self._problem.analysis()
        groups = (*analysis.groups, *analysis.energies)
        made = [_second_order(g, k >= len(analysis.groups)) for k, g in enumerate(groups)]
        with NumpySession([d for d, _ in made], analysis.parameter_count, "float64") as session:
            outputs = session.residuals(parameters)
        n, first = analysis.column_count, 0
        gradient = np.zeros(n)
        parts: list[tuple[Any, Any, Any]] = []
        for group, (_, order) in zip(groups, made, strict=True):
            last = first + group.count * order.output_size
            rows = outputs[first:last].reshape(group.count, order.output_size)
            _, gradients, hessians = order.unpack(rows)
            first = last
            at = analysis.columns_of_elements(group)
            np.add.at(gradient, at[at >= 0], gradients[at >= 0])
            i, j = np.broadcast_arrays(at[:, :, None], at[:, None, :])
            kept = (i >= 0) & (j >= 0)
            parts.append((hessians[kept], i[kept], j[kept]))
        entries, i, j = (np.concatenate(column) for column in zip(*parts, strict=True))
        return gradient, csc_array((entries, (i, j)), shape=(n, n))


def _second_order(group: BoundGroup, energy: bool) -> tuple[BoundGroup, SecondOrder]:
    """Value, gradient and Hessian of what each element adds to the cost, as a group."""
    topology, bindings = group.topology, group.bindings
    if not energy:
        kernel = make_kernel(topology, Product.COST)
        topology = topology_of(kernel.graph, kernel.slots)
        bindings = tuple(bindings[a] for a in topology.arguments)
    order = second_order(topology)
    derived = BoundGroup(
        name=group.name,
        topology=order.topology,
        count=group.count,
        bindings=tuple(bindings[a] for a in order.topology.arguments),
        elements=group.elements,
    )
    return derived, order


def _solved(hessian: Any, right: FloatArray) -> FloatArray:
    linalg: Any = import_module("scipy.sparse.linalg")
    try:
        solution: FloatArray = np.asarray(linalg.splu(hessian).solve(right))
    except RuntimeError as error:
        raise _singular() from error
    missing: FloatArray = np.asarray(hessian @ solution) - right
    if not np.linalg.norm(missing) <= WORST_SOLVE * np.linalg.norm(right):
        raise _singular()
    return solution


def _singular() -> SolveError:
    return SolveError(
        "as_jax(ag.solve, problem): the Hessian at the minimum is singular, so the minimum is no "
        "function of the data; fix what no residual sees by a weak anchor or problem.freeze"
    )
