"""The pages agree with the project: links, dependencies, ops, tolerances, and no machine paths."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

from autograd_gpu.demos import STORIES
from tolerances import TOLERANCES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]

_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
_MODULE = re.compile(r"`([\w./-]+\.(?:py|j2|toml))`")
# Folders of one machine; a page is read on another.
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users|mnt|private)/|[A-Z]:\\")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@each_page
def test_links_resolve(page: Path) -> None:
    text = _CODE.sub("", page.read_text(encoding="utf-8"))
    broken: list[str] = []
    for link in _LINK.findall(text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.is_relative_to(ROOT) or not target.exists():
            broken.append(link)
        elif anchor and anchor not in anchors(target):
            broken.append(link)
    assert broken == []


def test_index_lists_every_page() -> None:
    links = set(_LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert {page.name for page in DOCS.glob("*.md")} - links == {"index.md"}


def test_architecture_names_modules_that_exist() -> None:
    """A module in backticks is a file of that name, or of that path."""
    known = {path.name for folder in ("autograd_gpu", "codegen", "solvers", "meshes", "templates")
             for path in (ROOT / folder).rglob("*.*")}  # fmt: skip
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(_MODULE.findall(text))
    assert named
    assert {n for n in named if not ((ROOT / n).exists() if "/" in n else n in known)} == set()


@pytest.mark.parametrize("folder", ["autograd_gpu/runtime", "codegen", "solvers"])
def test_architecture_names_every_module(folder: str) -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    modules = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if name not in text} == set()


def test_every_dependency_is_explained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[^\w.-]", line, maxsplit=1)[0] for group in groups for line in group}
    page = (DOCS / "dependencies.md").read_text(encoding="utf-8")
    assert {name for name in names if not re.search(rf"\b{re.escape(name)}\b", page)} == set()
    assert {e for e in project["optional-dependencies"] if f"| `{e}` |" not in page} == set()


def test_ops_page_is_current(update_golden: bool) -> None:
    generator = runpy.run_path(str(DOCS / "generate_ops.py"))
    page: Path = generator["PAGE"]
    if update_golden:
        page.write_text(generator["page"](), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == generator["page"](), (
        "docs/ops.md is not what ops.py says; pytest tests/test_docs.py --update-golden"
    )


@each_page
def test_commands_on_pages_exist(page: Path) -> None:
    """What a reader is told to type: targets of make, demos, modules of benchmarks."""
    text = page.read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    code = "\n".join(_CODE.findall(text))
    targets = set(re.findall(r"(?<![\w-])make ([a-z][\w-]*)", code))
    assert {t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)} == set()
    demos = set(re.findall(r"autograd-gpu demo ([a-z]\w*)", code))
    assert demos <= {*STORIES, "icosphere", "posegraph"}
    modules = set(re.findall(r"python (?:-m )?benchmarks[./](\w+)", code))
    assert {m for m in modules if not (ROOT / "benchmarks" / f"{m}.py").exists()} == set()


def test_tolerances_are_those_of_the_tests() -> None:
    page = (DOCS / "precision.md").read_text(encoding="utf-8")
    rows = [
        f"| {precision} | {kind} | {t.relative:g} | {t.absolute:g} | {t.reason} |"
        for (precision, kind), t in TOLERANCES.items()
    ]
    assert [row for row in rows if row not in page] == []


@each_page
def test_no_page_names_a_folder_of_one_machine(page: Path) -> None:
    assert _MACHINE_PATH.findall(page.read_text(encoding="utf-8")) == []


def test_pictures_are_small() -> None:
    pictures = list((DOCS / "pictures").iterdir())
    assert pictures
    assert [p.name for p in pictures if p.stat().st_size > 200_000] == []
