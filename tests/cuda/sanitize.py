"""Every op once, forward and backward, on small tensors of every kind of memory: the program that
``make gpu-check`` runs under compute-sanitizer, whose checks make a kernel a hundred times as slow.

``python -m tests.cuda.sanitize [--device cpu]``; PYTORCH_NO_CUDA_MEMORY_CACHING=1 gives every tensor an
allocation of its own, so that the step after its end is an error.
"""

from __future__ import annotations

import argparse

import torch

from aigc_ext import ops
from tests.cuda.calls import CASES, on
from tests.ops.adam_ema.test_adam_ema import arguments
from tests.ops.suite import prepare, values_and_gradients
from tests.ops.test_properties import draw_example

FEW = ("bias_act[lrelu]", "bias_act[swish]", "discriminator_loss[logistic]")  # of those with many variants


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args().device)
    calls = 0
    for case in CASES:
        if case.name.startswith(("bias_act[", "discriminator_loss[")) and case.name not in FEW:
            continue
        call = draw_example(case.calls)
        for dtype in (torch.float32, torch.float16):
            for layout in ("contiguous", "channels_last", "offset"):
                inputs = prepare(call, on(case, device), dtype, layout)
                values_and_gradients(case.function, inputs, call.options, 1, dtype)
                calls += 1
    with device:
        for dtype in (torch.float32, torch.bfloat16):
            ops.adam_ema_(**arguments([(33, 9), (0,), (5,)], dtype), skip_nonfinite=True)
            calls += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{calls} calls")


if __name__ == "__main__":
    main()
