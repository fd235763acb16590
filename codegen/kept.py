"""What the generator makes, kept on disk as JSON: derived graphs and source texts.

An entry is found by what it was made from and by a digest of the generator itself (its modules and
templates), so another version of the package never reads it. It carries its whole key, which is
compared: two different topologies never share an entry, not even if their digests agreed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, TypeVar

from autograd_gpu.disk_cache import DiskCache, damaged, digest_of
from autograd_gpu.errors import InputError
from autograd_gpu.events import report, timed

T = TypeVar("T")

KIND = "generated"
LIMIT = 4096
"""Most entries of all kinds of things generated; those used longest ago go."""
LIMIT_BYTES = 128 * 2**20
_FOLDERS = ("autograd_gpu", "autograd_gpu.codegen", "autograd_gpu.templates")


@lru_cache(maxsize=1)
def generator_digest() -> str:
    """Digest of every module and template that generated text depends on."""

    def parts(folder: Any, below: bool) -> list[bytes]:
        found: list[bytes] = []
        for entry in sorted(folder.iterdir(), key=lambda e: e.name):
            if entry.is_dir() and below:
                found += parts(entry, below)
            elif entry.name.endswith((".py", ".j2")):
                found += [entry.name.encode(), entry.read_bytes()]
        return found

    # Modules beside the language, in folders of their own, generate nothing.
    return digest_of(
        part for name in _FOLDERS for part in parts(files(name), name.endswith("templates"))
    ).hex()


def kept(
    what: str,
    key: Sequence[str],
    make: Callable[[], T],
    encode: Callable[[T], Any],
    decode: Callable[[Any], T],
) -> T:
    """Something generated: from disk if it is there, otherwise made, and kept for the next process.

    Args:
        what: kind of thing, for the key and for whoever listens.
        key: everything that it is made from, but for the generator.
        make: makes it.
        encode: turns it into what JSON can write; an ``InputError`` means that it cannot be kept.
        decode: the inverse; fails with a ``LookupError``, ``TypeError`` or ``ValueError``.
    """
    cache = DiskCache(KIND, LIMIT, limit_bytes=LIMIT_BYTES)
    whole = [what, generator_digest(), *key]
    stored = cache.get(whole)
    if stored is not None:
        try:
            document = json.loads(stored)
            if document["key"] == whole:
                found = decode(document["value"])
                report("cache", what, hit=True)
                return found
        except (LookupError, TypeError, ValueError, InputError):
            pass
        path = cache.path(whole)
        assert path is not None
        damaged(path)
    report("cache", what, hit=False)
    with timed("generate", what, key=key[0][:64]):
        made = make()
    try:
        value = encode(made)
    except InputError:
        return made
    cache.put(whole, json.dumps({"key": whole, "value": value}).encode())
    return made
