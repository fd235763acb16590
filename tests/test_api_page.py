"""The code in README.md and on every page of docs/ runs, and names only what exists or will.

``public_face.md`` is the code that the public face was drawn up for: names may be added to what it
uses, and none may change.
"""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

import autograd_gpu as ag

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    str(path.relative_to(ROOT))
    for path in (
        ROOT / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "tests" / "public_face.md",
    )
    if _BLOCK.search(path.read_text(encoding="utf-8"))
]
"""Every page with Python in it, so that a new one is tested as well."""

_NAME = re.compile(r"\bag\.([A-Za-z_]\w*)")


def blocks_of(text: str) -> list[str]:
    """Every ``python`` block, moved down so that its line numbers are those of the page."""
    return [
        "\n" * text.count("\n", 0, block.start(1)) + block.group(1)
        for block in _BLOCK.finditer(text)
    ]


def row_names(text: str) -> list[str]:
    """First cells of the tables in a report, where there is anything in them."""
    return re.findall(r"^[│┃] (\w[\w ]*?) +[│┃]", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if page == "docs/jax.md":
        pytest.importorskip("jax")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / page).read_text(encoding="utf-8")
    # Errors quote the line of the residual function, which they look up by file name.
    monkeypatch.setitem(
        linecache.cache, page, (len(text), None, text.splitlines(keepends=True), page)
    )
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(text):
        exec(compile(block, page, "exec"), namespace)
    printed = capsys.readouterr().out
    if page == "README.md":
        assert row_names(printed) == row_names(text.partition("Printed on")[2])
    if page == "docs/api.md":
        for said in ("CONVERGED", "use ag.where(condition, a, b)", "fn ", "is 642 at position 1"):
            assert said in printed


@pytest.mark.parametrize("page", PAGES)
def test_every_name_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    unknown = {n for n in _NAME.findall(text) if not hasattr(ag, n)}
    assert not unknown
