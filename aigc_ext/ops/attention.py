"""Attention of one head or several, with a first and a second derivative that take memory linear in the
length: ``o_i = sum over j of P_ij v_j`` with ``P = softmax(S)`` in each row, and

- ``S_ij = scale * q_i . k_j`` (Vaswani et al. 2017, "Attention is all you need"), or
- ``S_ij = -scale * |q_i - k_j|**2`` (Kim et al. 2021, "The Lipschitz constant of self-attention"): with one
  weight for queries and keys it has a Lipschitz constant, where the dot product has none. GigaGAN's
  discriminator uses it (Kang et al. 2023).

A gradient penalty differentiates the gradient once more. PyTorch's fused forms of attention raise there, and
its plain form keeps some dozen matrices of all pairs of a query and a key. Here forward, backward and double
backward are kernels that recompute P from the logarithms of its rows' sums, for a block of queries at a time.
The formulas and their derivation are the head of csrc/attention/attention.h. The third derivative is that of
the reference.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from aigc_ext.ops._arguments import (
    check_finite,
    check_same_device,
    check_same_kind,
    check_same_shape,
    dtype_name,
    no_tensor,
    promoted_dtype,
    shape_of,
    size_product,
)
from aigc_ext.ops._gradients import leaf
from aigc_ext.ops._layout import wide_dtype
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, cast_by_autocast, native
from aigc_ext.ops._route import Route, take

SCORES = ("dot", "l2")
_HAS_KERNEL = torch._C._dispatch_has_kernel_for_dispatch_key("aigc::attention", "CPU")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    score: str = "dot",
    scale: float | None = None,
) -> Tensor:
    """Scaled dot product attention, or attention by L2 distances, with a double backward in linear memory.

    Args:
        q: queries ``[N, heads, queries, width]``; float64, float32, float16 or bfloat16 (half types are
            computed in float32). Any strides.
        k: keys ``[N, heads, keys, width]``, of q's dtype.
        v: values ``[N, heads, keys, value_width]``, of q's dtype.
        key_padding_mask: ``[N, keys]`` of bool, or None: True where a key is padding. Nothing attends to it,
            and neither it nor its value is read; both have a gradient of zero.
        causal: query i attends to keys 0 to i only.
        score: ``dot`` for ``scale * q.k``, ``l2`` for ``-scale * |q - k|**2``.
        scale: a finite number; by default ``1 / sqrt(width)``.

    Returns:
        ``[N, heads, queries, value_width]``, in q's dtype. A query that attends to no key has zeros.
        It has the memory format of ``q`` if that is contiguous, ``[N, queries, heads, width]`` or
        ``[N, heads, width, queries]`` (heads of a channels-last or contiguous image), else it is contiguous.
        Differentiable to every order in q, k and v; the second derivative needs as little memory as the
        first, the third is plain PyTorch.

    Under autocast, q, k and v are cast as for :func:`torch.nn.functional.scaled_dot_product_attention`. On
    devices other than the CPU it is :func:`attention_ref`, which takes memory for all pairs of a query and a
    key, some dozen times that in a double backward.

    Raises:
        TypeError: an argument is not a tensor, or not a number, where one is required.
        ValueError: ``score`` is none of these.
        RuntimeError: shapes, dtypes or devices do not match; ``scale`` is not finite.
    """
    masks = {"key_padding_mask": key_padding_mask}
    if not (
        isinstance(q, Tensor)
        and isinstance(k, Tensor)
        and isinstance(v, Tensor)
        and (key_padding_mask is None or isinstance(key_padding_mask, Tensor))
    ):
        raise no_tensor("attention", optional=("key_padding_mask",), q=q, k=k, v=v, **masks)
    if score not in SCORES:
        raise ValueError(f"attention: score is {score!r}, but must be 'dot' or 'l2'")
    if scale is None:
        scale = _default_scale(q)
    if decomposed() or take("attention", _route(q)) == "plain PyTorch":
        return attention_ref(q, k, v, key_padding_mask, causal, score, scale)
    o: Tensor = _attention(q, k, v, key_padding_mask, scale, bool(causal), score == "l2")[0]
    return o


def _default_scale(q: Tensor) -> float:
    return 1 / math.sqrt(max(q.size(-1), 1)) if q.dim() > 0 else 1.0


def _route(q: Tensor) -> Route:
    if not has_attention(q):
        return Route("plain PyTorch", "the kernels are for the CPU only")
    return Route("blocks of queries", "memory is linear in the length")


def has_attention(q: Tensor) -> bool:
    """Is there a kernel for q's device?"""
    return _HAS_KERNEL and q.device.type == "cpu"


def attention_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding_mask: Tensor | None = None,
    causal: bool = False,
    score: str = "dot",
    scale: float | None = None,
) -> Tensor:
    """:func:`attention` in plain PyTorch. (The rows of ``-scale * |q|**2`` do not change the softmax.)"""
    q, k, v = cast_by_autocast([q, k, v])
    _check("attention", q, k, v, key_padding_mask, scale := _default_scale(q) if scale is None else scale)
    dtype = q.dtype
    q, k, v = (t.to(wide_dtype(t)) for t in (q, k, v))
    if key_padding_mask is not None:
        k, v = (t.masked_fill(key_padding_mask[:, None, :, None], 0) for t in (k, v))
    factor = 2 * scale if score == "l2" else scale
    scores = (q * factor) @ k.transpose(-1, -2)
    if score == "l2":
        scores = scores - scale * k.square().sum(-1)[..., None, :]
    hidden = torch.zeros((), dtype=torch.bool, device=q.device)
    if key_padding_mask is not None:
        hidden = hidden | key_padding_mask[:, None, None, :]
    if causal:
        pairs = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        hidden = hidden | pairs.triu(1)
    weights = scores
    if key_padding_mask is not None or causal:
        # A row without a key has no softmax: any one that is finite, whose weights are then zeros.
        empty = hidden.expand(scores.shape).all(-1, keepdim=True)
        weights = scores.masked_fill(hidden & ~empty, -math.inf)
        p = weights.softmax(-1).masked_fill(hidden, 0)
    else:
        p = weights.softmax(-1)
    return (p @ v).to(dtype)


# ---- native ops --------------------------------------------------------------------------------------------


def _check(  # type: ignore[no-untyped-def]
    op: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, grad_o=None, lse=None
) -> None:
    promoted_dtype(op, q=q)
    if q.dim() != 4:
        raise RuntimeError(f"{op}: q has shape {shape_of(q)}, but must be [N, heads, queries, width]")
    check_same_kind(op, q=q, k=k)
    check_same_kind(op, q=q, v=v)
    n, heads, queries, width = q.shape
    if k.dim() != 4 or (k.size(0), k.size(1), k.size(3)) != (n, heads, width):
        raise RuntimeError(
            f"{op}: k has shape {shape_of(k)}, but must be [{n}, {heads}, keys, {width}] for a q of shape "
            f"{shape_of(q)}"
        )
    keys = k.size(2)
    if v.dim() != 4 or tuple(v.shape[:3]) != (n, heads, keys):
        raise RuntimeError(
            f"{op}: v has shape {shape_of(v)}, but must be [{n}, {heads}, {keys}, value_width] for a k of "
            f"shape {shape_of(k)}"
        )
    check_finite(op, scale=scale)
    if mask is not None:
        check_same_device(op, q=q, key_padding_mask=mask)
        if mask.dtype != torch.bool:
            raise RuntimeError(f"{op}: key_padding_mask is {dtype_name(mask.dtype)}, but must be bool")
        if tuple(mask.shape) != (n, keys):
            raise RuntimeError(
                f"{op}: key_padding_mask has shape {shape_of(mask)}, but must be [{n}, {keys}] for a k of "
                f"shape {shape_of(k)}"
            )
    if grad_o is not None:
        check_same_kind(op, q=q, grad_o=grad_o)
        if tuple(grad_o.shape) != (n, heads, queries, v.size(3)):
            raise RuntimeError(
                f"{op}: grad_o has shape {shape_of(grad_o)}, but must be [{n}, {heads}, {queries}, "
                f"{v.size(3)}]"
            )
    if lse is not None:
        check_same_device(op, q=q, lse=lse)
        if lse.dtype != wide_dtype(q) or tuple(lse.shape) != (n, heads, queries):
            raise RuntimeError(
                f"{op}: lse is {dtype_name(lse.dtype)} of shape {shape_of(lse)}, but must be "
                f"{dtype_name(wide_dtype(q))} of shape [{n}, {heads}, {queries}]"
            )


# The orders of dimensions in memory that results keep: contiguous, heads inside, positions inside.
_ORDERS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 1, 3, 2))


def _order(t: Tensor) -> tuple[int, ...]:
    for order in _ORDERS:
        expected, fits = 1, True
        for d in reversed(order):
            fits = fits and (t.size(d) <= 1 or t.stride(d) == expected)
            expected *= max(t.size(d), 1)
        if fits:
            return order
    return _ORDERS[0]


def _empty(op: str, like: Tensor, rows: int, columns: int) -> Tensor:
    sizes, order = (*like.shape[:2], rows, columns), _order(like)
    size_product(op, *sizes)
    return like.new_empty([sizes[d] for d in order]).permute(order)


def _fake(q, k, v, mask, scale, causal, distance) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    _check("attention", q, k, v, mask, scale)
    o = _empty("attention", q, q.size(2), v.size(3))
    return o, q.new_empty(q.shape[:3], dtype=wide_dtype(q))


def _fake_backward(  # type: ignore[no-untyped-def]
    grad_o, q, k, v, lse, mask, scale, causal, distance
) -> tuple[Tensor, ...]:
    op = "attention_backward"
    _check(op, q, k, v, mask, scale, grad_o, lse)
    return tuple(_empty(op, t, t.size(2), t.size(3)) for t in (q, k, v))


def _fake_double_backward(  # type: ignore[no-untyped-def]
    grad_grad_q, grad_grad_k, grad_grad_v, grad_o, q, k, v, lse, mask, scale, causal, distance
) -> tuple[Tensor, ...]:
    op = "attention_double_backward"
    _check(op, q, k, v, mask, scale, grad_o, lse)
    for name, given, like in (("q", grad_grad_q, q), ("k", grad_grad_k, k), ("v", grad_grad_v, v)):
        if given is not None:
            check_same_kind(op, q=q, **{f"grad_grad_{name}": given})
            check_same_shape(op, **{name: like, f"grad_grad_{name}": given})
    return tuple(_empty(op, t, t.size(2), t.size(3)) for t in (grad_o, q, k, v))


def _gradients(a: Any, needs: Any, grad_o: Tensor) -> tuple[Tensor, ...]:
    gradients: tuple[Tensor, ...] = _backward(grad_o, a.q, a.k, a.v, a.lse, a.key_padding_mask, *a.plain)
    return gradients


def _backward_gradients(a: Any, needs: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, ...] = _double_backward(
        *grads, a.grad_o, a.q, a.k, a.v, a.lse, a.key_padding_mask, *a.plain
    )
    return gradients


def _double_backward_ref(  # type: ignore[no-untyped-def]
    grad_grad_q, grad_grad_k, grad_grad_v, grad_o, q, k, v, lse, mask, scale, causal, distance
) -> tuple[Tensor, ...]:
    inputs = grad_o, q, k, v = tuple(map(leaf, (grad_o, q, k, v)))
    o = attention_ref(q, k, v, mask, causal, "l2" if distance else "dot", scale)
    slopes = torch.autograd.grad(o, (q, k, v), grad_o, create_graph=True)
    pairs = zip(slopes, (grad_grad_q, grad_grad_k, grad_grad_v), strict=True)
    outputs, cotangents = zip(*((s, c) for s, c in pairs if c is not None), strict=True)
    return torch.autograd.grad(outputs, inputs, cotangents, create_graph=True, materialize_grads=True)


_double_backward = native(
    "attention_double_backward",
    fake=_fake_double_backward,
    reference=_double_backward_ref,
    wrt=("grad_grad_q", "grad_grad_k", "grad_grad_v", "grad_o", "q", "k", "v"),
    cuda=False,
)
_backward = native(
    "attention_backward",
    fake=_fake_backward,
    gradients=_backward_gradients,
    wrt=("grad_o", "q", "k", "v"),
    cuda=False,
)
_attention = native(
    "attention",
    fake=_fake,
    gradients=_gradients,
    wrt=("q", "k", "v"),
    save=("q", "k", "v", "key_padding_mask", "lse"),
    constants=("lse",),
    autocast=True,
    cuda=False,
)

OPS = [Op(attention, attention_ref, {"q": (2, 3, 5, 4), "k": (2, 3, 6, 4), "v": (2, 3, 6, 7)})]
