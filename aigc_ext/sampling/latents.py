"""Latents on disk: a safetensors file with a tensor `z` or `w`, and with z, optionally, `classes` (N,)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from aigc_ext import _files
from aigc_ext._safetensors import open_safetensors


class LatentsError(ValueError):
    """A file that does not contain latents; the message names it and says why."""


@dataclass(frozen=True)
class Latents:
    """Points of a generator's latent space.

    Attributes:
        values: z (N, z_dim) or w (N, num_ws, w_dim), floating point.
        classes: for z of a conditional generator, one for each; otherwise None.
        metadata: strings, such as `model_sha256`, which identifies the generator.
    """

    values: Tensor
    classes: list[int] | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def space(self) -> str:
        return "w" if self.values.ndim == 3 else "z"

    def save(self, path: str | Path) -> None:
        tensors = {self.space: self.values.detach().cpu().contiguous()}
        if self.classes is not None:
            tensors["classes"] = torch.tensor(self.classes, dtype=torch.int64)
        _files.replace_file(
            Path(path), safetensors.torch.save(tensors, dict(self.metadata or {})), durable=False
        )

    @classmethod
    def load(cls, path: str | Path) -> Latents:
        """Reads what `save` wrote; raises LatentsError if it is anything else."""
        try:
            with open_safetensors(path) as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata()
        except OSError as error:
            raise LatentsError(f"latents {path} cannot be read ({error.strerror or error})") from error
        except safetensors.SafetensorError as error:
            raise LatentsError(f"latents {path} are no safetensors file ({error})") from error
        classes = tensors.pop("classes", None)
        (space,) = tensors if len(tensors) == 1 else ("",)
        if {"z": 2, "w": 3}.get(space) != getattr(tensors.get(space), "ndim", 0):
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in sorted(tensors.items()))
            raise LatentsError(
                f"latents {path} hold {shapes or 'nothing'}, but must hold z [N, z_dim] or "
                "w [N, num_ws, w_dim]"
            )
        if classes is not None:
            if space == "w":
                raise LatentsError(f"latents {path} hold classes, but w have their class in them")
            if classes.dtype != torch.int64 or classes.shape != tensors[space].shape[:1]:
                raise LatentsError(
                    f"latents {path} hold classes {list(classes.shape)} of {classes.dtype}, but must hold "
                    f"[{len(tensors[space])}] of torch.int64"
                )
        return cls(tensors[space], None if classes is None else classes.tolist(), metadata)
