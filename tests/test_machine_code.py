"""Machine code on disk: loaded by the next process, never when damaged or not the user's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numba
import numpy as np
import pytest

from autograd_gpu import disk_cache
from autograd_gpu.disk_cache import FOLDER_VARIABLE
from autograd_gpu.events import Event, leave, listen
from autograd_gpu.runtime import machine_code
from autograd_gpu.runtime.machine_code import KIND, compiled, hits, prune

TEXT = "import math\n\ndef half(x, out):\n    out[0] = 0.5 * math.sqrt(x)\n"
SIGNATURE = numba.void(numba.float64, numba.float64[::1])


class Heard:
    """Kinds of events, counted."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def hear(self, event: Event) -> None:
        self.counts[event.kind] = self.counts.get(event.kind, 0) + 1


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disk_cache, "_warned", set())
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    disk_cache._warn_of_folder.cache_clear()
    return tmp_path / KIND


def value(text: str = TEXT) -> tuple[float, int]:
    """√16/2 by a compiled function, and how often Numba found it on disk."""
    function = compiled(text, "half", SIGNATURE)
    out = np.zeros(1)
    function(16.0, out)
    return float(out[0]), hits(function)


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_was_compiled_is_loaded_the_next_time(folder: Path) -> None:
    assert value() == (2.0, 0)
    assert value() == (2.0, 1)
    assert len(entries(folder)) == 1
    assert value(TEXT.replace("0.5", "0.25")) == (1.0, 0)
    assert len(entries(folder)) == 2
    if os.name == "posix":
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("victim", ["*.nbi", "*.nbc", "sum", "kernel.py"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "removed"])
def test_damaged_entries_are_compiled_again_with_one_warning(
    folder: Path, victim: str, damage: str
) -> None:
    assert value() == (2.0, 0)
    (path,) = folder.rglob(victim)
    if damage == "removed":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"x" * 99)
    with pytest.warns(RuntimeWarning, match="is damaged; it is removed and made again"):
        assert value() == (2.0, 0)
    assert value() == (2.0, 1)
    path.write_bytes(b"once more")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value() == (2.0, 0)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_folder_that_others_can_write_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        assert value() == (2.0, 0)
    assert value() == (2.0, 0)
    assert entries(folder) == []


def test_a_cache_folder_of_numbas_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    assert [value(), value()] == [(2.0, 0), (2.0, 1)]
    assert numba.config.CACHE_DIR == str(tmp_path / "numba")
    assert not (tmp_path / "numba").exists()


def test_no_folder_means_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert [value(), value()] == [(2.0, 0), (2.0, 0)]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "file"))
    assert value() == (2.0, 0)


def test_entries_used_longest_ago_go_first(folder: Path) -> None:
    texts = [TEXT.replace("0.5", f"0.5 * {k}") for k in range(1, 4)]
    for text in texts:
        value(text)
    sizes = [machine_code.entry_bytes(entry) for entry in entries(folder)]
    for entry in entries(folder):
        os.utime(entry, (1.0, 1.0))
    assert value(texts[0])[1] == 1  # which is a use
    prune(folder, max(sizes))
    assert len(entries(folder)) == 1
    assert value(texts[0])[1] == 1


def test_threads_that_compile_the_same_text_leave_one_entry(folder: Path) -> None:
    seen: list[float] = []
    threads = [threading.Thread(target=lambda: seen.append(value()[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [2.0] * 4
    assert len(entries(folder)) == 1
    assert value()[1] == 1


def test_events_tell_loads_from_compilations() -> None:
    heard = Heard()
    listen(heard)
    try:
        value()
        assert heard.counts == {"cache": 1, "compile": 1}
        value()
        assert heard.counts == {"cache": 2, "compile": 1, "load": 1}
    finally:
        leave(heard)
    value()
    assert heard.counts == {"cache": 2, "compile": 1, "load": 1}


PROGRAM = """
import json
import numpy as np
import autograd_gpu as ag
from autograd_gpu.events import listen

class Counts(dict):
    def hear(self, event):
        # Kernels of the linear algebra may have been compiled long ago, beside their module.
        if event.kind == "generate" or event.name.startswith("residual"):
            self[event.kind] = self.get(event.kind, 0) + 1

def chain(a, b):
    return ag.norm(a - b) + ag.sin(a[0]) * ag.exp(b[1]) - 1.0

counts = Counts()
listen(counts)
costs = []
for n in (50, 4200):  # one element after another, and several at once
    problem = ag.Problem()
    x = problem.parameters("x", np.linspace(0.1, 1.0, 3 * n).reshape(n, 3))
    problem.add_residuals(chain, x[:-1], x[1:])
    costs.append(ag.solve(problem, backend="numba").cost.hex())
print(json.dumps({"costs": costs, **counts}))
"""


def test_a_second_process_loads_everything_and_compiles_nothing(tmp_path: Path) -> None:
    def run() -> dict[str, object]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ,
        )
        return json.loads(done.stdout)

    first, second = run(), run()
    assert first["compile"] == 4 and "load" not in first
    assert second["load"] == 4 and "compile" not in second
    assert first["generate"] == 5 and "generate" not in second  # a derived graph, four texts
    assert second["costs"] == first["costs"]


ASSEMBLY = """
import sys, warnings
import numpy as np
from autograd_gpu.events import listen
from autograd_gpu.runtime.assembly_kernels import kernel

class Kinds(list):
    def hear(self, event):
        self.append(event.kind)

kinds = Kinds()
listen(kinds)
out = np.zeros(1)
one = np.ones(1)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    kernel("product", "int32")(
        0, 1, np.array([0, 1], np.int32), np.zeros(1, np.int32), 3.0 * one, 2.0 * one, out
    )
print(out[0], *kinds, len([w for w in seen if "damaged" in str(w.message)]))
"""


def test_a_damaged_index_of_our_own_kernels_is_made_again(tmp_path: Path) -> None:
    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-c", ASSEMBLY],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "numba")},
        )
        return done.stdout.strip()

    assert run() == "6.0 compile 0"
    (index,) = tmp_path.rglob("*.nbi")
    index.write_bytes(index.read_bytes()[:-20])
    assert run() == "6.0 compile 1"
    assert run() == "6.0 load 0"
