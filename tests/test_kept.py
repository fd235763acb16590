"""Derived graphs and sources on disk: nothing is generated twice, nothing foreign is believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
from adapters_for_tests import wgsl_adapters
from autograd_gpu import disk_cache
from autograd_gpu.codegen import kept as module
from autograd_gpu.codegen import kernel as kernels
from autograd_gpu.codegen import render as rendering
from autograd_gpu.codegen.coarse_space import CoarseStructure
from autograd_gpu.codegen.incidence import GroupStructure, SolveStructure
from autograd_gpu.codegen.kept import kept
from autograd_gpu.codegen.kernel import Product, make_kernel, parameter_slot, topology_of
from autograd_gpu.codegen.render import Source, render, render_lanes, render_stages
from autograd_gpu.codegen.scatter_kernels import OperatorStructure
from autograd_gpu.disk_cache import FOLDER_VARIABLE
from autograd_gpu.events import Event, leave, listen


class Generated:
    """What was generated, by kind."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def hear(self, event: Event) -> None:
        if event.kind == "generate":
            self.names.append(event.name)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(disk_cache, "_warned", set())
    disk_cache._warn_of_folder.cache_clear()
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path / module.KIND


def forget() -> None:
    """As in a new process: no generated thing is in memory."""
    for cached in (kernels._make_kernel, render, render_lanes, render_stages):
        cached.cache_clear()


def generated(work: Callable[[], Any]) -> tuple[Any, list[str]]:
    heard = Generated()
    listen(heard)
    try:
        return work(), heard.names
    finally:
        leave(heard)


def chain(a: Any, b: Any) -> Any:
    return [ag.norm(a - b) + ag.sin(a[0]) * ag.exp(b[1]) - 1.0, ag.where(a[0] > 0.0, b[0], -1e-300)]


def long_chain(a: Any, b: Any) -> Any:
    value = a[0]
    for k in range(60):
        value = ag.sin(value * b[k % 3] + a[(k + 1) % 3])
    return value


def texts(fn: Callable[..., Any], target: str, precision: str, budget: int | None) -> list[Source]:
    topology = topology_of(ag.trace(fn, 3, 3), [parameter_slot((3,))] * 2)
    return [
        source
        for product in Product
        for source in render_stages(make_kernel(topology, product), target, precision, budget)
    ]


@pytest.mark.parametrize("fn", [chain, long_chain])
@pytest.mark.parametrize(
    ("target", "precision"),
    [("numba", "float64"), ("wgsl", "float32"), ("wgsl", "float64-emulated"), ("jax", "float32")],
)
def test_what_was_generated_is_read_the_next_time(
    fn: Callable[..., Any], target: str, precision: str
) -> None:
    budget = None if target == "jax" else 40  # which has no stages
    forget()
    first, made = generated(lambda: texts(fn, target, precision, budget))
    assert made.count("derived graph") == 2 and made.count("source") == 3
    forget()
    second, made = generated(lambda: texts(fn, target, precision, budget))
    assert made == []
    assert len(first) == len(second) and (fn is chain or target == "jax") == (len(first) == 3)
    for before, after in zip(first, second, strict=True):
        for name in ("source", *rendering._STORED, "key", "arrays"):
            assert getattr(before, name) == getattr(after, name)
        assert before.kernel.entries == after.kernel.entries
        assert before.kernel.graph.key == after.kernel.graph.key


def test_graphs_from_disk_evaluate_to_the_same_bits() -> None:
    topology = topology_of(ag.trace(chain, 3, 3), [parameter_slot((3,))] * 2)
    x = np.random.default_rng(0).standard_normal((2, 7, 3))
    values: list[Any] = []
    for _ in range(2):
        forget()
        values.append(make_kernel(topology, Product.RESIDUAL_JACOBIAN).graph(*x))
    np.testing.assert_array_equal(values[0], values[1])


@pytest.mark.parametrize("target", ["numba", "wgsl", "jax"])
def test_loops_over_long_rows_are_kept_too(target: str) -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, 50, 2 * 40)
    problem = ag.Problem()
    x = problem.parameters("x", rng.normal(size=(50, 3)))
    problem.add_residuals(
        lambda p, row: ag.norm(p - ag.mean(row)) + ag.min([ag.norm(q) for q in row]),
        x[:2], x[ag.Ragged([0, 40, 80], indices)],
    )  # fmt: skip
    (group,) = problem.groups
    assert any(slot.is_row for slot in group.topology.slots)

    def text() -> str:
        forget()
        kernel = make_kernel(group.topology, Product.RESIDUAL_JACOBIAN)
        return render(kernel, target, "float32").source

    first, made = generated(text)
    assert made == ["derived graph", "source"]
    second, made = generated(text)
    assert made == [] and second == first


def value_of(answer: Any = 1) -> Any:
    return kept("thing", ("key",), lambda: answer, lambda v: v, lambda v: 1 * v)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not JSON",
        b'{"value": 1}',
        b'{"key": ["thing", "another generator", "key"], "value": 3}',
        b'{"key": %s, "value": null}',
        b'{"key": %s}',
        b"[1]",
    ],
)
def test_foreign_entries_are_made_again_with_one_warning(folder: Path, content: bytes) -> None:
    assert value_of(1) == 1
    (path,) = folder.iterdir()
    key = json.dumps(["thing", module.generator_digest(), "key"]).encode()
    cache = disk_cache.DiskCache(module.KIND)
    if content:
        content = content.replace(b"%s", key)
        cache.put(["thing", module.generator_digest(), "key"], content)
    else:
        path.write_bytes(b"")
    with pytest.warns(RuntimeWarning, match="is damaged"):
        assert value_of(2) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert value_of(3) == 2


def test_another_generator_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert value_of(1) == 1
    monkeypatch.setattr(module, "generator_digest", lambda: "another")
    assert value_of(2) == 2
    monkeypatch.undo()


def test_the_digest_covers_modules_and_templates() -> None:
    read: list[str] = []
    original = module.digest_of

    def spy(parts: Any) -> bytes:
        found = list(parts)
        read.extend(part.decode() for part in found[::2])
        return original(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "digest_of", spy)
        module.generator_digest.cache_clear()
        module.generator_digest()
    assert {
        "ops.py",
        "rewrite.py",
        "diff.py",
        "printer.py",
        "element.wgsl.j2",
        "lanes.py.j2",
    } <= set(read)


def test_keys_name_every_field_that_text_depends_on() -> None:
    """A field added to one of these belongs into ``group_key`` or ``structure_key`` as well."""
    names = {f.name for f in fields(GroupStructure)}
    assert names == {"kernel", "residual", "slots", "stored", "blocks", "stage_cost"}
    names = {f.name for f in fields(SolveStructure)}
    assert names == {
        "node_sets", "groups", "kinds", "damping", "workgroup_size", "element_sizes", "precision",
    }  # fmt: skip
    assert {f.name for f in fields(CoarseStructure)} == {"solve", "modes"}
    assert {f.name for f in fields(OperatorStructure)} == {"solve", "accumulations", "teams"}


def test_a_folder_that_others_can_write_is_not_used(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.warns(RuntimeWarning, match="can be written by others"):
        assert value_of(1) == 1
    assert value_of(2) == 2
    assert list(folder.iterdir()) == []


PROGRAM = """
import json, sys
import numpy as np
import autograd_gpu as ag
from autograd_gpu.events import listen

class Names(list):
    def hear(self, event):
        if event.kind == "generate":
            self.append(event.name)

names = Names()
listen(names)
device = ag.Device(sys.argv[1])
problem = ag.Problem()
x = problem.parameters("x", np.linspace(0.1, 1.0, 90).reshape(30, 3))
problem.add_residuals(lambda a, b: ag.norm(a - b) - 0.1, x[:-1], x[1:])
problem.add_residuals(lambda a: a - 1.0, x, loss=ag.losses.Huber(0.5))
options = ag.LevenbergMarquardtOptions(max_iterations=2)
costs = [
    ag.solve(problem, backend="wgsl", device=device, options=options, linear_solver=solver).cost
    for solver in ("pcg", "auto")
]
options = ag.LBFGSOptions(max_iterations=2)
costs.append(
    ag.solve(problem, "l-bfgs", backend="wgsl", device=device, options=options).cost
)
print(json.dumps({"costs": costs, "names": names}))
"""


@pytest.mark.wgsl
@pytest.mark.parametrize("adapter", wgsl_adapters()[:1])
def test_a_second_process_generates_nothing_for_a_device(adapter: str) -> None:
    def run() -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, adapter],
            check=True,
            capture_output=True,
            text=True,
            env=os.environ,
        )
        return json.loads(done.stdout)

    first, second = run(), run()
    assert {"derived graph", "source", "solve kernels", "operator kernels"} <= set(first["names"])
    assert second["names"] == []
    assert second["costs"] == first["costs"]
