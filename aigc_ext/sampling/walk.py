"""Paths through latent space."""

from __future__ import annotations

import torch
from torch import Tensor

from aigc_ext import _names

CURVES = _names.CURVES


def walk_positions(keys: int, frames: int, loop: bool) -> Tensor:
    """The position of each frame between the keys 0 to `keys` - 1: float64 (frames,). A loop ends before
    returning to key 0 (which is `keys`), any other walk at the last key."""
    if loop:
        return torch.arange(frames, dtype=torch.float64) * keys / frames
    return torch.linspace(0, keys - 1, frames, dtype=torch.float64)


def slerp_points(keys: Tensor, positions: Tensor) -> Tensor:
    """Spherical interpolation (Shoemake 1985, "Animating rotation with quaternion curves") of (K, D) at
    `positions` (F,) from 0 to K, where K is key 0 again; (F, D) in the dtype of the keys.

    It is linear between two keys in the same or opposite directions, which don't determine a great circle.
    """
    a, b, t = _segments(keys, positions)
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1).clamp(-1, 1)[:, None]
    angle = cosine.acos()
    straight = angle.sin() < 1e-6
    angle = torch.where(straight, torch.ones_like(angle), angle)
    spherical = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
    return torch.where(straight, torch.lerp(a, b, t), spherical).to(keys.dtype)


def curve_points(keys: Tensor, positions: Tensor, curve: str, loop: bool) -> Tensor:
    """A curve through (K, ...) at `positions` (F,), as for `slerp_points`; (F, ...).

    "linear", or "cubic": a Catmull-Rom spline, whose slope at a key is half the difference between the next
    key and the previous one; at the ends of a walk without a loop, the difference to the only neighbour.
    """
    flat = keys.flatten(1)
    a, b, t = _segments(flat, positions)
    if curve == "linear":
        points = torch.lerp(a, b, t)
    else:
        wide = flat.double()
        if loop:
            slopes = (wide.roll(-1, 0) - wide.roll(1, 0)) / 2
        else:
            slopes = torch.gradient(wide, dim=0)[0]
        start, end, _ = _segments(slopes, positions)
        # The Hermite basis: the weight of b, and those of the two slopes.
        points = torch.lerp(a, b, t * t * (3 - 2 * t)) + t * (1 - t) * ((1 - t) * start - t * end)
    return points.unflatten(1, keys.shape[1:]).to(keys.dtype)


def _segments(keys: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The keys before and after each position, in float64, and the fraction of the way between them, (F,
    1)."""
    before = positions.floor().long()
    fraction = positions - before
    wide = keys.double()
    return wide[before % len(keys)], wide[(before + 1) % len(keys)], fraction[:, None]
