"""Machine code of generated functions, kept on disk by Numba itself.

Numba keeps the code of functions that stand in files. So each text is written to a file in a
folder of its own, whose name is a digest of everything that the code depends on: text, signature,
versions, processor. An entry is made under another name, gets a digest of its files, and is
renamed when it is whole: other processes see all of it or nothing, and of two that compile the
same text the second throws its own away.

Numba's index is pickled, and unpickling runs what it says. A folder that somebody else owns or may
write is therefore never used, and nothing is read before its digest has been checked.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..disk_cache import cache_folder, damaged, digest_of, private_folder
from ..events import report, timed

KIND = "machine_code"
LIMIT_BYTES = 256 * 2**20
"""Most bytes of all entries; beyond it, those used longest ago go."""
_SUM = "sum"
_UNFINISHED = ".unfinished-"
_ABANDONED_SECONDS = 3600.0
_PRUNE_EVERY = 16
_puts = 0
_importable = threading.Lock()

_Function = Callable[..., Any]


@lru_cache(maxsize=1)
def _versions() -> tuple[str, ...]:
    """What machine code depends on besides text and signature."""
    numba: Any = importlib.import_module("numba")
    binding: Any = importlib.import_module("llvmlite.binding")
    config = numba.config
    lanes = Path(__file__).with_name("lane_functions.py")
    return (
        numba.__version__, importlib.import_module("llvmlite").__version__, np.__version__,
        platform.python_implementation(), platform.python_version(), platform.machine(),
        binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(),
        str(config.CPU_NAME), str(config.CPU_FEATURES), str(config.OPT),
        digest_of([lanes.read_bytes()]).hex(),
    )  # fmt: skip


def compiled(text: str, name: str, signature: Any) -> _Function:
    """The function ``name`` of a generated text as machine code, from disk where it is kept.

    Args:
        text: Python source.
        name: of the function in it.
        signature: argument and result types, Numba's.

    Raises:
        numba.core.errors.NumbaError: Numba rejects the text.
    """
    root = cache_folder()
    folder = None if root is None else private_folder(root / KIND)
    if folder is None:
        with timed("compile", name, target="numba"):
            return _jit(text, name, signature, None)
    key = digest_of(p.encode() for p in (text, name, str(signature), *_versions())).hex()
    found = _load(folder / key, text, name, signature)
    report("cache", KIND, hit=found is not None)
    if found is not None:
        return found
    with timed("compile", name, target="numba"):
        return _make(folder, key, text, name, signature)


def _jit(text: str, name: str, signature: Any, file: Path | None, key: str = "") -> _Function:
    """Compile by Numba, which looks for the code beside ``file`` first."""
    numba: Any = importlib.import_module("numba")
    module = ModuleType(f"autograd_gpu_kernel_{key}")
    exec(compile(text, f"<{name}>" if file is None else str(file), "exec"), module.__dict__)
    # error_model="numpy": a division by zero gives infinity, as on every other target.
    decorate = numba.njit(signature, nogil=True, error_model="numpy", cache=file is not None)
    if file is None:
        return decorate(getattr(module, name))
    # What Numba has kept names the module of its globals, and Numba imports it by that name. Two
    # threads may compile the same text.
    with _importable:
        sys.modules[module.__name__] = module
        # NUMBA_CACHE_DIR would take the code out of the entry, and find it by the entry's old name.
        elsewhere, numba.config.CACHE_DIR = numba.config.CACHE_DIR, ""
        try:
            return decorate(getattr(module, name))
        finally:
            numba.config.CACHE_DIR = elsewhere
            del sys.modules[module.__name__]


def _load(entry: Path, text: str, name: str, signature: Any) -> _Function | None:
    if not entry.exists():
        return None
    try:
        expected = (entry / _SUM).read_bytes()
    except OSError:
        expected = None
    if expected != _sum(entry):
        _discard(entry)
        damaged(entry)
        return None
    with timed("load", name, target="numba"):
        function = _jit(text, name, signature, _file(entry), entry.name)
    if not hits(function):
        # Numba had its reasons and has compiled; what it wrote then is not in the digest.
        _discard(entry)
        return function
    with contextlib.suppress(OSError):
        os.utime(entry)
    return function


def hits(function: _Function) -> int:
    """How many signatures of a compiled function Numba has taken from disk."""
    return sum(getattr(function, "stats").cache_hits.values())  # noqa: B009 - Numba's own


def _make(folder: Path, key: str, text: str, name: str, signature: Any) -> _Function:
    try:
        unfinished = Path(tempfile.mkdtemp(dir=folder, prefix=_UNFINISHED))
    except OSError:
        return _jit(text, name, signature, None)
    try:
        file = _file(unfinished)
        file.write_text(text, encoding="utf-8")
        function = _jit(text, name, signature, file, key)
        (unfinished / _SUM).write_bytes(_sum(unfinished))
        # Another process may have been faster: its entry stays, and is as good.
        with contextlib.suppress(OSError):
            unfinished.rename(folder / key)
    except OSError:  # the disk is full, say
        return _jit(text, name, signature, None)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _prune_now_and_then(folder)
    return function


def _file(entry: Path) -> Path:
    return entry / "kernel.py"


def _sum(entry: Path) -> bytes:
    """Digest of the names and contents of all files of an entry but the digest itself."""

    def parts() -> Iterable[bytes]:
        for path in sorted(p for p in entry.rglob("*") if p.is_file() and p.name != _SUM):
            yield path.relative_to(entry).as_posix().encode()
            yield path.read_bytes()

    try:
        return digest_of(parts())
    except OSError:
        return b""


def _discard(entry: Path) -> None:
    """Remove an entry; under another name first, so that nobody sees a part of it."""
    doomed = entry.with_name(f"{_UNFINISHED}{entry.name}-{os.getpid()}")
    with contextlib.suppress(OSError):
        entry.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _prune_now_and_then(folder: Path) -> None:
    global _puts
    _puts += 1
    if _puts % _PRUNE_EVERY == 1:
        prune(folder)


def prune(folder: Path, limit: int = LIMIT_BYTES) -> None:
    """Remove the entries used longest ago until the rest has at most ``limit`` bytes."""
    entries: list[tuple[float, int, Path]] = []
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):  # another process may remove it first
            used = entry.stat().st_mtime
            if entry.name.startswith(_UNFINISHED):
                if time.time() - used > _ABANDONED_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)
                continue
            entries.append((used, entry_bytes(entry), entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= limit:
            break
        _discard(entry)
        total -= size


def entry_bytes(entry: Path) -> int:
    """Bytes of the files of an entry."""
    return sum(p.stat().st_size for p in entry.rglob("*") if p.is_file())
