"""Batches on every backend: the same numbers, whatever is gathered, cut or run twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bindings import Bound, Rows, bind

import autograd_gpu as ag
import autograd_gpu.meshes.energies as energies
from autograd_gpu.codegen.kernel import Product
from autograd_gpu.errors import InputError
from autograd_gpu.runtime.batch import BoundGroup, ParameterBinding
from autograd_gpu.runtime.device import Device
from sessions import JAX, NUMBA, NUMPY, WGSL, Backend, evaluate, float32_exact, parameters_of
from tolerances import GRAPH, tolerance

OTHERS = [NUMBA, *JAX, *WGSL]
each_backend = pytest.mark.parametrize("backend", parameters_of([NUMPY, *OTHERS]))
each_wgsl = pytest.mark.parametrize("backend", parameters_of(WGSL))


def check(backend: Backend, bound: Bound, arrays: list[Any], wrt: list[int] | None = None) -> None:
    """Compare all products with the graph evaluated on ``arrays``, what each element sees."""
    batch = evaluate(backend, bound)
    graph, count = bound.graph, bound.group.count
    wrt = [k for k in range(len(arrays)) if k not in bound.data] if wrt is None else wrt
    want = graph(*arrays).reshape(count, -1)
    J = ag.jacobian(graph, wrt)(*arrays).reshape(count, want.shape[1], -1)
    bounds = tolerance(backend.precision, GRAPH)
    bounds.check(batch.residuals, want, f"{backend}: residuals")
    bounds.check(batch.jacobian, J, f"{backend}: jacobian")
    cost = 0.5 * np.sum(want**2)
    bounds.check(batch.cost / (1 + cost), cost / (1 + cost), f"{backend}: cost")


# -- what an element sees ------------------------------------------------------------------------


def mixed(p: Any, q: Any, c: Any, w: Any, d: Any) -> list[Any]:
    """Every kind of slot, none exchangeable with another."""
    return [ag.norm(q - p) * w - d[0], ag.dot(p, c) + ag.sin(q[1]) * d[1], c[0] * w]


COUNT = 1000
RNG = np.random.default_rng(3)
POINTS = float32_exact(RNG.normal(size=(400, 3)))
CENTERS = float32_exact(RNG.normal(size=(7, 3)))
WEIGHTS = float32_exact(RNG.uniform(0.5, 2, (5000, 1)))
ROWS_OF_DATA = float32_exact(RNG.normal(size=(COUNT, 2)))
GATHER = Rows(indices=RNG.integers(0, 400, COUNT))
GATHER_2 = Rows(indices=RNG.integers(0, 400, COUNT))

SELECTIONS: dict[str, dict[int, Rows]] = {
    "gathered": {0: GATHER, 1: GATHER_2, 2: Rows(indices=RNG.integers(0, 7, COUNT))},
    "one shared block": {0: GATHER, 1: GATHER_2, 2: Rows(offset=5, stride=0)},
    "slices": {0: GATHER, 1: Rows(offset=3, stride=0), 2: Rows(offset=0, stride=0),
               3: Rows(offset=17, stride=4)},
    "backwards": {0: GATHER, 1: GATHER_2, 2: Rows(offset=6, stride=0),
                  3: Rows(offset=4999, stride=-5)},
    "shared data": {0: GATHER, 1: GATHER_2, 2: Rows(offset=1, stride=0), 4: Rows(10, 0)},
    "everything shared but one": {0: GATHER, 1: Rows(0, 0), 2: Rows(0, 0), 3: Rows(0, 0),
                                  4: Rows(0, 0)},
}  # fmt: skip


@each_backend
@pytest.mark.parametrize("selection", SELECTIONS)
def test_gathers_slices_and_shared_blocks(backend: Backend, selection: str) -> None:
    rows = SELECTIONS[selection]
    graph = ag.trace(mixed, 3, 3, 3, 1, 2)
    arrays = [POINTS, POINTS * 0.5 + 1, CENTERS, WEIGHTS, ROWS_OF_DATA]
    bound = bind(graph, arrays, (4,), rows=rows, count=COUNT)
    seen = [rows.get(k, Rows()).of(a, COUNT) for k, a in enumerate(arrays)]
    seen[3] = seen[3][:, 0]
    check(backend, bound, seen)


@each_backend
def test_groups_keep_their_order_and_share_kernels(backend: Backend) -> None:
    spring = ag.trace(energies.spring, 3, 3, 1)
    mirrored = ag.trace(lambda r, b, a: ag.norm(a - b) - r, 1, 3, 3)
    anchor = ag.trace(lambda p, t: 0.5 * (p - t), 3, 3)
    rest = np.full(COUNT, 0.75)
    first = bind(spring, [POINTS, POINTS, rest], (2,), rows={0: GATHER, 1: GATHER_2}, count=COUNT)
    # All groups act on the same points, so parameters are one array and bases are 0.
    second = bind(
        mirrored, [rest, POINTS, POINTS], (0,), rows={1: GATHER, 2: GATHER_2}, count=COUNT
    )
    third = bind(anchor, [POINTS, POINTS + 1], (1,))
    groups = [_on_one_array(b) for b in (first, third, second)]
    x = POINTS.ravel()
    with backend.open(groups, x.size) as session:
        residuals, values = (a.copy() for a in session.residual_jacobian(x))
        cost = session.cost(x)
        sources = session.sources()
    i, j = GATHER.indices, GATHER_2.indices
    lengths = np.linalg.norm(POINTS[j] - POINTS[i], axis=1) - 0.75
    want = np.concatenate([lengths, np.full(POINTS.size, -0.5), lengths])
    bounds = tolerance(backend.precision, GRAPH)
    bounds.check(residuals, want, "residuals of three groups")
    np.testing.assert_allclose(cost, 0.5 * want @ want, rtol=1e-5)
    springs = COUNT * 6
    assert values.size == 2 * springs + POINTS.size
    np.testing.assert_array_equal(values[springs:-springs], 0.5)
    np.testing.assert_array_equal(np.sort(values[:springs]), np.sort(values[-springs:]))
    if backend.name != "numpy":
        keys = [source.kernel.key for source in sources]
        assert len(keys) == len(set(keys)), "a kernel was compiled twice"
        assert len({k.split("-")[0] for k in keys}) == 2


def _on_one_array(bound: Bound) -> BoundGroup:
    """The group with every parameter slot on the array that starts at 0."""
    return replace(
        bound.group,
        bindings=tuple(
            replace(b, base=0) if isinstance(b, ParameterBinding) else b
            for b in bound.group.bindings
        ),
    )


SHAPES: dict[str, tuple[Any, tuple[Any, ...], tuple[int, ...]]] = {
    "linear, no varying entry": (lambda p, q: 2 * p - q, (3, 3), ()),
    "partly constant": (lambda p, q: [p.x * q.x, p.y - 3, 0.0, q.y], (2, 2), ()),
    "constant residual": (lambda p: [1.5, p, -2.0], (1,), ()),
    "parameter unused": (lambda p, d: d * 2, (3, 1), (1,)),
    "data unused": (lambda p, d: ag.exp(p), (1, 3), (1,)),
    "same argument twice": (lambda p: [p.x * p.y, p.x * p.x], (2,), ()),
    "matrix": (lambda m, v: m @ v, ((3, 3), 3), ()),
    "matrix data": (lambda v, m: m @ ag.sin(v), (3, (2, 3)), (1,)),
    "wide": (lambda v: [v[k] * v[(k * 7 + 1) % 40] for k in range(40)], (40,), ()),
    "truth values": (
        lambda a, b: ag.where((a > 0) & ~(b > 0) | (a > b), a * b, ag.where(a <= 0, b, 1.0)),
        (1, 1),
        (),
    ),
}


@each_backend
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("count", [1, 257])
def test_shapes_of_kernels(backend: Backend, case: str, count: int) -> None:
    fn, widths, data = SHAPES[case]
    shapes = [() if w == 1 else (w,) if isinstance(w, int) else w for w in widths]
    rng = np.random.default_rng(count)
    arrays = [float32_exact(rng.normal(size=(count, *shape))) for shape in shapes]
    check(backend, bind(ag.trace(fn, *widths), arrays, data), arrays)


# -- devices -------------------------------------------------------------------------------------

# What the WebGPU specification grants everywhere.
BROWSER = {
    "max-storage-buffers-per-shader-stage": 8,
    "max-compute-invocations-per-workgroup": 256,
    "max-compute-workgroup-size-x": 256,
    "max-compute-workgroup-storage-size": 16384,
    "max-compute-workgroups-per-dimension": 65535,
    "max-uniform-buffer-binding-size": 65536,
}


def arap_batch(count: int) -> Bound:
    rng = np.random.default_rng(11)
    vertices = 500
    x = float32_exact(rng.normal(size=(vertices, 3)))
    i, j = (Rows(indices=rng.integers(0, vertices, count)) for _ in range(2))
    edges = float32_exact(rng.normal(size=(count, 3)))
    graph = ag.trace(energies.as_rigid_as_possible, 3, 3, 3, 3)
    return bind(graph, [x, x + 0.1, 0.3 * x, edges], (3,), rows={0: i, 1: j, 2: i}, count=count)


@each_wgsl
def test_cut_batches_give_the_same_bits_in_more_dispatches(backend: Backend) -> None:
    bound = arap_batch(20_000)
    outputs: list[Any] = []
    dispatches: list[int] = []
    assert backend.adapter is not None
    for limits in ({}, BROWSER, BROWSER | {"max-storage-buffer-binding-size": 1 << 16}):
        device = Device(backend.adapter, limits=limits)
        with backend.open([bound.group], bound.parameters.size, device) as session:
            before = device.counters.snapshot()
            residuals, values = (a.copy() for a in session.residual_jacobian(bound.parameters))
            after = device.counters.snapshot()
            assert after.readbacks - before.readbacks == 1
            alone = session.residuals(bound.parameters).copy()
            cost = session.cost(bound.parameters)
        outputs.append((residuals, values, alone))
        dispatches.append(after.dispatches - before.dispatches)
        np.testing.assert_allclose(cost, 0.5 * residuals @ residuals, rtol=1e-6)
        device.close()
    for other in outputs[1:]:
        for got, want in zip(other, outputs[0], strict=True):
            np.testing.assert_array_equal(got, want)
    kernel = bound.group.kernel(Product.RESIDUAL_JACOBIAN)
    varying = sum(e.output is not None for e in kernel.entries)
    assert dispatches[:2] == [1, 1]
    assert dispatches[2] == -(-20_000 * varying * 4 // (1 << 16)) > 1


@each_wgsl
def test_a_second_evaluation_creates_nothing_and_reads_back_once(backend: Backend) -> None:
    bound, other = arap_batch(3000), bind(ag.trace(ag.norm, 3), [POINTS])
    assert backend.adapter is not None
    device = Device(backend.adapter)
    groups = [bound.group, other.group]
    with backend.open(groups, bound.parameters.size, device) as session:
        session.residual_jacobian(bound.parameters)
        session.residuals(bound.parameters)
        session.cost(bound.parameters)
        for evaluate_product in (session.residual_jacobian, session.residuals, session.cost):
            before = device.counters.snapshot()
            evaluate_product(bound.parameters)
            after = device.counters.snapshot()
            assert after.buffers_created == before.buffers_created
            assert after.pipelines_created == before.pipelines_created
            assert after.readbacks - before.readbacks == 1
            assert after.submits - before.submits == 1
            assert after.dispatches - before.dispatches == len(groups)
            assert after.bytes_up - before.bytes_up == 4 * bound.parameters.size
        kernels = device.counters.pipelines_created
        assert kernels == 3 * len(groups)
    with backend.open(groups[::-1], bound.parameters.size, device) as session:
        session.residuals(bound.parameters)
        assert device.counters.pipelines_created == kernels, "equal kernels were compiled again"
    device.close()


@each_wgsl
def test_sizes_of_buffers_are_what_the_batch_needs(backend: Backend) -> None:
    """What comes back is the residuals and the entries that vary, and nothing else."""
    bound = arap_batch(1000)
    assert backend.adapter is not None
    device = Device(backend.adapter)
    kernel = bound.group.kernel(Product.RESIDUAL_JACOBIAN)
    varying = sum(e.output is not None for e in kernel.entries)
    assert 0 < varying < len(kernel.entries) < 3 * 9, "constants and zeros are not computed"
    with backend.open([bound.group], bound.parameters.size, device) as session:
        before = device.counters.bytes_down
        session.residual_jacobian(bound.parameters)
        assert device.counters.bytes_down - before == 4 * 1000 * (3 + varying)
        before = device.counters.bytes_down
        session.cost(bound.parameters)
        assert device.counters.bytes_down - before == 4 * 4  # a sum for each 256 elements
    device.close()


@each_wgsl
def test_more_than_65535_workgroups(backend: Backend) -> None:
    count = 17_000_000
    bound = bind(
        ag.trace(lambda x: x - 3.0, 1), [np.array([1.0])], rows={0: Rows(0, 0)}, count=count
    )
    with backend.open([bound.group], 1) as session:
        assert (session.residuals(bound.parameters) == -2.0).all()
        assert session.cost(bound.parameters) == 2.0 * count


@each_wgsl
def test_numbers_beyond_float32_are_refused_by_name(backend: Backend) -> None:
    bound = bind(ag.trace(lambda x, d: x * d, 1, 1), [np.ones(3), np.array([1, 2, 1e39])], (1,),
                 name="springs")  # fmt: skip
    with pytest.raises(InputError, match=r"'springs', .*1e\+39 is beyond float32"):
        backend.open([bound.group], 3)
    fine = bind(ag.trace(lambda x: x * 2, 1), [np.ones(3)])
    with (
        backend.open([fine.group], 3) as session,
        pytest.raises(InputError, match=r"parameters: the value 2e\+40"),
    ):
        session.residuals(np.array([1.0, 2e40, 0.0]))


@each_backend
def test_costs_are_the_same_in_every_run(backend: Backend) -> None:
    bound = arap_batch(10_000)
    with backend.open([bound.group], bound.parameters.size) as session:
        costs = {session.cost(bound.parameters) for _ in range(5)}
    assert len(costs) == 1


@each_backend
def test_parameters_are_not_modified(backend: Backend) -> None:
    bound = arap_batch(100)
    x = bound.parameters.copy()
    with backend.open([bound.group], x.size) as session:
        session.residual_jacobian(x)
        session.cost(x)
    np.testing.assert_array_equal(x, bound.parameters)


def test_numba_results_do_not_depend_on_the_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound = arap_batch(30_000)
    seen: set[tuple[float, bytes]] = set()
    for threads in (1, 2, 7):
        monkeypatch.setattr(
            "autograd_gpu.runtime.numba_backend.available_threads", lambda n=threads: n
        )
        with NUMBA.open([bound.group], bound.parameters.size) as session:
            cost = session.cost(bound.parameters)
            seen.add((cost, session.residuals(bound.parameters).tobytes()))
    assert len(seen) == 1
