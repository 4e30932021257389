"""Generators on the Hugging Face Hub; needs `pip install aigc_ext[hub]`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from aigc_ext.sampling.pretrained import load_pretrained, save_pretrained

try:
    from huggingface_hub import ModelHubMixin
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "aigc_ext.sampling.hub needs huggingface_hub: pip install aigc_ext[hub]"
    ) from error


class HubGenerator(ModelHubMixin, library_name="aigc_ext", tags=["gan", "image-generation"]):
    """A generator with the hub's usual methods `save_pretrained`, `from_pretrained` and `push_to_hub`.

    The files are those of `aigc_ext.sampling.save_pretrained`, `config.json` and `model.safetensors`, and a
    model card `README.md`; no pickle is read or written.

        HubGenerator.from_pretrained("runs/00000-mlp-digits").push_to_hub("owner/name")
        generator = HubGenerator.from_pretrained("owner/name", local_files_only=False).generator

    Args:
        generator: a network with a `config`, like those of `aigc_ext.models`.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, generator: nn.Module) -> None:
        if not isinstance(getattr(generator, "config", None), dict):
            raise ValueError(
                f"{type(generator).__name__} has no dict `config`, from which it could be built again"
            )
        self.generator: Any = generator

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, local_files_only: bool = True, **hub: Any
    ) -> HubGenerator:
        """Loads what `load_pretrained` loads: a directory, or `owner/name` in the local cache of the hub.

        Args:
            local_files_only: False downloads what is missing in the cache.
            hub: other options of `huggingface_hub.snapshot_download`, such as `revision`.
        """
        generator, _ = load_pretrained(
            pretrained_model_name_or_path, allow_download=not local_files_only, **hub
        )
        return cls(generator)

    def _save_pretrained(self, save_directory: Path) -> None:
        state = {name: value.contiguous() for name, value in self.generator.state_dict().items()}
        trained = getattr(self.generator, "trained_classes", None)
        save_pretrained(save_directory, self.generator.config, safetensors.torch.save(state), trained)
