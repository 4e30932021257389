"""WaveNet sample by sample, many samples to a call.

Van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio", arXiv:1609.03499, with the queues of Le
Paine et al. 2016, "Fast WaveNet Generation Algorithm", arXiv:1611.09482. A step needs a few hundred thousand
multiplications, which one core does in some 20 microseconds. A call of PyTorch takes a microsecond or more,
and a step in PyTorch has more than ten for each layer. So the op goes through all layers, and through many
steps, with the random numbers given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_same_kind, dtype_name, no_tensor, shape_of, size_product, size_sum
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops._op import Op, native

MAX_LAYERS = 128


class WaveNetState(NamedTuple):
    """What the next step of N sequences follows from. All three are contiguous and written in place."""

    queues: Tensor
    """``[N, Q, channels]``, the past inputs of all layers one behind the other, where a layer has
    ``(taps - 1) * dilation`` of them. At the start they are 0."""
    codes: Tensor
    """``[N]``, int64, the last codes; at the start, those that stand for silence."""
    times: Tensor
    """``[N]``, int64, how many steps each has taken; at the start 0."""


class WaveNetWeights(NamedTuple):
    """A WaveNet's weights. Matrices are ``[inputs, outputs]``, the transposes of ``nn.Linear``'s."""

    embedding: Tensor
    """``[classes, channels]``."""
    w_gate: Tensor
    """``[layers, taps, channels, 2 * gates]``: tap j is for what was j dilations ago. The first half of the
    outputs goes through tanh, the second through the sigmoid. Its bias is the condition."""
    w_out: Tensor
    """``[layers, gates, channels + skips]``; what the last layer has for the channels is not used."""
    b_out: Tensor
    """``[layers, channels + skips]``."""
    w_hidden: Tensor
    """``[skips, hidden]``."""
    b_hidden: Tensor
    w_logits: Tensor
    """``[hidden, classes]``."""
    b_logits: Tensor


def wavenet_step_(
    state: WaveNetState,
    weights: WaveNetWeights,
    condition: Tensor,
    dilations: Sequence[int],
    uniform: Tensor | None = None,
    given: Tensor | None = None,
    hop: int = 1 << 32,
    temperature: float = 1.0,
    with_logits: bool = False,
) -> tuple[Tensor, Tensor]:
    """The next samples of N sequences of a WaveNet, many steps of all layers in one call. Autograd does not
    record it.

    Sequences are independent of each other: a sequence has the same bits alone as among others.

    Args:
        state, weights: all of one dtype, float32 or float64. The state is changed in place; the weights are
            read without a copy if they are contiguous. Widths that are multiples of 16 are the fastest.
        condition: ``[N, frames, layers, 2 * gates]``, added before the gates: their bias, and what a class or
            a spectrum adds to it. The frame of step t, as ``state.times`` counts, is the number
            ``t // hop``, or the last one.
        dilations: of the layers, each at least 1.
        uniform: ``[N, steps]``, random numbers in [0, 1), of the weights' dtype. By each, a code is drawn
            with probabilities ``softmax(logits / temperature)``: the first with
            ``p(0) + ... + p(code) > uniform``, in float64.
        given: instead of ``uniform``, int64 ``[N, steps]``: codes that are taken, to go on from or to learn
            their probabilities.
        hop: of the condition's frames, in steps.
        temperature: 0 takes the most likely code, of several the first.
        with_logits: whether to return the logits of all steps.

    Returns:
        The codes ``[N, steps]``, int64, and the logits ``[N, steps, classes]`` that they were drawn by, or
        without ``with_logits`` ``[N, 0, classes]``. Logits that are not finite give the code -1, and a code
        that is not one of the classes makes all that follows NaN.

    Raises:
        TypeError: an argument is no tensor.
        RuntimeError: tensors do not fit together; a number out of range; a dtype or device that is not
            supported. Nothing has been written then.
    """
    if not isinstance(condition, Tensor):
        raise no_tensor("wavenet_step_", condition=condition)
    if decomposed():
        return wavenet_step_ref(
            state, weights, condition, dilations, uniform, given, hop, temperature, with_logits
        )
    codes, logits = _wavenet_step_(
        *state, uniform, given, condition, *weights, list(dilations), hop, temperature, with_logits
    )
    # As in adam_ema_: the dispatcher does not keep these counts for custom ops.
    torch.autograd.graph.increment_version(list(state))
    return codes, logits


@torch.no_grad()
def wavenet_step_ref(
    state: WaveNetState,
    weights: WaveNetWeights,
    condition: Tensor,
    dilations: Sequence[int],
    uniform: Tensor | None = None,
    given: Tensor | None = None,
    hop: int = 1 << 32,
    temperature: float = 1.0,
    with_logits: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`wavenet_step_` in plain PyTorch."""
    queues, codes, times = state
    w, (_, taps, channels, two_gates) = weights, weights.w_gate.shape
    source = given if uniform is None else uniform
    assert source is not None
    rows, steps = torch.arange(codes.numel(), device=codes.device), source.size(1)
    samples, all_logits = codes.new_empty(codes.numel(), steps), []
    for step in range(steps):
        known = (codes >= 0) & (codes < len(w.embedding))
        x = torch.where(known[:, None], w.embedding[torch.where(known, codes, 0)], math.nan)
        frames = (times // hop).clamp(0, condition.size(1) - 1)
        skip, first = x.new_zeros(len(x), w.w_hidden.size(0)), 0
        for layer, dilation in enumerate(dilations):
            length = (taps - 1) * dilation
            z = condition[rows, frames, layer] + x @ w.w_gate[layer, 0]
            for tap in range(1, taps):
                place = first + (times - tap * dilation) % length
                z = z + queues[rows, place] @ w.w_gate[layer, tap]
            if length:
                queues[rows, first + times % length] = x
            h = z[:, : two_gates // 2].tanh() * z[:, two_gates // 2 :].sigmoid()
            y = h @ w.w_out[layer] + w.b_out[layer]
            x, skip = x + y[:, :channels], skip + y[:, channels:]
            first += length
        logits = (skip.relu() @ w.w_hidden + w.b_hidden).relu() @ w.w_logits + w.b_logits
        all_logits.append(logits)
        if given is not None:
            codes.copy_(given[:, step])
        else:
            codes.copy_(_drawn(logits, source[:, step], temperature))
        samples[:, step] = codes
        times += 1
    if not with_logits:
        return samples, queues.new_empty(len(codes), 0, len(w.embedding))
    return samples, torch.stack(all_logits, 1) if steps else queues.new_empty(len(codes), 0, len(w.embedding))


def _drawn(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return torch.where(logits.isnan().any(1), -1, logits.argmax(1))
    p = ((logits - logits.amax(1, keepdim=True)) / temperature).exp().double()
    sums, totals = p.cumsum(1), p.sum(1)
    found = (sums <= (uniform.double() * totals)[:, None]).sum(1).clamp(max=p.size(1) - 1)
    return torch.where(totals.isfinite(), found, -1)


# ---- native op ---------------------------------------------------------------------------------------------


def _fake(
    queues: Tensor,
    codes: Tensor,
    times: Tensor,
    uniform: Tensor | None,
    given: Tensor | None,
    condition: Tensor,
    embedding: Tensor,
    w_gate: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    w_hidden: Tensor,
    b_hidden: Tensor,
    w_logits: Tensor,
    b_logits: Tensor,
    dilations: Sequence[int],
    hop: int,
    temperature: float,
    with_logits: bool,
) -> tuple[Tensor, Tensor]:
    op = "wavenet_step_"

    def fail(text: str) -> RuntimeError:
        return RuntimeError(f"{op}: {text}")

    if queues.dtype not in (torch.float32, torch.float64):
        raise fail(f"queues is {dtype_name(queues.dtype)}, but must be float32 or float64")
    if (uniform is None) == (given is None):
        raise fail("one of uniform and given must be a tensor, the other None")
    if hop < 1:
        raise fail(f"hop is {hop}, but must be at least 1")
    if not 0 <= temperature < math.inf:
        raise fail(f"temperature is {temperature:g}, but must be at least 0 and finite")
    if w_gate.dim() != 4 or w_gate.size(1) < 1 or w_gate.size(3) % 2 != 0:
        raise fail(
            f"w_gate has shape {shape_of(w_gate)}, but must be [layers, taps, channels, 2 * gates] with one "
            "tap at least"
        )
    layers, taps, channels, two_gates = w_gate.shape
    if layers > MAX_LAYERS:
        raise fail(f"w_gate has {layers} layers, but at most {MAX_LAYERS} are possible")
    if len(dilations) != layers:
        raise fail(f"dilations has {len(dilations)} numbers, but w_gate {layers} layers")
    rows = 0
    for i, dilation in enumerate(dilations):
        if dilation < 1:
            raise fail(f"dilations[{i}] is {dilation}, but must be at least 1")
        rows = size_sum(op, rows, size_product(op, taps - 1, dilation))
    if codes.dim() != 1:
        raise fail(f"codes has shape {shape_of(codes)}, but must be [batch]")
    if embedding.dim() != 2 or embedding.size(0) < 1:
        raise fail(
            f"embedding has shape {shape_of(embedding)}, but must be [classes, channels] with one class at "
            "least"
        )
    if w_hidden.dim() != 2:
        raise fail(f"w_hidden has shape {shape_of(w_hidden)}, but must be [skips, hidden]")
    if condition.dim() != 4 or condition.size(1) < 1:
        raise fail(
            f"condition has shape {shape_of(condition)}, but must be [batch, frames, layers, 2 * gates] with "
            "one frame at least"
        )
    name, source = ("given", given) if uniform is None else ("uniform", uniform)
    assert source is not None
    if source.dim() != 2:
        raise fail(f"{name} has shape {shape_of(source)}, but must be [batch, steps]")
    (batch,), (classes, _), (skips, hidden) = codes.shape, embedding.shape, w_hidden.shape
    steps, outputs = source.size(1), size_sum(op, channels, skips)

    def check(name: str, t: Tensor, *sizes: int) -> None:
        if t.shape != sizes:
            raise fail(f"{name} has shape {shape_of(t)}, but must be {list(sizes)}")

    def floats(name: str, t: Tensor, *sizes: int) -> None:
        check_same_kind(op, **{"queues": queues, name: t})
        check(name, t, *sizes)

    def integers(name: str, t: Tensor, *sizes: int) -> None:
        if t.dtype != torch.int64:
            raise fail(f"{name} is {dtype_name(t.dtype)}, but must be int64")
        check(name, t, *sizes)

    floats("queues", queues, batch, rows, channels)
    integers("codes", codes, batch)
    integers("times", times, batch)
    if uniform is not None:
        floats("uniform", uniform, batch, steps)
    if given is not None:
        integers("given", given, batch, steps)
    floats("condition", condition, batch, condition.size(1), layers, two_gates)
    floats("embedding", embedding, classes, channels)
    floats("w_gate", w_gate, layers, taps, channels, two_gates)
    floats("w_out", w_out, layers, two_gates // 2, outputs)
    floats("b_out", b_out, layers, outputs)
    floats("w_hidden", w_hidden, skips, hidden)
    floats("b_hidden", b_hidden, hidden)
    floats("w_logits", w_logits, hidden, classes)
    floats("b_logits", b_logits, classes)
    for name, t in (("queues", queues), ("codes", codes), ("times", times)):
        if not t.is_contiguous():
            raise fail(
                f"{name} has shape {shape_of(t)} and strides {list(t.stride())}, but must be contiguous"
            )
    logits = queues.new_empty(batch, steps if with_logits else 0, classes)
    return codes.new_empty(batch, steps), logits


_wavenet_step_ = native("wavenet_step_", fake=_fake)


def _example() -> dict[str, Any]:
    channels, gates, skips, hidden, classes, dilations = 4, 3, 5, 6, 8, [1, 2, 4]
    layers = len(dilations)
    return {
        "state": WaveNetState(
            torch.zeros(2, sum(dilations), channels), torch.tensor([3, 7]), torch.tensor([0, 5])
        ),
        "weights": WaveNetWeights(
            embedding=torch.randn(classes, channels),
            w_gate=torch.randn(layers, 2, channels, 2 * gates),
            w_out=torch.randn(layers, gates, channels + skips),
            b_out=torch.randn(layers, channels + skips),
            w_hidden=torch.randn(skips, hidden),
            b_hidden=torch.randn(hidden),
            w_logits=torch.randn(hidden, classes),
            b_logits=torch.randn(classes),
        ),
        "condition": torch.randn(2, 1, layers, 2 * gates),
        "dilations": dilations,
        "given": torch.randint(0, classes, (2, 6)),
        "with_logits": True,
    }


OPS = [Op(wavenet_step_, wavenet_step_ref, _example)]
ALSO = (WaveNetState, WaveNetWeights)
