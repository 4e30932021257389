"""Images from seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aigc_ext.data import to_uint8
from aigc_ext.sampling.png import to_pil
from aigc_ext.sampling.pretrained import load_pretrained

CHUNK = 16
"""Images per call of the generator: always exactly so many, see `Sampler`."""
MAX_SEED = 2**63 - 1


class Sampler:
    """Draws images from a generator by seed.

    A seed means the same image, bit for bit, whatever else is sampled with it (on one device, with one thread
    count). Its latents are drawn on the CPU from its own random stream. And since a matrix product may round
    a row differently in a batch of another size or at another place in it, the generator always runs on
    `CHUNK` rows, and seed s is always row `s % CHUNK`; what is missing is zeros. So consecutive seeds fill
    the chunks.

    Args:
        generator: maps latents (N, z_dim) [and int64 classes (N,)] to images (N, C, H, W). It is switched to
            eval mode while it samples.
        z_dim, value_range, num_classes: by default the generator's attributes of these names; no classes if
            it has no such attribute.
        model_sha256: what the weights are known by; it goes into `provenance`.
    """

    def __init__(
        self,
        generator: nn.Module,
        *,
        z_dim: int | None = None,
        num_classes: int | None = None,
        value_range: tuple[float, float] | None = None,
        model_sha256: str | None = None,
    ) -> None:
        self.generator = generator
        self.z_dim: int = attribute(generator, "z_dim", z_dim)
        self.num_classes: int = getattr(generator, "num_classes", 0) if num_classes is None else num_classes
        self.value_range: tuple[float, float] = attribute(generator, "value_range", value_range)
        self.model_sha256 = model_sha256

    @classmethod
    def from_pretrained(cls, path: str | Path, *, device: str | torch.device = "cpu") -> Sampler:
        """A sampler of a run's newest model, of a checkpoint, or of a model directory."""
        generator, digest = load_pretrained(path)
        return cls(generator.to(device), model_sha256=digest)

    @overload
    def sample(
        self, seeds: Sequence[int], classes: int | Sequence[int] | None = ..., truncation: float = ...
    ) -> np.ndarray: ...
    @overload
    def sample(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = ...,
        truncation: float = ...,
        *,
        output: Literal["numpy"],
    ) -> np.ndarray: ...
    @overload
    def sample(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = ...,
        truncation: float = ...,
        *,
        output: Literal["pil"],
    ) -> list[Image.Image]: ...

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = None,
        truncation: float = 1.0,
        *,
        output: Literal["numpy", "pil"] = "numpy",
    ) -> np.ndarray | list[Image.Image]:
        """One image per seed, in the order of `seeds`.

        Args:
            seeds: integers from 0 to 2**63 - 1; they may repeat.
            classes: for a conditional generator, one class for all images or one per seed; by default the
                seed decides. Not allowed for an unconditional one.
            truncation: psi >= 0 multiplies z, so that images come from nearer the mean: less varied, often
                cleaner. (A generator without a mapping network has no mean of w to shrink towards.) 1 is off.
            output: "numpy" for uint8 (N, H, W, C), "pil" for a list of PIL images.
        """
        seeds = _integers("seed", seeds, MAX_SEED)
        if not seeds:
            raise ValueError("seeds is empty, but must hold at least one")
        if not (math.isfinite(truncation) and truncation >= 0):
            raise ValueError(f"truncation is {truncation}, but must be a finite number of at least 0")
        if output not in ("numpy", "pil"):
            raise ValueError(f"output is {output!r}, but must be 'numpy' or 'pil'")
        labels = self.resolve_classes(seeds, classes)

        # Chunk k holds the (k+1)-th request for each row.
        chunks: list[list[int]] = []
        requests = [0] * CHUNK
        for index, seed in enumerate(seeds):
            row = seed % CHUNK
            if requests[row] == len(chunks):
                chunks.append([])
            chunks[requests[row]].append(index)
            requests[row] += 1

        images = np.empty(0, dtype=np.uint8)
        was_training = self.generator.training
        self.generator.eval()
        try:
            for chunk in chunks:
                rows = [seeds[index] % CHUNK for index in chunk]
                z = torch.zeros(CHUNK, self.z_dim)
                z[rows] = torch.stack([_draw(seeds[index], self.z_dim)[0] for index in chunk])
                c = torch.zeros(CHUNK, dtype=torch.int64)
                if labels is not None:
                    c[rows] = torch.tensor([labels[index] for index in chunk])
                made = self._generate(z * truncation, c)
                if not images.size:
                    images = np.empty((len(seeds), *made.shape[1:]), dtype=np.uint8)
                images[chunk] = made[rows]
        finally:
            self.generator.train(was_training)
        return [to_pil(np.asarray(image)) for image in images] if output == "pil" else images

    def resolve_classes(
        self, seeds: Sequence[int], classes: int | Sequence[int] | None = None
    ) -> list[int] | None:
        """The class of each seed's image under `classes` (see `sample`), None if there are no classes."""
        if self.num_classes == 0:
            if classes is not None:
                raise ValueError(
                    f"classes is {classes}, but this generator is unconditional: it has no classes"
                )
            return None
        if classes is None:
            return [_draw(seed, self.z_dim, self.num_classes)[1] for seed in seeds]
        if isinstance(classes, (int, np.integer)):
            classes = [int(classes)] * len(seeds)
        if len(classes) != len(seeds):
            raise ValueError(f"classes has {len(classes)} entries, but must have one per seed, {len(seeds)}")
        return _integers("class", classes, self.num_classes - 1)

    def _generate(self, z: Tensor, c: Tensor) -> np.ndarray:
        parameter = next(self.generator.parameters())
        z = z.to(parameter.device, parameter.dtype)
        made = self.generator(z, c.to(z.device)) if self.num_classes else self.generator(z)
        return to_uint8(made, self.value_range).permute(0, 2, 3, 1).cpu().contiguous().numpy()


def attribute(module: nn.Module, name: str, given: Any = None) -> Any:
    """`given` if there is one, else the module's attribute of that name."""
    if given is not None:
        return given
    if not hasattr(module, name):
        raise ValueError(f"{type(module).__name__} has no attribute {name}; pass {name}=...")
    return getattr(module, name)


def _integers(name: str, values: Sequence[int], largest: int) -> list[int]:
    if not isinstance(values, Iterable):
        raise ValueError(f"{name}s is {values!r}, but must be a sequence of integers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= largest:
            raise ValueError(f"{name} is {value!r}, but must be an integer from 0 to {largest}")
    return [int(value) for value in values]


def _draw(seed: int, z_dim: int, num_classes: int = 0) -> tuple[Tensor, int]:
    """The latents (z_dim,) of a seed, and the class that it decides for (0 if there are none)."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(z_dim, generator=rng)
    return z, int(torch.randint(num_classes, (), generator=rng)) if num_classes else 0
