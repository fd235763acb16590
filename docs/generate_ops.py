"""Writes ops.md from the op table: ``python docs/generate_ops.py`` from the repository's root."""

from __future__ import annotations

from pathlib import Path

from autograd_gpu.ops import BOOL, OPS, Op

PAGE = Path(__file__).with_name("ops.md")

_HEAD = """# Ops

Generated from `autograd_gpu/ops.py` by `docs/generate_ops.py`; a test compares, and
`pytest tests/test_docs.py --update-golden` rewrites. One row of that table is all the project knows
about an op, so a new op is a new row.

* *Domain*: the interval per operand in which the tests sample values and derivatives, on every
  backend and adapter; large and tiny operands are tested apart.
* *Singular points*: `at → value; derivative per operand`, which every backend must give. Where the
  value is finite and the derivative is infinite or not unique, the derivative is the finite number
  that stands here, so a zero-length edge has a zero gradient and not NaN. Where the value is not
  finite (poles, negative square roots), the residual is not finite, and a solve on the CPU says
  which element it was.
* *Spellings* are format strings over the operands. WGSL names that begin with `ag_` are functions
  of `templates/wgsl/prelude_float32.wgsl.j2`. SymPy's are those of `ag.interop.to_sympy`.

## Meaning

| op | operands | what | domain | singular points |
|---|---|---|---|---|
"""

_SPELLINGS = """
## Spelling per target

Ops that are written out in terms of others (*expanded*) never become nodes of a graph.

| op | cost | WGSL | Numba | JAX | SymPy |
|---|---|---|---|---|---|
"""


def _tuple(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _meaning(op: Op) -> str:
    kinds = ", ".join("boolean" if t == BOOL else "real" for t in op.operands)
    domain = " × ".join(
        "{0, 1}" if t == BOOL else f"({_tuple(interval)})"
        for t, interval in zip(op.operands, op.domain, strict=True)
    )
    points = "<br>".join(
        f"({_tuple(s.at)}) → {s.value:.6g}; {_tuple(s.partials)}"
        + (f" ({s.note})" if s.note else "")
        for s in op.singular
    )
    return f"| `{op.name}` | {kinds} | {op.doc} | {domain} | {points} |"


def _spelling(op: Op) -> str:
    if op.expand is not None:
        return f"| `{op.name}` | | expanded | expanded | expanded | expanded |"
    texts = (text.replace("|", "\\|") for text in (op.wgsl, op.numba, op.jax, op.sympy))
    return f"| `{op.name}` | {op.cost} | " + " | ".join(f"`{text}`" for text in texts) + " |"


def page() -> str:
    """The whole page, as Markdown."""
    meanings = "\n".join(_meaning(op) for op in OPS.values())
    spellings = "\n".join(_spelling(op) for op in OPS.values())
    return f"{_HEAD}{meanings}\n{_SPELLINGS}{spellings}\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
