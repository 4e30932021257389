"""Images from seeds, from latents, and along walks between seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aigc_ext.data import to_uint8
from aigc_ext.sampling.png import to_pil
from aigc_ext.sampling.pretrained import load_pretrained
from aigc_ext.sampling.walk import CURVES, curve_points, slerp_points, walk_positions

CHUNK = 16
"""Images per call of the generator: always exactly this number, see `Sampler`."""
MAX_SEED = 2**63 - 1
NOISE_MODES = ("const", "random", "none")
_STYLE_ATTRIBUTES = ("mapping", "synthesis", "num_ws", "w_dim", "w_avg")


class Sampler:
    """Draws images from a generator by seed.

    A seed gives the same image, bit for bit, whatever else is sampled with it (on the same device, with the
    same number of threads). Its latents are drawn on the CPU from its own random stream. A matrix product may
    round a row differently in a batch of another size or at another position. Therefore the generator always
    runs on `CHUNK` rows, seed s is always row `s % CHUNK`, and unused rows are zeros. Consecutive seeds fill
    the chunks.

    Args:
        generator: maps latents (N, z_dim) [and int64 classes (N,)] to images (N, C, H, W). It is switched to
            eval mode while it samples. A style-based one (`mapping`, `synthesis`, `num_ws`, `w_dim`, `w_avg`)
            is truncated in w and can be sampled there.
        z_dim, value_range, num_classes: by default the generator's attributes of these names; no classes if
            it has no such attribute.
        model_sha256: identifies the weights; it goes into `provenance`.

    Attributes:
        style_based: whether the generator has a mapping network and latents w (N, num_ws, w_dim).
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
        self.generator: Any = generator
        self.z_dim: int = attribute(generator, "z_dim", z_dim)
        self.num_classes: int = getattr(generator, "num_classes", 0) if num_classes is None else num_classes
        self.value_range: tuple[float, float] = attribute(generator, "value_range", value_range)
        self.model_sha256 = model_sha256
        self.style_based = all(hasattr(generator, name) for name in _STYLE_ATTRIBUTES)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str | torch.device = "cpu", allow_download: bool = False
    ) -> Sampler:
        """A sampler for a run's newest model, a checkpoint, a model directory, or a model on the hub (see
        `load_pretrained`)."""
        generator, digest = load_pretrained(path, allow_download=allow_download)
        return cls(generator.to(device), model_sha256=digest)

    @overload
    def sample(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = ...,
        truncation: float = ...,
        *,
        truncation_cutoff: int | None = ...,
        noise_mode: str | None = ...,
        output: Literal["numpy"] = ...,
    ) -> np.ndarray: ...
    @overload
    def sample(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = ...,
        truncation: float = ...,
        *,
        truncation_cutoff: int | None = ...,
        noise_mode: str | None = ...,
        output: Literal["pil"],
    ) -> list[Image.Image]: ...

    def sample(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = None,
        truncation: float = 1.0,
        *,
        truncation_cutoff: int | None = None,
        noise_mode: str | None = None,
        output: Literal["numpy", "pil"] = "numpy",
    ) -> np.ndarray | list[Image.Image]:
        """One image per seed, in the order of `seeds`.

        Args:
            seeds: integers from 0 to 2**63 - 1; they may repeat.
            classes: for a conditional generator, one class for all images or one per seed; by default the
                seed decides. Not allowed for an unconditional one.
            truncation: psi >= 0; values below 1 give images closer to the mean: less varied, often cleaner. 1
                is off. A style-based generator moves w towards its mean (Karras, Laine, Aila 2019,
                https://arxiv.org/abs/1812.04948, appendix B); for any other, z is multiplied by psi.
            truncation_cutoff: the number of w, from the first, to truncate; by default all. Style-based
                generators only.
            noise_mode: for a style-based generator: "const" (the default), its stored noise; "random", other
                noise, the same for all seeds with the same `seed % CHUNK`, so that a seed always gives the
                same image; "none".
            output: "numpy" for uint8 (N, H, W, C), "pil" for a list of PIL images.
        """
        seeds = _seeds(seeds)
        if output not in ("numpy", "pil"):
            raise ValueError(f"output is {output!r}, but must be 'numpy' or 'pil'")
        self._check_options(truncation, truncation_cutoff, noise_mode)
        labels = self.resolve_classes(seeds, classes)

        # Chunk k has the (k+1)-th request for each row.
        chunks: list[list[int]] = []
        requests = [0] * CHUNK
        for index, seed in enumerate(seeds):
            row = seed % CHUNK
            if requests[row] == len(chunks):
                chunks.append([])
            chunks[requests[row]].append(index)
            requests[row] += 1

        images = np.empty(0, dtype=np.uint8)
        for chunk in chunks:
            rows = [seeds[index] % CHUNK for index in chunk]
            z = torch.zeros(CHUNK, self.z_dim)
            z[rows] = torch.stack([_draw(seeds[index], self.z_dim)[0] for index in chunk])
            c = torch.zeros(CHUNK, dtype=torch.int64)
            if labels is not None:
                c[rows] = torch.tensor([labels[index] for index in chunk])
            with self._evaluating():
                latents = self._truncated(z, c, truncation, truncation_cutoff)
                made = self._synthesize(latents, c, noise_mode)
            if not images.size:
                images = np.empty((len(seeds), *made.shape[1:]), dtype=np.uint8)
            images[chunk] = made[rows]
        return [to_pil(np.asarray(image)) for image in images] if output == "pil" else images

    def map(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = None,
        truncation: float = 1.0,
        *,
        truncation_cutoff: int | None = None,
    ) -> Tensor:
        """The latents of `seeds` after the mapping network, w (N, num_ws, w_dim), on the CPU. Arguments are
        as for `sample`. Style-based generators only."""
        self.resolve_space("w")
        seeds = _seeds(seeds)
        self._check_options(truncation, truncation_cutoff, None)
        labels = self.resolve_classes(seeds, classes)
        z = torch.stack([_draw(seed, self.z_dim)[0] for seed in seeds])
        c = torch.tensor(labels or [0] * len(seeds))
        with self._evaluating():
            chunks = zip(_padded(z), _padded(c), strict=True)
            w = [self._truncated(*chunk, truncation, truncation_cutoff) for chunk in chunks]
        return torch.cat(w)[: len(seeds)].cpu()

    def render(
        self,
        latents: Tensor,
        classes: int | Sequence[int] | None = None,
        *,
        noise_mode: str | None = None,
    ) -> np.ndarray:
        """The images, uint8 (N, H, W, C), of given latents, such as those from `map` or a projection.

        Args:
            latents: z (N, z_dim), or w (N, num_ws, w_dim) of a style-based generator.
            classes: for z of a conditional generator, one class for all or one for each; not for w, which
                already contain the class.
            noise_mode: as for `sample`.
        """
        self._check_options(1.0, None, noise_mode)
        if not latents.is_floating_point() or latents.shape[1:] not in self._latent_shapes():
            shapes = " or ".join(str(["N", *shape]).replace("'", "") for shape in self._latent_shapes())
            raise ValueError(
                f"latents are {latents.dtype} of shape {list(latents.shape)}, but must be floating point of "
                f"shape {shapes}"
            )
        if not len(latents):
            raise ValueError("latents are empty, but must hold at least one")
        labels = None
        if latents.ndim == 3 and classes is not None:
            raise ValueError(f"classes is {classes}, but latents in w have their class in them")
        if latents.ndim == 2:
            if self.num_classes and classes is None:
                raise ValueError(
                    f"classes is None, but z of this conditional generator needs them, from 0 to "
                    f"{self.num_classes - 1}"
                )
            labels = self.resolve_classes([0] * len(latents), classes)
        c = torch.tensor(labels or [0] * len(latents))
        images = []
        for chunk, chunk_c in zip(_padded(latents.detach()), _padded(c), strict=True):
            with self._evaluating():
                if latents.ndim == 2:
                    chunk = self._truncated(chunk, chunk_c, 1.0, None)
                images.append(self._synthesize(chunk, chunk_c, noise_mode))
        return np.concatenate(images)[: len(latents)]

    def interpolate(
        self,
        seeds: Sequence[int],
        classes: int | Sequence[int] | None = None,
        truncation: float = 1.0,
        *,
        frames: int = 60,
        loop: bool = True,
        space: str | None = None,
        curve: str | None = None,
        truncation_cutoff: int | None = None,
        noise_mode: str | None = None,
    ) -> Iterator[np.ndarray]:
        """A walk from seed to seed: yields `frames` images, uint8 (H, W, C). The arguments are checked before
        this returns; each image is made when it is requested.

        Args:
            seeds: at least two, evenly spaced in time.
            frames: number of frames of the whole walk, at least 2.
            loop: return to the first seed, and end one frame before it. Otherwise the last frame is the last
                seed.
            space: "w" interpolates after the mapping network, "z" before it along great circles (White 2016,
                https://arxiv.org/abs/1609.04468). By default "w" if there is one.
            curve: through w, "cubic" (the default: a Catmull-Rom spline, without corners) or "linear".
            classes, truncation, truncation_cutoff, noise_mode: as for `sample`; but in z all seeds must have
                the same class, since classes cannot be interpolated.
        """
        seeds = _integers("seed", seeds, MAX_SEED)
        if len(seeds) < 2:
            raise ValueError(f"seeds has {len(seeds)} entries, but a walk needs at least 2")
        if isinstance(frames, bool) or not isinstance(frames, (int, np.integer)) or frames < 2:
            raise ValueError(f"frames is {frames!r}, but must be an integer of at least 2")
        if curve is not None and curve not in CURVES:
            raise ValueError(f"curve is {curve!r}, but must be one of {', '.join(CURVES)}")
        space = self.resolve_space(space)
        if curve is not None and space == "z":
            raise ValueError(f"curve is {curve!r}, but a walk in z follows great circles: it has no choice")
        self._check_options(truncation, truncation_cutoff, noise_mode)
        labels = self.resolve_classes(seeds, classes)
        if space == "z" and labels is not None and len(set(labels)) > 1:
            raise ValueError(
                f"the seeds have the classes {labels}, but a walk in z needs one class for all: give it"
                + (", or walk in w" if self.style_based else "")
            )
        positions = walk_positions(len(seeds), int(frames), loop)
        if space == "w":
            w = self.map(seeds, labels, truncation, truncation_cutoff=truncation_cutoff)
            points = curve_points(w, positions, curve or CURVES[0], loop)
        else:
            points = slerp_points(torch.stack([_draw(seed, self.z_dim)[0] for seed in seeds]), positions)
        c = torch.full((len(points),), labels[0] if labels else 0)
        return self._frames(points, c, truncation, truncation_cutoff, noise_mode)

    def resolve_classes(
        self, seeds: Sequence[int], classes: int | Sequence[int] | None = None
    ) -> list[int] | None:
        """The class of each seed's image with `classes` (see `sample`); None if there are no classes."""
        if self.num_classes == 0:
            if classes is not None:
                raise ValueError(
                    f"classes is {classes}, but this generator is unconditional: it has no classes"
                )
            return None
        if classes is None:
            return [_draw(seed, self.z_dim, self.num_classes)[1] for seed in seeds]
        if not isinstance(classes, Iterable):
            classes = [classes] * len(seeds)
        if len(classes) != len(seeds):
            raise ValueError(f"classes has {len(classes)} entries, but must have one per seed, {len(seeds)}")
        return _integers("class", classes, self.num_classes - 1)

    def resolve_space(self, space: str | None = None) -> str:
        """The space "z" or "w", if the generator has it; by default "w" if there is one."""
        if space is None:
            return "w" if self.style_based else "z"
        if space not in ("z", "w"):
            raise ValueError(f"space is {space!r}, but must be 'z' or 'w'")
        if space == "w" and not self.style_based:
            raise ValueError("space is 'w', but this generator has no mapping network: it has only 'z'")
        return space

    def _frames(
        self, points: Tensor, c: Tensor, truncation: float, cutoff: int | None, noise_mode: str | None
    ) -> Iterator[np.ndarray]:
        left = len(points)
        for chunk, chunk_c in zip(_padded(points), _padded(c), strict=True):
            with self._evaluating():
                if chunk.ndim == 2:
                    chunk = self._truncated(chunk, chunk_c, truncation, cutoff)
                images = self._synthesize(chunk, chunk_c, noise_mode)
            yield from images[:left]
            left -= CHUNK

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.generator.training
        self.generator.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.generator.train(was_training)

    def _truncated(self, z: Tensor, c: Tensor, truncation: float, cutoff: int | None) -> Tensor:
        """The input of `_synthesize` for z (CHUNK, z_dim): truncated, and mapped to w if there is a
        mapping."""
        if not self.style_based:
            return z * truncation
        w: Tensor = self.generator.mapping(
            self._placed(z),
            c.to(self._parameter.device) if self.num_classes else None,
            truncation=truncation,
            truncation_cutoff=cutoff,
        )
        return w

    def _synthesize(self, latents: Tensor, c: Tensor, noise_mode: str | None) -> np.ndarray:
        latents = self._placed(latents)
        if self.style_based:
            with _fixed_noise(latents.device) if noise_mode == "random" else nullcontext():
                made = self.generator.synthesis(latents, noise_mode=noise_mode or "const")
        else:
            made = (
                self.generator(latents, c.to(latents.device)) if self.num_classes else self.generator(latents)
            )
        return to_uint8(made, self.value_range).permute(0, 2, 3, 1).cpu().contiguous().numpy()

    @property
    def _parameter(self) -> Tensor:
        parameter: Tensor = next(self.generator.parameters())
        return parameter

    def _placed(self, latents: Tensor) -> Tensor:
        return latents.to(self._parameter.device, self._parameter.dtype)

    def _latent_shapes(self) -> list[tuple[int, ...]]:
        style = [(self.generator.num_ws, self.generator.w_dim)] if self.style_based else []
        return [(self.z_dim,), *style]

    def _check_options(self, truncation: float, cutoff: int | None, noise_mode: str | None) -> None:
        if not (math.isfinite(truncation) and truncation >= 0):
            raise ValueError(f"truncation is {truncation}, but must be a finite number of at least 0")
        for name, value in (("truncation_cutoff", cutoff), ("noise_mode", noise_mode)):
            if value is not None and not self.style_based:
                raise ValueError(
                    f"{name} is {value!r}, but this generator is not style-based: it has no such option"
                )
        if cutoff is not None and not 0 <= cutoff <= self.generator.num_ws:
            raise ValueError(
                f"truncation_cutoff is {cutoff}, but must be an integer from 0 to {self.generator.num_ws}"
            )
        if noise_mode is not None and noise_mode not in NOISE_MODES:
            raise ValueError(f"noise_mode is {noise_mode!r}, but must be one of {', '.join(NOISE_MODES)}")


def attribute(module: nn.Module, name: str, given: Any = None) -> Any:
    """`given` if it is not None, otherwise the module's attribute of that name."""
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


def _seeds(seeds: Sequence[int]) -> list[int]:
    seeds = _integers("seed", seeds, MAX_SEED)
    if not seeds:
        raise ValueError("seeds is empty, but must hold at least one")
    return seeds


def _draw(seed: int, z_dim: int, num_classes: int = 0) -> tuple[Tensor, int]:
    """The latents (z_dim,) of a seed, and its class (0 if there are none)."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(z_dim, generator=rng)
    return z, int(torch.randint(num_classes, (), generator=rng)) if num_classes else 0


def _padded(rows: Tensor) -> list[Tensor]:
    """`rows` in chunks of CHUNK, the last one padded with zeros."""
    missing = -len(rows) % CHUNK
    return list(torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]).split(CHUNK))


@contextmanager
def _fixed_noise(device: torch.device) -> Iterator[None]:
    """Inside, the device's global generator starts from a fixed seed; afterwards its state is restored."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        # torch.manual_seed would also change the other devices' generators.
        generator = torch.cuda.default_generators[device.index] if on_cuda else torch.default_generator
        generator.manual_seed(0)
        yield
