"""``ag.cache``: what is kept on disk and in memory, its bounds, and how to be rid of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..codegen import kept
from ..codegen.coarse_kernels import coarse_kernels
from ..codegen.kernel import kernel_cache
from ..codegen.render import columns_function, render, render_lanes, render_stages
from ..codegen.scatter_kernels import operator_kernels
from ..codegen.solve_kernels import (
    element_kernels,
    gradient_kernels,
    record_kernels,
    solve_kernels,
)
from ..disk_cache import cache_folder
from . import machine_code, numba_backend

DISK_KINDS = (kept.KIND, machine_code.KIND, "self_tests", "schedules")
"""Subfolders of the cache folder: generated graphs and texts, Numba's machine code, verdicts on
devices, schedules that were measured."""

_SOURCES = (
    render, render_lanes, render_stages, columns_function, solve_kernels, coarse_kernels,
    operator_kernels, gradient_kernels, record_kernels, element_kernels,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """One cache.

    Attributes:
        name: of it; that of the subfolder for one on disk.
        where: its folder, or ``memory``.
        entries: in it.
        size: bytes; 0 in memory, where they are not counted.
    """

    name: str
    where: str
    entries: int
    size: int


def folder() -> Path | None:
    """Folder of the caches on disk; None if there are none (``AUTOGRAD_GPU_CACHE_DIR`` empty)."""
    return cache_folder()


def info() -> list[CacheInfo]:
    """All caches, those on disk first. Pipelines belong to their devices and are not listed."""
    found = [_on_disk(path) for path in _folders()]
    memory = {
        "derived graphs": kernel_cache().cache_info().currsize,
        "sources": sum(cached.cache_info().currsize for cached in _SOURCES),
        "machine code": numba_backend.cached_functions(),
    }
    return [*found, *(CacheInfo(name, "memory", count, 0) for name, count in memory.items())]


def clear(*, disk: bool = True, memory: bool = True) -> None:
    """Forget everything: all is generated, compiled and measured again when it is next needed.

    Other files in the cache folder stay. Processes that use the caches meanwhile make again what
    they miss.

    Args:
        disk: entries on disk.
        memory: of this process, but for the pipelines of devices, which ``Device.close`` frees.
    """
    if disk:
        for path in _folders():
            shutil.rmtree(path, ignore_errors=True)
    if memory:
        caches: list[Any] = [kernel_cache(), *_SOURCES]
        for cached in caches:
            cached.cache_clear()
        numba_backend.forget_functions()


def _folders() -> list[Path]:
    root = cache_folder()
    if root is None:
        return []
    # A link is not ours to follow.
    paths = [root / kind for kind in DISK_KINDS]
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def _on_disk(path: Path) -> CacheInfo:
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    size = 0
    for entry in entries:
        try:
            is_file = entry.is_file()
            size += entry.stat().st_size if is_file else machine_code.entry_bytes(entry)
        except OSError:  # another process has removed it
            continue
    return CacheInfo(path.name, str(path), len(entries), size)
