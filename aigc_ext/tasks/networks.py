"""What every task does with its networks and its data."""

from __future__ import annotations

from typing import Any

from torch import nn

from aigc_ext.data import ImageDataset, open_dataset
from aigc_ext.data.audio import AudioDataset, open_audio
from aigc_ext.data.dataset import Report
from aigc_ext.training.config import DataConfig


def architecture(network: nn.Module) -> dict[str, Any] | None:
    """The config from which `aigc_ext.models` builds the network; None for one that is not ours."""
    config = getattr(network, "config", None)
    return config if isinstance(config, dict) and "family" in config else None


def open_images(settings: DataConfig, report: Report | None = None, **changed: Any) -> ImageDataset:
    """The images of a run's settings, without what does not belong to them.

    Args:
        changed: options of `open_dataset` that are not those of the settings.
    """
    names = ("resolution", "transform", "enlarge", "white")
    own = {name: getattr(settings, name) for name in names}
    return open_dataset(settings.source, **{**_shared(settings, report), **own, **changed})


def open_recordings(settings: DataConfig, report: Report | None = None) -> AudioDataset:
    """The same for recordings."""
    return open_audio(
        settings.source, segment=settings.segment, rate=settings.sample_rate, **_shared(settings, report)
    )


def _shared(settings: DataConfig, report: Report | None) -> dict[str, Any]:
    names = ("class_folders", "follow_links", "renumber_classes", "max_left_out")
    return {"on_bad": "skip", "report": report, **{name: getattr(settings, name) for name in names}}
