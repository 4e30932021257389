"""Images from seeds, from latents, and along walks between seeds."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from aigc_ext import _names
from aigc_ext._device import usable_device
from aigc_ext.data import to_uint8
from aigc_ext.data.pixels import checked_range
from aigc_ext.ops._apart import can_be_apart, samples_apart
from aigc_ext.ops._image_bytes import has_image_bytes, image_bytes
from aigc_ext.sampling._replay import Replays
from aigc_ext.sampling.png import to_pil
from aigc_ext.sampling.pretrained import PretrainedError, generator_of, load_pretrained
from aigc_ext.sampling.walk import CURVES, curve_points, slerp_points, walk_positions

_log = logging.getLogger(__name__)

CHUNK = 16
"""The most images per call of the generator; on a GPU always exactly this number, see `Sampler`."""
MAX_SEED = 2**63 - 1
NOISE_MODES = _names.NOISE_MODES
_STYLE_ATTRIBUTES = ("mapping", "synthesis", "num_ws", "w_dim", "w_avg")
# Batch sizes. Few, because convolutions are tried out for each.
_ONE_BY_ONE, _WHOLE_CHUNKS, _APART = (1,), (CHUNK,), (CHUNK, 8, 4, 2, 1)
_OURS = ("aigc_ext.models.", "aigc_ext.nn.")
_ROUND_NOTHING = (nn.ModuleList, nn.Sequential, nn.Embedding)


class Sampler:
    """Draws images from a generator by seed.

    A seed gives the same image, bit for bit, whatever else is sampled with it (on the same device, with the
    same number of threads). Its latents are drawn on the CPU from its own random stream. But a matrix product
    may round a row differently in a batch of another size, or at another position. Therefore:

    - On the CPU the generator runs on one image at a time. Where one image comes out the same in a batch, it
      runs on up to `CHUNK`: a network of this package in float32, unchanged and without hooks, whose ops then
      keep the samples apart (`aigc_ext.ops._apart`: our own products, and convolutions that were tried out).
    - On other devices, where a call of one image costs about as much as one of many, it always runs on
      `CHUNK` rows. Seed s is always row `s % CHUNK`, and unused rows are zeros.

    Args:
        generator: maps latents (N, z_dim) [and int64 classes (N,)] to images (N, C, H, W). It is switched to
            eval mode while it samples. A style-based one (`mapping`, `synthesis`, `num_ws`, `w_dim`, `w_avg`)
            is truncated in w and can be sampled there.
        z_dim, value_range, num_classes: by default the generator's attributes of these names; no classes if
            it has no such attribute.
        model_sha256: identifies the weights; it goes into `provenance`.
        trained_classes: the classes that had images, from which a seed chooses its own; by default the
            generator's attribute of this name, and without one all.

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
        trained_classes: Sequence[int] | None = None,
    ) -> None:
        self.generator: Any = generator
        self.z_dim: int = attribute(generator, "z_dim", z_dim)
        self.num_classes: int = getattr(generator, "num_classes", 0) if num_classes is None else num_classes
        self.value_range: tuple[float, float] = attribute(generator, "value_range", value_range)
        self.model_sha256 = model_sha256
        trained = getattr(generator, "trained_classes", None) if trained_classes is None else trained_classes
        self.trained_classes = list(range(self.num_classes) if trained is None else trained)
        self.style_based = all(hasattr(generator, name) for name in _STYLE_ATTRIBUTES)
        self._replays = Replays()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str | torch.device = "cpu", allow_download: bool = False
    ) -> Sampler:
        """A sampler for a run's newest model, a checkpoint, a model directory, or a model on the hub (see
        `load_pretrained`).

        Raises PretrainedError if it is none, or makes no images from latents.
        """
        device = usable_device(device)
        network, digest = load_pretrained(path, allow_download=allow_download)
        generator = generator_of(network)
        if generator is None:
            raise PretrainedError(
                f"network {path} is a {type(network).__name__}, but must be one that makes images of latents"
            )
        return cls(generator.to(device), model_sha256=digest)

    def __repr__(self) -> str:
        shape = getattr(self.generator, "image_shape", None)
        parts = [
            type(self.generator).__name__,
            *([] if shape is None else [f"images {'x'.join(map(str, shape))}"]),
            f"z_dim {self.z_dim}",
            *([f"{self.num_classes} classes"] if self.num_classes else []),
            f"on {self._parameter.device}",
        ]
        return f"<{type(self).__name__} {', '.join(parts)}>"

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
                noise, the same for all seeds (on a GPU for those with the same `seed % CHUNK`), so that a
                seed always gives the same image, made one at a time; "none".
            output: "numpy" for uint8 (N, H, W, C), "pil" for a list of PIL images.
        """
        seeds = _seeds(seeds)
        if output not in ("numpy", "pil"):
            raise ValueError(f"output is {output!r}, but must be 'numpy' or 'pil'")
        self._check_options(truncation, truncation_cutoff, noise_mode)
        labels = self.resolve_classes(seeds, classes)

        with self._evaluating(noise_mode) as sizes:
            if sizes is _WHOLE_CHUNKS:
                images = self._sample_in_chunks(seeds, labels, truncation, truncation_cutoff, noise_mode)
            else:
                z = self._draw(seeds)
                c = None if labels is None else torch.tensor(labels)
                images = self._images(z, c, sizes, truncation, truncation_cutoff, noise_mode)
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
        z = self._draw(seeds)
        c = None if labels is None else torch.tensor(labels)
        with self._evaluating() as sizes:
            parts = zip(_parts(z, sizes), _parts(c, sizes))  # noqa: B905 (without classes, there are more)
            w = [self._truncated(*part, truncation, truncation_cutoff) for part in parts]
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
        if not isinstance(latents, Tensor):
            raise TypeError(f"latents is a {type(latents).__name__}, but must be a tensor")
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
        c = None if labels is None else torch.tensor(labels)
        with self._evaluating(noise_mode) as sizes:
            return self._images(latents.detach(), c, sizes, 1.0, None, noise_mode)

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
            points = slerp_points(self._draw(seeds), positions)
        c = torch.full((len(points),), labels[0]) if labels else None
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
            return [self._own_class(seed) for seed in seeds]
        if not isinstance(classes, Iterable):
            classes = [classes] * len(seeds)
        if len(classes) != len(seeds):
            raise ValueError(f"classes has {len(classes)} entries, but must have one per seed, {len(seeds)}")
        chosen = _integers("class", classes, self.num_classes - 1)
        if untrained := sorted(set(chosen) - set(self.trained_classes)):
            _log.warning("no image had the class %s, so that nothing is known of it", untrained[0])
        return chosen

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
        self, points: Tensor, c: Tensor | None, truncation: float, cutoff: int | None, noise_mode: str | None
    ) -> Iterator[np.ndarray]:
        for start in range(0, len(points), CHUNK):
            part = slice(start, start + CHUNK)
            with self._evaluating(noise_mode) as sizes:
                part_c = None if c is None else c[part]
                images = self._images(points[part], part_c, sizes, truncation, cutoff, noise_mode)
            yield from images

    @contextmanager
    def _evaluating(self, noise_mode: str | None = None) -> Iterator[Sequence[int]]:
        """Inside, the generator is in eval mode, without gradients, and keeps samples apart if it can. Yields
        the batch sizes in which it makes an image alike, the largest first."""
        modules = _all_modules(self.generator)
        training = [module for module in modules if module.training]
        parameter = self._parameter
        sizes: Sequence[int] = _ONE_BY_ONE
        if parameter.device.type != "cpu":
            sizes = _WHOLE_CHUNKS
        elif noise_mode != "random" and can_be_apart(parameter) and all(map(_is_as_we_made_it, modules)):
            sizes = _APART
        for module in training:
            module.training = False
        try:
            with torch.no_grad(), samples_apart() if sizes is _APART else nullcontext():
                yield sizes
        finally:
            for module in training:
                module.training = True

    def _draw(self, seeds: Sequence[int]) -> Tensor:
        """The latents (N, z_dim) of the seeds, each from its own random stream."""
        rng = torch.Generator()
        z = torch.empty(len(seeds), self.z_dim)
        for row, seed in zip(z.unbind(), seeds, strict=True):
            row.normal_(generator=rng.manual_seed(seed))
        return z

    def _own_class(self, seed: int) -> int:
        """The next random number in the stream of a seed's latents."""
        rng = torch.Generator().manual_seed(seed)
        torch.randn(self.z_dim, generator=rng)
        return self.trained_classes[int(torch.randint(len(self.trained_classes), (), generator=rng))]

    def _sample_in_chunks(
        self,
        seeds: Sequence[int],
        labels: Sequence[int] | None,
        truncation: float,
        cutoff: int | None,
        noise_mode: str | None,
    ) -> np.ndarray:
        """The images of the seeds, each from row `seed % CHUNK` of a batch of `CHUNK`."""
        # Chunk k has the (k+1)-th request for each row.
        chunks: list[list[int]] = []
        requests = [0] * CHUNK
        for index, seed in enumerate(seeds):
            row = seed % CHUNK
            if requests[row] == len(chunks):
                chunks.append([])
            chunks[requests[row]].append(index)
            requests[row] += 1
        z = torch.zeros(len(chunks), CHUNK, self.z_dim)
        c = None if labels is None else torch.zeros(len(chunks), CHUNK, dtype=torch.int64)
        drawn = self._draw(seeds)
        places = np.empty(len(seeds), dtype=np.int64)
        for k, chunk in enumerate(chunks):
            rows = [seeds[index] % CHUNK for index in chunk]
            z[k, rows] = drawn[chunk]
            if c is not None and labels is not None:
                c[k, rows] = torch.tensor([labels[index] for index in chunk])
            places[chunk] = np.asarray(rows) + k * CHUNK
        flat_c = None if c is None else c.flatten()
        return self._images(z.flatten(0, 1), flat_c, _WHOLE_CHUNKS, truncation, cutoff, noise_mode)[places]

    def _images(
        self,
        latents: Tensor,
        c: Tensor | None,
        sizes: Sequence[int],
        truncation: float,
        cutoff: int | None,
        noise_mode: str | None,
    ) -> np.ndarray:
        """The images of z (N, z_dim), truncated, or of w (N, num_ws, w_dim), in batches of these sizes."""

        def made(part: Tensor, part_c: Tensor | None = None) -> Tensor:
            if part.ndim == 2:
                part = self._truncated(part, part_c, truncation, cutoff)
            return self._synthesize(part, part_c, noise_mode)

        how = truncation, cutoff, noise_mode, torch.get_num_threads(), torch.backends.mkldnn.enabled
        modules = _all_modules(self.generator)
        images = []
        # Without classes, there are more parts of them than of the latents.
        for part, part_c in zip(_parts(latents, sizes), _parts(c, sizes)):  # noqa: B905
            given = (part,) if part_c is None else (part, part_c)
            if sizes is _APART:
                image = self._replays.run(how, modules, made, *given)
            else:
                image = made(*given)
            images.append(image.numpy())
        return images[0][: len(latents)] if len(images) == 1 else np.concatenate(images)[: len(latents)]

    def _truncated(self, z: Tensor, c: Tensor | None, truncation: float, cutoff: int | None) -> Tensor:
        """The input of `_synthesize` for z: truncated, and mapped to w if there is a mapping."""
        if not self.style_based:
            return z if truncation == 1 else z * truncation
        w: Tensor = self.generator.mapping(
            self._placed(z),
            c if c is None else c.to(self._parameter.device),
            truncation=truncation,
            truncation_cutoff=cutoff,
        )
        return w

    def _synthesize(self, latents: Tensor, c: Tensor | None, noise_mode: str | None) -> Tensor:
        """The images as bytes."""
        latents = self._placed(latents)
        if self.style_based:
            with _fixed_noise(latents.device) if noise_mode == "random" else nullcontext():
                made = self.generator.synthesis(latents, noise_mode=noise_mode or "const")
        else:
            made = self.generator(latents) if c is None else self.generator(latents, c.to(latents.device))
        return _as_bytes(made, self.value_range)

    @property
    def _parameter(self) -> Tensor:
        """The generator's first, which tells its device and dtype."""
        modules = _all_modules(self.generator)
        return next(p for module in modules for p in module._parameters.values() if p is not None)

    def _placed(self, latents: Tensor) -> Tensor:
        parameter = self._parameter
        return latents.to(parameter.device, parameter.dtype)

    def _latent_shapes(self) -> list[tuple[int, ...]]:
        style = [(self.generator.num_ws, self.generator.w_dim)] if self.style_based else []
        return [(self.z_dim,), *style]

    def _check_options(self, truncation: float, cutoff: int | None, noise_mode: str | None) -> None:
        if not (_is_number(truncation, numbers.Real) and math.isfinite(truncation) and truncation >= 0):
            raise ValueError(f"truncation is {truncation!r}, but must be a finite number of at least 0")
        for name, value in (("truncation_cutoff", cutoff), ("noise_mode", noise_mode)):
            if value is not None and not self.style_based:
                raise ValueError(
                    f"{name} is {value!r}, but this generator is not style-based: it has no such option"
                )
        if cutoff is not None and not (
            _is_number(cutoff, numbers.Integral) and 0 <= cutoff <= self.generator.num_ws
        ):
            raise ValueError(
                f"truncation_cutoff is {cutoff!r}, but must be an integer from 0 to {self.generator.num_ws}"
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


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


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


def _as_bytes(images: Tensor, value_range: tuple[float, float]) -> Tensor:
    """Images (N, C, H, W) by `to_uint8`, as (N, H, W, C) on the CPU."""
    if has_image_bytes(images):
        return image_bytes(images, *checked_range(value_range))
    return to_uint8(images, value_range).permute(0, 2, 3, 1).cpu().contiguous()


def _parts(rows: Tensor | None, sizes: Sequence[int]) -> Iterator[Any]:
    """`rows` in parts of these sizes, the largest that there are rows for. If it is the smallest that there
    are too few rows for, the last part is padded with zeros. Without rows, None for ever."""
    if rows is None:
        yield from repeat(None)
        return
    start, count = 0, len(rows)
    # Where in memory a row begins may matter to the last bit too; new tensors begin at such an address.
    if count in sizes and rows.data_ptr() % 64 == 0 and rows.is_contiguous():
        yield rows
        return
    while start < count:
        size = next((size for size in sizes if size <= count - start), sizes[-1])
        part = rows[start : start + size]
        missing = size - len(part)
        yield torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part.clone()
        start += size


def _all_modules(module: nn.Module) -> list[nn.Module]:
    """As `modules()` in a fifth of the time, but a module that is used twice occurs twice."""
    found = [module]
    for one in found:
        found += [child for child in one._modules.values() if child is not None]
    return found


def _is_as_we_made_it(module: nn.Module) -> bool:
    """Is this a module of this package, or one that has nothing to round, without anything attached to it?"""
    kind = type(module)
    return (kind.__module__.startswith(_OURS) or kind in _ROUND_NOTHING) and not (
        "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    )


@contextmanager
def _fixed_noise(device: torch.device) -> Iterator[None]:
    """Inside, the device's global generator starts from a fixed seed; afterwards its state is restored."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if on_cuda else []):
        # torch.manual_seed would also change the other devices' generators.
        generator = torch.cuda.default_generators[device.index] if on_cuda else torch.default_generator
        generator.manual_seed(0)
        yield
