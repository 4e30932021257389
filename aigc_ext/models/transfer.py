"""Weights of one network as the start of another: of other items, other classes, another resolution or
vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aigc_ext.models.settings import Network, NetworkConfig
from aigc_ext.nn import VectorQuantizer

_SHOWN = 8


class Transfer(NamedTuple):
    """What a network took over.

    Attributes:
        taken: the names of its tensors that were replaced.
        partly: those of which a part was: the columns that multiply z, if only one of both networks has
            classes.
        new: those that keep their initial values, and why.
        unused: tensors of the source that have no place in it.
        rows: those of which some rows were replaced, and how many of them all: of the same tokens, say.
    """

    taken: list[str]
    partly: list[str]
    new: dict[str, str]
    unused: list[str]
    rows: dict[str, str]

    def __str__(self) -> str:
        count = len(self.taken) + len(self.partly) + len(self.rows) + len(self.new)
        text = f"{len(self.taken)} of {count} tensors taken"
        if self.partly:
            text += f"; of {', '.join(self.partly)} what belongs to z"
        if self.rows:
            text += f"; of {_listed([f'{name} {rows}' for name, rows in self.rows.items()])}"
        if self.new:
            text += f"; new: {_listed([f'{name} ({why})' for name, why in self.new.items()])}"
        if self.unused:
            text += f"; not used: {_listed(self.unused)}"
        return text


@torch.no_grad()
def transfer_weights(
    network: nn.Module, source: Mapping[str, Tensor], settings: NetworkConfig | None = None
) -> Transfer:
    """Copies every tensor of a state_dict that has a place in a network: the same name, or that of the same
    layer counted from the coarsest images (`Network.grows_before`), and the same shape; or row by row, where
    a row is of something that the source may have in another one (`Network.row_meanings`).

    What follows from the settings or comes from the data (filters, `Network.of_data`) stays as it is. Nothing
    is changed but the network's tensors.

    Args:
        settings: those of the source; None if it is not one of ours, so that its rows have no meanings.
    """
    own = network.state_dict()
    places = {name: _place(name, network, source, own) for name in source if not _fixed(name, network)}
    renamed = {place: source[name] for name, place in places.items() if place in own}
    meanings, given_meanings = _row_meanings(network, own, source, settings)
    z_dim = getattr(network, "z_dim", None)
    together = _together(network)
    taken, partly, new, rows = [], [], {}, {}
    misfits = {
        together(name)
        for name, value in own.items()
        if name in renamed and renamed[name].shape != value.shape and name not in meanings
    }
    for name, value in own.items():
        given = renamed.get(name)
        if _fixed(name, network):
            continue
        if given is None:
            new[name] = "the source has none"
        elif name in meanings and given.shape[1:] == value.shape[1:]:
            before = {meaning: row for row, meaning in enumerate(given_meanings[name])}
            known = [(row, before[each]) for row, each in enumerate(meanings[name]) if each in before]
            if known:
                here, there = (torch.tensor(each, device=value.device) for each in zip(*known, strict=True))
                value[here] = given.to(value)[there]
            if len(known) == len(value):
                taken.append(name)
            elif known:
                rows[name] = f"{len(known)} of {len(value)} rows"
            else:
                new[name] = "each row is of something that the source does not have"
        elif together(name) not in misfits and given.shape == value.shape:
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
    return Transfer(taken, partly, new, unused, rows)


def _fixed(name: str, network: nn.Module) -> bool:
    return name.endswith("_filter") or (isinstance(network, Network) and name.startswith(network.of_data))


def _row_meanings(
    network: nn.Module,
    own: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    settings: NetworkConfig | None,
) -> tuple[Mapping[str, Sequence[Hashable]], Mapping[str, Sequence[Hashable]]]:
    """Of the weights that have some in both networks: in the one, and in the other."""
    if settings is None or not isinstance(network, Network):
        return {}, {}
    ours = network.row_meanings(network.settings, own)
    made_by: type[nn.Module] = settings.network
    theirs = made_by.row_meanings(settings, source) if issubclass(made_by, Network) else {}
    both = [name for name in ours if name in theirs]
    return {name: ours[name] for name in both}, {name: theirs[name] for name in both}


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


def _together(network: nn.Module) -> Callable[[str], str]:
    """What tells by the name of a tensor with which others it is of use, by a key that they share: a weight
    with the buffers of its parametrization, such as its singular vectors, and a codebook with the averages
    that it consists of."""
    codebooks = [path for path, module in network.named_modules() if isinstance(module, VectorQuantizer)]

    def key(name: str) -> str:
        module, parametrized, _ = name.partition(".parametrizations.")
        if parametrized:
            return module
        return next((path for path in codebooks if name.startswith(f"{path}.")), name)

    return key


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
