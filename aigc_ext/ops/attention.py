"""Attention of one head or several, with a first and a second derivative that take memory linear in the
length: ``o_i = sum over j of P_ij v_j`` with ``P = softmax(S)`` in each row, and

- ``S_ij = scale * q_i . k_j`` (Vaswani et al. 2017, "Attention is all you need"), or
- ``S_ij = -scale * |q_i - k_j|**2`` (Kim et al. 2021, "The Lipschitz constant of self-attention"): with one
  weight for queries and keys it has a Lipschitz constant, where the dot product has none. GigaGAN's
  discriminator uses it (Kang et al. 2023).

A gradient penalty differentiates the gradient once more. PyTorch's fused forms of attention raise there, and
its plain form keeps some dozen matrices of all pairs of a query and a key. Here forward, backward and double
backward are kernels that recompute P from the logarithms of its rows' sums, for a block of queries at a time.
The formulas and their derivation are the head of csrc/attention/attention.h. On a GPU they are computed by
PyTorch's products, for a chunk of queries at a time. The third derivative is that of the reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from aigc_ext.ops._op import Op, _library, cast_by_autocast, native
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
    CUDA it is composed of PyTorch's own products, in float32 (float64 for float64), for chunks of queries:
    in linear memory too, but a forward without a penalty is faster by PyTorch's function. On other devices it
    is :func:`attention_ref`, with memory for all pairs of a query and a key.

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
        return Route("plain PyTorch", f"there is no kernel for {q.device.type}")
    if q.device.type == "cuda":
        return Route("PyTorch's products", "in chunks of queries, memory is linear in the length")
    return Route("the kernel", "in blocks of queries, memory is linear in the length")


def has_attention(q: Tensor) -> bool:
    """Is there a form with linear memory for q's device?"""
    return q.device.type == "cuda" or (q.device.type == "cpu" and _HAS_KERNEL)


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
    check_same_device(op, q=q, key_padding_mask=mask)
    if mask is not None:
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
    if lse is not None and (lse.dtype != wide_dtype(q) or tuple(lse.shape) != (n, heads, queries)):
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

# ---- on CUDA: PyTorch's products, for a chunk of queries at a time -----------------------------------------
# The formulas and names are those of csrc/attention/attention.h.

_SCORES_OF_A_CHUNK = 1 << 24  # or those of one query


class _Chunks:
    """The keys of all heads, and the chunks of the queries."""

    def __init__(  # type: ignore[no-untyped-def]
        self, q, k, v, mask, scale, causal, distance
    ) -> None:
        self.q, self.mask, self.causal = q, mask, causal
        self.k, self.v = (self.of_keys(t) for t in (k, v))
        self.factor = 2 * scale if distance else scale
        self.key_factor = -scale if distance else 0.0
        self.key_scores = self.key_factor * self.k.square().sum(-1)[..., None, :] if distance else None
        self.size = max(_SCORES_OF_A_CHUNK // max(q.size(0) * q.size(1) * k.size(2), 1), 1)

    def of_keys(self, t: Tensor) -> Tensor:
        t = t.to(wide_dtype(t))
        return t if self.mask is None else t.masked_fill(self.mask[:, None, :, None], 0)

    def __iter__(self) -> Iterator[slice]:
        queries = self.q.size(2)
        return (slice(i, min(i + self.size, queries)) for i in range(0, queries, self.size))

    def rows(self, t: Tensor, chunk: slice) -> Tensor:
        return t[:, :, chunk].to(wide_dtype(t))

    def scores(self, q: Tensor, chunk: slice) -> Tensor:
        """S, for the scaled queries of a chunk; -infinity where a query does not attend."""
        scores = q @ self.k.mT
        if self.key_scores is not None:
            scores += self.key_scores
        if self.mask is not None:
            scores.masked_fill_(self.mask[:, None, None, :], -math.inf)
        if self.causal:
            query = torch.arange(chunk.start, chunk.stop, device=q.device)
            key = torch.arange(self.k.size(2), device=q.device)
            scores.masked_fill_(key > query[:, None], -math.inf)
        return scores

    def weights(self, q: Tensor, lse: Tensor, chunk: slice) -> Tensor:
        """P"""
        lse = lse[:, :, chunk, None]
        return (self.scores(q, chunk) - lse.masked_fill(lse == -math.inf, 0)).exp_()

    def result(self, t: Tensor, like: Tensor, op: str) -> Tensor:
        return _empty(op, like, t.size(2), t.size(3)).copy_(t)

    def gradient(self, t: Tensor, like: Tensor, op: str) -> Tensor:
        """Of keys or values: zeros for padding."""
        return self.result(self.of_keys(t), like, op)


def _attention_in_chunks(q, k, v, mask, *options) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    o, lse = _fake(q, k, v, mask, *options)
    chunks = _Chunks(q, k, v, mask, *options)
    for chunk in chunks:
        rows = chunks.rows(q, chunk) * chunks.factor
        lse[:, :, chunk] = chunks.scores(rows, chunk).logsumexp(-1)
        o[:, :, chunk] = chunks.weights(rows, lse, chunk) @ chunks.v
    return o, lse


def _backward_in_chunks(  # type: ignore[no-untyped-def]
    grad_o, q, k, v, lse, mask, *options
) -> tuple[Tensor, ...]:
    op = "attention_backward"
    grad_q = _fake_backward(grad_o, q, k, v, lse, mask, *options)[0]
    chunks = _Chunks(q, k, v, mask, *options)
    grad_k, grad_v = torch.zeros_like(chunks.k), torch.zeros_like(chunks.v)
    for chunk in chunks:
        rows, do = chunks.rows(q, chunk) * chunks.factor, chunks.rows(grad_o, chunk)
        p, dp = chunks.weights(rows, lse, chunk), do @ chunks.v.mT
        ds = p * (dp - (p * dp).sum(-1, keepdim=True))
        grad_q[:, :, chunk] = ds @ chunks.k * chunks.factor
        grad_k += ds.mT @ rows
        grad_v += p.mT @ do
        if chunks.key_factor:
            grad_k += 2 * chunks.key_factor * ds.sum(-2)[..., None] * chunks.k
    return grad_q, chunks.gradient(grad_k, k, op), chunks.gradient(grad_v, v, op)


def _double_backward_in_chunks(  # type: ignore[no-untyped-def]
    grad_grad_q, grad_grad_k, grad_grad_v, grad_o, q, k, v, lse, mask, *options
) -> tuple[Tensor, ...]:
    op = "attention_double_backward"
    given = (grad_grad_q, grad_grad_k, grad_grad_v)
    grad_grad_o, grad_q, *_ = _fake_double_backward(*given, grad_o, q, k, v, lse, mask, *options)
    a, b, c = (torch.zeros_like(t) if g is None else g for g, t in zip(given, (q, k, v), strict=True))
    chunks = _Chunks(q, k, v, mask, *options)
    b, c = chunks.of_keys(b), chunks.of_keys(c)
    grad_k, grad_v = torch.zeros_like(chunks.k), torch.zeros_like(chunks.v)
    key_terms = 2 * chunks.key_factor * (b * chunks.k).sum(-1)[..., None, :]
    for chunk in chunks:
        rows, do = chunks.rows(q, chunk) * chunks.factor, chunks.rows(grad_o, chunk)
        a_rows = chunks.rows(a, chunk) * chunks.factor
        p = chunks.weights(rows, lse, chunk)
        dp = do @ chunks.v.mT
        t = a_rows @ chunks.k.mT + rows @ b.mT + key_terms
        dp -= (p * dp).sum(-1, keepdim=True)
        t -= (p * t).sum(-1, keepdim=True)
        g = t * dp + do @ c.mT
        ds, e, h = p * dp, p * t, p * (g - (p * g).sum(-1, keepdim=True))
        grad_grad_o[:, :, chunk] = e @ chunks.v + p @ c
        grad_v += e.mT @ do
        grad_q[:, :, chunk] = (h @ chunks.k + ds @ b) * chunks.factor
        grad_k += h.mT @ rows + ds.mT @ a_rows
        if chunks.key_factor:
            h_sums, ds_sums = (m.sum(-2)[..., None] for m in (h, ds))
            grad_k += 2 * chunks.key_factor * (h_sums * chunks.k + ds_sums * b)
    return grad_grad_o, grad_q, chunks.gradient(grad_k, k, op), chunks.gradient(grad_v, v, op)


IN_CHUNKS = {
    "attention": _attention_in_chunks,
    "attention_backward": _backward_in_chunks,
    "attention_double_backward": _double_backward_in_chunks,
}
if torch.version.cuda is not None:
    for _name, _function in IN_CHUNKS.items():
        _library.impl(_name, _function, "CUDA")

OPS = [Op(attention, attention_ref, {"q": (2, 3, 5, 4), "k": (2, 3, 6, 4), "v": (2, 3, 6, 7)})]
