"""Adam with decoupled weight decay and the moving average of the weights, in one pass over all tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native


def adam_ema_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    steps: Tensor | Sequence[Tensor],
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    ema_decay: float | Tensor,
    found_inf: Tensor | None = None,
    skipped: Tensor | None = None,
    skip_nonfinite: bool = False,
) -> None:
    """One optimizer step in place: AdamW (Loshchilov and Hutter 2019; Adam where ``weight_decay`` is 0), then
    ``ema.lerp_(param, 1 - ema_decay)``. Autograd does not record it.

    Args:
        params: at least one; float64, float32, float16 or bfloat16, in any layout that is dense in memory.
        grads: of the shapes and dtypes of ``params``; copied where the strides differ.
        exp_avgs, exp_avg_sqs: of the shapes, strides and dtypes of ``params``, but float32 for half types.
        emas: the same; None or empty for no average.
        steps: the number of steps so far, which the op increments; one for each of ``params``, or one for
            all.
        lr, beta1, beta2, ema_decay: floats, or tensors, which are read when the kernel runs.
        eps, weight_decay: at least 0.
        found_inf: one float32 number; if it is not 0, only ``skipped`` is written.
        skipped: one int64 number, which counts the skipped calls.
        skip_nonfinite: the same as ``found_inf=any_nonfinite(grads)``, in one call.

    A number in a tensor is float32 or float64 unless stated otherwise, and on the device of ``params``.

    Raises:
        RuntimeError: a tensor doesn't match its parameter, or shares memory with another that is written; a
            float is out of range. Nothing is written in these cases.
    """
    steps = [steps] if isinstance(steps, Tensor) else steps
    emas = [] if emas is None else emas
    tensors = (params, grads, exp_avgs, exp_avg_sqs, emas, steps)
    skip = (found_inf, skipped, skip_nonfinite)
    if decomposed():
        adam_ema_ref(*tensors, lr, beta1, beta2, eps, weight_decay, ema_decay, *skip)
        return
    numbers = (lr, beta1, beta2, ema_decay)
    if any(isinstance(number, Tensor) for number in numbers):
        lr, beta1, beta2, ema_decay = (
            n if isinstance(n, Tensor) else params[0].new_full((), n, dtype=torch.float64) for n in numbers
        )
        _adam_ema_tensor_(*tensors, lr, beta1, beta2, eps, weight_decay, ema_decay, *skip)
    else:
        _adam_ema_(*tensors, lr, beta1, beta2, eps, weight_decay, ema_decay, *skip)
    # By these counters autograd detects that a saved tensor was modified; the dispatcher does not increment
    # them for custom ops.
    torch.autograd.graph.increment_version([*params, *exp_avgs, *exp_avg_sqs, *emas])


@torch.no_grad()
def adam_ema_ref(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    emas: Sequence[Tensor] | None,
    steps: Tensor | Sequence[Tensor],
    lr: float | Tensor,
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float,
    weight_decay: float,
    ema_decay: float | Tensor,
    found_inf: Tensor | None = None,
    skipped: Tensor | None = None,
    skip_nonfinite: bool = False,
) -> None:
    """:func:`adam_ema_` in plain PyTorch."""
    if skip_nonfinite:
        found_inf = any_nonfinite_ref(grads)
    stop = params[0].new_zeros((), dtype=torch.bool) if found_inf is None else found_inf != 0
    if skipped is not None:
        skipped += stop
    steps = [steps] if isinstance(steps, Tensor) else steps
    for step in steps:
        step += ~stop
    lr, beta1, beta2, ema_decay = (
        n.to(torch.float64) if isinstance(n, Tensor) else n for n in (lr, beta1, beta2, ema_decay)
    )
    for i, (param, grad, exp_avg, exp_avg_sq) in enumerate(
        zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)
    ):
        t = steps[i if len(steps) > 1 else 0].to(torch.float64)
        p, g = param.to(exp_avg.dtype), grad.to(exp_avg.dtype)
        m = exp_avg + (1 - beta1) * (g - exp_avg)
        v = beta2 * exp_avg_sq + (1 - beta2) * g.square()
        denominator = v.sqrt() / (1 - beta2**t).sqrt() + eps
        p = p * (1 - lr * weight_decay) - lr / (1 - beta1**t) * m / denominator
        updates = [(param, p), (exp_avg, m), (exp_avg_sq, v)]
        if emas:
            updates.append((emas[i], emas[i] + (1 - ema_decay) * (p - emas[i])))
        for tensor, value in updates:
            tensor.copy_(torch.where(stop, tensor, value))


def any_nonfinite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether any element of ``tensors`` is infinite or NaN, in one pass over all of them.

    Args:
        tensors: at least one, on one device; float64, float32, float16 or bfloat16.

    Returns:
        A 0-d float32 tensor: 1 if so, else 0, as ``found_inf`` of :func:`adam_ema_`.

    Raises:
        RuntimeError: there are no tensors, or their dtypes or devices are not supported.
    """
    if not tensors:
        raise RuntimeError("any_nonfinite: tensors is empty, but must hold at least one")
    if decomposed():
        return any_nonfinite_ref(tensors)
    found: Tensor = _any_nonfinite(tensors)
    return found


def any_nonfinite_ref(tensors: Sequence[Tensor]) -> Tensor:
    """:func:`any_nonfinite` in plain PyTorch."""
    return torch.stack([~tensor.isfinite().all() for tensor in tensors]).any().to(torch.float32)


# ---- native ops --------------------------------------------------------------------------------------------


def _fake(  # type: ignore[no-untyped-def]
    params, grads, exp_avgs, exp_avg_sqs, emas, steps, *_numbers
) -> None:
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "emas": emas}
    for name, tensors in {**lists, "steps": steps}.items():
        for i, tensor in enumerate(tensors):
            if tensor.device != params[0].device:
                raise RuntimeError(
                    f"adam_ema_: {name}[{i}] is on {tensor.device}, but must be on {params[0].device}, as "
                    "params[0] is"
                )


_adam_ema_ = native("adam_ema_", fake=_fake)
_adam_ema_tensor_ = native("adam_ema_.tensor", fake=_fake)
_any_nonfinite = native("any_nonfinite", fake=lambda tensors: tensors[0].new_empty((), dtype=torch.float32))


def _example() -> dict[str, Any]:
    lists = {
        name: [torch.rand(8, 8), torch.rand(8)] for name in ("params", "grads", "exp_avgs", "exp_avg_sqs")
    }
    rates = {"lr": 1e-3, "beta1": 0.5, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "ema_decay": 0.99}
    return {**lists, "emas": [torch.rand(8, 8), torch.rand(8)], "steps": torch.zeros(()), **rates}


OPS = [
    Op(adam_ema_, adam_ema_ref, _example),
    Op(any_nonfinite, any_nonfinite_ref, {"tensors": [(8, 8), (8,)]}),
]
