"""The records of the ops are complete, and agree with docs/ops.md and the exports."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aigc_ext import ops
from aigc_ext.ops import _image_bytes as _image_bytes  # declares a native op, and only the sampler imports it
from aigc_ext.ops._op import NATIVES, Native, Op, records
from tests.ops.suite import all_cases, native_calls

ROOT = Path(__file__).parents[2]
OPS = records()
per_op = pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)


def test_all_public_functions_have_a_record() -> None:
    public = {
        name for name, value in vars(ops).items() if inspect.isfunction(value) and not name.startswith("_")
    }
    recorded = {function.__name__ for op in OPS for function in (op.public, op.ref)}
    assert public - recorded == {"decompose", "no_weight_gradients", "setup_filter"}
    assert all(getattr(ops, name).__doc__ for name in public)


def test_what_repeats_the_records_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, write in ((generate.EXPORTS, generate.exports), (generate.OPS_PAGE, generate.page)):
        text = path.read_text(encoding="utf-8")
        assert write(text, OPS) == text, f"{path.name} is not up to date: run `make docs`"


@per_op
def test_the_reference_takes_the_same_arguments(op: Op) -> None:
    ours, plain = (inspect.signature(function).parameters for function in (op.public, op.ref))
    assert list(ours) == list(plain)
    assert [p.default for p in ours.values()] == [p.default for p in plain.values()]
    assert op.ref.__name__ == f"{op.name.rstrip('_')}_ref"


def tensors(values: Any) -> list[Tensor]:
    """All that are in a value, however deep."""
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors(value)]
    return [values] if isinstance(values, Tensor) else []


@pytest.mark.card
@per_op
def test_the_example_is_that_of_the_reference(op: Op) -> None:
    given = op.arguments()
    for tensor in tensors(given):
        if tensor.is_floating_point():  # others are codes
            tensor.data = tensor.double()
    plain = copy.deepcopy(given)
    got, expected = op.public(**given), op.ref(**plain)
    if expected is not None:
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(tensors(given), tensors(plain))  # adam_ema_ writes to them


def test_every_op_has_a_case_in_the_property_suite() -> None:
    of_cases = {case.name.partition("[")[0] for case in all_cases()}
    # They call upfirdn2d, return more of what the losses compute, or have a suite of their own.
    others = {"filter2d", "upsample2d", "downsample2d", "any_nonfinite", "adam_ema_", "mlp_gan_step_"}
    others |= {"wavenet_step_"}
    others |= {"discriminator_loss_and_stats", "discriminator_loss_and_grad", "generator_loss_and_grad"}
    expected = {op.name for op in OPS} - others
    if not NATIVES["conv3x3"].overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU):
        expected -= {"conv3x3", "attention"}
    assert of_cases == expected


def test_the_property_suite_calls_every_native_op() -> None:
    called = {
        overload.name().removeprefix("aigc::") for case in all_cases() for overload, _ in native_calls(case)
    }
    assert called <= NATIVES.keys()
    own_suite = (".adam_ema", ".mlp_gan_step", ".wavenet_step", "._apart", "._image_bytes")
    without_case = {name for name, op in NATIVES.items() if op.module.endswith(own_suite)}
    if not NATIVES["conv3x3"].overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU):
        without_case |= {"conv3x3", "conv3x3_weight_gradient"}
        without_case |= {"attention", "attention_backward", "attention_double_backward"}
    assert NATIVES.keys() - called == without_case


def test_all_schemas_are_declared() -> None:
    schemas = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("aigc::") and s.arguments}
    assert schemas == {f"aigc::{name.partition('.')[0]}" for name in NATIVES}


@pytest.mark.parametrize("op", NATIVES.values(), ids=lambda op: op.name)
def test_kernels_are_where_the_record_says(op: Native) -> None:
    """Every op has a kernel for the CPU. On fibers (tests/simt), only the ops with CUDA kernels have one."""
    key = torch._C.DispatchKey
    on_fibers = "simt" in str(ops._native.libraries[0])
    assert op.overload.has_kernel_for_dispatch_key(key.CPU) == (op.cuda or not on_fibers)
