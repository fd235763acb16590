"""Which WebGPU adapters the tests of this process run on."""

from __future__ import annotations

import functools

from autograd_gpu.runtime.adapters import choose_adapter, devices

# The short names of the software adapters do not carry versions, so test ids stay the same.
_SHORT_NAMES = ("llvmpipe", "SwiftShader")


@functools.cache
def wgsl_adapters() -> tuple[str, ...]:
    """Names to pass as ``Device(adapter=...)``, one per physical or software device.

    OpenGL counts only where nothing else is there: it shows the same devices a second time.
    """
    found = devices()
    direct = [info for info in found if not info.backend.startswith("OpenGL")]
    names = [
        next((short for short in _SHORT_NAMES if short in info.name), info.name)
        for info in direct or found
    ]
    return tuple(dict.fromkeys(names))


@functools.cache
def native_adapters() -> tuple[str, ...]:
    """Those of ``wgsl_adapters`` that have float64 of their own."""
    return tuple(n for n in wgsl_adapters() if "shader-f64" in choose_adapter(n).features)
