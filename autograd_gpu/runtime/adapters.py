"""Which WebGPU adapters this machine has, and which one is used unless a person says."""

from __future__ import annotations

import atexit
import importlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from autograd_gpu.errors import DeviceError, MissingDependencyError

# Best first; an adapter type that is not listed ranks after these and before CPUs.
_TYPE_ORDER = ("DiscreteGPU", "IntegratedGPU", "VirtualGPU")
_SOFTWARE_NAMES = ("llvmpipe", "lavapipe", "swiftshader", "softpipe", "basic render driver")
_runtime_folder_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """One adapter: a graphics device as seen through one graphics API.

    Attributes:
        name: the device's name, such as ``llvmpipe (LLVM 15.0.6, 256 bits)``.
        vendor: the vendor's name, or an empty string.
        adapter_type: DiscreteGPU, IntegratedGPU, VirtualGPU, CPU or Unknown.
        backend: the graphics API in use: Vulkan, Metal, D3D12, OpenGL, …
        driver: driver and version, or an empty string.
        limits: the most that a device on this adapter can be granted, by WebGPU's name with
            dashes (``max-buffer-size``); sizes in bytes.
        features: optional features that a device can be granted, sorted.
    """

    name: str
    vendor: str
    adapter_type: str
    backend: str
    driver: str
    limits: Mapping[str, int] = field(repr=False, hash=False)
    features: tuple[str, ...] = field(repr=False)

    @property
    def is_software(self) -> bool:
        """Whether a CPU does the work."""
        name = self.name.lower()
        return self.adapter_type == "CPU" or any(known in name for known in _SOFTWARE_NAMES)


def devices() -> list[AdapterInfo]:
    """All adapters of this machine, the one used by default first; empty where there is none.

    Raises:
        MissingDependencyError: if wgpu cannot be loaded.
    """
    return [info for info, _ in _enumerate()]


def timestamp_period(queue: Any) -> float:
    """Nanoseconds of a tick of the timestamps of a device's queue (wgpu's object)."""
    native = importlib.import_module("wgpu.backends.wgpu_native")
    return float(native.lib.wgpuQueueGetTimestampPeriod(queue._internal))


def choose_adapter(name: str | None = None) -> AdapterInfo:
    """The adapter whose name contains ``name`` (case does not matter), or the default one.

    Where several fit, the first in this order wins: discrete, integrated, virtual GPUs, then
    software (llvmpipe before SwiftShader); any of them through OpenGL comes last.

    Raises:
        DeviceError: if there is no adapter, or none with that name.
    """
    return find_adapter(name)[0]


def find_adapter(wanted: str | AdapterInfo | None = None) -> tuple[AdapterInfo, Any]:
    """As ``choose_adapter``, together with wgpu's own adapter object, to open a device on."""
    found = _enumerate()
    if not found:
        raise DeviceError(
            "no WebGPU adapter found on this machine; install a Vulkan driver (Debian and "
            "Ubuntu: the GPU vendor's, or the package mesa-vulkan-drivers, which also brings "
            "the software device llvmpipe), or use backend='numba'"
        )
    if wanted is None:
        return found[0]
    for info, adapter in found:
        if info == wanted or (isinstance(wanted, str) and wanted.lower() in info.name.lower()):
            return info, adapter
    name = wanted if isinstance(wanted, str) else f"{wanted.name} ({wanted.backend})"
    listed = ", ".join(f"{info.name!r} ({info.backend})" for info, _ in found)
    raise DeviceError(
        f"no WebGPU adapter has {name!r} in its name; found {listed}; pass a part of one of "
        "these names, or None for the default"
    )


def load_wgpu() -> Any:
    """The wgpu module, imported when first needed.

    Raises:
        MissingDependencyError: if wgpu or its native library cannot be loaded.
    """
    try:
        return importlib.import_module("wgpu")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"the backend 'wgsl' needs the package wgpu, which cannot be loaded ({error}); "
            "run: pip install --force-reinstall wgpu"
        ) from error


_enumerating = threading.Lock()


def _enumerate() -> list[tuple[AdapterInfo, Any]]:
    _set_runtime_folder()
    with _enumerating:  # drivers are loaded meanwhile, and not all of them for several threads
        adapters: list[Any] = load_wgpu().gpu.enumerate_adapters_sync()
    found = [(_describe(adapter), adapter) for adapter in adapters]
    return sorted(found, key=lambda pair: _preference(pair[0]))


def _describe(adapter: Any) -> AdapterInfo:
    info: Mapping[str, Any] = adapter.info
    return AdapterInfo(
        name=str(info["device"]),
        vendor=str(info["vendor"]),
        adapter_type=str(info["adapter_type"]),
        backend=str(info["backend_type"]),
        driver=str(info["description"]),
        limits={str(limit): int(value) for limit, value in adapter.limits.items()},
        features=tuple(sorted(map(str, adapter.features))),
    )


def _preference(info: AdapterInfo) -> tuple[bool, int, bool]:
    if info.is_software:
        kind = len(_TYPE_ORDER) + 1
    elif info.adapter_type in _TYPE_ORDER:
        kind = _TYPE_ORDER.index(info.adapter_type)
    else:
        kind = len(_TYPE_ORDER)
    return info.backend.startswith("OpenGL"), kind, "swiftshader" in info.name.lower()


def _set_runtime_folder() -> None:
    """Give the process an XDG_RUNTIME_DIR where it has none.

    Without it the Wayland library, which the graphics drivers ask for displays at every
    enumeration, prints error lines to stderr. The variable stays set, since other users of wgpu
    in this process enumerate as well; the folder is removed at exit.
    """
    with _runtime_folder_lock:
        if not sys.platform.startswith("linux") or os.environ.get("XDG_RUNTIME_DIR"):
            return
        folder = tempfile.mkdtemp(prefix="autograd-gpu-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ["XDG_RUNTIME_DIR"] = folder
