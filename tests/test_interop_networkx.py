"""Graphs as networkx graphs, and their drawings."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from hypothesis import given

import autograd_gpu as ag
from autograd_gpu import Graph, interop
from autograd_gpu.interop.networkx_graphs import positions
from autograd_gpu.ir import Builder
from random_graphs import Recipe, recipes


def rebuilt(made: Any, graph: Graph) -> Graph:
    """The graph again, from what networkx holds alone."""
    builder = Builder()
    names = [name for name, _ in made.graph["arguments"]]
    new: dict[int, int] = {}
    for k in nx.topological_sort(made):
        facts = made.nodes[k]
        if facts["op"] == "input":
            new[k] = builder.input(names.index(facts["argument"]), facts["component"])
        elif facts["op"] == "const":
            new[k] = builder.constant(facts["value"])
        else:
            edges = sorted((position, a) for a, _, position in made.in_edges(k, keys=True))
            new[k] = builder.raw(facts["op"], tuple(new[a] for _, a in edges))
    places = {p: new[k] for k in made for p in made.nodes[k]["outputs"]}
    outputs = [places[p] for p in range(len(places))]
    return Graph.build(builder, outputs, graph.arguments, graph.output_shape)


@given(recipes())
def test_nothing_is_lost(recipe: Recipe) -> None:
    graph = recipe.trace()
    made = interop.to_networkx(graph)
    assert nx.is_directed_acyclic_graph(made)
    assert made.number_of_edges() == sum(len(node.args) for node in graph.nodes)
    assert rebuilt(made, graph).key == graph.key


def test_attributes() -> None:
    made = interop.to_networkx(ag.trace(lambda p, k: k * p[1] - 0.5, 2, 1))
    facts = {made.nodes[k]["label"]: made.nodes[k] for k in made}
    assert facts["p[1]"]["argument"] == "p"
    assert facts["p[1]"]["component"] == 1
    assert facts["k"]["op"] == "input"
    assert facts["0.5"]["value"] == 0.5
    assert facts["-"]["outputs"] == (0,)
    assert facts["×"]["outputs"] == ()


@given(recipes())
def test_a_drawing_puts_operands_above_and_nodes_apart(recipe: Recipe) -> None:
    graph = recipe.trace()
    at = positions(graph)
    assert len(set(at.values())) == len(at) == len(graph.nodes)
    for k, node in enumerate(graph.nodes):
        assert all(at[a][1] > at[k][1] for a in node.args)


def test_drawing(tmp_path: Path) -> None:
    graph = ag.trace(lambda p, q, rest: ag.norm(q - p) - rest, 2, 2, 1)
    path = tmp_path / "spring.png"
    figure = interop.draw(graph, path)
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    assert sorted(texts) == sorted(
        ["p[0]", "p[1]", "q[0]", "q[1]", "rest", "-", "-", "-", "×", "×", "+", "√"]
    )
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("networkx", "to_networkx(graph)"),
        ("networkx", "draw(graph)"),
        ("matplotlib", "draw(graph)"),
        ("sympy", "to_sympy(graph)"),
        ("sympy", "from_sympy(1, [])"),
    ],
)
def test_a_missing_library_names_its_extra(package: str, call: str) -> None:
    script = f"""
import sys
sys.modules[{package!r}] = None
import autograd_gpu as ag
graph = ag.trace(lambda x: x * x, 1)
try:
    ag.interop.{call}
except ag.MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert package in done.stdout
    assert "pip install autograd-gpu[interop]" in done.stdout
