"""Kernels that run on the CPU for several elements at once.

A loop over elements as a person would write it stays scalar in machine code: inputs are gathered
and every element stores a row. The ``lanes`` schedule gathers ``LANES`` elements into columns, runs
the statements over those columns, where LLVM makes vector instructions of the loop, and stores
rows from columns again. It takes about twice as long to compile, so it pays for large batches.
"""

from __future__ import annotations

from autograd_gpu.codegen.kernel import Kernel, Product
from autograd_gpu.ir import Graph
from autograd_gpu.ops import NODE_OPS

LANES = 16
"""Elements in a block: two vectors of eight float64, the widest that processors have."""

FEWEST_ELEMENTS = 4096
"""Smallest batch for which the longer compilation is worth it."""

MOST_NODES = 4096
"""Longest kernel; registers spill long before."""

FAR = 8.0e5
"""Largest argument of ``sin`` and ``cos`` here: beyond it the block says so, and the plain kernel
computes the range again."""


def fits_lanes(kernel: Kernel, precision: str) -> bool:
    """Whether every statement of the kernel can become vector instructions."""
    return (
        precision == "float64"
        and not kernel.is_folded
        and kernel.product is not Product.COST
        and len(kernel.graph.nodes) <= MOST_NODES
        and all(node.op not in NODE_OPS or NODE_OPS[node.op].lanes for node in kernel.graph.nodes)
    )


def circular_arguments(graph: Graph) -> list[int]:
    """Nodes that a sine or cosine is taken of."""
    found = {n.args[0] for n in graph.nodes if n.op in ("sin", "cos")}
    return sorted(a for a in found if graph.nodes[a].op != "const")
