"""What pays: rules from measurements, and the measurement of one layer."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from aigc_ext.nn._fusible import BATCH_NORMS, GROUP_NORMS, INSTANCE_NORMS
from aigc_ext.nn._usage import put_back
from aigc_ext.ops._layout import HALF, is_channels_last
from aigc_ext.ops.conv2d_act import is_pytorchs

NOISE = 1.03  # a measured gain up to this may be none
_SECONDS = 0.1  # for the measurement of a layer
_BATCH_NORM_PAYS = 1 << 17  # numbers
_PLANE_PAYS = 256  # numbers of a channel
_INSTANCE_NORM_PAYS = 1 << 12  # numbers
_NORM_PAYS, _NORM_PAYS_CONTIGUOUS = 1 << 16, 1 << 20


def rule_of(layer: nn.Module, alone: bool = False) -> str | None:
    """Where `pays` is true on the CPU, in words, if there is such a place."""
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return "where Winograd's algorithm pays"
    if isinstance(layer, BATCH_NORMS):
        return f"from {_BATCH_NORM_PAYS:,} numbers on"
    planes = f"in float32 from planes of {_PLANE_PAYS} numbers on"
    if isinstance(layer, INSTANCE_NORMS):
        least = f"{_NORM_PAYS:,} contiguous" if alone else f"{_INSTANCE_NORM_PAYS:,}"
        return f"{planes}, {least} numbers in all"
    if isinstance(layer, nn.GroupNorm):
        return (
            f"{planes} with gradients, {_NORM_PAYS:,} numbers in channels-last or {_NORM_PAYS_CONTIGUOUS:,}"
        )
    return None


def pays(layer: nn.Module, x: Tensor, alone: bool = False) -> bool:
    """Is the layer with its activation, or alone, faster as one op, forward and backward together?

    Measured on one core of an AMD EPYC of family 26, with LeakyReLU in place: linear layers were 0.74 to 0.99
    times as fast; convolutions that are PyTorch's 0.72 to 1.1, most below 1; by Winograd's algorithm up to
    1.65; batch norm 0.65 with 8,192 numbers and 1.0 to 2.4 from 131,072 on. For group and instance norm see
    `_norm_pays`.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return not (alone and isinstance(layer, GROUP_NORMS))
    if isinstance(layer, BATCH_NORMS):
        return x.numel() >= _BATCH_NORM_PAYS
    if isinstance(layer, GROUP_NORMS):
        return _norm_pays(layer, x, alone)
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return False
    if not may_be_ours(layer) and x.dtype not in HALF and not torch.is_autocast_enabled("cpu"):
        return False
    if x.ndim != 4 or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    transposed = isinstance(layer, nn.ConvTranspose2d)
    stride, padding, dilation, extra = (
        [int(n) for n in size]
        for size in (layer.stride, layer.padding, layer.dilation, layer.output_padding)  # zeros of a Conv2d
    )
    geometry = stride, padding, dilation, extra, layer.groups, transposed
    if "parametrizations" in layer._modules:  # to read its weight would be a step of a spectral norm
        channels = [layer.out_channels, layer.in_channels]
        channels[0 if transposed else 1] //= layer.groups
        weight = x.new_empty(1).expand(*(channels[::-1] if transposed else channels), *layer.kernel_size)
    else:
        weight = layer.weight
    return not is_pytorchs(x, weight, geometry)


def _norm_pays(layer: nn.Module, x: Tensor, alone: bool) -> bool:
    """The same of the norms that group_norm_act computes, measured in float32 on the same machine.

    Instance norm with ReLU was 0.8 to 1.1 times as fast with planes of 64 numbers; with 256 and more 1.3 to
    3.4 with gradients and 1.5 to 6.4 without, in channels-last 1.2 to 1.5 and 1.3 to 2.0; alone 1.4 to 2.6
    with gradients from 65,536 numbers on, but 1.0 with 4,096 and 0.9 to 1.2 in channels-last. Group norm with
    SiLU or ReLU and gradients was 0.5 to 1.2 with up to 524,288 numbers that are contiguous, and 1.3 from a
    million on; in channels-last 1.0 with planes of 64 and 1.15 to 2.4 with 256 and more; alone 0.4 to 1.0, in
    channels-last 1.1 to 3.1. Without gradients it was 0.7 to 3.9.
    """
    count = x.numel()  # the cheapest question
    if count < _INSTANCE_NORM_PAYS or x.dtype != torch.float32 or isinstance(layer, nn.LayerNorm):
        return False
    if x.dim() < 3 or count < _PLANE_PAYS * x.size(0) * x.size(1):
        return False
    if isinstance(layer, INSTANCE_NORMS):
        return not alone or (count >= _NORM_PAYS and x.is_contiguous())
    if alone or count < _NORM_PAYS or not torch.is_grad_enabled():
        return False
    if not (x.requires_grad or any(p.requires_grad for p in layer.parameters())):
        return False
    return count >= _NORM_PAYS_CONTIGUOUS or is_channels_last(x)


def may_be_ours(layer: nn.Module) -> bool:
    """Are there inputs for which a convolution without activation runs as our own kernel?"""
    return (
        isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        and layer.kernel_size == (3, 3)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def measured(
    layer: nn.Module, apart: Callable[[], Tensor], together: Callable[[], Tensor], x: Tensor, *more: Tensor
) -> float:
    """How many times as fast `together` is as `apart`, which are the same function of these tensors and the
    layer."""
    wanted = [t for t in (x, *more, *layer.parameters()) if t.requires_grad]
    with_gradients = layer.training and bool(wanted)

    def duration(forward: Callable[[], Tensor]) -> float:
        start = now(x)
        with torch.set_grad_enabled(with_gradients):
            y = forward()
            if with_gradients:
                torch.autograd.grad(y, wanted, ones)
        return now(x) - start

    with put_back(layer):
        ones = torch.ones_like(apart())
        return ratio(lambda: duration(apart), lambda: duration(together), _SECONDS)


def ratio(before: Callable[[], float], after: Callable[[], float], seconds: float, rounds: int = 4) -> float:
    """Of two durations, measured in turn. The first of each warms up."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < rounds or time.perf_counter() < end:
        times[0].append(before())
        times[1].append(after())
    return min(times[0][1:]) / min(times[1][1:])


def now(x: Tensor) -> float:
    """Seconds. On one thread, those that it ran: what else a machine does then matters little."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
