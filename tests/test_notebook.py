"""What notebooks show of problems and solutions: well-formed tables that say what is there."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np

import autograd_gpu as ag


def tables(text: str) -> list[list[list[str]]]:
    """Tables, rows and cells of HTML that is XML as well."""
    return [
        [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        for table in ElementTree.fromstring(text).iter("table")
    ]


def shown(thing: Any) -> list[list[list[str]]]:
    return tables(thing._repr_html_())


def spring(p: Any, q: Any, rest: Any) -> Any:
    return ag.norm(q - p) - rest


def chain() -> ag.Problem:
    problem = ag.Problem()
    x = problem.parameters("x", np.arange(8.0).reshape(4, 2))
    k = np.arange(3)
    problem.add_residuals(spring, x[k], x[k + 1], 0.5, name="springs <1>")
    problem.freeze(x, [0])
    return problem


def test_a_problem_shows_arrays_and_groups_with_their_sizes() -> None:
    problem = chain()
    arrays, groups = shown(problem)
    assert arrays == [["parameters", "shape", "frozen blocks", ""], ["x", "(4, 2)", "1", ""]]
    header, row = groups
    assert dict(zip(header, row, strict=True)) == {
        "name": "springs <1>", "kind": "residuals", "elements": "3", "residuals": "3",
        "kernels": "1", "parameters": "x", "data": "rest (shared)",
    }  # fmt: skip
    assert "3 residuals, 6 free parameters" in problem._repr_html_()


def test_an_empty_problem_shows_itself() -> None:
    assert shown(ag.Problem()) == []


def test_every_kind_of_group_has_a_row() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones((5, 3)), bounds=(0.0, None))
    r = problem.parameters("r", np.tile([1.0, 0.0, 0.0, 0.0], (5, 1)), manifold=ag.manifolds.SO3)
    rings = ag.Ragged(np.array([0, 2, 4, 7]), np.array([1, 2, 0, 2, 0, 1, 3]))
    problem.add_residuals(
        lambda p, ring: p - ring[0], x[[0, 1, 2]], x[rings], weight=np.ones(3), name="rings"
    )
    problem.add_residuals(lambda q: q.log(), r, loss=ag.losses.Huber(1.0), name="turns")
    problem.add_energy(lambda p: ag.dot(p, p), x, name="size")
    problem.add_constraint(lambda p: p[0] - 2.0, x[[4]], name="held")
    problem.add_external(lambda p: (p, [np.eye(3)[None]]), x[[4]], name="outside")
    arrays, groups = shown(problem)
    assert [row[1:] for row in arrays[1:]] == [
        ["(5, 3)", "none", "bounds"],
        ["(5, 4)", "none", "manifold of 3 dimensions"],
    ]
    assert "free parameters" in problem._repr_html_() and "30 free" in problem._repr_html_()
    rows = {row[0]: row[1:] for row in groups[1:]}
    # Lengths 2 and 3 differ in the number of places, and first(ring) looks at one of them.
    assert rows["rings"][:3] == ["residuals", "3", "9"] and rows["rings"][4:] == ["x", "weight"]
    assert rows["turns"] == ["residuals", "5", "15", "1", "r", "loss_delta (shared)"]
    assert rows["size"] == ["energy", "5", "5", "1", "x", ""]
    assert rows["held"] == ["constraint", "1", "1", "1", "x", "lower, upper"]
    assert rows["outside"] == ["residuals", "1", "3", "none", "x", ""]


def test_a_solution_shows_its_report() -> None:
    solution = ag.solve(chain(), backend="numpy")
    lines, groups = shown(solution)
    said = {line[0]: line[1] for line in lines}
    assert said["status"].startswith(solution.status.value)
    assert said["cost"] == f"{solution.initial_cost:.9g} → {solution.cost:.9g}"
    assert groups[0] == ["group", "elements", "cost", "share", "worst element", "its norm"]
    assert groups[1][:2] == ["springs <1>", "3"]
    # What a terminal is told and what a notebook is told are the same.
    for line in lines:
        assert line[0] in solution.report()


def test_solutions_are_short_where_they_are_printed() -> None:
    solution = ag.solve(chain(), backend="numpy")
    text = repr(solution)
    assert text.startswith(f"Solution({solution.status.value}: cost ") and "x (4, 2)" in text
    assert len(text) < 120
