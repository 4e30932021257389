"""Feature extractors; `metrics.classifier` has one more."""

from __future__ import annotations

import os
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigc_ext import _files
from aigc_ext._device import usable_device
from aigc_ext.metrics.errors import MetricError

_MAX_SIDE = 32
_CHANNELS = (32, 64)


class FeatureExtractor(Protocol):
    """A function from uint8 images (N, C, H, W) to floating-point features (N, D), with rows in the same
    order.

    An attribute `name`, a string, identifies the function, including its weights. Results for real data are
    cached under that name; without a name, or if it is None, nothing is cached.
    """

    def __call__(self, images: Tensor, /) -> Tensor: ...


class RandomFeatures:
    """Features of two convolutions with random weights, for data without labels: weaker than learned ones.

    They distinguish contrasts, edges and textures, but not objects: if one of MNIST's digits is missing, the
    Fréchet distance of 2,500 images is 1.7 times that of two sets of real ones, and 7 times with the
    classifier's features. Random embeddings still rank generators sensibly where no learned one suits the
    data (Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020). Images larger
    than 32 pixels are downsampled to that; D is 64 for each of 2 x 2 parts of the image.

    Args:
        channels: channels of the images.
        seed: determines the weights.
        device: where it runs.
    """

    def __init__(self, channels: int, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self._device = usable_device(device)
        random = torch.Generator().manual_seed(seed)
        self._weights = []
        for outputs in _CHANNELS:
            scale = (2 / (channels * 9)) ** 0.5  # preserves the features' scale (He et al., 2015)
            weight = torch.randn(outputs, channels, 3, 3, generator=random) * scale
            self._weights.append(weight.to(self._device))
            channels = outputs
        where = "" if self._device.type == "cpu" else f"-{self._device.type}"
        self.name = f"random-1-{seed}{where}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 (N, D), of uint8 images (N, C, H, W)."""
        size = (min(images.shape[2], _MAX_SIDE), min(images.shape[3], _MAX_SIDE))
        x = F.adaptive_avg_pool2d(images.to(self._device).float() / 127.5 - 1, size)
        for weight in self._weights:
            x = F.leaky_relu(F.conv2d(x, weight, stride=2, padding=1), 0.2)
        return F.adaptive_avg_pool2d(x, (min(x.shape[2], 2), min(x.shape[3], 2))).flatten(1).cpu()


class InceptionFeatures:
    """The 2,048 features of the Inception network that defines FID, as computed by torch-fidelity.

    Grey images become RGB with three equal channels. Needs `pip install aigc_ext[fid]` and the weights
    `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity's release 0.2.0, which are not downloaded
    automatically.

    Args:
        weights: the file published by torch-fidelity, or the same tensors as `.safetensors`. Only tensors are
            read from a PyTorch file.
        device: where it runs.

    Raises:
        MetricError: the package or the file is missing, or the file has other weights.
    """

    def __init__(self, weights: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        path, device = Path(weights), usable_device(device)
        state = _read_weights(path)
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise MetricError(
                f"fid needs the package torch-fidelity: pip install 'aigc_ext[fid]' ({error})"
            ) from error
        with TemporaryDirectory() as folder:
            # torch-fidelity unpickles any contents of its file, so it gets one that is written here.
            trusted = Path(folder) / "weights.pt"
            torch.save(state, trusted)
            try:
                network: nn.Module = FeatureExtractorInceptionV3(
                    "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(trusted)
                )
            except (RuntimeError, TypeError) as error:
                reason = " ".join(str(error).split())[:300]
                raise MetricError(f"fid weights {path} are not those of the network: {reason}") from error
        self._device = device
        self._network = network.to(self._device).eval()
        where = "" if self._device.type == "cpu" else f"-{self._device.type}"
        self.name = f"inception-v3-compat-{_files.sha256_file(path)}{where}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 (N, 2048), of uint8 images (N, C, H, W), C = 1 or 3."""
        if images.shape[1] not in (1, 3):
            raise MetricError(f"fid is defined for 1 or 3 channels, but the images have {images.shape[1]}")
        rgb = images.expand(-1, 3, -1, -1)
        return torch.cat([self._network(part.to(self._device))[0].cpu() for part in rgb.split(32)])


def _read_weights(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MetricError(f"fid weights {path}: there is no such file, and nothing is downloaded")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        ValueError,
        OSError,
        EOFError,
        UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise MetricError(f"fid weights {path} cannot be read as a file of tensors: {reason}") from error


def extract(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    """The extractor's features, checked: raises MetricError unless they are finite and (N, D)."""
    features = extractor(images)
    name = getattr(extractor, "name", None) or type(extractor).__name__
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(images):
        shown = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise MetricError(
            f"extractor {name} returned {shown} for {len(images)} images, but must return (N, D)"
        )
    if not features.is_floating_point() or not features.isfinite().all():
        raise MetricError(f"extractor {name} returned features that are no finite floating-point numbers")
    return features.detach().cpu()
