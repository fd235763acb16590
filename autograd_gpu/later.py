"""Names of the public face that this version does not have yet, and what they will be."""

from __future__ import annotations

import difflib
import sys

LATER: dict[str, str] = {}


def refuse(name: str) -> object:
    """Module ``__getattr__`` of the package.

    Raises:
        NotImplementedError: the name is planned; says what it is.
        AttributeError: there is no such name.
    """
    if name in LATER:
        raise NotImplementedError(f"autograd_gpu.{name}: {LATER[name]}")
    present = [known for known in vars(sys.modules["autograd_gpu"]) if not known.startswith("_")]
    near = difflib.get_close_matches(name, present, 1)
    hint = f"; did you mean ag.{near[0]}?" if near else ""
    raise AttributeError(f"module 'autograd_gpu' has no attribute {name!r}{hint}")
