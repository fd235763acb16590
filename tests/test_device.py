"""Devices, limits and the program runner, on every WebGPU adapter of this process."""

import dataclasses
import os
import threading

import numpy as np
import pytest

from adapters_for_tests import wgsl_adapters
from autograd_gpu.codegen.program import (
    BufferSpec,
    DispatchSpec,
    PipelineSpec,
    Program,
    SequenceSpec,
)
from autograd_gpu.errors import (
    DeviceError,
    DeviceLimitError,
    InputError,
    KernelError,
    ShapeError,
)
from autograd_gpu.runtime import device as device_module
from autograd_gpu.runtime import pipelines as pipelines_module
from autograd_gpu.runtime.adapters import AdapterInfo, _preference, choose_adapter, devices
from autograd_gpu.runtime.device import Device, default_device, set_default_device
from autograd_gpu.runtime.program_runner import ProgramRunner

pytestmark = pytest.mark.wgsl

SCALE_SOURCE = """
struct Parameters { scale: f32, count: u32 }
@group(0) @binding(0) var<uniform> parameters: Parameters;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> unused: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(WIDTH)
fn main(@builtin(global_invocation_id) gid: vec3<u32>,
        @builtin(num_workgroups) groups: vec3<u32>) {
  let i = gid.x + gid.y * groups.x * WIDTH;
  if (i >= parameters.count) { return; }
  y[i] = parameters.scale * x[i] + 1.0;
}
"""
SCALE = PipelineSpec(
    name="scale",
    source=SCALE_SOURCE.replace("WIDTH", "64"),
    entry_point="main",
    bindings=("uniform", "read", "read", "write"),
    workgroup_size=64,
)


def scale_program(count, kernel=SCALE):
    """Y = scale * x + 1; a binding that the kernel never uses must do no harm."""
    return Program(
        buffers=(
            BufferSpec(name="parameters", size=8, role="uniform"),
            BufferSpec(name="x", size=4 * count, role="upload"),
            BufferSpec(name="unused", size=4, role="state"),
            BufferSpec(name="y", size=4 * count, role="download"),
        ),
        pipelines=(kernel,),
        sequences={
            "run": SequenceSpec(
                dispatches=(
                    DispatchSpec(
                        pipeline=kernel.name,
                        buffers=("parameters", "x", "unused", "y"),
                        invocations=count,
                    ),
                ),
                downloads=("y",),
            )
        },
    )


def increment_program(words, steps=3):
    """Several buffers that a kernel adds 1 to; download buffers a0, a1, a2."""
    source = """
    @group(0) @binding(0) var<storage, read_write> a: array<u32>;
    @compute @workgroup_size(64) fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
      if (gid.x < arrayLength(&a)) { a[gid.x] += 1u; }
    }
    """
    kernel = PipelineSpec(
        name="increment",
        source=source,
        entry_point="main",
        bindings=("write",),
        workgroup_size=64,
    )
    names = ("a0", "a1", "a2")
    dispatches = tuple(
        DispatchSpec(pipeline="increment", buffers=(name,), invocations=words)
        for k, name in enumerate(names)
        for _ in range(steps + k)
    )
    return Program(
        buffers=tuple(BufferSpec(name=n, size=4 * words, role="download") for n in names),
        pipelines=(kernel,),
        sequences={
            "step": SequenceSpec(dispatches=dispatches),
            "read": SequenceSpec(downloads=names),
            "first": SequenceSpec(dispatches=dispatches[:1], downloads=("a0",)),
        },
    )


def parameters_of(scale, count):
    words = np.zeros(2, np.uint32)
    words[:1] = np.array([scale], np.float32).view(np.uint32)
    words[1] = count
    return words


def run_scale(device, program, count, scale=2.0):
    x = np.arange(count, dtype=np.float32)
    with ProgramRunner(device, program) as runner:
        runner.upload("parameters", parameters_of(scale, count))
        runner.upload("x", x)
        y = runner.run("run", np.float32)["y"]
    np.testing.assert_array_equal(y, np.float32(scale) * x + np.float32(1))


@pytest.fixture(scope="module", params=wgsl_adapters())
def device(request):
    opened = Device(request.param)
    yield opened
    opened.close()


def test_there_is_an_adapter():
    assert wgsl_adapters(), "no WebGPU adapter: install mesa-vulkan-drivers"


# -- adapters ----------------------------------------------------------------------------------


def test_devices_lists_facts_and_the_default_comes_first():
    found = devices()
    assert choose_adapter() == found[0]
    for info in found:
        assert info.limits["max-buffer-size"] > 0
        assert list(info.features) == sorted(info.features)
        if "llvmpipe" in info.name or "SwiftShader" in info.name:
            assert info.is_software


def test_an_adapter_is_found_by_a_part_of_its_name_in_any_case():
    for name in wgsl_adapters():
        assert name in choose_adapter(name.upper()).name


def test_an_unknown_adapter_is_refused_with_those_found():
    with pytest.raises(DeviceError, match="'no such card'") as caught:
        choose_adapter("no such card")
    assert devices()[0].name in str(caught.value)


def test_no_adapter_at_all_names_what_to_install(monkeypatch):
    monkeypatch.setattr("autograd_gpu.runtime.adapters._enumerate", list)
    with pytest.raises(DeviceError, match="mesa-vulkan-drivers"):
        Device().name  # noqa: B018


def test_order_of_preference():
    def info(name, adapter_type, backend="Vulkan"):
        return AdapterInfo(
            name=name,
            vendor="",
            adapter_type=adapter_type,
            backend=backend,
            driver="",
            limits={},
            features=(),
        )

    best_first = [
        info("card", "DiscreteGPU"),
        info("chip", "IntegratedGPU"),
        info("guest", "VirtualGPU"),
        info("odd", "Unknown"),
        info("llvmpipe (LLVM 15)", "CPU"),
        info("SwiftShader Device", "CPU"),
        info("card", "DiscreteGPU", "OpenGL"),
        info("llvmpipe (LLVM 15)", "CPU", "OpenGL"),
    ]
    assert sorted(best_first[::-1], key=_preference) == best_first


def test_enumeration_leaves_the_process_with_a_runtime_folder():
    devices()
    if os.name == "posix":
        assert os.environ["XDG_RUNTIME_DIR"]


# -- running -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 63, 64, 65, 5000])
def test_kernel_with_an_unused_binding(device, count):
    run_scale(device, scale_program(count), count)


def test_more_workgroups_than_one_dimension_has(device):
    one_wide = dataclasses.replace(
        SCALE, source=SCALE_SOURCE.replace("WIDTH", "1"), workgroup_size=1
    )
    run_scale(device, scale_program(70_001, one_wide), 70_001)


def test_a_program_from_json_runs_the_same(device):
    run_scale(device, Program.from_json(scale_program(100).to_json()), 100)


def test_dispatches_run_in_order_and_several_sequences_share_one_submission(device):
    with ProgramRunner(device, increment_program(100)) as runner:
        before = device.counters.snapshot()
        out = runner.run(("step", "step", "read"), np.uint32)
        after = device.counters.snapshot()
    for k in range(3):
        np.testing.assert_array_equal(out[f"a{k}"], np.full(100, 2 * (3 + k)))
    assert after.submits - before.submits == 1
    assert after.readbacks - before.readbacks == 1
    assert after.dispatches - before.dispatches == 24


def test_dtypes_by_name_and_bytes_by_default(device):
    with ProgramRunner(device, increment_program(4)) as runner:
        out = runner.run(("step", "read"), {"a1": np.uint32})
    np.testing.assert_array_equal(out["a0"], np.array([3, 3, 3, 3], np.uint32).view(np.uint8))
    np.testing.assert_array_equal(out["a1"], [4, 4, 4, 4])


def test_results_stay_as_they_were_after_the_next_run(device):
    with ProgramRunner(device, increment_program(4)) as runner:
        first = runner.run("first", np.uint32)["a0"]
        second = runner.run("first", np.uint32)["a0"]
    assert first.tolist() == [1] * 4
    assert second.tolist() == [2] * 4


def test_a_second_run_creates_nothing_and_everything_is_counted(device):
    count = 1000
    with ProgramRunner(device, scale_program(count)) as runner:
        runner.upload("parameters", parameters_of(2.0, count))
        runner.upload("x", np.zeros(count, np.float32))
        runner.run("run")
        before = device.counters.snapshot()
        runner.upload("x", np.ones(count, np.float32))
        assert set(runner.run("run", np.float32)["y"]) == {3.0}
        after = device.counters.snapshot()
    assert dataclasses.asdict(after) == dataclasses.asdict(before) | {
        "dispatches": before.dispatches + 1,
        "submits": before.submits + 1,
        "readbacks": before.readbacks + 1,
        "bytes_up": before.bytes_up + 4 * count,
        "bytes_down": before.bytes_down + 4 * count,
    }


def test_a_second_runner_compiles_nothing_and_buffers_are_counted(device):
    ProgramRunner(device, scale_program(10)).release()
    device.memory.trim()
    before = device.counters.snapshot()
    ProgramRunner(device, scale_program(20)).release()
    after = device.counters.snapshot()
    assert after.pipelines_created == before.pipelines_created
    assert after.buffers_created - before.buffers_created == 5  # four, and one staging buffer


def test_pipelines_compiled_in_parallel_are_compiled_once_each(device):
    fresh = Device(device.adapter)
    specs = [
        dataclasses.replace(SCALE, source=f"{SCALE.source}// variant {k % 5}\n") for k in range(12)
    ]
    compiled = fresh.pipelines(specs)
    assert fresh.counters.pipelines_created == 5
    assert [fresh.pipeline(spec) is one for spec, one in zip(specs, compiled, strict=True)]
    again: list[object] = []
    threads = [threading.Thread(target=lambda: again.append(fresh.pipelines(specs))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert again == [compiled, compiled]
    assert fresh.counters.pipelines_created == 5
    fresh.close()


def test_the_first_of_several_broken_pipelines_is_named(device):
    broken = [
        dataclasses.replace(SCALE, name=name, source=SCALE.source.replace("1.0", name))
        for name in ("one", "two")
    ]
    with pytest.raises(KernelError, match="one"):
        device.pipelines([SCALE, *broken])


def test_the_pipeline_cache_is_bounded(device, monkeypatch):
    monkeypatch.setattr(pipelines_module, "PIPELINE_CACHE_SIZE", 2)
    fresh = Device(device.adapter)
    kernels = [dataclasses.replace(SCALE, source=SCALE.source + f"// {k}") for k in range(3)]
    for kernel in (*kernels, kernels[2], kernels[0]):
        fresh.pipeline(kernel)
    # The third pushed the first out, so only the first is compiled twice.
    assert fresh.counters.pipelines_created == 4
    fresh.close()


def test_upload_of_a_part(device):
    with ProgramRunner(device, scale_program(4)) as runner:
        runner.upload("parameters", parameters_of(1.0, 4))
        runner.upload("x", np.array([7, 8], np.float32), offset=8)
        np.testing.assert_array_equal(runner.run("run", np.float32)["y"], [1, 1, 8, 9])


def test_threads_take_turns(device):
    program = scale_program(500)
    failures = []

    def work(scale):
        try:
            run_scale(device, program, 500, scale)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(float(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_two_devices_side_by_side(device):
    with_more = [Device(name) for name in wgsl_adapters()] + [Device(device.adapter)]
    for other in with_more:
        run_scale(other, scale_program(200), 200)
        assert other.counters.submits == 1
    run_scale(device, scale_program(200), 200)
    for other in with_more:
        other.close()


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["parameters.skale", "1u", "+ * ;", "1e99"])
def test_a_kernel_that_does_not_compile_names_its_line(device, broken):
    source = SCALE.source.replace("parameters.scale * x[i]", f"x[i] + {broken}")
    line = 1 + next(k for k, text in enumerate(source.splitlines()) if "y[i] =" in text)
    with pytest.raises(KernelError, match=f"'scale'.*line {line}") as caught:
        ProgramRunner(device, scale_program(4, dataclasses.replace(SCALE, source=source)))
    assert caught.value.line == line
    assert caught.value.source == source


def test_a_missing_entry_point_and_a_wrong_binding_kind_are_kernel_errors(device):
    with pytest.raises(KernelError, match="other"):
        device.pipeline(dataclasses.replace(SCALE, entry_point="other"))
    with pytest.raises(KernelError, match="binding: 3"):
        device.pipeline(dataclasses.replace(SCALE, bindings=("uniform", "read", "read", "read")))


def test_upload_and_run_refuse_what_does_not_fit(device):
    with ProgramRunner(device, scale_program(4)) as runner:
        with pytest.raises(InputError, match="'z'"):
            runner.upload("z", np.zeros(4, np.float32))
        with pytest.raises(InputError, match="role 'download'"):
            runner.upload("y", np.zeros(4, np.float32))
        with pytest.raises(ShapeError, match=r"got 32 bytes .*float64.* the buffer has 16"):
            runner.upload("x", np.zeros(4))
        with pytest.raises(ShapeError, match="at offset 12"):
            runner.upload("x", np.zeros(2, np.float32), offset=12)
        with pytest.raises(InputError, match="'walk'; the program has 'run'"):
            runner.run("walk")


def test_released_and_closed_things_say_so(device):
    own = Device(device.adapter)
    runner = ProgramRunner(own, scale_program(4))
    runner.release()
    runner.release()
    with pytest.raises(DeviceError, match="released"):
        runner.run("run")
    late = ProgramRunner(own, scale_program(4))
    own.close()
    own.close()
    with pytest.raises(DeviceError, match="closed"):
        late.run("run")
    late.release()


# -- limits ------------------------------------------------------------------------------------

BROWSER = {
    "max-storage-buffer-binding-size": 128 * 1024,
    "max-buffer-size": 256 * 1024,
    "max-storage-buffers-per-shader-stage": 8,
}


@pytest.fixture(scope="module")
def small_device(device):
    opened = Device(device.adapter, limits=BROWSER, features=())
    yield opened
    opened.close()


def test_limits_are_in_force_and_features_stay_off(small_device, device):
    assert {name: small_device.limits[name] for name in BROWSER} == BROWSER
    assert not small_device.capabilities & set(device_module.OPTIONAL_FEATURES)
    for name in device_module.RAISED_LIMITS:
        assert device.limits[name] == device.adapter.limits[name]
    wanted = set(device_module.OPTIONAL_FEATURES)
    assert device.capabilities & wanted == wanted & set(device.adapter.features)


def test_a_buffer_beyond_the_limit_is_named(small_device):
    run_scale(small_device, scale_program(32 * 1024), 32 * 1024)
    before = small_device.counters.buffers_created
    with pytest.raises(
        DeviceLimitError,
        match=r"buffer 'x' \(upload\) needs 131076 bytes.*max-storage-buffer-binding-size = 131072",
    ):
        ProgramRunner(small_device, scale_program(32 * 1024 + 1))
    assert small_device.counters.buffers_created == before


def test_downloads_beyond_one_staging_buffer_come_in_chunks(small_device):
    words = 30_000
    with ProgramRunner(small_device, increment_program(words)) as runner:
        before = small_device.counters.snapshot()
        out = runner.run(("step", "read"), np.uint32)
        after = small_device.counters.snapshot()
    for k in range(3):
        np.testing.assert_array_equal(out[f"a{k}"], np.full(words, 3 + k))
    assert after.readbacks - before.readbacks == 2
    assert after.submits - before.submits == 2


def test_pipelines_beyond_the_limits_are_named(device):
    small = Device(
        device.adapter,
        limits={"max_storage_buffers_per_shader_stage": 2, "max-compute-workgroup-size-x": 32},
    )
    with pytest.raises(DeviceLimitError, match="3 storage buffers"):
        small.pipeline(SCALE)
    with pytest.raises(DeviceLimitError, match="64 invocations a workgroup"):
        small.pipeline(dataclasses.replace(SCALE, bindings=("uniform", "read")))
    small.close()


def test_a_grid_is_folded_at_the_devices_own_limit(device):
    small = Device(device.adapter, limits={"max-compute-workgroups-per-dimension": 10})
    run_scale(small, scale_program(3000), 3000)
    small.close()


def test_limits_above_the_adapters_or_unknown_are_refused(device):
    with pytest.raises(DeviceLimitError, match="max-buffer-size = "):
        Device(device.adapter, limits={"max-buffer-size": 2**60}).limits  # noqa: B018
    with pytest.raises(DeviceLimitError, match="unknown limit 'max-joy'"):
        Device(device.adapter, limits={"max-joy": 1}).limits  # noqa: B018


# -- the default device ------------------------------------------------------------------------


def test_the_default_device_is_one_lazily_opened_and_can_be_replaced():
    set_default_device(None)
    first = default_device()
    assert first is default_device()
    assert "not opened" in repr(first)
    other = Device(wgsl_adapters()[-1])
    set_default_device(other)
    try:
        assert default_device() is other
    finally:
        set_default_device(None)
