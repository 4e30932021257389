"""Everything that changes while a pair of networks is trained, and its way to disk and back."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext.optim import AdamEMA
from aigc_ext.training.augment import AdaAugment
from aigc_ext.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    serialize,
)
from aigc_ext.training.config import AdamConfig, TrainConfig
from aigc_ext.training.progress import RunningMeans
from aigc_ext.training.recipe import schedule
from aigc_ext.version import __version__


class TrainingState:
    """The networks, their average, both optimisers, the random generators and the counters of a run.

    Args:
        generator, discriminator: already on `device`.

    Attributes:
        device: where all of it is.
        ema: the averaged generator, in eval mode.
        latents: the generator of the latents.
        augment: what the discriminator's images go through; its buffers are part of the state.
        path_mean: the running mean of path lengths.
        means: of the statistics since the last row of figures.
        step: steps taken.
        nimg: real images shown to the discriminator.
        rows: rows of figures written.
        seconds: time spent training.
        streaks: steps in a row, up to the last one, that an optimiser refused: D's and G's.
        schedule: of the last step, or of the first if none was taken yet.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        config: TrainConfig,
        device: torch.device,
        augment: nn.Module | None = None,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.ema = copy.deepcopy(generator).eval().requires_grad_(False)
        self.g_optimizer = _make_optimizer(generator, config.g_optim, ema=self.ema)
        self.d_optimizer = _make_optimizer(discriminator, config.d_optim)
        self.latents = torch.Generator(device).manual_seed(derive_seed(config.seed, "latents"))
        self.means = RunningMeans(device)
        self.step = 0
        self.nimg = 0
        self.rows = 0
        self.seconds = 0.0
        self.streaks = [0, 0]
        self.device = device
        self.schedule = schedule(config, 0, 0)
        self.path_mean = torch.zeros((), device=device)
        self.augment = augment

    @property
    def skipped(self) -> tuple[int, int]:
        """Steps that the discriminator's and the generator's optimiser refused. Waits for the device."""
        return int(self.d_optimizer.skipped), int(self.g_optimizer.skipped)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Brings `ema` up to date: parameters are averaged, buffers such as batch statistics are copied."""
        for average, current in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            average.copy_(current)

    def files(self) -> dict[str, bytes]:
        """The tensors as the safetensors files of a checkpoint, by stem."""
        self.copy_buffers()
        rest = {
            **_prefixed("g_optimizer", optimizer_tensors(self.g_optimizer)),
            **_prefixed("d_optimizer", optimizer_tensors(self.d_optimizer)),
            **_prefixed("rng", {"latents": self.latents.get_state()}),
            **_prefixed("path", {"mean": self.path_mean}),
            **_prefixed("augment", self.augment.state_dict() if self.augment else {}),
            **_prefixed("means", {"sums": self.means.sums, "counts": self.means.counts}),
        }
        return {
            "generator": serialize(self.generator.state_dict()),
            "discriminator": serialize(self.discriminator.state_dict()),
            "ema": serialize(self.ema.state_dict()),
            "training_state": serialize(rest),
        }

    def counters(self) -> dict[str, Any]:
        """The rest of the state, and what it belongs to, as JSON values."""
        return {
            "step": self.step,
            "nimg": self.nimg,
            "rows": self.rows,
            "seconds": self.seconds,
            "streaks": self.streaks,
            "skipped": self.skipped,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "aigc_ext": __version__,
            "torch": torch.__version__,
            "generator": architecture(self.generator),
            "discriminator": architecture(self.discriminator),
        }

    def load(self, checkpoint: Checkpoint) -> None:
        """Raises CheckpointError if the checkpoint is of other networks or another kind of device."""
        counters, rest = checkpoint.state, checkpoint.tensors["training_state"]
        if counters["device"] != self.device.type:
            # The generators of random numbers differ, so that the run would be another one.
            raise CheckpointError(
                checkpoint.path,
                f"it was written on {counters['device']}, but the device is now {self.device}",
            )
        load_weights(checkpoint, "generator", self.generator)
        load_weights(checkpoint, "discriminator", self.discriminator)
        load_weights(checkpoint, "ema", self.ema)
        load_optimizer(self.g_optimizer, _under("g_optimizer", rest))
        load_optimizer(self.d_optimizer, _under("d_optimizer", rest))
        self.latents.set_state(rest["rng.latents"])
        self.path_mean.copy_(rest["path.mean"])
        # Of one kind or the other before; none, if there was no probability so far.
        if isinstance(self.augment, AdaAugment) and (saved := _under("augment", rest)):
            self.augment.load_state_dict(saved)
        self.means.sums.copy_(rest["means.sums"])
        self.means.counts.copy_(rest["means.counts"])
        self.step, self.nimg, self.rows = counters["step"], counters["nimg"], counters["rows"]
        self.seconds = counters["seconds"]
        # Older checkpoints have one number for both.
        self.streaks = list(counters["streaks"] if "streaks" in counters else [counters["streak"]] * 2)
        for optimizer, skipped in zip((self.d_optimizer, self.g_optimizer), counters["skipped"], strict=True):
            optimizer.skipped.fill_(skipped)


def architecture(network: nn.Module) -> dict[str, Any] | None:
    """What `aigc_ext.models` builds the network from, or None if it is not one of ours."""
    config = getattr(network, "config", None)
    return config if isinstance(config, dict) and "family" in config else None


def derive_seed(seed: int, purpose: str) -> int:
    """An independent 63-bit seed for each purpose: generators with equal seeds give equal numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


def _make_optimizer(module: nn.Module, config: AdamConfig, *, ema: nn.Module | None = None) -> AdamEMA:
    averages = None
    if ema is not None:
        pairs = zip(ema.parameters(), module.parameters(), strict=True)
        averages = [average for average, current in pairs if current.requires_grad]
    return AdamEMA(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        ema_params=averages,
    )


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
