"""Scalar residual functions in plain Python, compiled to batched kernels and solved.

The public face: everything here is re-exported, nothing is defined.
"""

from __future__ import annotations

from autograd_gpu import estimation as estimation
from autograd_gpu import geometry as geometry
from autograd_gpu import interop as interop
from autograd_gpu import losses as losses
from autograd_gpu import manifolds as manifolds
from autograd_gpu import meshes as meshes
from autograd_gpu.codegen.render import compile_to_jax, compile_to_numba, compile_to_wgsl
from autograd_gpu.diff import hessian, hvp, jacobian, jvp, vjp
from autograd_gpu.errors import (
    AutogradGpuError,
    DeviceError,
    DeviceLimitError,
    DeviceLostError,
    DeviceMemoryError,
    FileFormatError,
    IndexRangeError,
    InputError,
    KernelError,
    MeshError,
    MissingDependencyError,
    PrecisionError,
    ShapeError,
    SolveError,
    TraceError,
)
from autograd_gpu.functions import (
    abs,
    acos,
    asin,
    atan,
    atan2,
    cbrt,
    ceil,
    clip,
    cos,
    cosh,
    cross,
    cube,
    dot,
    erf,
    exp,
    expm1,
    floor,
    hypot,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    max,
    maximum,
    mean,
    min,
    minimum,
    mod,
    norm,
    normalize,
    pow,
    reciprocal,
    relu,
    round,
    sigmoid,
    sign,
    sin,
    sinh,
    softplus,
    sqrt,
    square,
    sum,
    tan,
    tanh,
    where,
)
from autograd_gpu.grids import Grid2D, Grid3D
from autograd_gpu.ir import Graph
from autograd_gpu.matrices import determinant, inverse
from autograd_gpu.probes import probe
from autograd_gpu.quaternion import Quaternion
from autograd_gpu.ragged import Ragged
from autograd_gpu.rewrite import simplify
from autograd_gpu.runtime import caches as cache
from autograd_gpu.runtime.adapters import devices
from autograd_gpu.runtime.batch_executor import GPUBatchExecutor
from autograd_gpu.runtime.choice import enable_gpu
from autograd_gpu.runtime.device import Device
from autograd_gpu.scalar import Scalar
from autograd_gpu.solvers.asynchronous import evaluate_async, solve_async
from autograd_gpu.solvers.compiled_residuals import CompiledResiduals, CompiledResidualsGPU
from autograd_gpu.solvers.curve_fit import curve_fit
from autograd_gpu.solvers.dogleg import DoglegOptions
from autograd_gpu.solvers.first_order import (
    AdamOptions,
    AdamWOptions,
    GradientDescentOptions,
)
from autograd_gpu.solvers.gauss_newton import GaussNewtonOptions
from autograd_gpu.solvers.lbfgs import LBFGSOptions
from autograd_gpu.solvers.least_squares import least_squares
from autograd_gpu.solvers.levenberg_marquardt import LevenbergMarquardtOptions
from autograd_gpu.solvers.nan_search import debug_nans
from autograd_gpu.solvers.newton import NewtonOptions
from autograd_gpu.solvers.options import AugmentedLagrangian, Graduation
from autograd_gpu.solvers.problem import Problem
from autograd_gpu.solvers.scalar_least_squares import NonlinearLeastSquares
from autograd_gpu.solvers.selection import shared
from autograd_gpu.solvers.solution import Solution, Status
from autograd_gpu.solvers.solve import solve
from autograd_gpu.solvers.solve_batch import BatchSolution, solve_batch
from autograd_gpu.solvers.telemetry import telemetry
from autograd_gpu.solvers.tune import Tuning, tune
from autograd_gpu.solvers.warm_up import warm_up
from autograd_gpu.trace import trace
from autograd_gpu.training_losses import (
    binary_cross_entropy_loss,
    categorical_cross_entropy_loss,
    huber_loss,
    mae_loss,
    mse_loss,
    tukey_loss,
)
from autograd_gpu.unknown_names import refuse as __getattr__  # noqa: F401 - asked for absent names
from autograd_gpu.value import Value, no_grad
from autograd_gpu.vector import Mat2, Mat3, Mat4, Matrix, Vec2, Vec3, Vec4, Vector

__all__ = [
    "AdamOptions",
    "AdamWOptions",
    "AugmentedLagrangian",
    "AutogradGpuError",
    "BatchSolution",
    "CompiledResiduals",
    "CompiledResidualsGPU",
    "Device",
    "DeviceError",
    "DeviceLimitError",
    "DeviceLostError",
    "DeviceMemoryError",
    "DoglegOptions",
    "FileFormatError",
    "GPUBatchExecutor",
    "GaussNewtonOptions",
    "GradientDescentOptions",
    "Graduation",
    "Graph",
    "Grid2D",
    "Grid3D",
    "IndexRangeError",
    "InputError",
    "KernelError",
    "LBFGSOptions",
    "LevenbergMarquardtOptions",
    "Mat2",
    "Mat3",
    "Mat4",
    "Matrix",
    "MeshError",
    "MissingDependencyError",
    "NewtonOptions",
    "NonlinearLeastSquares",
    "PrecisionError",
    "Problem",
    "Quaternion",
    "Ragged",
    "Scalar",
    "ShapeError",
    "Solution",
    "SolveError",
    "Status",
    "TraceError",
    "Tuning",
    "Value",
    "Vec2",
    "Vec3",
    "Vec4",
    "Vector",
    "abs",
    "acos",
    "asin",
    "atan",
    "atan2",
    "binary_cross_entropy_loss",
    "cache",
    "categorical_cross_entropy_loss",
    "cbrt",
    "ceil",
    "clip",
    "compile_to_jax",
    "compile_to_numba",
    "compile_to_wgsl",
    "cos",
    "cosh",
    "cross",
    "cube",
    "curve_fit",
    "debug_nans",
    "determinant",
    "devices",
    "dot",
    "enable_gpu",
    "erf",
    "estimation",
    "evaluate_async",
    "exp",
    "expm1",
    "floor",
    "geometry",
    "hessian",
    "huber_loss",
    "hvp",
    "hypot",
    "interop",
    "inverse",
    "jacobian",
    "jvp",
    "least_squares",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "losses",
    "mae_loss",
    "manifolds",
    "max",
    "maximum",
    "mean",
    "meshes",
    "min",
    "minimum",
    "mod",
    "mse_loss",
    "no_grad",
    "norm",
    "normalize",
    "pow",
    "probe",
    "reciprocal",
    "relu",
    "round",
    "shared",
    "sigmoid",
    "sign",
    "simplify",
    "sin",
    "sinh",
    "softplus",
    "solve",
    "solve_async",
    "solve_batch",
    "sqrt",
    "square",
    "sum",
    "tan",
    "tanh",
    "telemetry",
    "trace",
    "tukey_loss",
    "tune",
    "vjp",
    "warm_up",
    "where",
]
