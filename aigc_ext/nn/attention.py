"""Self-attention over the pixels of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aigc_ext import ops
from aigc_ext.nn.convolutions import Conv2d
from aigc_ext.ops.attention import SCORES


class SelfAttention2d(nn.Module):
    """Self-attention over the pixels of an image, added to it: `x + gain * out(attention(...))` with 1x1
    convolutions for queries, keys, values and `out` (SAGAN: Zhang et al. 2019, "Self-Attention Generative
    Adversarial Networks"; with `score="l2"` as in GigaGAN: Kang et al. 2023).

    `gain` starts at 0, so that the layer starts as the identity. The attention is `ops.attention`: a gradient
    penalty through it takes memory linear in the number of pixels.

    Shapes: `[N, channels, H, W]`, contiguous or channels-last without a copy, to the same.

    Args:
        channels: of the image.
        heads: divides `qk_channels` and `v_channels`.
        qk_channels: of all queries together, and of all keys; by default `channels // 8`, at least `heads`.
        v_channels: of all values together; by default `channels // 2`, at least `heads`.
        score: `dot` or `l2`, as in `ops.attention`.
        tied: whether queries and keys have one weight; by default with `l2`, whose Lipschitz constant needs
            it (Kim et al. 2021).
        device, dtype: of the parameters.

    Raises:
        ValueError: `score` is none of these, `heads` does not divide the channels of queries or values, or a
            number is less than 1.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 1,
        qk_channels: int | None = None,
        v_channels: int | None = None,
        score: str = "dot",
        tied: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"score is {score!r}, but must be 'dot' or 'l2'")
        for name, number in (("channels", channels), ("heads", heads)):
            if number < 1:
                raise ValueError(f"{name} is {number}, but must be at least 1")
        qk_channels = max(channels // 8, heads) // heads * heads if qk_channels is None else qk_channels
        v_channels = max(channels // 2, heads) // heads * heads if v_channels is None else v_channels
        for name, number in (("qk_channels", qk_channels), ("v_channels", v_channels)):
            if number < 1 or number % heads:
                raise ValueError(f"{name} is {number}, but must be a multiple of heads, {heads}")
        self.heads, self.score = heads, score
        tied = score == "l2" if tied is None else tied

        def projection(i: int, o: int) -> Conv2d:
            return Conv2d(i, o, 1, bias=False, device=device, dtype=dtype)

        self.query = projection(channels, qk_channels)
        self.key = None if tied else projection(channels, qk_channels)
        self.value = projection(channels, v_channels)
        self.out = projection(v_channels, channels)
        self.gain = nn.Parameter(torch.zeros((), device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        def of_heads(x: Tensor) -> Tensor:
            return x.unflatten(1, (self.heads, -1)).flatten(3).transpose(2, 3)

        q = of_heads(self.query(input))
        k = q if self.key is None else of_heads(self.key(input))
        o = ops.attention(q, k, of_heads(self.value(input)), score=self.score)
        o = o.transpose(2, 3).flatten(1, 2).unflatten(2, input.shape[2:])
        return input + self.gain * self.out(o)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, score={self.score!r}"
