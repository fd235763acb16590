"""What gets installed is what the developer sees: packages, templates, data, one top-level name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def setuptools_table() -> dict[str, Any]:
    return project()["tool"]["setuptools"]


def folder_of(package: str) -> Path:
    """Folder of a package: its own entry in package-dir, or that of the nearest parent."""
    folders = setuptools_table()["package-dir"]
    parts = package.split(".")
    for k in range(len(parts), 0, -1):
        parent = ".".join(parts[:k])
        if parent in folders:
            return ROOT.joinpath(folders[parent], *parts[k:])
    raise AssertionError(f"{package} has no folder in [tool.setuptools.package-dir]")


def packages_on_disk() -> set[str]:
    found: set[str] = set()
    for package, folder in setuptools_table()["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((package, *init.parent.relative_to(ROOT / folder).parts)))
    return found


def data_files() -> dict[str, Path]:
    """Files that are no Python but must be installed: path inside the wheel to file."""
    files = [ROOT / "autograd_gpu" / "py.typed"]
    files += [path for path in (ROOT / "templates").rglob("*.j2")]
    files += [path for path in (ROOT / "demos" / "data").rglob("*") if path.is_file()]
    installed = {}
    for path in files:
        relative = path.relative_to(ROOT)
        prefix = "" if relative.parts[0] == "autograd_gpu" else "autograd_gpu/"
        installed[prefix + relative.as_posix()] = path
    return installed


def test_the_package_list_is_what_is_on_disk():
    listed = setuptools_table()["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk()


def test_every_listed_package_has_a_folder_with_an_init():
    for package in setuptools_table()["packages"]:
        assert (folder_of(package) / "__init__.py").is_file(), package


def test_every_python_file_lies_in_a_listed_package():
    """A folder without __init__.py would work here and be missing from the wheel."""
    listed = {folder_of(package) for package in setuptools_table()["packages"]}
    stray = [
        str(path.relative_to(ROOT))
        for folder in setuptools_table()["package-dir"].values()
        for path in (ROOT / folder).rglob("*.py")
        if path.parent not in listed
    ]
    assert stray == []


def test_every_data_file_is_covered_by_package_data():
    patterns = setuptools_table()["package-data"]

    def covered(path: Path) -> bool:
        for package, globs in patterns.items():
            folder = folder_of(package)
            if path.is_relative_to(folder):
                name = path.relative_to(folder).as_posix()
                # As in setuptools: ** also matches no folder at all, * stays within one.
                for glob in globs:
                    if glob.startswith("**/") and fnmatch(path.name, glob[3:]):
                        return True
                    if name.count("/") == glob.count("/") and fnmatch(name, glob):
                        return True
        return False

    assert [name for name, path in data_files().items() if not covered(path)] == []


def test_the_version_is_the_installed_one():
    assert version("autograd-gpu") == project()["project"]["version"]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names inside a wheel built from a copy, so that no build folder is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for folder in set(setuptools_table()["package-dir"].values()):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    major = int(version("setuptools").split(".")[0])
    # The test extra brings a setuptools that is new enough; without it, pip fetches one.
    isolation = ["--no-build-isolation"] if major >= 77 else []
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolation]
    result = subprocess.run(
        [*command, "--wheel-dir", str(target), str(source)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_puts_one_name_into_site_packages(wheel_names):
    roots = {name.split("/")[0] for name in wheel_names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"autograd_gpu"}


def test_the_wheel_has_every_module_and_every_data_file(wheel_names):
    expected = set(data_files())
    for package in setuptools_table()["packages"]:
        folder = folder_of(package)
        expected |= {f"{package.replace('.', '/')}/{path.name}" for path in folder.glob("*.py")}
    assert expected - set(wheel_names) == set()


def test_the_wheel_has_the_licence(wheel_names):
    assert any(name.endswith("LICENSE") for name in wheel_names)
