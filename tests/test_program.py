"""Programs are data: checked when built, and the same after a round trip through JSON."""

import dataclasses
import json

import pytest

from autograd_gpu.codegen.program import (
    BufferSpec,
    DispatchSpec,
    PipelineSpec,
    Program,
    SequenceSpec,
    workgroup_grid,
)
from autograd_gpu.errors import DeviceLimitError, InputError

BUFFERS = (
    BufferSpec(name="scale", size=16, role="uniform"),
    BufferSpec(name="x", size=400, role="upload"),
    BufferSpec(name="w", size=400, role="state"),
    BufferSpec(name="y", size=400, role="download"),
)
PIPELINE = PipelineSpec(
    name="copy",
    source="// é: not ASCII",
    entry_point="main",
    bindings=("uniform", "read", "write"),
    workgroup_size=64,
)


def program(*, specs=BUFFERS, kernel=PIPELINE, downloads=("y",), **changes):
    dispatch = DispatchSpec(pipeline="copy", buffers=("scale", "x", "y"), invocations=100)
    dispatch = dataclasses.replace(dispatch, **changes)
    return Program(
        buffers=specs,
        pipelines=(kernel,),
        sequences={"run": SequenceSpec(dispatches=(dispatch,), downloads=downloads)},
    )


def test_json_round_trip_gives_an_equal_program():
    built = program()
    again = Program.from_json(built.to_json())
    assert again == built
    assert again.to_json() == built.to_json()


def test_a_program_does_not_follow_later_changes_of_the_dict_it_was_given():
    sequences = {"run": SequenceSpec()}
    built = Program(buffers=(), pipelines=(), sequences=sequences)
    sequences["other"] = SequenceSpec()
    assert list(built.sequences) == ["run"]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        json.dumps({"format": 99}),
        json.dumps({"format": 1, "buffers": [{"name": "x"}], "pipelines": [], "sequences": {}}),
    ],
)
def test_other_json_is_refused(text):
    with pytest.raises(InputError, match="program"):
        Program.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": "cpy"}, "unknown pipeline 'cpy'; known are 'copy'"),
        ({"buffers": ("scale", "z", "y")}, "binding 1: unknown buffer 'z'"),
        ({"buffers": ("scale", "x")}, "3 bindings, got 2 buffers"),
        ({"buffers": ("x", "x", "y")}, "uniform bindings and uniform buffers"),
        ({"buffers": ("scale", "scale", "y")}, "uniform bindings and uniform buffers"),
        ({"buffers": ("scale", "w", "x")}, "writes buffer 'x', whose role is 'upload'"),
        ({"buffers": ("scale", "y", "y")}, "writes buffer 'y', which is bound 2 times"),
        ({"invocations": 0}, "at least 1"),
        ({"downloads": ("x",)}, "role is 'upload'"),
        ({"downloads": ("z",)}, "unknown download buffer 'z'"),
        ({"downloads": ("y", "y")}, "got twice: 'y'"),
    ],
)
def test_a_sequence_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        program(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "positive multiple of 4"),
        ({"size": 6}, "positive multiple of 4"),
        ({"role": "scratch"}, "unknown role 'scratch'"),
        ({"name": "x"}, "got twice: 'x'"),
    ],
)
def test_a_bad_buffer_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        program(specs=(*BUFFERS[:-1], dataclasses.replace(BUFFERS[-1], **change)))


def test_a_written_buffer_bound_twice_is_refused_whatever_the_other_binding_is():
    two_writes = dataclasses.replace(PIPELINE, bindings=("uniform", "write", "write"))
    with pytest.raises(InputError, match="bound 2 times"):
        program(kernel=two_writes, buffers=("scale", "y", "y"))


def test_an_unknown_binding_kind_is_refused():
    with pytest.raises(InputError, match="unknown kind 'atomic'"):
        program(kernel=dataclasses.replace(PIPELINE, bindings=("uniform", "read", "atomic")))


def test_limits_of_every_browser_hold():
    nine = dataclasses.replace(PIPELINE, bindings=("uniform", *("read",) * 8, "write"))
    with pytest.raises(DeviceLimitError, match="binds 9 storage buffers"):
        program(kernel=nine)
    with pytest.raises(DeviceLimitError, match="workgroup size 512"):
        program(kernel=dataclasses.replace(PIPELINE, workgroup_size=512))


@pytest.mark.parametrize(
    ("invocations", "workgroup_size", "grid"),
    [
        (1, 64, (1, 1)),
        (64, 64, (1, 1)),
        (65, 64, (2, 1)),
        (65_535, 1, (65_535, 1)),
        (65_536, 1, (32_768, 2)),
        (70_001, 1, (35_001, 2)),
        (65_535 * 65_535, 1, (65_535, 65_535)),
    ],
)
def test_workgroup_grid(invocations, workgroup_size, grid):
    assert workgroup_grid(invocations, workgroup_size) == grid


def test_a_grid_that_no_device_has_is_refused():
    with pytest.raises(DeviceLimitError, match="split the batch"):
        workgroup_grid(65_535 * 65_535 + 1, 1)
