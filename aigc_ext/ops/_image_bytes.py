"""Images as bytes, the channels last, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_ext.ops._arguments import check_same_kind, shape_of
from aigc_ext.ops._op import NATIVES, native


def has_image_bytes(images: Tensor) -> bool:
    """Is there a kernel for images of this dtype and device?"""
    return _HAS_KERNEL and images.dtype == torch.float32 and images.is_cpu


def image_bytes(images: Tensor, low: float, high: float) -> Tensor:
    """Images (N, C, H, W), float32, as uint8 (N, H, W, C): `low` becomes 0, `high` 255, rounded to nearest
    and limited to these; NaN becomes 0."""
    y: Tensor = _image_bytes(images, low, 255 / (high - low))
    return y


def _fake(x: Tensor, low: float, scale: float) -> Tensor:
    op = "image_bytes"
    check_same_kind(op, x=x)
    if x.dtype != torch.float32:
        raise RuntimeError(f"{op}: x must be of dtype float32")
    if x.dim() != 4:
        raise RuntimeError(f"{op}: x has shape {shape_of(x)}, but must be [N, C, H, W]")
    n, channels, height, width = x.shape
    return x.new_empty(n, height, width, channels, dtype=torch.uint8)


_image_bytes = native("image_bytes", fake=_fake, cuda=False)
_HAS_KERNEL = NATIVES["image_bytes"].overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CPU)
