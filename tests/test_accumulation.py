"""Accumulation schedules against the NumPy oracle, and the page that shows their text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import autograd_gpu as ag
import workloads
from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen.incidence import (
    PRODUCTS,
    WORKGROUP_SIZE,
    element_contribution,
    gradient_contribution,
)
from autograd_gpu.codegen.scatter_kernels import (
    ACCUMULATIONS,
    FLOAT32_ACCUMULATIONS,
    SHARED_WORDS,
    OperatorStructure,
    operator_kernels,
)
from autograd_gpu.codegen.wgsl_reals import WGSL_REALS
from autograd_gpu.errors import (
    DeviceError,
    DeviceLimitError,
    InputError,
    PrecisionError,
    ShapeError,
)
from autograd_gpu.meshes import energies
from autograd_gpu.runtime.adapters import devices
from autograd_gpu.runtime.device import Device
from autograd_gpu.runtime.node_tables import ArrayLayout, NodeTables
from autograd_gpu.runtime.operators import Operators
from autograd_gpu.solvers.evaluation import current_parameters
from sessions import WGSL_FLOAT64, Backend
from tolerances import Tolerance

DETERMINISTIC = ("gather", "two-level")

# Relative to Σ |J| |r| (or |J| |J v|, |J|² for blocks), which is what rounding is relative to.
ROUNDING = Tolerance(0.0, 1.0, "1e-5 of the sum of absolute terms: float32, tens of ops each")
FLOAT32 = 1e-5

each_accumulation = pytest.mark.parametrize("accumulation", ACCUMULATIONS)
each_deterministic = pytest.mark.parametrize("accumulation", DETERMINISTIC)
each_adapter = pytest.mark.parametrize("adapter", wgsl_adapters())


def frozen_springs() -> ag.Problem:
    problem = workloads.springs_problem(2)
    problem.freeze(problem.arrays[0], [0, 5, 6, 160])
    return problem


def frozen_deformation() -> ag.Problem:
    """Positions and rotations are one node; some are held in part."""
    problem = workloads.deformation_problem(1)
    x, r = problem.arrays
    problem.freeze(x, [1, 2, 3])
    problem.freeze(r, [3, 4])
    return problem


def untouched_array() -> ag.Problem:
    """Springs, and parameters that no residual sees."""
    problem = workloads.springs_problem(1)
    problem.parameters("unused", np.ones(5))
    return problem


@dataclass(frozen=True)
class Case:
    """A problem and the arrays whose blocks are fused into nodes."""

    make: Callable[[], ag.Problem]
    nodes: tuple[tuple[str, ...], ...]


CASES = {
    "springs": Case(lambda: workloads.springs_problem(2), (("x",),)),
    "frozen_springs": Case(frozen_springs, (("x",),)),
    "arap": Case(lambda: workloads.deformation_problem(2), (("x", "r"),)),
    "frozen_arap": Case(frozen_deformation, (("x", "r"),)),
    "bundle": Case(lambda: workloads.bundle_problem(8, 300), (("cameras",), ("points",))),
    "bending": Case(lambda: workloads.bending_problem(1), (("x",),)),
    "one_target": Case(lambda: workloads.curve_problem(20_000), (("theta",),)),
    "untouched": Case(untouched_array, (("x",), ("unused",))),
}
each_case = pytest.mark.parametrize("case", CASES)


def node_tables(problem: ag.Problem, precision: str = "float32") -> NodeTables:
    analysis = problem.analysis()
    layouts = [
        ArrayLayout(
            base=analysis.base[a.name],
            blocks=a.blocks,
            width=a.width,
            frozen=problem.frozen_of(a),
        )
        for a in problem.arrays
    ]
    x = current_parameters(problem)
    return NodeTables(layouts, analysis.groups, x, precision=precision)


@dataclass(frozen=True)
class Oracle:
    """Products in float64, frozen components zero, and the sums of absolute terms of each."""

    parameters: Any
    vector: Any
    tables: NodeTables
    products: dict[str, Any]
    sizes: dict[str, Any]


@cache
def oracle(case: str) -> Oracle:
    problem = CASES[case].make()
    found = problem.evaluate(backend="numpy", precision="float64")
    x = current_parameters(problem)
    rows, free = len(found.residuals), problem.analysis().free_positions
    jacobian = np.zeros((rows, x.size))
    jacobian[:, free] = found.jacobian.toarray()
    v = np.random.default_rng(1).standard_normal(x.size)
    image, size = jacobian @ v, np.abs(jacobian)
    # A residual itself rounds relative to its parts, here taken as at most ten times the norm.
    scale = np.abs(found.residuals) + 10 * np.sqrt(np.mean(found.residuals**2))
    products: dict[str, Any] = {"gradient": jacobian.T @ found.residuals}
    products["jtj_product"] = jacobian.T @ image
    sizes: dict[str, Any] = {"gradient": size.T @ scale}
    sizes["jtj_product"] = size.T @ (size @ np.abs(v))
    products["block_diagonal"], sizes["block_diagonal"] = [], []
    for names in CASES[case].nodes:
        base = problem.analysis().base
        members = [a for a in problem.arrays if a.name in names]
        at = np.concatenate(
            [base[a.name] + np.arange(a.blocks * a.width).reshape(a.blocks, -1) for a in members],
            axis=1,
        )
        pairs = [(a, b) for a in range(at.shape[1]) for b in range(a + 1)]
        for matrix, kept in ((jacobian, products), (size, sizes)):
            blocks = [
                np.einsum("en,en->n", matrix[:, at[:, a]], matrix[:, at[:, b]]) for a, b in pairs
            ]
            kept["block_diagonal"].append(np.stack(blocks, axis=1))
    return Oracle(x, v, node_tables(problem), products, sizes)


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[str], Device]]:
    """The device of an adapter, opened once for this file."""
    found: dict[str, Device] = {}

    def open_device(adapter: str) -> Device:
        return found.setdefault(adapter, Device(adapter))

    yield open_device
    for device in found.values():
        device.close()


def has_native_atomics(adapter: str) -> bool:
    info = next(i for i in devices() if adapter in i.name)
    return "shader-float32-atomic" in info.features


def run_all(operators: Operators, known: Oracle) -> dict[str, list[Any]]:
    """Every product; one array per node set for the blocks."""
    return {
        "gradient": [operators.gradient(known.parameters)],
        "jtj_product": [operators.jtj_product(known.parameters, known.vector)],
        "block_diagonal": operators.block_diagonal(known.parameters),
    }


@pytest.mark.wgsl
@each_adapter
@each_case
@each_accumulation
def test_products_agree_with_the_oracle(
    adapter: str, case: str, accumulation: str, opened: Callable[[str], Device]
) -> None:
    known, device = oracle(case), opened(adapter)
    if accumulation == "atomic-native" and not has_native_atomics(adapter):
        with pytest.raises(DeviceError, match="shader-float32-atomic; use 'atomic-cas'"):
            Operators(device, known.tables, accumulation)
        return
    with Operators(device, known.tables, accumulation) as operators:
        got = run_all(operators, known)
    compare(got, known, FLOAT32)


def compare(got: dict[str, list[Any]], known: Oracle, limit: float) -> None:
    """Rounding of every product, relative to its terms; exact zeros where there are none."""
    for product in PRODUCTS:
        expected, sizes = known.products[product], known.sizes[product]
        if product != "block_diagonal":
            expected, sizes = [expected], [sizes]
        assert len(got[product]) == len(expected)
        for k, (values, wanted, size) in enumerate(zip(got[product], expected, sizes, strict=True)):
            assert values.shape == wanted.shape
            error = np.abs(values - wanted) / np.where(size > 0.0, limit * size, 1.0)
            ROUNDING.check(error, np.zeros_like(error), f"{product} of node set {k}")
            assert (values[size == 0.0] == 0.0).all(), "frozen or untouched, so an exact zero"


# Parameters are as exact as double-float keeps them, 2^-48; worst measured 6e-14 and 3e-13 of
# blocks of the bundle, 1.4e-14 and 2.8e-14 of the others; native 4e-15.
FLOAT64 = {"float64-emulated": 1e-12, "float64-native": 2e-14}
# SwiftShader takes minutes to compile double-float kernels that turn or fold.
ON_ALL = ("frozen_springs",)
IN_FLOAT64 = [
    pytest.param(backend, case, id=f"{backend}-{case}", marks=marks)
    for case in CASES
    for backend in WGSL_FLOAT64
    if case in ON_ALL or backend.adapter == "llvmpipe"
    for marks in [
        [pytest.mark.wgsl, *([] if case in (*ON_ALL, "frozen_arap") else [pytest.mark.long])]
    ]
]


@pytest.mark.parametrize(("backend", "case"), IN_FLOAT64)
@each_deterministic
def test_products_in_float64_agree_with_the_oracle(
    backend: Backend, case: str, accumulation: str, opened: Callable[[str], Device]
) -> None:
    assert backend.adapter is not None
    known, device = oracle(case), opened(backend.adapter)
    tables = node_tables(CASES[case].make(), backend.precision)
    with Operators(device, tables, accumulation) as operators:
        compare(run_all(operators, known), known, FLOAT64[backend.precision])


@pytest.mark.wgsl
@pytest.mark.parametrize("accumulation", ["atomic-native", "atomic-cas"])
def test_atomics_in_float64_are_refused(accumulation: str, opened: Callable[[str], Device]) -> None:
    tables = node_tables(CASES["springs"].make(), "float64-emulated")
    with pytest.raises(PrecisionError, match="atomics have 32 bits; use 'gather' or 'two-level'"):
        Operators(opened(wgsl_adapters()[0]), tables, accumulation)


def test_data_that_double_float_cannot_hold_are_refused() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.ones(3))
    problem.add_residuals(lambda p, d: p - d, x, np.array([1.0, 1e-35, 2.0]), name="tiny")
    with pytest.raises(PrecisionError, match=r"residuals 'tiny', data slot 1: the value 1e-35"):
        node_tables(problem, "float64-emulated")
    assert node_tables(problem, "float64-native").numbers.tolist().count(1e-35) == 2


@pytest.mark.wgsl
@each_adapter
@each_deterministic
@pytest.mark.parametrize("case", ["frozen_springs", "bundle", "one_target"])
def test_two_runs_and_two_devices_give_the_same_bits(
    adapter: str, case: str, accumulation: str
) -> None:
    known = oracle(case)
    bits: list[bytes] = []
    for _ in range(2):
        device = Device(adapter)
        with Operators(device, known.tables, accumulation) as operators:
            for _ in range(2):
                results = run_all(operators, known)
                bits.append(b"".join(a.tobytes() for p in PRODUCTS for a in results[p]))
        device.close()
    assert len(set(bits)) == 1


@pytest.mark.wgsl
@each_adapter
@each_accumulation
def test_a_second_call_allocates_nothing(
    adapter: str, accumulation: str, opened: Callable[[str], Device]
) -> None:
    if accumulation == "atomic-native" and not has_native_atomics(adapter):
        return  # refused, as tested above
    known, device = oracle("springs"), opened(adapter)
    # Springs and anchors: two groups, one node set.
    dispatches = {"gather": 1, "two-level": 2 + 1}.get(accumulation, 1 + 2)
    with Operators(device, known.tables, accumulation) as operators:
        run_all(operators, known)
        before = device.counters.snapshot()
        run_all(operators, known)
        after = device.counters.snapshot()
    assert after.dispatches - before.dispatches == 3 * dispatches
    assert after.submits - before.submits == after.readbacks - before.readbacks == 3
    assert after.buffers_created == before.buffers_created
    assert after.pipelines_created == before.pipelines_created
    assert f"gradient {dispatches}" in operators.schedule


@pytest.mark.wgsl
def test_wrong_input_is_refused(opened: Callable[[str], Device]) -> None:
    known, device = oracle("springs"), opened(wgsl_adapters()[0])
    with pytest.raises(InputError, match="unknown accumulation 'tree'; known are gather, two-l"):
        Operators(device, known.tables, "tree")
    with (
        Operators(device, known.tables) as operators,
        pytest.raises(ShapeError, match="vector: got 3 numbers, the problem has 486 parameters"),
    ):
        operators.jtj_product(known.parameters, np.zeros(3))


# -- text --------------------------------------------------------------------------------------


def texts(tables: NodeTables, accumulation: str) -> Iterator[str]:
    structure = OperatorStructure(
        solve=tables.structure,
        accumulations=tuple(accumulation for _ in tables.structure.groups),
        teams=tuple(1 for _ in tables.structure.node_sets),
    )
    for product in PRODUCTS:
        yield from (kernel.source for kernel in operator_kernels(structure, product))


@each_case
@each_accumulation
@pytest.mark.parametrize("precision", WGSL_REALS)
def test_text_stays_within_what_a_browser_grants(
    case: str, accumulation: str, precision: str
) -> None:
    if precision != "float32" and accumulation in FLOAT32_ACCUMULATIONS:
        return  # refused, as tested above
    for text in texts(node_tables(CASES[case].make(), precision), accumulation):
        assert text.count("var<storage") <= 8
        shared = re.findall(r"var<workgroup> \w+: array<real, (\d+)>", text)
        assert text.count("var<workgroup>") == len(shared)
        assert sum(map(int, shared)) * WGSL_REALS[precision].words <= SHARED_WORDS
        if accumulation != "atomic-native":
            assert "atomic<f32>" not in text
        assert "{{" not in text and "{%" not in text


def test_too_many_places_for_shared_memory_are_refused() -> None:
    problem = ag.Problem()
    x = problem.parameters("x", np.arange(200.0))
    most = SHARED_WORDS // WORKGROUP_SIZE
    near = [x[(np.arange(200) + k) % 200] for k in range(most + 1)]
    problem.add_residuals(lambda *blocks: ag.sum([b * b for b in blocks]), *near, name="ring")
    with pytest.raises(DeviceLimitError, match=f"{most + 1} blocks, two-level .* holds {most} in"):
        list(texts(node_tables(problem), "two-level"))


# -- the page ----------------------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-it-works.md"
_MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def only_springs() -> NodeTables:
    mesh = ag.meshes.icosphere(1)
    i, j = mesh.edges.T
    problem = ag.Problem()
    x = problem.parameters("x", mesh.vertices)
    problem.add_residuals(energies.spring, x[i], x[j], 0.9 * mesh.edge_lengths)
    return node_tables(problem)


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def counts(tables: NodeTables, gather: str, atomic: str) -> str:
    """Work per edge, counted in the graphs and in the text; an edge is two incidences."""
    group = tables.structure.groups[0]
    incidence, element = gradient_contribution(group, 0), element_contribution(group, "gradient")
    loop = gather.split("for (var k", 1)[1].split("\n", 1)[1]
    once = gather.split("if (present) {", 1)[1].split("for (var k", 1)[0]
    body = atomic.split("if (e < c.z) {", 1)[1]
    adds = body.count("add(word")
    rows = [
        ("table words read", 2 * loop.count("tables["), body.count("tables[")),
        ("position words read", 2 * loop.count("parameters["), body.count("parameters[")),
        ("operations", 2 * incidence.graph.stats.ops, element.graph.stats.ops),
        ("atomic additions", 0, adds),
    ]
    lines = ["| per edge | gather | atomic-cas |", "|---|---|---|"]
    lines += [f"| {what} | {a} | {b} |" for what, a, b in rows]
    lines += ["", "| per vertex | gather | atomic-cas |", "|---|---|---|"]
    stores = gather.count("result[o")
    lines += [
        f"| own position, words read | {once.count('parameters[')} | 0 |",
        "| start of its list, words read | 1 (its end is the next one's start) | 0 |",
        f"| gradient, words written | {stores} | {adds // 2} zeros, then by atomics |",
    ]
    return "\n".join(lines) + "\n"


def generated_blocks() -> dict[str, str]:
    tables = only_springs()
    text: dict[str, str] = {}
    for accumulation in ("gather", "atomic-cas"):
        structure = OperatorStructure(
            solve=tables.structure, accumulations=(accumulation,), teams=(1,)
        )
        text[accumulation] = operator_kernels(structure, "gradient")[-1].source
    graph = element_contribution(tables.structure.groups[0], "gradient").graph
    return {
        "trace": fenced(str(ag.trace(energies.spring, 3, 3, 1))),
        "gradient": fenced(str(graph)),
        "gather": fenced(text["gather"], "wgsl"),
        "atomic-cas": fenced(text["atomic-cas"], "wgsl"),
        "counts": counts(tables, text["gather"], text["atomic-cas"]),
    }


def test_the_page_shows_what_is_generated(update_golden: bool) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = generated_blocks()
    assert [name for _, name, _ in _MARKED.findall(page)] == list(blocks)
    wanted = _MARKED.sub(lambda m: f"{m[1]}{blocks[m[2]]}{m[3]}", page)
    if update_golden:
        PAGE.write_text(wanted, encoding="utf-8")
        return
    assert page == wanted, (
        f"{PAGE.name} shows text that is no longer generated; if the change is meant, run "
        "pytest --update-golden and read the diff"
    )
