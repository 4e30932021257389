"""A discriminator of patches: a convolutional network with a logit for each place of its coarsest features
(Isola et al. 2017, "Image-to-Image Translation with Conditional Adversarial Networks",
https://arxiv.org/abs/1611.07004), the usual opponent of an autoencoder. It has no normalisation, or spectral
normalisation (Miyato et al. 2018, https://arxiv.org/abs/1802.05957), so that R1 can be used with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from aigc_ext.config import Count, Range
from aigc_ext.models.checks import check_input, check_labels
from aigc_ext.models.settings import ClassCount, ImageDiscriminatorConfig, ImageShape, Network, takes
from aigc_ext.nn import Conv2d


@dataclass(frozen=True)
class PatchDiscriminatorConfig(ImageDiscriminatorConfig):
    family: Literal["patch"] = field(default="patch", kw_only=True)
    image_shape: ImageShape = (3, 32, 32)
    channels: Count = 32
    """Channels of the first layer; twice as many for each further one, up to 8 times."""
    layers: Annotated[int, Range(ge=1, le=16)] = 2
    """Convolutions that halve the sides."""
    spectral: bool = False
    """Spectral normalisation of all layers."""
    num_classes: ClassCount = 0


class PatchDiscriminator(Network):
    """Maps an image to a logit for each patch: 4x4 convolutions that halve the sides, leaky ReLU of slope
    0.2, a 3x3 convolution and another one to the logits.

    Its arguments are the fields of `PatchDiscriminatorConfig`; it raises ValueError if an image is too small
    for so many layers. Labels add a projection of the last features to all logits, as in `models.mlp`.
    """

    layers: int

    @takes(PatchDiscriminatorConfig)
    def __init__(self, settings: PatchDiscriminatorConfig) -> None:
        super().__init__(settings)
        channels, height, width = settings.image_shape
        if min(height, width) >> settings.layers < 1:
            raise ValueError(
                f"layers is {settings.layers}, but must be fewer: they halve the sides of images of "
                f"{height}x{width} to nothing"
            )
        wrap = spectral_norm if settings.spectral else _unchanged
        widths = [settings.channels << min(i, 3) for i in range(settings.layers + 1)]
        convolutions = []
        for i, wide in enumerate(widths):
            kernel, stride = (4, 2) if i < settings.layers else (3, 1)
            layer = Conv2d(channels, wide, kernel, stride=stride, padding=1, act="lrelu", gain=1.0)
            convolutions.append(wrap(layer))
            channels = wide
        self.convolutions = nn.ModuleList(convolutions)
        self.head = wrap(Conv2d(channels, 1, 3, padding=1))
        self.embedding = wrap(nn.Embedding(settings.num_classes, channels)) if settings.num_classes else None

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits; positive means real.

        Args:
            images: (N, C, H, W), in the dtype of the weights (under autocast, any floating dtype).
            c: labels (N,), int64, from 0 to num_classes - 1; None if and only if `num_classes` is 0.

        Returns:
            (N, patches), in the dtype of `images`.

        Raises:
            ValueError: `images` or `c` has the wrong shape, dtype or (on the CPU) range, or `c` is missing or
                given to an unconditional network.
        """
        return self.judge(images, c)[0]

    def judge(self, images: Tensor, c: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Logits, and the features of all layers before them, for feature matching."""
        # The bias: each access to a normalised weight would run an iteration of the power method.
        check_input("images", images, tuple(self.image_shape), self.get_parameter("head.bias"))
        check_labels(c, images.shape[0], self.num_classes)
        features = [images]
        for layer in self.convolutions:
            features.append(layer(features[-1]))
        logits: Tensor = self.head(features[-1]).flatten(1)
        if self.embedding is not None:
            logits = logits + (self.embedding(c) * features[-1].mean((2, 3))).sum(1, keepdim=True)
        return logits, features[1:]


def _unchanged(layer: nn.Module) -> nn.Module:
    return layer
