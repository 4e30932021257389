"""Leaky ReLU at a higher resolution, between two filters: the alias-free activation of StyleGAN3 (Karras et
al. 2021, "Alias-Free Generative Adversarial Networks", section 3.2).

Made of :func:`upfirdn2d` and :func:`bias_act`: for the backward two bits per upsampled pixel are kept. All
derivatives, those of the filters included, are those ops' own.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from aigc_ext.ops._arguments import no_tensor, shape_of
from aigc_ext.ops._mode import decomposed
from aigc_ext.ops.bias_act import bias_act, bias_act_ref
from aigc_ext.ops.upfirdn2d import four_paddings, number_of_taps, upfirdn2d, upfirdn2d_ref

_SQRT2 = 2**0.5


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = _SQRT2,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """``x + b``, upsampled with ``fu``, ``clamp(gain * lrelu(.))``, downsampled with ``fd``.

    A side of W becomes ``(W * up + x0 + x1 - (taps_u - 1) - (taps_d - 1) + down - 1) // down``.

    Args:
        x: ``[N, C, H, W]``, contiguous or channels-last.
        fu, fd: filters as for :func:`upfirdn2d`; None for no filter. ``up ** 2`` is multiplied with ``fu``,
            for the zeros that are inserted.
        b: ``[C]`` or None.
        up, down: factors, from 1 on, for both axes.
        padding: of the upsampled image, for both filters: an integer, ``[x, y]`` or ``[x0, x1, y0, y1]``.
        gain, slope: of the leaky ReLU.
        clamp: limit of its magnitude, at least 0, or None.
        flip_filter: correlate with both filters; by default they convolve.

    Returns:
        A tensor of x's dtype, channels-last if ``x`` is, else contiguous. Differentiable to every order in x,
        b and the filters.

    Raises:
        TypeError: a tensor is no tensor, or a number no number.
        ValueError: an option out of range.
        RuntimeError: shapes, dtypes or devices do not fit together.
    """
    _check(x, fu, fd, b)
    if decomposed():
        return filtered_lrelu_ref(x, fu, fd, b, up, down, padding, gain, slope, clamp, flip_filter)
    pads = four_paddings(padding, "filtered_lrelu")
    act = {"act": "lrelu", "alpha": slope, "gain": gain, "clamp": clamp}
    identity = fu is None and up == 1 and not any(pads)
    if b is not None and not identity:
        x, b = bias_act(x, b.to(x.dtype)), None
    if not identity:
        x = upfirdn2d(x, fu, up=up, padding=pads, flip_filter=flip_filter, gain=up**2)
    x = bias_act(x, None if b is None else b.to(x.dtype), **act)  # type: ignore[arg-type]
    if fd is None and down == 1:
        return x
    return upfirdn2d(x, fd, down=down, flip_filter=flip_filter)


def filtered_lrelu_ref(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = _SQRT2,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """:func:`filtered_lrelu` in plain PyTorch."""
    x = bias_act_ref(x, None if b is None else b.to(x.dtype))
    x = upfirdn2d_ref(x, fu, up=up, padding=padding, flip_filter=flip_filter, gain=up**2)
    x = bias_act_ref(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d_ref(x, fd, down=down, flip_filter=flip_filter)


def _check(x: Tensor, fu: Tensor | None, fd: Tensor | None, b: Tensor | None) -> None:
    op = "filtered_lrelu"
    for name, tensor in {"x": x, "fu": fu, "fd": fd, "b": b}.items():
        if not (isinstance(tensor, Tensor) or (tensor is None and name != "x")):
            raise no_tensor(op, optional=() if name == "x" else (name,), **{name: tensor})
    if x.dim() != 4:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [N, C, H, W]")
    for f in (fu, fd):
        number_of_taps(op, f)
    if b is not None and (b.dim() != 1 or b.size(0) != x.size(1)):
        raise RuntimeError(f"{op}: b has shape {shape_of(b)}, but must be [{x.size(1)}]")
