"""Settings of the whole run: adapters, Hypothesis profiles, golden files, what the end says."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

LONG = os.environ.get("AUTOGRAD_GPU_LONG") == "1"
REQUIRE_WGSL = os.environ.get("AUTOGRAD_GPU_REQUIRE_WGSL") == "1"

_SWIFTSHADER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
_DRIVER_FOLDERS = (
    Path("/etc/vulkan/icd.d"),
    Path("/usr/local/share/vulkan/icd.d"),
    Path("/usr/share/vulkan/icd.d"),
    Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "vulkan/icd.d",
)


def _list_vulkan_drivers() -> None:
    """Show the Vulkan loader every driver file of this machine, and SwiftShader, which none lists.

    A second software driver has a compiler of its own and so finds other mistakes in generated
    text. What the user chose stays; a real GPU's driver is in the folders and stays too. Must run
    before wgpu is imported, since its library reads the variable once.
    """
    if os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES"):
        return
    found = [file for folder in _DRIVER_FOLDERS for file in sorted(folder.glob("*.json"))]
    added = os.environ.get("VK_ADD_DRIVER_FILES", "").split(os.pathsep)
    found += [Path(file) for file in added if file]
    found += [_SWIFTSHADER] if _SWIFTSHADER.exists() else []
    if found:
        os.environ["VK_DRIVER_FILES"] = os.pathsep.join(dict.fromkeys(map(str, found)))


_list_vulkan_drivers()

# Tests neither read nor fill the user's caches; one folder serves the whole run, or many runs if
# it is named, which saves what Numba takes to compile.
_CACHES = tempfile.TemporaryDirectory(prefix="autograd-gpu-tests-")
os.environ["AUTOGRAD_GPU_CACHE_DIR"] = os.environ.get("AUTOGRAD_GPU_TEST_CACHE_DIR") or _CACHES.name

_QUIET = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile(
    "ci", max_examples=60, derandomize=True, deadline=None, database=None,
    suppress_health_check=_QUIET,
)  # fmt: skip
settings.register_profile(
    "long", max_examples=600, deadline=None, print_blob=True, suppress_health_check=_QUIET
)
settings.load_profile("long" if LONG else "ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="rewrite tests/golden from the generators"
    )


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be rewritten."""
    return bool(request.config.getoption("--update-golden"))


_NOTES = pytest.StashKey[list[str]]()


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Says something in the last lines of the run."""
    return request.config.stash.setdefault(_NOTES, []).append


def _adapters() -> tuple[str, ...]:
    from adapters_for_tests import wgsl_adapters
    from autograd_gpu.errors import MissingDependencyError

    try:
        return wgsl_adapters()
    except MissingDependencyError:
        return ()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wgsl = [item for item in items if item.get_closest_marker("wgsl")]
    config.stash[_WGSL_TESTS] = [item.nodeid for item in wgsl]
    if wgsl and not _adapters():
        for item in wgsl:
            item.add_marker(pytest.mark.skip(reason="no WGSL adapter"))
    if not LONG:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: run by make test-long"))


_WGSL_TESTS = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if REQUIRE_WGSL and not _adapters() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which adapters ran; pytest's own closing line follows."""
    adapters = _adapters()
    tests = terminalreporter.config.stash.get(_WGSL_TESTS, [])
    ran = {
        report.nodeid
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.stats.get(outcome, [])
        if isinstance(report, pytest.TestReport)
    }
    write = terminalreporter.write_line
    for line in terminalreporter.config.stash.get(_NOTES, []):
        write(line)
    if not adapters:
        write(f"no WGSL adapter: {len(tests)} WGSL tests did not run", red=REQUIRE_WGSL)
        if REQUIRE_WGSL:
            write("AUTOGRAD_GPU_REQUIRE_WGSL=1: this run FAILS for want of an adapter", red=True)
        return
    counts = {a: sum(a in test for test in tests if test in ran) for a in adapters}
    listed = ", ".join(f"{name} ({count} tests)" for name, count in counts.items())
    write(f"WGSL adapters: {listed}; {sum(t in ran for t in tests)} WGSL tests ran")
