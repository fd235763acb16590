"""Solutions to files and back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.archive import ArchiveReader, ArchiveWriter, from_number, number
from autograd_gpu.solvers.group_costs import GroupCost, GroupCosts
from autograd_gpu.solvers.probe_values import Probes
from autograd_gpu.solvers.solution import (
    IterationRecord,
    KernelSummary,
    NamedValues,
    Solution,
    Status,
)

KIND = "solution"
_ARRAYS = ("values", "bound_multipliers", "multipliers", "probes")
_APART = (*_ARRAYS, "timings", "history", "kernels", "costs_of_groups", "status")


def write_solution(path: str | os.PathLike[str], solution: Solution) -> None:
    """Write a solution; see ``Solution.save``."""
    archive = ArchiveWriter()
    content: dict[str, Any] = {
        name: {key: archive.array(array) for key, array in getattr(solution, name).items()}
        for name in _ARRAYS
    }
    content["status"] = solution.status.value
    content["timings"] = _plain(solution.timings)
    content["history"] = [_plain(asdict(record)) for record in solution.history]
    content["kernels"] = [asdict(kernel) for kernel in solution.kernels]
    content["groups"] = [_plain(asdict(group)) for group in solution.groups]
    for field in fields(solution):
        if field.name not in _APART:
            value: Any = getattr(solution, field.name)
            content[field.name] = _word(value)
    archive.write(path, KIND, content)


def _word(value: Any) -> Any:
    return number(value) if isinstance(value, float) else value


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _word(value) for key, value in row.items()}


def _typed(row: Mapping[str, Any], like: type) -> dict[str, Any]:
    """A row whose numbers are floats again where the class says so."""
    kinds = {field.name: str(field.type) for field in fields(like)}
    return {k: from_number(v) if kinds.get(k) == "float" else v for k, v in row.items()}


def read_solution(path: str | os.PathLike[str]) -> Solution:
    """The solution of a file; see ``Solution.load``."""
    archive = ArchiveReader(path, KIND)
    content = dict(archive.content)
    content.setdefault("probes", {})  # files of earlier versions have none
    try:
        arrays: dict[str, dict[str, FloatArray]] = {
            name: NamedValues((k, archive.array(array)) for k, array in content.pop(name).items())
            for name in _ARRAYS
        }
        history = tuple(
            IterationRecord(**_typed(row, IterationRecord)) for row in content.pop("history")
        )
        kernels = tuple(KernelSummary(**row) for row in content.pop("kernels"))
        groups = tuple(GroupCost(**_typed(row, GroupCost)) for row in content.pop("groups"))
        timings = {name: from_number(value) for name, value in content.pop("timings").items()}
        status = Status(content.pop("status"))
        rest = _typed(
            {k: v for k, v in content.items() if k not in ("format", "version")}, Solution
        )
        rest["faults"] = tuple(rest.get("faults", ()))
        return Solution(
            probes=Probes(arrays.pop("probes")),
            **arrays,
            **rest,
            history=history,
            kernels=kernels,
            timings=timings,
            status=status,
            costs_of_groups=GroupCosts(lambda: groups),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"load, {os.fspath(path)!r}: the document is damaged ({error!r})") from (
            error
        )
