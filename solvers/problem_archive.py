"""Problems to files and back: traced residuals, data, parameters, what is frozen and bounded.

What is saved is what the functions were traced to, so a loaded problem needs none of the user's
code; lines in messages are the one thing that it cannot name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import autograd_gpu.manifolds as manifolds
from autograd_gpu.charts import Chart, chart_of
from autograd_gpu.codegen.kernel import topology_of
from autograd_gpu.codegen.robust import LossBlocks
from autograd_gpu.errors import InputError
from autograd_gpu.graph_documents import graph_document, graph_of_document
from autograd_gpu.probes import ProbedGraph
from autograd_gpu.ragged import Ragged
from autograd_gpu.runtime.batch import FloatArray
from autograd_gpu.solvers.archive import ArchiveReader, ArchiveWriter
from autograd_gpu.solvers.bounds import ArrayBounds
from autograd_gpu.solvers.constraint_group import Constraint
from autograd_gpu.solvers.external import ExternalGroup
from autograd_gpu.solvers.ragged_arguments import AnyArgument, RaggedRows
from autograd_gpu.solvers.ragged_group import RaggedGroup
from autograd_gpu.solvers.residual_group import (
    DataRows,
    LongDataRows,
    ResidualGroup,
    slot_of,
)
from autograd_gpu.solvers.selection import (
    ParameterArray,
    RaggedSelection,
    RowSelection,
    Selection,
)

if TYPE_CHECKING:
    from autograd_gpu.solvers.problem import Problem

KIND = "problem"
Group = ResidualGroup | RaggedGroup


def write_problem(
    path: str | os.PathLike[str],
    arrays: dict[str, tuple[ParameterArray, FloatArray, Any, ArrayBounds | None]],
    groups: Mapping[str, Mapping[str, Group]],
    constraints: Mapping[str, Constraint],
) -> None:
    """Write a problem; see ``Problem.save``.

    Args:
        path: file to write.
        arrays: for each name: array, values, mask of frozen blocks, bounds.
        groups: by what they are (residuals, energies), in the order added.
        constraints: in the order added.
    """
    archive = ArchiveWriter()
    parameters: list[dict[str, Any]] = []
    for name, (array, values, frozen, bounds) in arrays.items():
        parameters.append(
            {
                "name": name,
                "values": archive.array(values),
                "frozen": archive.array(frozen),
                "manifold": _manifold_name(array),
                "bounds": None
                if bounds is None
                else [archive.array(bounds.lower), archive.array(bounds.upper)],
            }
        )
    content = {
        "parameters": parameters,
        **{
            what: [_group_document(g, archive) for g in these.values()]
            for what, these in groups.items()
        },
        "constraints": [
            {"group": _group_document(c.group, archive), "shape": list(c.shape)}
            for c in constraints.values()
        ],
    }
    archive.write(path, KIND, content)


def _manifold_name(array: ParameterArray) -> str | None:
    """Name in ``ag.manifolds`` of what an array lives on."""
    if array.chart is None:
        return None
    if _built_in(array.chart.name, array.width) == array.chart:
        return array.chart.name
    raise InputError(
        f"save, parameters {array.name!r}: the manifold {array.chart.name} is your own, or has "
        "settings of its own, and a file cannot hold its code; save the solution, and build the "
        "problem again"
    )


def _built_in(name: str, width: int) -> Chart | None:
    found = getattr(manifolds, name, None)
    try:
        return None if found is None else chart_of(found, width, "save")
    except (TypeError, ValueError):
        return None  # it takes settings


def _group_document(group: Group, archive: ArchiveWriter) -> dict[str, Any]:
    if isinstance(group, ExternalGroup):
        raise InputError(
            f"save, {group.external.what}: a file cannot hold its code; save the solution, and "
            "build the problem again"
        )
    arguments = [_argument_document(a, archive) for a in group.arguments]
    if isinstance(group, RaggedGroup):
        return {
            "name": group.name,
            "names": list(group.names),
            "count": group.count,
            "appended": group.appended,
            "arguments": arguments,
            "parts": [_group_document(part, archive) for part in group.parts],
        }
    losses = group.topology.losses
    return {
        "name": group.name,
        "count": group.count,
        "arguments": arguments,
        "graph": graph_document(group.graph),
        "losses": [losses.residual_size, losses.count, losses.orders] if losses.count else None,
        "loss_scale": group.loss_scale,
        "given_as": group.given_as,
        "elements": None if group.elements is None else archive.array(group.elements),
        "traced_arguments": group.traced_arguments,
        "probes": _probes_document(group.probes),
    }


def _probes_document(probes: ProbedGraph | None) -> dict[str, Any] | None:
    if probes is None or probes.graph is None:  # without long rows there is one
        return None
    shapes = [[name, list(shape)] for name, shape in probes.shapes.items()]
    return {"graph": graph_document(probes.graph), "shapes": shapes}


def _probes(document: dict[str, Any] | None) -> ProbedGraph | None:
    if document is None:
        return None
    shapes = {name: tuple(shape) for name, shape in document["shapes"]}
    return ProbedGraph(graph_of_document(document["graph"]), shapes)


def _argument_document(argument: AnyArgument, archive: ArchiveWriter) -> dict[str, Any]:
    if isinstance(argument, Selection):
        return {
            "parameters": argument.array.name,
            "offset": argument.offset,
            "stride": argument.stride,
            "count": argument.count,
            "indices": None if argument.indices is None else archive.array(argument.indices),
        }
    if isinstance(argument, DataRows):
        return {"data": archive.array(argument.values), "shared": argument.shared}
    if isinstance(argument, RowSelection | LongDataRows):
        raise InputError(
            "save: rows that are folded in a loop cannot be saved yet; pass "
            "ag.Ragged(…, unroll=True) for a kernel per length"
        )
    rows = {
        "indptr": archive.array(argument.rows.indptr),
        "rows": archive.array(argument.rows.values),
    }
    if isinstance(argument, RaggedSelection):
        rows["parameters"] = argument.array.name
    return rows


def read_problem(path: str | os.PathLike[str], problem: Problem) -> None:
    """Fill an empty problem from a file; see ``Problem.load``."""
    archive = ArchiveReader(path, KIND)
    try:
        _fill(problem, archive)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"load, {os.fspath(path)!r}: the document is damaged ({error!r})") from (
            error
        )


def _fill(problem: Problem, archive: ArchiveReader) -> None:
    arrays: dict[str, ParameterArray] = {}
    for entry in archive.content["parameters"]:
        name, manifold, bounds = entry["name"], entry["manifold"], entry["bounds"]
        arrays[name] = problem.parameters(
            name,
            archive.array(entry["values"]),
            manifold=None if manifold is None else getattr(manifolds, manifold),
            bounds=None if bounds is None else (archive.array(bounds[0]), archive.array(bounds[1])),
        )
        problem.freeze(arrays[name], archive.array(entry["frozen"]))
    for document in archive.content["residuals"]:
        problem.add_group(_group(document, archive, arrays))
    for document in archive.content["energies"]:
        problem.add_group(_group(document, archive, arrays), energy=True)
    for document in archive.content["constraints"]:
        group = _part(document["group"], archive, arrays)
        problem.add_made_constraint(Constraint(group, tuple(document["shape"])))


def _group(
    document: dict[str, Any], archive: ArchiveReader, arrays: dict[str, ParameterArray]
) -> Group:
    arguments = tuple(_argument(a, archive, arrays) for a in document["arguments"])
    if "parts" in document:
        parts = tuple(_part(p, archive, arrays) for p in document["parts"])
        return RaggedGroup(
            name=document["name"],
            arguments=arguments,
            names=tuple(document["names"]),
            count=document["count"],
            parts=parts,
            appended=document["appended"],
        )
    return _part(document, archive, arrays)


def _part(
    document: dict[str, Any], archive: ArchiveReader, arrays: dict[str, ParameterArray]
) -> ResidualGroup:
    gathered = [_argument(a, archive, arrays) for a in document["arguments"]]
    plain = [g for g in gathered if isinstance(g, Selection | DataRows)]
    graph = graph_of_document(document["graph"])
    losses = document["losses"]
    blocks = None if losses is None else LossBlocks(*losses)
    elements = document["elements"]
    return ResidualGroup(
        name=document["name"],
        graph=graph,
        topology=topology_of(graph, [slot_of(g) for g in plain], blocks),
        arguments=tuple(plain),
        count=document["count"],
        elements=None if elements is None else archive.array(elements),
        given_as=document["given_as"],
        loss_scale=document["loss_scale"],
        traced_arguments=document["traced_arguments"],
        probes=_probes(document.get("probes")),  # files of earlier versions have none
    )


def _argument(
    document: dict[str, Any], archive: ArchiveReader, arrays: dict[str, ParameterArray]
) -> AnyArgument:
    if "rows" in document:
        rows = Ragged(archive.array(document["indptr"]), archive.array(document["rows"]))
        if "parameters" in document:
            return RaggedSelection(arrays[document["parameters"]], rows)
        return RaggedRows(rows)
    if "data" in document:
        return DataRows(np.array(archive.array(document["data"])), document["shared"])
    indices = document["indices"]
    return Selection(
        arrays[document["parameters"]],
        document["offset"],
        document["stride"],
        document["count"],
        None if indices is None else archive.array(indices),
    )
