"""Tensors of the CPU among those of a card are refused by a message that names one; nothing is enqueued."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aigc_ext import ops
from tests.cuda.calls import CASES
from tests.ops.adam_ema.test_adam_ema import arguments
from tests.ops.suite import OpCase, outputs_of, prepare

pytestmark = pytest.mark.cuda


MIXABLE = [case for case in CASES if not case.name.startswith(("pixel_norm", "sample_sqnorm"))]  # one input


@pytest.mark.parametrize("case", MIXABLE, ids=lambda case: case.name, indirect=True)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
def test_a_mix_of_devices_is_refused(case: OpCase, requires_grad: bool) -> None:
    call = case.large_call()
    names = [name for name, value in call.inputs.items() if value is not None]
    assert len(names) > 1
    for name in names:
        inputs = prepare(call, case, torch.float32)
        for key in names:
            tensor = inputs[key]
            assert isinstance(tensor, Tensor)
            moved = tensor.detach().cpu() if key == name else tensor.detach()
            inputs[key] = moved.requires_grad_(requires_grad and tensor.requires_grad)
        with pytest.raises((RuntimeError, ValueError), match=r" is on .*must be on "):
            outputs_of(case.function, inputs, call.options)
    torch.cuda.synchronize()  # nothing was enqueued that fails later


@pytest.mark.parametrize("name", ["params", "grads", "exp_avgs", "exp_avg_sqs", "emas", "steps"])
def test_adam_ema_refuses_a_mix_of_devices(name: str, device: torch.device) -> None:
    with device:
        args = arguments([(3, 4), (5,)])
    args[name][1] = args[name][1].cpu()
    kept = args["params"][0].clone()
    with pytest.raises(RuntimeError, match=rf"{name}\[1\].* on different devices"):
        ops.adam_ema_(**args)
    torch.cuda.synchronize()
    assert torch.equal(args["params"][0], kept)


@pytest.mark.parametrize("name", ["lr", "found_inf", "skipped"])
def test_adam_ema_refuses_a_number_on_the_cpu(name: str, device: torch.device) -> None:
    with device:
        args = arguments([(3, 4), (5,)])
    args[name] = torch.tensor(0) if name == "skipped" else torch.tensor(0.0)
    with pytest.raises(RuntimeError, match=rf"{name}.* on different devices"):
        ops.adam_ema_(**args)
    torch.cuda.synchronize()
