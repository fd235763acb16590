"""What the package answers when it is asked for a name that it does not have."""

from __future__ import annotations

import difflib
import sys


def refuse(name: str) -> object:
    """Module ``__getattr__`` of the package.

    Raises:
        AttributeError: always; names the nearest public name if one is near.
    """
    present = [known for known in vars(sys.modules["autograd_gpu"]) if not known.startswith("_")]
    near = difflib.get_close_matches(name, present, 1)
    hint = f"; did you mean ag.{near[0]}?" if near else ""
    raise AttributeError(f"module 'autograd_gpu' has no attribute {name!r}{hint}")
