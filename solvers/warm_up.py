"""``ag.warm_up``: everything that a solve compiles, compiled before it."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from autograd_gpu.solvers.device_levenberg_marquardt import DeviceLevenbergMarquardt
from autograd_gpu.solvers.driver import Engine
from autograd_gpu.solvers.evaluation import current_parameters
from autograd_gpu.solvers.host_engine import NormalEquationsEngine
from autograd_gpu.solvers.mixed_engine import MixedEngine, MovingUp
from autograd_gpu.solvers.options import SolverOptions
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.solve import Request

if TYPE_CHECKING:
    from autograd_gpu.runtime.device import Device


def warm_up(
    problem: Problem,
    method: str = "auto",
    linear_solver: str = "auto",
    options: SolverOptions | None = None,
    backend: str = "auto",
    precision: str = "auto",
    device: Device | str | None = None,
) -> float:
    """Compile everything that ``ag.solve`` with these arguments needs, without solving.

    Residual functions are traced already; what is done here is differentiation, generated text,
    pipelines (in parallel on ``wgsl``), machine code (one function after another, since Numba
    compiles under locks), the pattern of JᵀJ and the upload of data. No residual is evaluated,
    except on ``jax``, which compiles when it is called. A solve then compiles nothing, of this
    problem, or of one with the same residual functions and other data.

    Args:
        problem: that will be solved.
        method: as for ``ag.solve``, like all that follow.
        linear_solver: likewise.
        options: likewise.
        backend: likewise.
        precision: likewise.
        device: likewise.

    Returns:
        seconds that it took.

    Raises:
        InputError, PrecisionError, DeviceError, KernelError: as ``ag.solve`` before it iterates.
    """
    began = time.perf_counter()
    request = Request(problem, method, linear_solver, options, backend, precision, device)
    with problem.in_use(), request.structure() as analysis:
        plan = request.plan(analysis)
        start = current_parameters(problem)
        with closing(plan.engine(analysis, start, plan.options, {})) as engine:
            _warm(engine)
    return time.perf_counter() - began


def _warm(engine: Engine) -> None:
    """Engines of gradient methods have compiled everything when they are made."""
    if isinstance(engine, MovingUp):
        resident, host = engine.warm_up()
        _warm(resident)
        with closing(host):
            _warm(host)
    elif isinstance(engine, DeviceLevenbergMarquardt | MixedEngine | NormalEquationsEngine):
        engine.warm_up()
