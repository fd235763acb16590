"""Entries on disk: found by content, replaced atomically, damaged ones ignored."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path

import pytest

from autograd_gpu import disk_cache
from autograd_gpu.disk_cache import FOLDER_VARIABLE, DiskCache, cache_folder

KEY = ("adapter", "driver", "text")


@pytest.fixture(autouse=True)
def no_warning_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_cache, "_warned", set())


def test_what_was_put_is_got_by_another_object(tmp_path: Path) -> None:
    DiskCache("kind", folder=tmp_path).put(KEY, b"value")
    again = DiskCache("kind", folder=tmp_path)
    assert again.get(KEY) == b"value"
    assert DiskCache("other", folder=tmp_path).get(KEY) is None
    again.put(KEY, b"")
    assert again.get(KEY) == b""


@pytest.mark.parametrize("other", [("adapter", "drivertext"), ("adapterdriver", "text"), KEY[::-1]])
def test_every_part_of_a_key_counts(tmp_path: Path, other: tuple[str, ...]) -> None:
    cache = DiskCache("kind", folder=tmp_path)
    cache.put(KEY, b"value")
    assert cache.get(other) is None


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 40])
def test_damaged_entries_are_ignored_with_one_warning(tmp_path: Path, damage: bytes) -> None:
    cache = DiskCache("kind", folder=tmp_path)
    for k in range(3):
        cache.put((str(k),), b"value")
        path = cache.path((str(k),))
        assert path is not None
        path.write_bytes(damage)
    with pytest.warns(RuntimeWarning, match="is damaged; it is removed"):
        assert cache.get(("0",)) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.get(("1",)) is None
        cache.put(("1",), b"new")
        assert cache.get(("1",)) == b"new"


def test_a_flipped_bit_is_damage(tmp_path: Path) -> None:
    cache = DiskCache("kind", folder=tmp_path)
    cache.put(KEY, b"value")
    path = cache.path(KEY)
    assert path is not None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning):
        assert cache.get(KEY) is None
    assert not path.exists()


def test_the_number_of_entries_is_bounded(tmp_path: Path) -> None:
    cache = DiskCache("kind", limit=4, folder=tmp_path)
    for k in range(10):
        cache.put((str(k),), b"value")
    assert len(list((tmp_path / "kind").iterdir())) == 4


def test_the_number_of_bytes_is_bounded(tmp_path: Path) -> None:
    cache = DiskCache("kind", folder=tmp_path, limit_bytes=20_000)
    for k in range(64):
        cache.put((str(k),), bytes(1000))
    # Looked at every sixteenth time.
    assert 16 <= len(list((tmp_path / "kind").iterdir())) <= 35
    assert cache.get(("63",)) is not None and cache.get(("0",)) is None


def test_readers_see_whole_entries_while_others_write(tmp_path: Path) -> None:
    cache = DiskCache("kind", folder=tmp_path)
    values = [bytes([k]) * 200_000 for k in range(4)]
    cache.put(KEY, values[0])
    threads = [
        threading.Thread(target=lambda v=v: [cache.put(KEY, v) for _ in range(10)]) for v in values
    ]
    for thread in threads:
        thread.start()
    seen = [cache.get(KEY) for _ in range(50)]
    for thread in threads:
        thread.join()
    assert set(seen) <= set(values)
    assert [p.name for p in (tmp_path / "kind").iterdir() if p.name.startswith(".")] == []


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "kind").write_text("a file where the folder would be")
    cache = DiskCache("kind", folder=tmp_path)
    cache.put(KEY, b"value")
    assert cache.get(KEY) is None


def test_the_folder_is_the_users_unless_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    assert cache_folder() is None
    cache = DiskCache("kind")
    cache.put(KEY, b"value")
    assert cache.get(KEY) is None
    monkeypatch.delenv(FOLDER_VARIABLE)
    found = cache_folder()
    assert found is not None and "autograd-gpu" in found.parts
