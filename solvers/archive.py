"""Archives: a zip of one JSON document and NumPy arrays, without pickle.

``numpy.load`` opens one too; the document is its member ``document.json``. Equal contents give
equal bytes.
"""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from autograd_gpu.errors import InputError

VERSION = 1
_DOCUMENT = "document.json"
_DATE = (1980, 1, 1, 0, 0, 0)


class ArchiveWriter:
    """Collects arrays while a document is made."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []

    def array(self, values: NDArray[Any]) -> str:
        """Keep an array; the name by which the document refers to it."""
        self._arrays.append(values)
        return f"a{len(self._arrays) - 1}"

    def write(self, path: str | os.PathLike[str], kind: str, content: Mapping[str, Any]) -> None:
        """Write the file whole or not at all.

        Raises:
            OSError: the folder cannot be written to.
        """
        document = {"format": f"autograd_gpu {kind}", "version": VERSION, **content}
        target = Path(path)
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                text = json.dumps(document, allow_nan=False)
                _add(archive, _DOCUMENT, text.encode())
                for k, values in enumerate(self._arrays):
                    buffer = io.BytesIO()
                    np.lib.format.write_array(buffer, np.ascontiguousarray(values), None, False)
                    _add(archive, f"a{k}.npy", buffer.getvalue())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _DATE)
    info.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(info, content)


class ArchiveReader:
    """An archive of a kind, opened and checked.

    Raises:
        InputError: no archive, one of another kind or of a later version, or a damaged one.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        self._what = f"load, {os.fspath(path)!r}"
        wanted = f"autograd_gpu {kind}"
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                content: Any = json.loads(archive.read(_DOCUMENT))
                self._arrays = {
                    name.removesuffix(".npy"): np.lib.format.read_array(
                        io.BytesIO(archive.read(name)), allow_pickle=False
                    )
                    for name in names
                    if name.endswith(".npy")
                }
        except FileNotFoundError:
            raise InputError(f"{self._what}: there is no such file") from None
        except (zipfile.BadZipFile, KeyError, ValueError, EOFError, OSError) as error:
            raise InputError(
                f"{self._what}: damaged, or not written by autograd_gpu ({error}); expected an "
                f"archive of the format {wanted!r}"
            ) from error
        document = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
        found = document.get("format")
        if found != wanted:
            raise InputError(f"{self._what}: got the format {found!r}, expected {wanted!r}")
        if document.get("version") != VERSION:
            raise InputError(
                f"{self._what}: got version {document.get('version')!r} of the format, expected "
                f"{VERSION}; load it with the autograd_gpu that wrote it"
            )
        self.content: dict[str, Any] = document

    def array(self, name: str) -> NDArray[Any]:
        """An array that the document refers to.

        Raises:
            InputError: it is missing.
        """
        if name not in self._arrays:
            raise InputError(f"{self._what}: damaged: array {name!r} is missing")
        return self._arrays[name]


def number(value: float) -> float | str:
    """A float as JSON has it; infinities and NaN as words."""
    return value if math.isfinite(value) else repr(value)


def from_number(value: float | str) -> float:
    """The float again."""
    return float(value)
