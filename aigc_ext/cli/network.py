"""Options and functions shared by the commands that use a trained network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from aigc_ext import _names
from aigc_ext.cli.decorator import decorator

if TYPE_CHECKING:
    from torch import nn

    from aigc_ext.metrics.compute import ImageSource
    from aigc_ext.sampling import Sampler

network_options = decorator(
    click.option(
        "--network",
        required=True,
        metavar="WHAT",
        help="latest (the newest in runs), a run or the beginning of its name, a checkpoint, a model"
        " directory, or owner/name of a model on the Hugging Face Hub.",
    ),
    click.option(
        "--allow-download", is_flag=True, help="Download a model from the hub if it is not on this machine."
    ),
)

style_options = decorator(
    click.option(
        "--trunc",
        type=float,
        default=1.0,
        metavar="PSI",
        help="Truncation psi: values below 1 give less varied, often cleaner images. It applies to w if there"
        " is a mapping network, otherwise to z.  [default: 1]",
    ),
    click.option(
        "--trunc-cutoff", type=int, metavar="INT", help="Truncate only this many w, from the coarsest on."
    ),
    click.option(
        "--noise-mode",
        type=click.Choice(_names.NOISE_MODES),
        help="The noise of a style-based network.  [default: const]",
    ),
)

class_option = click.option(
    "--class", "class_", type=int, metavar="INT", help="Class of all images.  [default: by the seed]"
)

label_options = decorator(
    click.option(
        "--label/--no-label",
        default=True,
        help="Mark the files as AI-generated, in machine-readable form.  [default: label]",
    ),
    click.option(
        "--producer", default=_names.DEFAULT_PRODUCER, metavar="TEXT", help="The producer named in the label."
    ),
)

device_options = decorator(
    click.option(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N.  [default: auto]"
    ),
    click.option("--threads", type=click.IntRange(min=1), metavar="INT", help="CPU threads of PyTorch."),
)


def open_network(
    network: str, allow_download: bool, device: str, threads: int | None
) -> tuple[nn.Module, str]:
    """Any model on a device, and the SHA-256 of its weights."""
    import torch

    from aigc_ext.sampling import load_pretrained
    from aigc_ext.training.runtime import resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    usable = resolve_device(device)
    model, digest = load_pretrained(network, allow_download=allow_download)
    return model.to(usable), digest


def image_source(network: str, model: nn.Module, digest: str) -> ImageSource:
    """Whatever makes images of seeds, of a model that was opened under a name: a sampler of a generator, or a
    model of sequences of codes."""
    from aigc_ext.sampling import Sampler
    from aigc_ext.sampling.pretrained import PretrainedError, generator_of

    generator = generator_of(model)
    if generator is not None:
        return Sampler(generator, model_sha256=digest)
    source: Any = model
    if source.media != "image" or not hasattr(source, "sample"):
        hint = "; --metrics rfd measures its reconstructions" if makes_images_anew(model) else ""
        raise PretrainedError(
            f"network {network} is a {type(model).__name__}, which makes no images of seeds{hint}"
        )
    return source


def makes_images_anew(model: nn.Module) -> bool:
    return hasattr(model, "reconstructions") and getattr(model, "media", None) == "image"


def shape_of(source: ImageSource) -> tuple[int, ...] | None:
    """(C, H, W) of the images that it makes; None if it does not say."""
    network = getattr(source, "generator", source)
    shape = getattr(getattr(network, "codec", network), "image_shape", None)
    return None if shape is None else tuple(shape)


def open_sampler(network: str, allow_download: bool, device: str, threads: int | None) -> Sampler:
    import torch

    from aigc_ext.sampling import Sampler
    from aigc_ext.training.runtime import resolve_device

    if threads is not None:
        torch.set_num_threads(threads)
    return Sampler.from_pretrained(network, device=resolve_device(device), allow_download=allow_download)


def style_record(trunc: float, trunc_cutoff: int | None, noise_mode: str | None) -> dict[str, Any]:
    """The part of the provenance for `style_options`; options that were not given appear only if they
    matter."""
    record: dict[str, Any] = {"truncation": trunc}
    if trunc_cutoff is not None:
        record["truncation_cutoff"] = trunc_cutoff
    if noise_mode is not None:
        record["noise_mode"] = noise_mode
    return record
