"""The training loop: steps, figures, sample grids, checkpoints, and the run directory that holds them."""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aigc_ext import _files
from aigc_ext.data import ImageDataset, normalize, open_dataset
from aigc_ext.models import build_discriminator, build_generator
from aigc_ext.optim import AdamEMA
from aigc_ext.sampling import Sampler, readable_scale, save_grid, save_pretrained
from aigc_ext.training.batches import batches
from aigc_ext.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    checkpoint_name,
    list_checkpoints,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    prune_checkpoints,
    serialize,
    set_aside,
    write_checkpoint,
)
from aigc_ext.training.config import AdamConfig, ConfigError, TrainConfig
from aigc_ext.training.malloc import keep_freed_memory
from aigc_ext.training.nonfinite import NonFiniteError, make_objective
from aigc_ext.training.progress import ProgressLine, RunningMeans, peak_memory_gb
from aigc_ext.training.run import (
    CONFIG_FILE,
    STATS_FILE,
    ResumePoint,
    StatsLog,
    check_resumable,
    create_run,
    locked,
)
from aigc_ext.training.runtime import StopSignals, log_to, resolve_device, torch_settings
from aigc_ext.training.step import STATISTICS, AdversarialStep
from aigc_ext.version import __version__

_STEPS_PER_CUDA_CHECK = 50


@dataclass(frozen=True)
class TrainResult:
    """Where a run's results are.

    Attributes:
        grid: the newest sample grid.
        checkpoint: the newest checkpoint.
        model: the averaged generator, as `Sampler.from_pretrained` takes it; None if it has no `config`.
        stats: the figures, a JSON object per line.
        signal: the signal that ended the run early, or None if it is complete.
    """

    run_dir: Path
    grid: Path
    checkpoint: Path
    model: Path | None
    stats: Path
    step: int
    nimg: int
    signal: int | None


class Trainer:
    """Trains a generator and a discriminator against each other.

    Any pair of modules will do. The generator maps latents (N, z_dim) to images (N, C, H, W) of the data's
    shape, the discriminator maps images to logits; with `config.data.cond` both get int64 labels (N,) as a
    second argument. The networks are moved to `config.device` and trained in place; `ema` is the averaged
    generator.

    Every random number comes from `config.seed`: the initial weights (in `from_config`), the order of the
    data, the latents, and PyTorch's global generators during `fit`, which modules such as dropout draw from
    (the caller's are given back as they were). All their states are in the checkpoints, so that a resumed run
    has the same bits as one that never stopped, on the CPU with the same number of threads.

    Args:
        data: the images; see `aigc_ext.data.open_dataset`.
        outdir: where `fit` makes the run directory.
        desc: added to the run directory's name.
        z_dim, value_range: by default the generator's attributes of these names.

    Raises:
        ValueError: networks, data and config do not fit together.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        data: ImageDataset,
        config: TrainConfig,
        *,
        outdir: str | Path = "runs",
        desc: str = "",
        z_dim: int | None = None,
        value_range: tuple[float, float] | None = None,
    ) -> None:
        if config.data.cond and not data.num_classes:
            raise ConfigError(f"data.cond is true, but {data.name} has no labels")
        self.config = config
        self.data = data
        self.device = resolve_device(config.device)
        self.generator = generator.to(self.device).train()
        self.discriminator = discriminator.to(self.device).train()
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self._classes = data.num_classes if config.data.cond else 0
        self._sampler = Sampler(self.ema, z_dim=z_dim, value_range=value_range, num_classes=self._classes)
        made = self._sampler.sample([0]).shape
        channels, height, width = data.image_shape
        if made[1:] != (height, width, channels):
            raise ValueError(
                f"the generator makes images of {made[1]}x{made[2]} with {made[3]} channels, "
                f"but those of {data.name} are {height}x{width} with {channels}"
            )

        self.g_optimizer = _make_optimizer(self.generator, config.g_optim, ema=self.ema)
        self.d_optimizer = _make_optimizer(self.discriminator, config.d_optim)
        self._take_step = AdversarialStep(
            self.generator,
            self.discriminator,
            make_objective(self.discriminator, config.loss),
            self.g_optimizer,
            self.d_optimizer,
        )
        self._means = RunningMeans(self.device)
        self._latents = torch.Generator(self.device).manual_seed(_derive_seed(config.seed, "latents"))
        self._module_rng: dict[str, Tensor] | None = None

        self.step = 0
        self.nimg = 0
        self.run_dir: Path | None = None
        self._outdir = Path(outdir)
        self._desc = desc
        self._resumed: ResumePoint | None = None
        self._saved_nimg: int | None = None
        self._rows = 0
        self._seconds = 0.0
        self._streak = 0
        self._skipped = self._skipped_logged = (0, 0)
        self._steps_unchecked = 0

    @classmethod
    def from_config(cls, config: TrainConfig, *, outdir: str | Path = "runs", desc: str = "") -> Trainer:
        """Opens the data and builds the networks that `config` describes, with weights from its seed."""
        data = open_dataset(config.data.source)
        shared = {
            "image_shape": data.image_shape,
            "num_classes": data.num_classes if config.data.cond else 0,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_derive_seed(config.seed, "weights"))
            generator = build_generator({**config.generator.to_dict(), **shared})
            discriminator = build_discriminator({**config.discriminator.to_dict(), **shared})
        return cls(generator, discriminator, data, config, outdir=outdir, desc=desc)

    def restore(self, point: ResumePoint) -> None:
        """Takes over the state at a resume point; `fit` then goes on from it.

        Raises:
            ConfigError: this trainer's config differs from the run's in what cannot change.
            CheckpointError: the checkpoint does not fit the networks, the data or the device.
        """
        check_resumable(point.config, self.config)
        if point.checkpoint is not None:
            self._load(point.checkpoint)
            # A run that goes on from another's checkpoint has none of its own yet.
            self._saved_nimg = self.nimg if point.run_dir is not None else None
        self.run_dir = point.run_dir
        self._resumed = point

    def fit(self, *, progress: bool = False) -> TrainResult:
        """Trains until `config.kimg`, or until SIGINT or SIGTERM; either leaves a checkpoint that can be
        resumed.

        Signals are taken only in the main thread; a second one interrupts at once.

        Args:
            progress: show one live line on stderr.

        Raises:
            NonFiniteError: too many steps in a row had no finite gradient; it names a dump.
            RunError: the run directory is in use by another process.
        """
        if self.config.malloc == "keep":
            keep_freed_memory()
        if self.run_dir is None:
            self.run_dir = create_run(self._outdir, self.config, self.data.name, self._desc)
        run_dir, stats = self.run_dir, StatsLog(self.run_dir / STATS_FILE)
        with ExitStack() as stack:
            stack.enter_context(locked(run_dir))
            log = stack.enter_context(log_to(run_dir / "log.txt"))
            stack.enter_context(torch_settings(self.config))
            stack.enter_context(self._own_module_rng())
            stop = stack.enter_context(StopSignals())
            self._prepare(run_dir, stats, log)
            line = stack.enter_context(
                ProgressLine(self.nimg, self.config.total_images, self.device, enabled=progress)
            )
            try:
                self._train(run_dir, stats, stop, line, log)
            except NonFiniteError as error:
                log.error("%s", error)
                raise
            if stop.received is None:
                log.info("finished at step %d (%d images)", self.step, self.nimg)
            else:
                log.info("stopped by %s at step %d (%d images)", stop.received.name, self.step, self.nimg)
        return TrainResult(
            run_dir=run_dir,
            grid=run_dir / f"fakes{self._name()}.png",
            checkpoint=run_dir / "checkpoints" / self._name(),
            model=run_dir / "model" if hasattr(self.generator, "config") else None,
            stats=stats.path,
            step=self.step,
            nimg=self.nimg,
            signal=stop.received,
        )

    def _train(
        self, run_dir: Path, stats: StatsLog, stop: StopSignals, line: ProgressLine, log: logging.Logger
    ) -> None:
        config = self.config
        snapshot_images = config.tick_images * config.snap
        start_seconds, start_time = self._seconds, time.perf_counter()
        tick_nimg, tick_time = self.nimg, start_time
        stream = batches(
            self.data,
            config.batch,
            _derive_seed(config.seed, "data"),
            mirror=config.data.mirror,
            position=self.nimg,
            workers=config.workers,
        )
        with closing(stream):
            while self.nimg < config.total_images and stop.received is None:
                before = self.nimg
                self._one_step(*next(stream), run_dir)
                done = self.nimg >= config.total_images
                if done or self.nimg // config.tick_images > before // config.tick_images:
                    now = time.perf_counter()
                    self._seconds = start_seconds + now - start_time
                    rate = (self.nimg - tick_nimg) / (now - tick_time)
                    means = self._write_row(stats, rate, log)
                    tick_nimg, tick_time = self.nimg, now
                    if done:
                        line.show(self.nimg, means)
                if done or self.nimg // snapshot_images > before // snapshot_images:
                    self._snapshot(run_dir, stats)
                if line.due():
                    line.show(self.nimg, self._means.read())
        self._seconds = start_seconds + time.perf_counter() - start_time
        if self._saved_nimg != self.nimg:
            self._snapshot(run_dir, stats)

    def _one_step(self, images: Tensor, labels: Tensor, run_dir: Path) -> None:
        config = self.config
        real = normalize(images.to(self.device, non_blocking=True), self._sampler.value_range)
        condition = labels.to(self.device, non_blocking=True) if self._classes else None
        z = torch.randn(config.batch, self._sampler.z_dim, generator=self._latents, device=self.device)
        self.g_optimizer.ema_decay = config.ema.decay(self.nimg + config.batch, config.batch)
        penalize = config.loss.gamma > 0 and self.step % config.loss.r1_interval == 0
        statistics = self._take_step(real, z, condition, penalize=penalize)
        self._means.add(statistics)
        self.step += 1
        self.nimg += config.batch
        # To read the optimisers' counters costs nothing on the CPU, but waits for the device on CUDA.
        self._steps_unchecked += 1
        if self.device.type == "cpu" or self._steps_unchecked == _STEPS_PER_CUDA_CHECK:
            self._check_streak(statistics, run_dir)

    def _check_streak(self, statistics: Tensor, run_dir: Path) -> None:
        """Ends the run when one of the optimisers has refused every step of a long streak."""
        skipped = (int(self.d_optimizer.skipped), int(self.g_optimizer.skipped))
        refused = max(now - before for now, before in zip(skipped, self._skipped, strict=True))
        self._streak = self._streak + refused if refused == self._steps_unchecked else 0
        self._skipped = skipped
        self._steps_unchecked = 0
        if self._streak >= self.config.nonfinite_limit:
            raise NonFiniteError(self._dump(statistics, run_dir), self._streak, self.step)

    # What a run leaves on disk

    def _prepare(self, run_dir: Path, stats: StatsLog, log: logging.Logger) -> None:
        """Brings the directory to the state at `self.step`, whatever a dead process left behind."""
        for directory in (run_dir, run_dir / "checkpoints", run_dir / "model"):
            _files.remove_temporaries(directory)
        _files.replace_file(run_dir / CONFIG_FILE, self.config.to_json().encode())

        point, self._resumed = self._resumed, None
        history = stats
        if point is not None:
            log.info("resumed at step %d (%d images)", self.step, self.nimg)
            for change in check_resumable(point.config, self.config):
                log.info("changed %s", change)
            if point.checkpoint is not None:
                threads = point.checkpoint.state["threads"]
                if threads != torch.get_num_threads():
                    log.warning(
                        "the run had %d CPU threads and now has %d: sums may round differently",
                        threads,
                        torch.get_num_threads(),
                    )
                if point.run_dir is None:
                    log.info("the run starts from %s", point.checkpoint.path)
                    history = StatsLog(point.checkpoint.path.resolve().parents[1] / STATS_FILE)
            for refusal in point.refused:
                log.warning("%s; it is now %s", refusal, set_aside(refusal.path).name)
        # The rows of steps that were lost with their process are written again when these steps are taken
        # again.
        rows = [row for row in history.rows() if row["step"] <= self.step]
        if len(rows) < self._rows:
            log.warning("%s has %d rows where there were %d", history.path, len(rows), self._rows)
        self._rows = len(rows)
        stats.restart(rows)

        if self.data.num_classes and not self._classes:
            log.info("the labels of %s are not used, because data.cond is false", self.data.name)
        if not (run_dir / "reals.png").exists():
            self._save_reals(run_dir / "reals.png")
        if not (run_dir / "fakes_init.png").exists():
            self._save_fakes(run_dir / "fakes_init.png", _files.sha256(serialize(self.ema.state_dict())))

    def _write_row(
        self, stats: StatsLog, images_per_second: float, log: logging.Logger
    ) -> dict[str, float | None]:
        """Ends a tick; returns its means."""
        means = self._means.read()
        skipped = (int(self.d_optimizer.skipped), int(self.g_optimizer.skipped))
        if skipped != self._skipped_logged:
            log.warning(
                "step %d: so far %d discriminator and %d generator steps were not finite and were skipped",
                self.step,
                *skipped,
            )
            self._skipped_logged = skipped
        row = {
            "step": self.step,
            "nimg": self.nimg,
            "epoch": self.nimg / len(self.data),
            **means,
            "skipped_d": skipped[0],
            "skipped_g": skipped[1],
            "ema_decay": self.config.ema.decay(self.nimg, self.config.batch),
            "seconds": round(self._seconds, 3),
            "img_per_sec": round(images_per_second, 1),
            "memory_gb": round(peak_memory_gb(self.device), 3),
        }
        stats.append(row)
        self._rows += 1
        self._means.reset()
        return means

    def _snapshot(self, run_dir: Path, stats: StatsLog) -> None:
        """Writes the sample grid, the model and, last, the checkpoint: if it is there, so are the others."""
        files, state = self._state()
        self._save_fakes(run_dir / f"fakes{self._name()}.png", _files.sha256(files["ema"]))
        if state["generator"] is not None:
            save_pretrained(run_dir / "model", state["generator"], files["ema"])
        stats.sync()
        write_checkpoint(run_dir / "checkpoints" / self._name(), files, state)
        self._saved_nimg = self.nimg
        prune_checkpoints(run_dir, self.config.keep)

    def _dump(self, statistics: Tensor, run_dir: Path) -> Path:
        """Writes a checkpoint of the broken state with the step's inputs; see `training.nonfinite`."""
        inputs = self._take_step.inputs
        assert inputs is not None
        tensors = {"real": inputs.real, "fake": inputs.fake, "z": inputs.z}
        if inputs.labels is not None:
            tensors["labels"] = inputs.labels
        files, state = self._state()
        state["penalize"] = inputs.penalize
        state["statistics"] = {
            name: str(value) for name, value in zip(STATISTICS, statistics.tolist(), strict=True)
        }
        state["last_checkpoint"] = next((path.name for path in list_checkpoints(run_dir)), None)
        path = run_dir / f"nonfinite-{self._name()}"
        if path.exists():  # the run was resumed, and failed at the same place
            shutil.rmtree(path)
        write_checkpoint(path, {**files, "inputs": serialize(tensors)}, state)
        return path

    def _name(self) -> str:
        return checkpoint_name(self.nimg, self.config.batch)

    def _save_reals(self, path: Path) -> None:
        columns, rows = self.config.grid
        first, _ = self.data.read(range(min(columns * rows, len(self.data))))
        images = first.permute(0, 2, 3, 1).numpy()
        save_grid(images, path, columns=columns, scale=readable_scale(*images.shape[1:3]), label=False)

    def _save_fakes(self, path: Path, model_sha256: str) -> None:
        """The images of the seeds 0, 1, 2, ...; `aigc-ext sample` makes the same ones from the same model."""
        columns, rows = self.config.grid
        seeds = range(columns * rows)
        classes = [seed % self._classes for seed in seeds] if self._classes else None
        self._copy_buffers()
        images = self._sampler.sample(seeds, classes)
        provenance = {"model_sha256": model_sha256, "seeds": f"0-{len(seeds) - 1}", "nimg": self.nimg}
        save_grid(
            images, path, columns=columns, scale=readable_scale(*images.shape[1:3]), provenance=provenance
        )

    # The whole state

    def _state(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The files of a checkpoint by stem, and the content of its state.json."""
        self._copy_buffers()
        training_state = {
            **_prefixed("g_optimizer", optimizer_tensors(self.g_optimizer)),
            **_prefixed("d_optimizer", optimizer_tensors(self.d_optimizer)),
            **_prefixed("rng", {"latents": self._latents.get_state(), **self._global_rng()}),
            **_prefixed("means", {"sums": self._means.sums, "counts": self._means.counts}),
        }
        files = {
            "generator": serialize(self.generator.state_dict()),
            "discriminator": serialize(self.discriminator.state_dict()),
            "ema": serialize(self.ema.state_dict()),
            "training_state": serialize(training_state),
        }
        state = {
            "step": self.step,
            "nimg": self.nimg,
            "rows": self._rows,
            "seconds": self._seconds,
            "streak": self._streak,
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "aigc_ext": __version__,
            "torch": torch.__version__,
            "config": self.config.to_dict(),
            "generator": getattr(self.generator, "config", None),
            "discriminator": getattr(self.discriminator, "config", None),
            "data": _describe_data(self.data),
        }
        return files, state

    def _load(self, checkpoint: Checkpoint) -> None:
        state, saved = checkpoint.state, checkpoint.tensors["training_state"]
        for key, ours in (("device", self.device.type), ("data", _describe_data(self.data))):
            if state[key] != ours:
                raise CheckpointError(
                    checkpoint.path,
                    f"{key} was {state[key]} and is now {ours}, so it cannot be resumed exactly",
                )
        load_weights(checkpoint, "generator", self.generator)
        load_weights(checkpoint, "discriminator", self.discriminator)
        load_weights(checkpoint, "ema", self.ema)
        load_optimizer(self.g_optimizer, _under("g_optimizer", saved))
        load_optimizer(self.d_optimizer, _under("d_optimizer", saved))
        self._module_rng = _under("rng", saved)
        self._latents.set_state(self._module_rng.pop("latents"))
        self._means.sums.copy_(saved["means.sums"])
        self._means.counts.copy_(saved["means.counts"])
        self.step, self.nimg = state["step"], state["nimg"]
        self._rows, self._seconds, self._streak = state["rows"], state["seconds"], state["streak"]
        self._skipped = (int(self.d_optimizer.skipped), int(self.g_optimizer.skipped))
        self._skipped_logged = self._skipped

    @contextmanager
    def _own_module_rng(self) -> Iterator[None]:
        """PyTorch's global generators are the run's own inside, and the caller's again afterwards."""
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            if self._module_rng is None:
                torch.manual_seed(_derive_seed(self.config.seed, "modules"))
            else:
                torch.set_rng_state(self._module_rng["cpu"])
                if cuda:
                    torch.cuda.set_rng_state(self._module_rng["cuda"], self.device)
            try:
                yield
            finally:
                self._module_rng = self._global_rng()

    def _global_rng(self) -> dict[str, Tensor]:
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        """Only parameters are averaged; buffers, such as batch statistics, are the generator's own."""
        for average, current in zip(self.ema.buffers(), self.generator.buffers(), strict=True):
            average.copy_(current)


def _make_optimizer(module: nn.Module, config: AdamConfig, *, ema: nn.Module | None = None) -> AdamEMA:
    trained = [p for p in module.parameters() if p.requires_grad]
    averages = None
    if ema is not None:
        averages = [
            average
            for average, p in zip(ema.parameters(), module.parameters(), strict=True)
            if p.requires_grad
        ]
    return AdamEMA(
        trained,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        ema_params=averages,
    )


def _derive_seed(seed: int, purpose: str) -> int:
    """An independent 63-bit seed for each use, since equal seeds would give equal numbers."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big") >> 1


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _describe_data(data: ImageDataset) -> dict[str, Any]:
    return {
        "name": data.name,
        "images": len(data),
        "shape": list(data.image_shape),
        "num_classes": data.num_classes,
    }
