"""A minimal style-based generator with the interface that `Sampler` asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class StandIn(nn.Module):
    value_range = (-1.0, 1.0)
    w_avg: torch.Tensor
    noise: torch.Tensor

    def __init__(self, image_shape=(3, 8, 8), z_dim=6, w_dim=5, num_ws=3, num_classes=0):
        super().__init__()
        self.image_shape, self.z_dim, self.w_dim, self.num_ws = tuple(image_shape), z_dim, w_dim, num_ws
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes else None
        self.first = nn.Sequential(nn.Linear(z_dim, 16), nn.LeakyReLU(0.2), nn.Linear(16, w_dim))
        c, h, w = image_shape
        self.styles = nn.ModuleList(nn.Linear(w_dim, c * h * w) for _ in range(num_ws))
        self.register_buffer("w_avg", torch.linspace(-1, 1, w_dim))
        self.register_buffer("noise", torch.randn(h, w))

    @property
    def config(self) -> dict[str, Any]:
        names = ("image_shape", "z_dim", "w_dim", "num_ws", "num_classes")
        return {"family": "stand-in", **{name: getattr(self, name) for name in names}}

    def mapping(self, z, c=None, truncation=1.0, truncation_cutoff=None):
        assert (c is None) == (self.num_classes == 0)
        if self.embedding is not None:
            z = z + self.embedding(c)
        w = self.first(z)
        w = w[:, None].repeat(1, self.num_ws, 1)
        w[:, :truncation_cutoff] = self.w_avg.lerp(w[:, :truncation_cutoff], truncation)
        return w

    def synthesis(self, w, noise_mode="random"):
        images = sum(0.6 * style(w[:, i]).sin() for i, style in enumerate(self.styles))
        images = images.unflatten(1, self.image_shape)
        noise = {"const": self.noise, "none": torch.zeros(())}.get(noise_mode)
        if noise is None:
            assert noise_mode == "random"
            noise = torch.randn(len(w), 1, *self.image_shape[1:])
        return (images + 0.1 * noise).tanh()

    def forward(self, z, c=None, truncation=1.0, truncation_cutoff=None, noise_mode=None):
        noise_mode = noise_mode or ("random" if self.training else "const")
        return self.synthesis(self.mapping(z, c, truncation, truncation_cutoff), noise_mode)


def stand_in(**arguments) -> StandIn:
    torch.manual_seed(2)
    return StandIn(**arguments).eval()
