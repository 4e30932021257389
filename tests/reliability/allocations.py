"""Lets the nth allocation of our kernels fail, for every n, in calls of each op that has working memory. Run
by test_allocations.py, with faults.cpp preloaded; prints a JSON report."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aigc_ext import ops
from tests.reliability import faults


def calls() -> dict[str, Callable[[], Any]]:
    """Of every op that has working memory: forward, and backward as far as it has kernels."""
    torch.manual_seed(0)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, requires_grad=True)

    x, filter2d = leaf(4, 16, 32, 32), torch.ones(4)
    bias, weight, square = leaf(16), leaf(16, 16, 3, 3), leaf(16)

    def differentiated(function: Callable[[], torch.Tensor]) -> Callable[[], Any]:
        def call() -> Any:
            y = function()
            return (y, *torch.autograd.grad(y.square().sum(), [x], allow_unused=True))

        return call

    return {
        "upfirdn2d": differentiated(lambda: ops.upfirdn2d(x, filter2d, up=2, down=1, padding=[2, 1, 2, 1])),
        "upfirdn2d, channels last": differentiated(
            lambda: ops.upfirdn2d(x.to(memory_format=torch.channels_last), filter2d, up=1, down=2, padding=1)
        ),
        "filtered_lrelu": differentiated(
            lambda: ops.filtered_lrelu(x, filter2d, filter2d, bias, up=2, down=2, padding=[3, 3, 3, 3])
        ),
        "filtered_snake": differentiated(
            lambda: ops.filtered_snake(x.flatten(2), square, filter2d, filter2d)
        ),
        "bias_act": differentiated(lambda: ops.bias_act(x, bias, act="lrelu")),
        "bias_act, channels last": differentiated(
            lambda: ops.bias_act(x.to(memory_format=torch.channels_last), bias, act="lrelu")
        ),
        "batch_norm_act": differentiated(
            lambda: ops.batch_norm_act(x, bias, square, None, None, training=True, act="relu")
        ),
        "conv2d_act": differentiated(lambda: ops.conv2d_act(x, weight, bias, padding=1, act="lrelu")),
        "snake": differentiated(lambda: ops.snake(x, square)),
    }


def main() -> None:
    here = Path("/nowhere")
    report: dict[str, Any] = {}
    for name, call in calls().items():
        expected = call()
        faults.arm(here, ["workspace"])
        call()
        total = faults.calls()
        wrong: list[str] = []
        for number in range(1, total + 1, int(sys.argv[1])):
            faults.arm(here, ["workspace"], first=number, error=errno.ENOMEM)
            message = None
            try:
                call()
            except (RuntimeError, MemoryError) as error:
                message = str(error)
            finally:
                faults.disarm()
            # What is allocated for the arguments, before the op is called, PyTorch itself reports.
            if message is None or not ("not enough memory" in message or message == "std::bad_alloc"):
                wrong.append(f"allocation {number} of {total}: {message}")
            if not all(torch.equal(a, b) for a, b in zip(call(), expected, strict=True)):
                wrong.append(f"after allocation {number} of {total} failed, another result")
        report[name] = {"allocations": total, "wrong": wrong}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
