"""Bottlenecks that turn features into codes: a learned codebook, and a grid that needs no learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_ext import ops
from aigc_ext.ops._layout import is_channels_last, wide_dtype
from aigc_ext.ops.vector_quantize import code_rows, code_sums


class Quantized(NamedTuple):
    """What `VectorQuantizer` and `FiniteScalarQuantizer` return. The last two are of this batch alone.

    Attributes:
        codes: of the input's shape; their gradient goes to the input unchanged (straight-through).
        indices: int64, of the input's shape without the dimension of the features; -1 for features with a
            number that is not finite, whose codes are NaN.
        loss: a scalar, what the quantizer adds to the training loss; 0 if it adds nothing.
        perplexity: `exp` of the entropy of the indices, a scalar: as many codes, used equally often, would
            have the same.
        used: the share of the codes that occur, a scalar.
    """

    codes: Tensor
    indices: Tensor
    loss: Tensor
    perplexity: Tensor
    used: Tensor


class CodeStatistics(NamedTuple):
    """What `VectorQuantizer.learn` needs of a batch. Those of its parts add up to those of the batch.

    Attributes:
        counts: how many features chose each code, `[num_codes]`.
        sums: the sums of these features, `[num_codes, code_dim]`; without `ema` empty.
        rows: those that may replace unused codes, in this order, `[at most num_codes, code_dim]`; zeros for
            rows of other parts.
        known: 1 for a row of this part that is finite, else 0, `[rows]`.
    """

    counts: Tensor
    sums: Tensor
    rows: Tensor
    known: Tensor


def code_use(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Perplexity and share of used codes."""
    shares = counts / counts.sum().clamp(min=1)
    return torch.special.entr(shares).sum().exp(), (counts > 0).float().mean()


def _mean_square(a: Tensor, b: Tensor) -> Tensor:
    """Of the differences; 0 if there are none."""
    return F.mse_loss(a, b, reduction="sum") / max(a.numel(), 1)


def code_counts(indices: Tensor, num_codes: int) -> Tensor:
    """How often each code occurs among the indices, float32 `[num_codes]`."""
    ones = torch.ones(indices.numel(), 1, device=indices.device)
    return code_sums(ones, indices.flatten(), num_codes).squeeze(1)


class VectorQuantizer(nn.Module):
    """Replaces each feature vector by the nearest code of a codebook (van den Oord, Vinyals and Kavukcuoglu
    2017, "Neural Discrete Representation Learning", arXiv:1711.00937).

    The codes get their gradient from the loss, `mean (c - sg(x))**2 + beta * mean (x - sg(c))**2` (equation
    3), or with `ema` they are moving averages of the features that chose them (appendix A.1): `N = decay * N
    + (1 - decay) * n` and `m = decay * m + (1 - decay) * sum of x` for each code, which becomes `m / N`; then
    the loss is its second half alone. The averages are updated by each forward in training mode, after the
    codes were chosen; so are `counts`, the N, which exist without `ema` too. In eval mode nothing changes.

    A code that nobody chooses does not learn. With `revive_below`, a code whose N falls below it is replaced,
    in the same update, by a row of the batch, and its N by the larger of 1 and twice `revive_below`. Which
    row, follows from `seed` and the number of updates so far, which is among the buffers: a run that is
    resumed goes on with the same rows. On a GPU, each forward in training mode then waits to know which codes
    these are. All statistics are of the calling process's own batches. An optimizer's moments of a code that
    was revived remain as they were.

    Shapes: `[N, D, ...]` to the same, D along `dim` (`[..., D]` with `dim=-1`), channels-last without a copy
    if `dim` is 1. Half types are quantized in the codebook's dtype, and the codes are rounded to the input's.

    Args:
        num_codes: K.
        code_dim: D.
        beta: weight of the commitment, the part of the loss that moves the features to their codes.
        ema: whether the codes are moving averages. Then `codebook` is a buffer, else a parameter.
        decay: of the moving averages, at least 0 and less than 1.
        revive_below: features of a batch, in the moving average; 0 revives none.
        seed: of the rows that revive codes.
        dim: the dimension of the features.
        device, dtype: of codebook and averages; float32 or float64.

    Attributes:
        codebook: `[num_codes, code_dim]`, at first uniform between `-1 / num_codes` and `1 / num_codes`.
        counts: the N, `[num_codes]`, at first what a revived code has.
        sums: with `ema` the m, `[num_codes, code_dim]`.
        updates: how many forwards there were in training mode, int64.

    Raises:
        ValueError: a number is out of range, or `dtype` none of these.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        beta: float = 0.25,
        ema: bool = False,
        decay: float = 0.99,
        revive_below: float = 0.0,
        seed: int = 0,
        dim: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("num_codes", num_codes), ("code_dim", code_dim)):
            if number < 1:
                raise ValueError(f"{name} is {number}, but must be at least 1")
        for name, value in (("beta", beta), ("revive_below", revive_below)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value:g}, but must be at least 0 and finite")
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay:g}, but must be at least 0 and less than 1")
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype is {dtype}, but must be torch.float32 or torch.float64")
        self.num_codes, self.code_dim, self.dim = num_codes, code_dim, dim
        self.beta, self.ema, self.decay = beta, ema, decay
        self.revive_below, self.seed = revive_below, seed
        codebook = torch.empty(num_codes, code_dim, device=device, dtype=dtype)
        if ema:
            self.register_buffer("codebook", codebook)
            self.register_buffer("sums", torch.empty_like(codebook))
        else:
            self.codebook = nn.Parameter(codebook)
        self.register_buffer("counts", torch.empty(num_codes, device=device, dtype=dtype))
        self.register_buffer("updates", torch.zeros((), device=device, dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.codebook.uniform_(-1 / self.num_codes, 1 / self.num_codes)
            self.counts.fill_(self._count_of_a_new_code)
            self.updates.zero_()
            if self.ema:
                self.sums.copy_(self.codebook * self.counts[:, None])

    @property
    def _count_of_a_new_code(self) -> float:
        return max(1.0, 2 * self.revive_below)

    def forward(self, input: Tensor, learn: bool | None = None) -> Quantized:
        """Args:
        learn: whether the averages are updated; by default in training mode. A batch in several parts, or
            processes, is quantized with False, and then `gather` and `learn` do it once.
        """
        x = input.to(torch.promote_types(input.dtype, self.codebook.dtype))
        codebook = self.codebook.to(x.dtype)
        codes, indices = ops.vector_quantize(x, codebook.detach(), self.dim)
        loss = self.beta * _mean_square(x, codes.detach())
        if not self.ema:
            chosen = code_rows(codebook, indices, self.dim, self._is_channels_last(codes))
            loss = loss + _mean_square(chosen, x.detach())
        with torch.no_grad():
            counts = code_counts(indices, self.num_codes)
            perplexity, used = code_use(counts)
            if self.training if learn is None else learn:
                self.learn(self.gather(x.detach(), indices))
        return Quantized(codes.to(input.dtype), indices, loss, perplexity, used)

    @torch.no_grad()
    def gather(
        self, input: Tensor, indices: Tensor, first: int = 0, total: int | None = None
    ) -> CodeStatistics:
        """The statistics of features and their indices, as `forward` returned them.

        Args:
            first, total: if these are a part of a batch: its first row, and how many rows the batch has. A
                row is a feature vector; they are counted along all dimensions but `dim`, in order.
        """
        x, dtype = input.to(torch.promote_types(input.dtype, self.codebook.dtype)), self.codebook.dtype
        counts = code_counts(indices, self.num_codes).to(dtype)
        sums = x.new_empty(0, dtype=dtype)
        if self.ema:
            sums = code_sums(x, indices, self.num_codes, self.dim).to(dtype)
        if self.revive_below == 0:
            return CodeStatistics(counts, sums, sums.new_empty(0, self.code_dim), sums.new_empty(0))
        rows = x.movedim(self.dim, -1).reshape(-1, self.code_dim)
        places = self._places(len(rows) if total is None else total).to(x.device) - first
        here = ((places >= 0) & (places < len(rows))).nonzero().squeeze(1)
        found = rows[places[here]].to(dtype)
        finite = found.isfinite().all(1)
        chosen, known = found.new_zeros(len(places), self.code_dim), found.new_zeros(len(places))
        chosen[here] = torch.where(finite[:, None], found, 0)
        known[here] = finite.to(dtype)
        return CodeStatistics(counts, sums, chosen, known)

    def _places(self, total: int) -> Tensor:
        """Of the rows that revive codes."""
        # Of its own, so that what else is drawn in a run stays the same; a prime apart, so that runs whose
        # seeds are neighbours do not draw the same rows one update later.
        seed = (self.seed * 0x9E3779B1 + int(self.updates)) % (1 << 63)
        generator = torch.Generator().manual_seed(seed)
        return torch.randperm(total, generator=generator)[: self.num_codes]

    @torch.no_grad()
    def learn(self, statistics: CodeStatistics) -> None:
        """Updates the averages by a batch."""
        counts, sums, rows, known = statistics
        self.counts.lerp_(counts, 1 - self.decay)
        if self.ema:
            self.sums.lerp_(sums, 1 - self.decay)
            # An average over next to nothing would be a quotient of roundings: such a code stays where it is.
            counted = self.counts[:, None] > 1e-5
            self.codebook.copy_(torch.where(counted, self.sums / self.counts[:, None], self.codebook))
        if self.revive_below > 0:
            self._revive(rows[known > 0])
        self.updates += 1

    def _revive(self, rows: Tensor) -> None:
        dead = (self.counts < self.revive_below).nonzero().squeeze(1)
        dead = dead[: len(rows)]  # the others wait for the next batch
        new, first = rows[: len(dead)], self._count_of_a_new_code
        self.counts[dead] = first
        self.codebook[dead] = new
        if self.ema:
            self.sums[dead] = new * first

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes of indices of any shape, with the dimension `dim` added; NaN for -1."""
        return code_rows(self.codebook, indices, self.dim)

    def _is_channels_last(self, x: Tensor) -> bool:
        return self.dim % x.dim() == 1 and is_channels_last(x)

    def extra_repr(self) -> str:
        text = f"{self.num_codes}, {self.code_dim}, beta={self.beta:g}, ema={self.ema}, dim={self.dim}"
        text += f", decay={self.decay:g}"
        return text + (f", revive_below={self.revive_below:g}" if self.revive_below else "")


class FiniteScalarQuantizer(nn.Module):
    """Rounds each of a few features to one of a few levels; their grid is the codebook (Mentzer, Minnen,
    Agustsson and Tschannen 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", arXiv:2309.15505).

    With L levels, a feature z is bounded to `h * tanh(z + s) - o` with `h = (L - 1) * (1 - 1e-3) / 2`, and
    for even L `o = 1/2` and `s = tan(o / h)`, else 0; then rounded, with the gradient of the bounded value
    (straight-through), and divided by `L // 2`, so that codes are between -1 and 1. There is nothing to
    learn, no loss, no state.

    Shapes: `[N, len(levels), ...]` to the same, the features along `dim`. Half types are computed in float32,
    and the codes are rounded to the input's dtype.

    Args:
        levels: of each feature, at least 2; there are as many codes as their product, at most 2**20, since
            each is counted. The paper recommends at least 5, as in `(8, 5, 5, 5)` for 1,000 codes.
        dim: the dimension of the features.

    Attributes:
        num_codes, code_dim: the product of the levels, and how many there are.

    Raises:
        ValueError: `levels` is empty, one is less than 2, or there are too many codes.
    """

    def __init__(self, levels: Sequence[int], dim: int = 1) -> None:
        super().__init__()
        self.levels, self.dim = tuple(levels), dim
        if not self.levels:
            raise ValueError("levels is empty, but must have one number at least")
        for i, level in enumerate(self.levels):
            if level < 2:
                raise ValueError(f"levels[{i}] is {level}, but must be at least 2")
        self.num_codes, self.code_dim = math.prod(self.levels), len(self.levels)
        if self.num_codes > 1 << 20:
            raise ValueError(f"levels make {self.num_codes} codes, but must make at most 2**20")

    def bound(self, input: Tensor) -> Tensor:
        """The features before they are rounded, in float32 or float64."""
        dtype = wide_dtype(input)
        half = [(level - 1) * (1 - 1e-3) / 2 for level in self.levels]
        offset = [0.5 * (level % 2 == 0) for level in self.levels]
        shift = [math.tan(o / h) for o, h in zip(offset, half, strict=True)]
        h, o, s = (self._along(numbers, input, dtype) for numbers in (half, offset, shift))
        return (input.to(dtype) + s).tanh() * h - o

    def forward(self, input: Tensor) -> Quantized:
        features = 0 if input.dim() == 0 else input.size(self.dim)
        if features != self.code_dim:
            raise RuntimeError(
                f"FiniteScalarQuantizer: the input has shape {list(input.shape)}, but must have "
                f"{self.code_dim} features along dimension {self.dim}"
            )
        bounded = self.bound(input)
        halves = self._along([level // 2 for level in self.levels], input, bounded.dtype)
        known = input.detach().isfinite().all(self.dim, keepdim=True)
        rounded = torch.where(known, bounded.detach().round(), torch.nan)
        codes = (rounded + (bounded - bounded.detach())) / halves  # adds 0, and the gradient
        digits = torch.where(known, rounded + halves, 0).long()
        indices = (digits * self._along(self._places(), input, torch.int64)).sum(self.dim)
        indices = torch.where(known.squeeze(self.dim), indices, -1)
        perplexity, used = code_use(code_counts(indices, self.num_codes))
        return Quantized(codes.to(input.dtype), indices, bounded.new_zeros(()), perplexity, used)

    def lookup(self, indices: Tensor) -> Tensor:
        """The codes of indices of any shape, float32, with the dimension `dim` added; NaN for an index that
        has none."""
        known = ((indices >= 0) & (indices < self.num_codes)).unsqueeze(-1)
        places, levels, halves = (
            torch.tensor(numbers, device=indices.device)
            for numbers in (self._places(), self.levels, [level // 2 for level in self.levels])
        )
        digits = indices.unsqueeze(-1) // places % levels - halves
        return torch.where(known, digits.float() / halves.float(), torch.nan).movedim(-1, self.dim)

    def _places(self) -> list[int]:
        """What a digit of an index counts: the first feature's is the lowest."""
        return [math.prod(self.levels[:i]) for i in range(self.code_dim)]

    def _along(self, numbers: Sequence[float], like: Tensor, dtype: torch.dtype) -> Tensor:
        shape = [1] * like.dim()
        shape[self.dim] = -1
        return torch.tensor(numbers, dtype=dtype, device=like.device).reshape(shape)

    def extra_repr(self) -> str:
        return f"{self.levels}, dim={self.dim}"
