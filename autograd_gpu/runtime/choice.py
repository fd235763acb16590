"""Which backend evaluates a problem, in which precision, and why: one place, said aloud.

The rule is small and hand-set from measurements (docs/performance.md); it takes the features that
a learned model would take.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import DeviceError, InputError
from .batch import SOLVED, BoundGroup, Session

if TYPE_CHECKING:
    from .device import Device

BACKENDS = ("numpy", "numba", "jax", "wgsl")
ALIASES = {"cpu": "numba", "gpu": "wgsl"}
WGSL_PRECISIONS = ("mixed", "float64-native", "float64-emulated")
PRECISIONS = ("auto", "float32", "float64", *WGSL_PRECISIONS)

_RUNS_ON = {
    "numpy": "runs on the CPU",
    "numba": "runs on the CPU",
    "jax": "runs where JAX does (jax.default_device, JAX_PLATFORMS)",
}

GPU_MIN_RESIDUALS = 10_000
"""From here on ``auto`` takes a hardware GPU for float32.

An H200 wins from 800 to 2 500 residuals on (docs/when-the-gpu-wins.md); slower GPUs later, so the
bound is four times that.
"""


@dataclass(slots=True)
class _GpuDefault:
    """What ``enable_gpu`` said; ``enabled`` None until then."""

    enabled: bool | None = None
    min_batch: int = 1024


_GPU_DEFAULT = _GpuDefault()


def enable_gpu(enabled: bool | None = True, min_batch: int = 1024) -> None:
    """Set what ``backend="auto"`` means in this process.

    Args:
        enabled: True takes a GPU (any adapter that WGSL runs on, in float32) from ``min_batch``
            residuals on, unless float64 is asked for; False never takes one; None goes back to
            the rule of the package.
        min_batch: see ``enabled``.

    Raises:
        InputError: ``min_batch`` is below 1.
    """
    if min_batch < 1:
        raise InputError(f"enable_gpu: min_batch={min_batch!r}, expected at least 1")
    _GPU_DEFAULT.enabled, _GPU_DEFAULT.min_batch = enabled, min_batch


_FLOAT64_WORDS = {
    "float64-native": "float64 in the device's own arithmetic",
    "float64-emulated": "float64 as double-float, about 14 digits",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendChoice:
    """A backend and precision that exist here, and the sentence that says why."""

    backend: str
    precision: str
    reason: str
    device: Device | None = None

    @property
    def session_key(self) -> tuple[object, ...]:
        """What distinguishes sessions."""
        return (self.backend, self.precision, id(self.device))


def choose_backend(
    backend: str, precision: str, device: Device | None, residuals: int
) -> BackendChoice:
    """Resolve what the user asked for.

    Args:
        backend: ``auto``, a backend, or an alias.
        precision: ``auto`` or a precision.
        device: for ``wgsl``; None for the default one.
        residuals: number of residuals of the problem.

    Raises:
        InputError: unknown backend or precision.
        DeviceError: ``wgsl`` was asked for and no adapter exists.
        MissingDependencyError: ``jax`` was asked for and is not installed.
        PrecisionError: the device cannot give the precision, or fails its self-test.
    """
    wanted = ALIASES.get(backend, backend)
    if wanted != "auto" and wanted not in BACKENDS:
        raise InputError(
            f"backend={backend!r} is unknown; expected auto, {', '.join(BACKENDS)}, "
            f"{' or '.join(ALIASES)}"
        )
    if precision not in PRECISIONS:
        raise InputError(
            f"precision={precision!r} is unknown; expected one of {', '.join(PRECISIONS)}"
        )
    reason = "as requested"
    if wanted == "auto":
        wanted, reason = _auto(precision, device, residuals)
    if wanted == "wgsl":
        return _wgsl(precision, device, reason)
    if device is not None:
        raise InputError(
            f"a device was given, but backend={backend!r} {_RUNS_ON[wanted]}; leave "
            "device out, or use backend='wgsl'"
        )
    if precision in WGSL_PRECISIONS:
        raise InputError(
            f"precision={precision!r} belongs to backend 'wgsl'; backend {wanted!r} has float32 "
            "and float64"
        )
    if wanted == "jax":
        from .jax_functions import load_jax

        load_jax()
    resolved = "float64" if precision == "auto" else precision
    return BackendChoice(backend=wanted, precision=resolved, reason=reason)


def _auto(precision: str, device: Device | None, residuals: int) -> tuple[str, str]:
    if device is not None:
        return "wgsl", "a device was given"
    if precision in WGSL_PRECISIONS:
        return "wgsl", f"precision={precision!r} belongs to it"
    wished = _wished_gpu(precision, residuals)
    if wished is not None:
        return "wgsl", wished
    allowed = _GPU_DEFAULT.enabled is not False
    if allowed and precision == "float32" and residuals >= GPU_MIN_RESIDUALS:
        hardware = _hardware_adapter()
        if hardware is not None:
            return "wgsl", f"float32 and {residuals} residuals on {hardware}"
    if importlib.util.find_spec("numba") is None:
        warnings.warn(
            "Numba is not installed, so backend='auto' evaluates with NumPy, about 50 times "
            "slower; pip install numba",
            RuntimeWarning,
            stacklevel=4,
        )
        return "numpy", "Numba is not installed"
    if precision == "float32":
        return "numba", f"{residuals} residuals are too few for a GPU, or there is none"
    return "numba", "float64, and the linear solver runs on the CPU"


def _wished_gpu(precision: str, residuals: int) -> str | None:
    """Why ``enable_gpu`` takes a GPU for this problem; None if it does not."""
    least = _GPU_DEFAULT.min_batch
    if not _GPU_DEFAULT.enabled or precision not in ("auto", "float32") or residuals < least:
        return None
    from .adapters import devices

    try:
        return f"enable_gpu, {residuals} residuals ≥ {least}" if devices() else None
    except DeviceError:
        return None


def _hardware_adapter() -> str | None:
    from .adapters import devices

    try:
        return next((a.name for a in devices() if not a.is_software), None)
    except DeviceError:
        return None


def _wgsl(precision: str, device: Device | None, reason: str) -> BackendChoice:
    from .device import default_device

    opened = device or default_device()
    if opened.adapter.is_software:
        reason += f"; {opened.adapter.name} is a software adapter, slower than backend='numba'"
    resolved = precision
    if precision == "auto":
        resolved = "float32"
        reason += "; float32, in which the whole solve can stay on the device"
    elif precision != "float32":
        from .self_test import require_float64

        mixed = precision == "mixed"
        way = require_float64(opened, "float64" if mixed else precision)
        resolved = precision if mixed else way
        reason += f"; {'Jacobians in float32, residuals in ' if mixed else ''}{_FLOAT64_WORDS[way]}"
    return BackendChoice(backend="wgsl", precision=resolved, reason=reason, device=opened)


def runs_on_a_gpu(choice: BackendChoice) -> bool:
    """Whether a choice evaluates on a hardware GPU."""
    if choice.backend == "jax":
        from .jax_functions import is_gpu

        return is_gpu()
    return choice.device is not None and not choice.device.adapter.is_software


def in_float64(choice: BackendChoice) -> BackendChoice:
    """The same device, all in its way of float64; for a choice of mixed precision.

    Raises:
        PrecisionError: the device has none that passes the self-test.
    """
    from .device import default_device
    from .self_test import require_float64

    device = choice.device or default_device()
    return replace(choice, device=device, precision=require_float64(device, "float64"))


def bytes_of_number(choice: BackendChoice) -> int:
    """Bytes of a number on the backend."""
    if choice.backend == "wgsl" and choice.precision != "mixed":
        from .number_formats import FORMATS

        return 4 * FORMATS[choice.precision].words
    return 4 if choice.precision == "float32" else 8


def bytes_of_elements(choice: BackendChoice, groups: Sequence[BoundGroup]) -> list[int]:
    """Bytes that an element of each group takes in a session of the choice."""
    from .streamed_session import bytes_per_element

    real = "float32" if choice.precision == "mixed" else choice.precision
    kind = choice.backend, real, bytes_of_number(choice), SOLVED
    return [bytes_per_element(group, *kind) for group in groups]


def open_session(
    choice: BackendChoice,
    groups: Sequence[BoundGroup],
    parameter_count: int,
    lanes: Sequence[int] | None = None,
    memory_budget: int | None = None,
) -> Session:
    """Compile and upload what a choice needs.

    Args:
        choice: backend, precision and device.
        groups: what to evaluate.
        parameter_count: length of the parameter vector.
        lanes: ``numba``: elements of each group that are computed side by side; by their number
            if None, and in pieces.
        memory_budget: bytes; batches that do not fit are evaluated in pieces. None for no limit.

    Raises:
        DeviceMemoryError: not even one element fits.
    """
    if choice.backend == "wgsl":
        return _wgsl_session(choice, groups, parameter_count, memory_budget)
    from .streamed_session import within_budget

    number, sizes = bytes_of_number(choice), bytes_of_elements(choice, groups)
    if choice.backend == "jax":
        from .jax_backend import JaxSession, device_name

        def through_jax(pieces: Sequence[BoundGroup]) -> Session:
            return JaxSession(pieces, parameter_count, choice.precision)

        beside = number * parameter_count
        return within_budget(groups, sizes, beside, memory_budget, through_jax, device_name())

    def whole(pieces: Sequence[BoundGroup]) -> Session:
        if choice.backend == "numpy":
            from .numpy_backend import NumpySession

            return NumpySession(pieces, parameter_count, choice.precision)
        from .numba_backend import NumbaSession

        side_by_side = lanes if pieces is groups else None
        return NumbaSession(pieces, parameter_count, choice.precision, lanes=side_by_side)

    return within_budget(groups, sizes, 0, memory_budget, whole, f"CPU ({choice.backend})")


def _wgsl_session(
    choice: BackendChoice,
    groups: Sequence[BoundGroup],
    parameter_count: int,
    memory_budget: int | None,
) -> Session:
    from .device import default_device
    from .wgsl_backend import open_wgsl

    device = choice.device or default_device()
    if choice.precision != "mixed":
        kind = choice.precision, device, SOLVED, memory_budget
        return open_wgsl(groups, parameter_count, *kind)
    from .mixed_session import MixedSession

    way = in_float64(choice).precision
    return MixedSession(groups, parameter_count, way, device, memory_budget)
