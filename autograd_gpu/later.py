"""Names of the public face that this version does not have yet, and what they will be."""

from __future__ import annotations

LATER: dict[str, str] = {
    "cache": "caches on disk",
}


def refuse(name: str) -> object:
    """Module ``__getattr__`` of the package.

    Raises:
        NotImplementedError: the name is planned; says what it is.
        AttributeError: there is no such name.
    """
    if name in LATER:
        raise NotImplementedError(f"autograd_gpu.{name}: {LATER[name]}")
    raise AttributeError(f"module 'autograd_gpu' has no attribute {name!r}")
