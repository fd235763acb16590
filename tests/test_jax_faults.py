"""Drills on JAX: memory runs out, the device fails; and what its calls look like from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from autograd_gpu.errors import DeviceError, DeviceMemoryError
from autograd_gpu.meshes import energies
from tolerances import GRAPH, tolerance

jax = pytest.importorskip("jax")

from autograd_gpu.runtime import jax_backend, jax_calls, jax_functions, jax_solve  # noqa: E402 - after the skip

each_driver = pytest.mark.parametrize(
    "linear_solver", ["sparse-cholesky", "pcg"], ids=["host", "resident"]
)
EXACT = tolerance("float64", GRAPH)
OPTIONS = ag.LevenbergMarquardtOptions(initial_damping=10.0)
MEMORY = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123456789 bytes."
FAILURE = "INTERNAL: Failed to execute XLA Runtime: CUDA_ERROR_ILLEGAL_ADDRESS"

Refuse = Callable[[str, int], str | None]
"""From a kernel's name and the number of elements: JAX's message if the call fails, or None."""


def springs() -> ag.Problem:
    mesh = ag.meshes.icosphere(2)
    i, j = mesh.edges.T
    rest = mesh.edge_lengths * np.random.default_rng(0).uniform(0.8, 1.2, len(i))
    problem = ag.Problem()
    x = problem.parameters("x", 1.2 * mesh.vertices)
    problem.add_residuals(energies.spring, x[i], x[j], rest, name="springs")
    problem.add_residuals(lambda p, q: 0.3 * (p - q), x, mesh.vertices, name="anchors")
    return problem


def solve(linear_solver: str, **options: Any) -> ag.Solution:
    return ag.solve(
        springs(), backend="jax", linear_solver=linear_solver, options=OPTIONS, **options
    )


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Refuse], None]:
    """Lets calls fail as XLA does."""

    def inject(rule: Refuse) -> None:
        def call(name: str, function: Any, /, *arguments: Any, **options: Any) -> Any:
            message = rule(name, options.get("count", 0))
            if message is not None:
                raise jax.errors.JaxRuntimeError(message)
            return jax_calls.call(name, function, *arguments, **options)

        for module in (jax_backend, jax_solve):
            monkeypatch.setattr(module, "call", call)

    return inject


@each_driver
def test_memory_that_runs_out_at_a_step(
    refuse: Callable[[Refuse], None], linear_solver: str
) -> None:
    """A resident solve takes its steps on the host; batches of these pass in pieces."""
    undisturbed = solve(linear_solver)
    steps = [0]

    def rule(name: str, count: int) -> str | None:
        return MEMORY if steps[0] >= 2 and (name == "step" or count > 200) else None

    refuse(rule)
    solution = solve(linear_solver, callback=lambda r: steps.__setitem__(0, r.iteration))
    assert solution.success and solution.backend == "jax" and "pieces" in solution.device
    words = " | ".join(solution.faults)
    assert "at step 3; resumed from the last accepted point" in words
    assert ("with steps on the host" in words) == (linear_solver == "pcg")
    assert "in smaller pieces" in words
    reached = solution.history[2].cost
    assert all(r.cost <= reached * (1 + 1e-12) for r in solution.history[2:])
    assert solution.cost == pytest.approx(undisturbed.cost, rel=1e-6)


@each_driver
def test_a_device_that_fails_leaves_the_cpu(
    refuse: Callable[[Refuse], None], linear_solver: str
) -> None:
    steps = [0]
    refuse(lambda *_: FAILURE if steps[0] >= 2 else None)
    with pytest.warns(RuntimeWarning, match="failed at step 3; resumed from the last accepted"):
        solution = solve(linear_solver, callback=lambda r: steps.__setitem__(0, r.iteration))
    assert solution.success and solution.backend == "numba"
    assert "ILLEGAL_ADDRESS" in solution.faults[0]
    assert solution.history[3].cost <= solution.history[2].cost
    assert solution.cost == pytest.approx(ag.solve(springs(), backend="numba").cost, rel=1e-6)


def test_a_large_point_stays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    small = solve("pcg")
    monkeypatch.setattr(jax_solve, "LARGEST_POINT", 0)
    jax_solve._jitted_step.cache_clear()  # pyright: ignore[reportPrivateUsage]
    with ag.telemetry() as heard:
        large = solve("pcg")
    jax_solve._jitted_step.cache_clear()  # pyright: ignore[reportPrivateUsage]
    assert np.array_equal(small.values["x"], large.values["x"])
    steps = {b.name: b.bytes_down for b in heard.buffers if b.bytes_down}
    assert steps["step"] == large.iterations * 8 * len(jax_solve.RECORD)
    assert steps["point"] >= small.values["x"].nbytes


@each_driver
@pytest.mark.parametrize(
    ("message", "kind"), [(MEMORY, DeviceMemoryError), (FAILURE, DeviceError)], ids=["memory", ""]
)
def test_what_fails_from_the_start_is_named(
    refuse: Callable[[Refuse], None], linear_solver: str, message: str, kind: type[Exception]
) -> None:
    refuse(lambda *_: message)
    with pytest.raises(kind, match=r"\(JAX\) .*(memory_budget|ILLEGAL_ADDRESS)") as raised:
        solve(linear_solver)
    assert type(raised.value) is kind


def test_other_words_for_no_memory_are_understood() -> None:
    """Transfers say it by a ValueError; other ValueErrors are the user's, and stay."""
    with pytest.raises(DeviceMemoryError), jax_calls.jax_errors("upload of data"):
        raise ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 4000000 bytes.")
    with pytest.raises(DeviceMemoryError), jax_calls.jax_errors("a step"):
        # Seen on an H200: no kernel could be tried out, so none was found.
        raise jax.errors.JaxRuntimeError(
            "NOT_FOUND: All configs failed during profiling. EXECUTION FAILED: "
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 16.00MiB"
        )
    with pytest.raises(ValueError, match="axes"), jax_calls.jax_errors("upload of data"):
        raise ValueError("axes")


def test_evaluations_in_pieces(refuse: Callable[[Refuse], None]) -> None:
    whole = springs().evaluate(backend="jax")
    problem = springs()
    problem.memory_budget = 30_000
    pieces = problem.evaluate(backend="jax")
    assert "pieces" in pieces.device and "pieces" not in whole.device
    refuse(lambda _, count: MEMORY if count > 200 else None)
    forced = springs().evaluate(backend="jax")
    assert "pieces" in forced.device
    for found in (pieces, forced):
        EXACT.check(found.residuals, whole.residuals, "residuals")
        EXACT.check(found.jacobian.data, whole.jacobian.data, "Jacobian")
        EXACT.check(found.cost, whole.cost, "cost")


# -- telemetry ---------------------------------------------------------------------------------


def test_calls_are_timed_and_bytes_are_counted() -> None:
    problem = springs()
    x, rows = problem.values_of(problem.arrays[0]), 480 + 3 * 162
    jax_functions._jitted.clear()  # pyright: ignore[reportPrivateUsage]
    with ag.telemetry() as first:
        problem.evaluate(backend="jax")
    for name in ("residual_jacobian", "cost"):
        kernels = [k for k in first.kernels if k.name.rpartition("_")[0] == name]
        assert all(k.run_seconds > 0.0 and k.compile_seconds > 0.0 for k in kernels)
        assert sum(k.elements for k in kernels) == 480 + 162
    assert first.totals["compiled"] == 4 and first.totals["compile_seconds"] > 0.0
    buffers = {b.name: b for b in first.buffers}
    # Twice the parameters, all residuals, and all that varies of J.
    assert buffers["parameters"].bytes_up == 2 * x.nbytes
    assert buffers["data"].bytes_up >= 8 * (480 + 3 * 162) + 4 * 2 * 480
    assert buffers["residual_jacobian"].bytes_down == 8 * (rows + 6 * 480)
    with ag.telemetry() as second:
        problem.evaluate(backend="jax")
    assert second.totals["compiled"] == 0 and "data" not in {b.name for b in second.buffers}


def test_a_resident_solve_is_heard_and_not_advised_against() -> None:
    with ag.telemetry() as heard:
        solution = solve("pcg", callback=None)
    (step,) = [k for k in heard.kernels if k.name == "step"]
    assert step.runs == solution.iterations >= 10 > 0 < step.run_seconds
    (down,) = [b for b in heard.buffers if b.bytes_down]
    assert down.downloads == solution.iterations
    assert "read-backs in a loop" not in {a.kind for a in heard.advice()}


def test_nothing_waits_unless_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(x) or x)
    springs().evaluate(backend="jax")
    solve("pcg")
    assert not waited
    with ag.telemetry():
        springs().evaluate(backend="jax")
    assert waited
