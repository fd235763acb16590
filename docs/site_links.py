"""A hook of the site: links that leave docs/ lead to files of the repository, and become text."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)\s]+\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Keep the words of such a link; tests/test_docs.py checks where it leads."""
    return _OUTSIDE.sub(r"\1", markdown)
