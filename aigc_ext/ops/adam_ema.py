"""Adam with decoupled weight decay and the moving average of the weights, in one pass over all tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_same_shape, dtype_name, promoted_dtype, shape_of
from aigc_ext.ops._layout import wide_dtype
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
    weight_decay: float | Tensor,
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
        lr, beta1, beta2, weight_decay, ema_decay: floats, or tensors, which are read when the kernel runs.
        eps: at least 0.
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
    numbers = (lr, beta1, beta2, weight_decay, ema_decay)
    if any(isinstance(number, Tensor) for number in numbers):
        lr, beta1, beta2, weight_decay, ema_decay = (
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
    weight_decay: float | Tensor,
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
    lr, beta1, beta2, weight_decay, ema_decay = (
        n.to(torch.float64) if isinstance(n, Tensor) else n
        for n in (lr, beta1, beta2, weight_decay, ema_decay)
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


Lists = Sequence[Sequence[Tensor]]  # params, grads, exp_avgs, exp_avg_sqs, emas, steps


def check_rates(
    op: str, lr: float, beta1: float, beta2: float, weight_decay: float, ema_decay: float
) -> None:
    if not 0 <= lr < math.inf:
        raise RuntimeError(f"{op}: lr is {lr:g}, but must be at least 0 and finite")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise RuntimeError(f"{op}: {name} is {beta:g}, but must be at least 0 and less than 1")
    if not 0 <= ema_decay <= 1:
        raise RuntimeError(f"{op}: ema_decay is {ema_decay:g}, but must be between 0 and 1")
    if not weight_decay >= 0:
        raise RuntimeError(f"{op}: weight_decay is {weight_decay:g}, but must be at least 0")


def check_learning(op: str, lists: Lists, eps: float, skipped: Tensor | None) -> None:
    """What ``adam_work`` of csrc/adam_ema/adam_ema.cpp checks, except for overlaps in memory."""
    params, grads, exp_avgs, exp_avg_sqs, emas, steps = lists
    parallel = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    parallel |= ({"emas": emas} if emas else {}) | ({"steps": steps} if len(steps) != 1 else {})
    for name, tensors in parallel.items():
        if len(tensors) != len(params):
            raise RuntimeError(f"{op}: {name} has {len(tensors)} tensors, but params has {len(params)}")
    if not eps >= 0:
        raise RuntimeError(f"{op}: eps is {eps:g}, but must be at least 0")
    if not params:
        return
    for i, param in enumerate(params):
        this = f"params[{i}]"
        promoted_dtype(op, **{this: param})
        if not _is_dense(param):
            raise RuntimeError(
                f"{op}: {this} has shape {shape_of(param)} and strides {list(param.stride())}, but must be "
                "dense in memory"
            )
        for name in ("exp_avgs", "exp_avg_sqs", *(["emas"] if emas else [])):
            state = parallel[name][i]
            _check_belongs(op, f"{name}[{i}]", state, this, param, wide_dtype(param))
            if not _same_order(state, param):
                raise RuntimeError(
                    f"{op}: {name}[{i}] has strides {list(state.stride())}, but {this} has strides "
                    f"{list(param.stride())}"
                )
        _check_belongs(op, f"grads[{i}]", grads[i], this, param, param.dtype)
    for i, step in enumerate(steps):
        _check_number(op, f"steps[{i}]", step)
    if skipped is not None and (skipped.numel() != 1 or skipped.dtype != torch.int64):
        raise RuntimeError(f"{op}: skipped has shape {shape_of(skipped)} and must be one int64 number")


def _check_belongs(op: str, name: str, t: Tensor, like: str, param: Tensor, dtype: torch.dtype) -> None:
    if t.dtype != dtype:
        raise RuntimeError(
            f"{op}: {name} is {dtype_name(t.dtype)}, but must be {dtype_name(dtype)} for {like}, which is "
            f"{dtype_name(param.dtype)}"
        )
    check_same_shape(op, **{like: param, name: t})


def _check_number(op: str, name: str, t: Tensor) -> None:
    if t.numel() != 1 or t.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(
            f"{op}: {name} is {dtype_name(t.dtype)} of shape {shape_of(t)}, but must be one number, "
            "float32 or float64"
        )


def _is_dense(t: Tensor) -> bool:
    expected = 1
    for stride, size in sorted((t.stride(d), t.size(d)) for d in range(t.dim()) if t.size(d) > 1):
        if stride != expected:
            return t.numel() == 0
        expected *= size
    return True


def _same_order(a: Tensor, b: Tensor) -> bool:
    places = zip(a.shape, a.stride(), b.stride(), strict=True)
    return a.numel() == 0 or all(ours == theirs for size, ours, theirs in places if size > 1)


def _fake(  # type: ignore[no-untyped-def]
    *values,
) -> None:
    op = "adam_ema_"
    *lists, lr, beta1, beta2, eps, weight_decay, ema_decay, found_inf, skipped, skip_nonfinite = values
    numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": weight_decay, "ema_decay": ema_decay}
    if not isinstance(lr, Tensor):
        check_rates(op, **numbers)
    elif not lists[0]:
        return
    else:
        for name, number in numbers.items():
            _check_number(op, name, number)
    if found_inf is not None and skip_nonfinite:
        raise RuntimeError(f"{op}: found_inf and skip_nonfinite must not be given together")
    check_learning(op, lists, eps, skipped)
    if lists[0] and found_inf is not None and (found_inf.numel() != 1 or found_inf.dtype != torch.float32):
        raise RuntimeError(
            f"{op}: found_inf is {dtype_name(found_inf.dtype)} of shape {shape_of(found_inf)}, but must be "
            "one float32 number"
        )


def _fake_any_nonfinite(tensors: list[Tensor]) -> Tensor:
    op = "any_nonfinite"
    if not tensors:
        raise RuntimeError(f"{op}: tensors is empty, but must hold at least one")
    promoted_dtype(op, **{f"tensors[{i}]": t for i, t in enumerate(tensors)})
    return tensors[0].new_empty((), dtype=torch.float32)


_adam_ema_ = native("adam_ema_", fake=_fake)
_adam_ema_tensor_ = native("adam_ema_.tensor", fake=_fake)
_any_nonfinite = native("any_nonfinite", fake=_fake_any_nonfinite)


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
