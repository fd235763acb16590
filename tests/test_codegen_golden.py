"""Generated text of two energies, word for word; ``pytest --update-golden`` rewrites the files.

A change of these files is a change of what every target runs: read the diff before committing it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import autograd_gpu as ag
import autograd_gpu.meshes.energies as energies
from autograd_gpu.codegen.kernel import Product
from autograd_gpu.codegen.program import MAX_STORAGE_BUFFERS, MAX_WORKGROUP_SIZE
from autograd_gpu.codegen.render import Source, compile_to_jax, compile_to_numba, compile_to_wgsl
from autograd_gpu.errors import InputError, KernelError

GOLDEN = Path(__file__).parent / "golden"

# Widths of the arguments, and which of them are data.
ENERGIES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "spring": ((3, 3, 1), (2,)),
    "as_rigid_as_possible": ((3, 3, 3, 3), (3,)),
}
TARGETS: dict[str, tuple[Any, str]] = {
    "wgsl_float32": (compile_to_wgsl, "wgsl"),
    # Not *.py: generated text follows no style but its own.
    "numba_float64": (compile_to_numba, "txt"),
    "jax_float64": (compile_to_jax, "txt"),
}


def generate(energy: str, product: str, target: str) -> Source:
    widths, data = ENERGIES[energy]
    graph = ag.trace(getattr(energies, energy), *widths)
    return TARGETS[target][0](graph, product, data=data)


each_energy = pytest.mark.parametrize("energy", ENERGIES)
each_product = pytest.mark.parametrize("product", [p.value for p in Product])
each_target = pytest.mark.parametrize("target", TARGETS)


@each_energy
@each_product
@each_target
def test_generated_text(energy: str, product: str, target: str, update_golden: bool) -> None:
    text = generate(energy, product, target).source
    file = GOLDEN / f"{energy}.{product}.{target}.{TARGETS[target][1]}"
    if update_golden:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert file.exists(), f"no {file.name}; run pytest --update-golden and read what it wrote"
    assert text == file.read_text(encoding="utf-8"), (
        f"{file.name} differs from what is generated now; if that is meant, run "
        "pytest --update-golden and read the diff"
    )


def test_no_golden_file_is_left_over() -> None:
    wanted = {
        f"{energy}.{product.value}.{target}.{extension}"
        for energy in ENERGIES
        for product in Product
        for target, (_, extension) in TARGETS.items()
    }
    assert {file.name for file in GOLDEN.iterdir()} == wanted


@each_energy
@each_product
@each_target
def test_header_says_where_the_text_comes_from(energy: str, product: str, target: str) -> None:
    source = generate(energy, product, target)
    header = source.source[: source.source.index("\n\n")]
    backend, precision = target.split("_")
    assert (source.target, source.precision) == (backend, precision)
    for fact in (source.kernel.key.split("-")[0], product, precision, "element"):
        assert fact in header, f"{fact!r} is not in the header:\n{header}"


@each_energy
@each_product
def test_wgsl_stays_within_what_a_browser_grants(energy: str, product: str) -> None:
    source = generate(energy, product, "wgsl_float32")
    text = source.source
    assert text.count("var<storage") == sum(b != "uniform" for b in source.bindings)
    assert text.count("var<storage") <= MAX_STORAGE_BUFFERS == 8
    size = re.search(r"@workgroup_size\((\d+)\)", text)
    assert size and int(size.group(1)) == source.workgroup_size <= MAX_WORKGROUP_SIZE == 256
    for feature in ("enable ", "f64", "subgroup", "atomic"):
        assert feature not in text, f"the portable profile has no {feature.strip()!r}"
    assert "{{" not in text and "{%" not in text


@each_energy
def test_equal_graphs_give_the_same_text(energy: str) -> None:
    first, second = (generate(energy, "residual_jacobian", "wgsl_float32") for _ in range(2))
    assert first is second


def test_each_value_is_computed_once() -> None:
    for target in TARGETS:
        text = generate("as_rigid_as_possible", "residual_jacobian", target).source
        statements = re.findall(r"^\s*(?:let )?(v\d+)(?:: \w+)? = (.+)$", text, re.MULTILINE)
        assert len(statements) > 50
        assert len({name for name, _ in statements}) == len(statements)
        assert len({value for _, value in statements}) == len(statements)


def test_unknown_products_and_precisions_name_those_known() -> None:
    graph = ag.trace(lambda x: x * x, 1)
    with pytest.raises(InputError, match="unknown product 'hessian'; known: residual, cost"):
        compile_to_wgsl(graph, "hessian")
    with pytest.raises(InputError, match="no generator for 'wgsl' in 'float16'; known: wgsl/float"):
        compile_to_wgsl(graph, precision="float16")


def test_a_constant_beyond_float32_is_refused_where_it_matters() -> None:
    graph = ag.trace(lambda x: x * 1e100, 1)
    with pytest.raises(KernelError, match=r"1e\+100 does not fit float32"):
        compile_to_wgsl(graph)
    assert "1e+100" in compile_to_numba(graph).source


@pytest.mark.parametrize("value", [-0.0, -1.5, 1e-45, 3.4e38, 1 / 3, 123456789.0, 1e-300])
def test_literals_are_written_with_a_sign_that_parses(value: float) -> None:
    graph = ag.trace(lambda x: [ag.atan2(value, x), x - value, value * x], 1)
    text = compile_to_wgsl(graph, "residual").source
    assert "--" not in text
    assert not re.search(r"\d+f?\.f", text)


def test_names_of_any_language_become_identifiers() -> None:
    def größe(x: Any) -> Any:
        return x * 2

    for target in (compile_to_wgsl, compile_to_numba):
        name = target(ag.trace(größe, 1)).kernel.name
        assert name.isidentifier() and name.isascii()
    anonymous = compile_to_numba(ag.trace(lambda x: x * 3, 1))
    compile(anonymous.source, "generated", "exec")
    assert anonymous.entry_point.isidentifier()
