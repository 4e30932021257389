"""Weights of one network as the start of another: of other images, other classes, or another resolution."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.models.settings import Network

_SHOWN = 8


class Transfer(NamedTuple):
    """What a network took over.

    Attributes:
        taken: the names of its tensors that were replaced.
        partly: those of which a part was: the columns that multiply z, if only one of both networks has
            classes.
        new: those that keep their initial values, and why.
        unused: tensors of the source that have no place in it.
    """

    taken: list[str]
    partly: list[str]
    new: dict[str, str]
    unused: list[str]

    def __str__(self) -> str:
        count = len(self.taken) + len(self.partly) + len(self.new)
        text = f"{len(self.taken)} of {count} tensors taken"
        if self.partly:
            text += f"; of {', '.join(self.partly)} what belongs to z"
        if self.new:
            text += f"; new: {_listed([f'{name} ({why})' for name, why in self.new.items()])}"
        if self.unused:
            text += f"; not used: {_listed(self.unused)}"
        return text


@torch.no_grad()
def transfer_weights(network: nn.Module, source: Mapping[str, Tensor]) -> Transfer:
    """Copies every tensor of a state_dict that has a place in a network: the same name, or that of the same
    layer counted from the coarsest images (`Network.grows_before`), and the same shape.

    Filters that follow from the settings stay as they are. Nothing is changed but the network's tensors.
    """
    own = network.state_dict()
    places = {name: _place(name, network, source, own) for name in source}
    renamed = {place: source[name] for name, place in places.items() if place in own}
    z_dim = getattr(network, "z_dim", None)
    taken, partly, new = [], [], {}
    misfits = {
        _together(name)
        for name, value in own.items()
        if name in renamed and renamed[name].shape != value.shape
    }
    for name, value in own.items():
        given = renamed.get(name)
        if name.endswith("_filter"):
            continue
        if given is None:
            new[name] = "the source has none"
        elif _together(name) not in misfits:
            value.copy_(given)
            taken.append(name)
        elif z_dim is not None and (axis := _axis_of_z(value, given, z_dim)) is not None:
            value.narrow(axis, 0, z_dim).copy_(given.narrow(axis, 0, z_dim))
            partly.append(name)
        elif given.shape == value.shape:
            new[name] = "belongs to a weight of another shape"
        else:
            new[name] = f"{tuple(value.shape)}, but {tuple(given.shape)} in the source"
    unused = [name for name, place in places.items() if place not in own]
    return Transfer(taken, partly, new, unused)


def _place(
    name: str, network: nn.Module, source: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str | None:
    """The name in `network` of a tensor of the source; None if there is no such layer."""
    if not isinstance(network, Network):
        return name
    prefix, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    if not index.isdigit() or int(index) < network.grows_before.get(prefix, math.inf):
        return name
    moved = int(index) + _length(own, prefix) - _length(source, prefix)
    return f"{prefix}.{moved}.{rest}" if moved >= network.grows_before[prefix] else None


def _length(tensors: Mapping[str, Tensor], prefix: str) -> int:
    parts = (name.split(".") for name in tensors)
    return 1 + max((int(p[1]) for p in parts if p[0] == prefix and p[1:2] and p[1].isdigit()), default=-1)


def _together(name: str) -> str:
    """A weight and the buffers of its parametrization, such as its singular vectors, have one key."""
    module, parametrized, _ = name.partition(".parametrizations.")
    return module if parametrized else name


def _axis_of_z(one: Tensor, other: Tensor, z_dim: int) -> int | None:
    """The axis of z in two weights of which one is also multiplied with an embedding of the class; None if
    they differ in another way."""
    if one.ndim != other.ndim:
        return None
    axes = [axis for axis in range(one.ndim) if one.shape[axis] != other.shape[axis]]
    narrowest = min(one.shape[axes[0]], other.shape[axes[0]]) if len(axes) == 1 else None
    return axes[0] if narrowest == z_dim and one.ndim > 1 else None


def _listed(entries: Sequence[str]) -> str:
    more = len(entries) - _SHOWN
    return ", ".join(entries[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
