"""Results worth keeping between processes, in files of the user's cache folder.

An entry is found by everything that it depends on (its key), so nothing ever goes stale: a new
driver or another generated text is another key. Files are replaced atomically and carry a digest,
so several processes may share the folder, and a damaged file counts as absent. A cache only saves
time: where the folder cannot be written, nothing is kept and nobody is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

FOLDER_VARIABLE = "AUTOGRAD_GPU_CACHE_DIR"
"""Environment variable that names another folder; empty for none, and so no cache on disk."""
_DIGEST_SIZE = 16
_warned: set[Path] = set()
_warned_lock = threading.Lock()


def cache_folder() -> Path | None:
    """Folder of all caches: the platform's, unless the environment says; None for no cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    import platformdirs

    return Path(platformdirs.user_cache_dir("autograd-gpu", appauthor=False))


class DiskCache:
    """Entries of one kind: bytes by key.

    Args:
        kind: name of the subfolder.
        limit: most entries; beyond it, those read or written longest ago go.
        folder: of all kinds; ``cache_folder()`` by default.
    """

    def __init__(self, kind: str, limit: int = 256, folder: Path | None = None) -> None:
        root = folder or cache_folder()
        self._folder = None if root is None else root / kind
        self._limit = limit

    def path(self, key: Iterable[str]) -> Path | None:
        """File of an entry, whether it exists or not; None where there is no cache."""
        if self._folder is None:
            return None
        return self._folder / digest_of(part.encode() for part in key).hex()

    def get(self, key: Iterable[str]) -> bytes | None:
        """The entry; None if there is none. A damaged one is warned of once, and removed."""
        path = self.path(key)
        if path is None:
            return None
        try:
            stored = path.read_bytes()
        except OSError:
            return None
        digest, value = stored[:_DIGEST_SIZE], stored[_DIGEST_SIZE:]
        if digest != _digest(value):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            damaged(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return value

    def put(self, key: Iterable[str], value: bytes) -> None:
        """Keep an entry, in place of one of the same key."""
        path = self.path(key)
        if path is None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, _digest(value) + value)
            self._prune(path.parent)

    def _prune(self, folder: Path) -> None:
        found: list[tuple[float, Path]] = []
        for path in folder.iterdir():
            # Another process may remove it first.
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
        for _, path in sorted(found)[: max(0, len(found) - self._limit)]:
            path.unlink(missing_ok=True)


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_DIGEST_SIZE).digest()


def digest_of(parts: Iterable[bytes]) -> bytes:
    """128 bits that stand for a sequence of byte strings."""
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    for part in parts:
        # With lengths, so that two sequences never run into the same bytes.
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def damaged(path: Path) -> None:
    """Warn of a damaged entry, which has been removed; once for all of its folder."""
    with _warned_lock:
        if path.parent in _warned:
            return
        _warned.add(path.parent)
    warnings.warn(
        f"cache: {path} is damaged; it is removed and made again, and others in its folder will "
        "be without a word",
        RuntimeWarning,
        stacklevel=3,
    )
