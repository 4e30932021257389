from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext.tasks.gan import TrainConfig


def config(**overrides: Any) -> TrainConfig:
    """A run of 40 steps of 25 images with a snapshot every 10; keys use __ for the dot."""
    small = {
        "batch": 25,
        "kimg": 1.0,
        "tick": 0.125,
        "snap": 2,
        "keep": 100,
        "grid": [4, 2],
        "device": "cpu",
        "data.source": "digits",
        "generator.z_dim": 8,
        "generator.hidden": [16, 16],
        "discriminator.hidden": [16, 16],
        "g_optim.lr": 1e-3,
        "d_optim.lr": 1e-3,
    }
    result = TrainConfig()
    for key, value in (small | {k.replace("__", "."): v for k, v in overrides.items()}).items():
        result = result.override(key, value)
    return result


class PlainGenerator(nn.Module):
    """Knows nothing of this package, and has every kind of state: buffers, dropout, tied weights."""

    def __init__(self, shape: tuple[int, int, int] = (1, 4, 4), z: int = 6) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.Linear(z, 8)
        self.norm = nn.BatchNorm1d(8)
        self.middle = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8)
        self.tied.weight = self.middle.weight
        self.dropout = nn.Dropout(0.25)
        self.last = nn.Linear(8, math.prod(shape))

    def forward(self, z: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(z)))
        x = self.dropout(torch.tanh(self.tied(torch.relu(self.middle(x)))))
        return torch.tanh(self.last(x)).unflatten(1, self.shape)


class PlainDiscriminator(nn.Module):
    def __init__(self, shape: tuple[int, int, int] = (1, 4, 4)) -> None:
        super().__init__()
        self.first = nn.Linear(math.prod(shape), 8)
        self.dropout = nn.Dropout(0.25)
        self.last = nn.Linear(8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.dropout(torch.relu(self.first(images.flatten(1)))))
