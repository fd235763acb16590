"""Results worth keeping between processes, in files of the user's cache folder.

An entry is found by everything that it depends on (its key), so nothing ever goes stale: a new
driver or another generated text is another key. Files are replaced atomically and carry a digest,
so several processes may share the folder, and a damaged file counts as absent. A cache only saves
time: where the folder cannot be written, nothing is kept and nobody is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
import tempfile
import threading
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

FOLDER_VARIABLE = "AUTOGRAD_GPU_CACHE_DIR"
"""Environment variable that names another folder; empty for none, and so no cache on disk."""
_DIGEST_SIZE = 16
_BYTES_EVERY = 16
_puts = itertools.count()
_warned: set[Path] = set()
_warned_lock = threading.Lock()


def cache_folder() -> Path | None:
    """Folder of all caches: the platform's, unless the environment says; None for no cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) if named else None
    import platformdirs

    return Path(platformdirs.user_cache_dir("autograd-gpu", appauthor=False))


def private_folder(folder: Path, make: bool = True) -> Path | None:
    """The folder, if nobody but this user can write it; None if that cannot be had.

    What is kept becomes code again (sources are executed, machine code is loaded), so an entry of
    somebody else's would be theirs to run.
    """
    try:
        if make:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return None
        foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
        open_to_others = os.name == "posix" and status.st_mode & 0o022
        if foreign or open_to_others:
            _warn_of_folder(folder)
            return None
        if os.name == "posix" and status.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError:
        return None
    return folder


@lru_cache(maxsize=64)
def _warn_of_folder(folder: Path) -> None:
    warnings.warn(
        f"cache: {folder} can be written by others, so nothing is taken from it or kept there; "
        f"remove it, or set {FOLDER_VARIABLE} to a folder of your own",
        RuntimeWarning,
        stacklevel=4,
    )


class DiskCache:
    """Entries of one kind: bytes by key.

    Args:
        kind: name of the subfolder.
        limit: most entries; beyond it, those read or written longest ago go.
        folder: of all kinds; ``cache_folder()`` by default.
        limit_bytes: most bytes of all entries together.
    """

    def __init__(
        self,
        kind: str,
        limit: int = 256,
        folder: Path | None = None,
        limit_bytes: int = 64 * 2**20,
    ) -> None:
        root = folder or cache_folder()
        self._folder = None if root is None else root / kind
        self._limit = limit
        self._limit_bytes = limit_bytes

    def path(self, key: Iterable[str]) -> Path | None:
        """File of an entry, whether it exists or not; None where there is no cache."""
        if self._folder is None:
            return None
        return self._folder / digest_of(part.encode() for part in key).hex()

    def get(self, key: Iterable[str]) -> bytes | None:
        """The entry; None if there is none. A damaged one is warned of once, and removed."""
        path = self.path(key)
        if path is None or private_folder(path.parent, make=False) is None:
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
        if path is None or private_folder(path.parent) is None:
            return
        with contextlib.suppress(OSError):
            _replace(path, _digest(value) + value)
            self._prune(path.parent)

    def _prune(self, folder: Path) -> None:
        """Keep the bounds: entries always, bytes now and then, since those take a look at each."""
        full = len(os.listdir(folder)) > self._limit
        if not full and next(_puts) % _BYTES_EVERY:
            return
        # An eighth more goes at once, so that not every further entry takes a look at all.
        most = self._limit - self._limit // 8 if full else self._limit
        found: list[tuple[float, int, Path]] = []
        for path in folder.iterdir():
            # Another process may remove it first.
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime, status.st_size, path))
        count, total = len(found), sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if count <= most and total <= self._limit_bytes:
                break
            path.unlink(missing_ok=True)
            count, total = count - 1, total - size


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
