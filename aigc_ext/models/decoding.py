"""Rows of tokens one token after the other, each by the logits of a network and a random number of its row.

A row is a function of its seed, whatever else is sampled with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_ext.data.text import END, PAD, SEPARATOR

if TYPE_CHECKING:
    from aigc_ext.models.transformer import Transformer

CHUNK = 16
"""Items that are sampled at once: always this number, since a matrix product may round a row differently in a
batch of another size."""
UNKNOWN = -1  # in a row of tokens: to be sampled


class Choice:
    """Chooses tokens by their logits and a random number."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float) -> None:
        check_number("temperature", temperature, "a finite number of at least 0", temperature >= 0)
        check_number("top_p", top_p, "a number above 0 and at most 1", 0 < top_p <= 1)
        if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k is {top_k!r}, but must be an integer of at least 1, or None")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p

    def probabilities(self, logits: Tensor) -> Tensor:
        """(N, tokens) in float64, up to a factor."""
        logits = logits.double()
        if self.temperature == 0:
            return F.one_hot(logits.argmax(1), logits.shape[1]).double()
        p = (logits / self.temperature).softmax(1)
        if self.top_k is not None and self.top_k < p.shape[1]:
            p = p.where(p >= p.topk(self.top_k, 1).values[:, -1:], 0.0)
        if self.top_p < 1:
            sorted_p, order = p.sort(dim=1, descending=True, stable=True)
            # A token is possible if those before it have less than top_p together: the first always is.
            before = sorted_p.cumsum(1) - sorted_p
            kept = sorted_p.where(before < self.top_p * sorted_p.sum(1, keepdim=True), 0.0)
            p = torch.zeros_like(p).scatter_(1, order, kept)
        return p

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Tokens (N,), for numbers from [0, 1)."""
        sums = self.probabilities(logits).cumsum(1)
        # Not "<": a token of probability 0 must not be chosen by a 0.
        return (sums <= uniform[:, None] * sums[:, -1:]).sum(1).clamp_(max=logits.shape[1] - 1)


def write_rows(
    network: Transformer,
    rows: Tensor,
    starts: Tensor,
    seeds: Sequence[int],
    choice: Choice,
    guidance: float,
) -> None:
    """Writes a token wherever a row has none.

    Args:
        rows: int64 (N, length), `UNKNOWN` where there is none.
        starts: their classes, int64 (N,); `num_classes` for none.
        seeds: N of them.
        guidance: as for `Transformer.sample_tokens`.
    """
    rng, length = torch.Generator(), rows.shape[1]
    for wanted, places in chunks(seeds):
        chunk = _Chunk(
            torch.zeros(CHUNK, length, dtype=torch.int64),
            torch.full((CHUNK,), network.settings.num_classes),
            torch.zeros(CHUNK, length, dtype=torch.float64),
            torch.ones(CHUNK, dtype=torch.bool),
        )
        chunk.rows[places], chunk.starts[places], chunk.done[places] = rows[wanted], starts[wanted], False
        for place, index in zip(places, wanted, strict=True):
            torch.rand(
                length,
                dtype=torch.float64,
                generator=rng.manual_seed(seeds[index]),
                out=chunk.uniform[place],
            )
        _continue(network, chunk, choice, guidance)
        rows[wanted] = chunk.rows[places]


def chunks(seeds: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The seeds in chunks: their indices, and their places in the chunk, which are functions of the seed,
    since a row's rounding may depend on its place."""
    made: list[tuple[list[int], list[int]]] = []
    requests = [0] * CHUNK
    for index, seed in enumerate(seeds):
        place = seed % CHUNK
        if requests[place] == len(made):
            made.append(([], []))
        wanted, places = made[requests[place]]
        wanted.append(index)
        places.append(place)
        requests[place] += 1
    yield from made


class _Chunk(NamedTuple):
    """`CHUNK` rows to be sampled."""

    rows: Tensor  # int64 (CHUNK, length), UNKNOWN where a token is to be sampled
    starts: Tensor  # int64 (CHUNK,): their classes
    uniform: Tensor  # float64 (CHUNK, length): their random numbers from [0, 1)
    done: Tensor  # bool (CHUNK,): not asked for, or ended


def _continue(network: Transformer, chunk: _Chunk, choice: Choice, guidance: float) -> None:
    """Writes a token wherever a row has none."""
    settings, device = network.settings, network.embedding.weight.device
    guided = guidance != 1
    starts, rows, done = chunk.starts, chunk.rows, chunk.done
    if guided:
        starts = torch.cat([starts, torch.full_like(starts, settings.num_classes)])
    starts = starts.to(device)
    cache = network.new_cache(len(starts))
    before: Tensor | None = None
    for position in range(settings.length):
        logits = network.step(before, starts, position, cache)
        tokens = rows[:, position]
        if (tokens < 0).any():
            if guided:
                conditional, free = logits.chunk(2)
                logits = free + guidance * (conditional - free)
            chosen = choice(logits.cpu(), chunk.uniform[:, position])
            tokens = torch.where(tokens < 0, chosen, tokens)
        if settings.source:
            tokens = torch.where(done, PAD, tokens)
            done |= (tokens == END) & (rows[:, :position] == SEPARATOR).any(1)
        rows[:, position] = tokens
        if done.all():
            rows[:, position + 1 :] = PAD
            return
        if guided:
            hidden = torch.full_like(tokens, settings.outputs + PAD)
            tokens = torch.cat([tokens, hidden if position < settings.prefix else tokens])
        before = tokens.to(device)


def whole_numbers(name: str, values: Sequence[int], most: int) -> list[int]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
            raise ValueError(f"{name} has {value!r}, but must have integers from 0 to {most}")
    return [int(value) for value in values]


def check_number(name: str, value: float, rule: str, holds: bool) -> None:
    if not holds or not math.isfinite(value):  # written so that NaN is refused
        raise ValueError(f"{name} is {value!r}, but must be {rule}")
