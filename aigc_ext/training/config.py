"""What a training run is told: `TrainConfig`, its JSON form, and the presets."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

T = TypeVar("T", bound="_Config")


class ConfigError(ValueError):
    """A key that does not exist, or a value that is not allowed; the message names key, value and rule."""


@dataclass(frozen=True)
class Range:
    """Limits of a number: `ge`/`le` inclusive, `gt`/`lt` exclusive."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def broken_rule(self, value: float) -> str | None:
        # Written as `not (in range)`, so that NaN breaks every rule.
        if self.ge is not None and not value >= self.ge:
            return f"at least {self.ge}"
        if self.gt is not None and not value > self.gt:
            return f"greater than {self.gt}"
        if self.le is not None and not value <= self.le:
            return f"at most {self.le}"
        if self.lt is not None and not value < self.lt:
            return f"less than {self.lt}"
        return None


Count = Annotated[int, Range(ge=1)]
NonNegative = Annotated[float, Range(ge=0)]
Positive = Annotated[float, Range(gt=0)]
Fraction = Annotated[float, Range(ge=0, lt=1)]


def _check(key: str, value: Any, hint: Any) -> Any:
    """Returns `value` in the form that `hint` asks for, or raises ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _check(key, value, args[0])
        for limit in args[1:]:
            if rule := limit.broken_rule(value):
                raise ConfigError(f"{key} is {value}, but must be {rule}")
        return value
    if origin in (Union, types.UnionType):
        if isinstance(args[0], type) and issubclass(args[0], _Config):
            return value if isinstance(value, args) else _check(key, value, _of_family(key, value, args))
        if value is None:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        return _check(key, value, inner)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{key} is {value!r}, but must be one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{key} is {value!r}, but must be a list")
        if args[-1] is Ellipsis:
            args = (args[0],) * len(value)
        if len(value) != len(args):
            raise ConfigError(f"{key} has {len(value)} entries, but must have {len(args)}")
        entries = zip(value, args, strict=True)
        return tuple(_check(f"{key}[{i}]", entry, arg) for i, (entry, arg) in enumerate(entries))
    if isinstance(hint, type) and issubclass(hint, _Config):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return hint.from_dict(value, prefix=f"{key}.")
        raise ConfigError(f"{key} is {value!r}, but must be an object with keys")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # bool is an int to Python, but `batch=true` is a mistake.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
        raise ConfigError(f"{key} is {value!r}, but must be {names[hint]}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{key} is {value}, but must be finite")
    return value


def _of_family(key: str, value: Any, families: tuple[Any, ...]) -> Any:
    """The one of several classes of configs that an object's "family" names; without it, the first."""
    named = value.get("family") if isinstance(value, Mapping) else None
    by_name = {family.family: family for family in families}
    if named is None:
        return families[0]
    if named not in by_name:
        names = ", ".join(map(repr, by_name))
        raise ConfigError(f"{key}.family is {named!r}, but must be one of {names}")
    return by_name[named]


@dataclass(frozen=True)
class _Config:
    """A frozen dataclass that checks its fields against their annotations, however it is made."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            object.__setattr__(self, name, _check(name, getattr(self, name), hint))

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any], *, base: T | None = None, prefix: str = "") -> T:
        """Builds the config from plain values; what they leave out is `base`'s, or the default.

        Raises ConfigError naming an unknown key, or a value of the wrong type or out of range.
        """
        hints = typing.get_type_hints(cls, include_extras=True)
        checked: dict[str, Any] = {}
        for name, value in values.items():
            if name not in hints:
                raise ConfigError(_unknown(f"{prefix}{name}", name, list(hints)))
            inherited = getattr(base, name, None)
            changes_family = isinstance(value, Mapping) and value.get("family") not in (
                None,
                getattr(inherited, "family", None),
            )
            if isinstance(inherited, _Config) and isinstance(value, Mapping) and not changes_family:
                checked[name] = inherited.from_dict(value, base=inherited, prefix=f"{prefix}{name}.")
            else:
                checked[name] = _check(f"{prefix}{name}", value, hints[name])
        return cls(**checked) if base is None else dataclasses.replace(base, **checked)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def _unknown(key: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown key {key}; {f'did you mean {close[0]}? ' if close else ''}known here: {', '.join(known)}"


@dataclass(frozen=True)
class DataConfig(_Config):
    source: str = "mnist5k"
    """An embedded data set's name or a path; see `aigc_ext.data.open_dataset`."""
    cond: bool = False
    """Train on the labels: both networks are told the class."""
    mirror: bool = False
    """Flip every image from left to right half of the time."""


@dataclass(frozen=True)
class MLPGeneratorConfig(_Config):
    family: Literal["mlp"] = "mlp"
    z_dim: Count = 100
    hidden: tuple[Count, ...] = (256, 128, 64)


@dataclass(frozen=True)
class MLPDiscriminatorConfig(_Config):
    family: Literal["mlp"] = "mlp"
    hidden: tuple[Count, ...] = (128, 64)


@dataclass(frozen=True)
class DCGANGeneratorConfig(_Config):
    family: Literal["dcgan"] = "dcgan"
    z_dim: Count = 100
    channels: Count = 64
    """Of the finest hidden images; twice as many for each halving of the sides."""


@dataclass(frozen=True)
class DCGANDiscriminatorConfig(_Config):
    family: Literal["dcgan"] = "dcgan"
    channels: Count = 64
    """Of the first hidden layer; twice as many for each halving of the sides."""


@dataclass(frozen=True)
class SNGANGeneratorConfig(_Config):
    family: Literal["sngan"] = "sngan"
    z_dim: Count = 128
    channels: Count = 256


@dataclass(frozen=True)
class SNGANDiscriminatorConfig(_Config):
    family: Literal["sngan"] = "sngan"
    channels: Count = 128


@dataclass(frozen=True)
class StyleGAN2GeneratorConfig(_Config):
    family: Literal["stylegan2"] = "stylegan2"
    z_dim: Count = 512
    w_dim: Count = 512
    mapping_layers: Count = 8
    channel_base: Count = 32768
    """Channels at a resolution are this number divided by its larger side..."""
    channel_max: Count = 512
    """... but not more than this."""
    output_act: Literal["linear", "tanh"] | None = None
    """What the pixels go through; null: tanh if much of the data is black or white (`training.recipe`)."""


@dataclass(frozen=True)
class StyleGAN2DiscriminatorConfig(_Config):
    family: Literal["stylegan2"] = "stylegan2"
    channel_base: Count = 32768
    channel_max: Count = 512
    group_size: Count = 4
    """Images whose standard deviation is shown to the last layers."""


@dataclass(frozen=True)
class StyleGAN3GeneratorConfig(_Config):
    family: Literal["stylegan3"] = "stylegan3"
    variant: Literal["t", "r"] = "t"
    """Equivariant to translation, or to rotation too."""
    z_dim: Count = 512
    w_dim: Count = 512
    mapping_layers: Count = 2
    channel_base: Count = 32768
    channel_max: Count = 512
    num_layers: Count = 14
    output_act: Literal["linear", "tanh"] | None = None
    """What the pixels go through; null: tanh if much of the data is black or white (`training.recipe`)."""


@dataclass(frozen=True)
class R3GANGeneratorConfig(_Config):
    family: Literal["r3gan"] = "r3gan"
    z_dim: Count = 64
    channel_base: Count = 24576
    """Channels at a resolution are this number divided by its larger side, rounded down to whole groups..."""
    channel_max: Count = 768
    """... but not more than this."""
    blocks: Count = 2
    """Residual blocks at each resolution."""
    group_size: Count = 16
    """Channels of a group of a block's 3x3 convolution."""
    expansion: Count = 2
    """What a block multiplies the channels by inside."""
    output_act: Literal["linear", "tanh"] | None = None
    """What the pixels go through; null: tanh if much of the data is black or white (`training.recipe`)."""


@dataclass(frozen=True)
class R3GANDiscriminatorConfig(_Config):
    family: Literal["r3gan"] = "r3gan"
    channel_base: Count = 24576
    channel_max: Count = 768
    blocks: Count = 2
    group_size: Count = 16
    expansion: Count = 2


@dataclass(frozen=True)
class LossConfig(_Config):
    kind: Literal["logistic", "minimax", "hinge", "lsgan", "wgan", "relativistic", "relativistic_avg"] = (
        "logistic"
    )
    label_smoothing: Fraction = 0.0
    l2_weight: NonNegative = 0.0
    gamma: NonNegative | None = 0.0
    """Weight of R1: the discriminator's loss gets gamma/2 times the mean of |dD/dx|^2. 0 turns it off; null
    is a number for the size of the images, see `training.recipe`."""
    gamma_end: NonNegative | None = None
    """What gamma becomes by the end of the ramp; null: it stays."""
    r1_interval: Count = 16
    """R1 is taken every so many steps, times this number (lazy regularisation)."""
    r2: bool = False
    """Take the penalty at the generated images too, at the same steps and with the same weight."""
    path_weight: NonNegative = 0.0
    """Weight of the path length regulariser (generators with a mapping network); 0 turns it off."""
    path_interval: Count = 4
    """It is taken every so many of the generator's steps, times this number..."""
    path_every: Count = 2
    """... on every so manieth sample..."""
    path_decay: Annotated[float, Range(gt=0, le=1)] = 0.01
    """... with a running mean that moves by this share of the way."""
    mixing: Annotated[float, Range(ge=0, le=1)] = 0.0
    """Share of the samples that get styles of two latents (generators with a mapping network)."""


@dataclass(frozen=True)
class AdamConfig(_Config):
    lr: Positive = 1e-4
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    lr_end: Positive | None = None
    """What lr becomes by the end of the ramp; null: it stays."""
    beta2_end: Fraction | None = None
    """What beta2 becomes by the end of the ramp; null: it stays."""


@dataclass(frozen=True)
class EMAConfig(_Config):
    """The averaged generator. A half-life in images, unlike a decay, means the same for every batch size."""

    kimg: NonNegative | None = 10.0
    """Half-life in thousands of images; 0 makes the average equal to the generator; null is 10/32 of the
    batch size."""
    kimg_start: NonNegative | None = None
    """What the half-life is at the start of the ramp; null: the same."""
    rampup: Annotated[float, Range(gt=0)] | None = 0.05
    """The half-life is at most this share of the images seen so far, to forget the start; null is off."""

    def decay(self, nimg: int, batch: int, ramp: float = 1.0) -> float:
        """The EMA decay of the step that ends at `nimg` images seen, at a point of the ramp from 0 to 1."""
        assert self.kimg is not None, "recipe.complete has not been called"
        start = self.kimg if self.kimg_start is None else self.kimg_start
        half_life = 1000 * (start + ramp * (self.kimg - start))
        if self.rampup is not None:
            half_life = min(half_life, nimg * self.rampup)
        return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


@dataclass(frozen=True)
class AugmentConfig(_Config):
    """What the discriminator sees in the place of an image; see `training.augment`."""

    kind: Literal["noaug", "ada", "fixed", "diffaug"] = "noaug"
    """ada: with a probability that follows how sure D is of real images; fixed: with a given one; diffaug:
    always."""
    p: Annotated[float, Range(ge=0, le=1)] = 0.2
    """The probability of `fixed`."""
    p_start: Annotated[float, Range(ge=0, le=1)] | None = None
    """What it is at the start of the ramp; null: the same."""
    target: Annotated[float, Range(gt=0, lt=1)] = 0.6
    """ada holds the mean of sign(D(real)) here."""
    interval: Count = 4
    """ada looks every so many steps..."""
    kimg: Positive = 500.0
    """... and could go from 0 to 1 in so many thousands of images."""
    blit: bool = True
    geometric: bool = True
    color: bool = True
    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    """Of diffaug."""
    blur_sigma: NonNegative | None = 0.0
    """Behind any of these, a Gaussian blur of so many pixels (standard deviation) at the start of training;
    see `training.blur`. 0 turns it off; null is a number for the size of the images, see
    `training.recipe`."""
    blur_kimg: Positive = 200.0
    """It fades linearly, to nothing after so many thousands of images."""


@dataclass(frozen=True)
class TrainConfig(_Config):
    """Everything that decides a run's result. `to_json`/`from_json` are its form on disk (`config.json`).

    `kimg` counts thousands of real images shown to the discriminator, the field's unit of training length.
    """

    preset: str = "mlp"
    seed: Annotated[int, Range(ge=0, lt=2**63)] = 0
    data: DataConfig = field(default_factory=DataConfig)
    generator: (
        MLPGeneratorConfig
        | DCGANGeneratorConfig
        | SNGANGeneratorConfig
        | StyleGAN2GeneratorConfig
        | StyleGAN3GeneratorConfig
        | R3GANGeneratorConfig
    ) = field(default_factory=MLPGeneratorConfig)
    discriminator: (
        MLPDiscriminatorConfig
        | DCGANDiscriminatorConfig
        | SNGANDiscriminatorConfig
        | StyleGAN2DiscriminatorConfig
        | R3GANDiscriminatorConfig
    ) = field(default_factory=MLPDiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    g_optim: AdamConfig = field(default_factory=AdamConfig)
    d_optim: AdamConfig = field(default_factory=AdamConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    ramp_kimg: NonNegative = 0.0
    """Thousands of images over which the values with an `_end` or `_start` go there along half a cosine."""
    batch: Count = 64
    """Images of a step, over all processes."""
    batch_gpu: Count | None = None
    """Images that a process computes at once: gradients of several such parts are added up. null: its share
    of the batch."""
    n_dis: Count = 1
    """The generator learns in every n_dis-th step only, the discriminator in each."""
    kimg: Positive = 1000.0
    """Length of the run in thousands of images, rounded up to whole batches."""
    tick: Positive = 10.0
    """A row of figures is written every so many thousands of images."""
    snap: Count = 10
    """Every so many ticks: a sample grid, a checkpoint and the model."""
    keep: Count = 3
    """How many of the newest checkpoints stay on disk, beside the one with the best `fd` or `kid`."""
    grid: tuple[Count, Count] = (8, 8)
    """Columns and rows of the sample grids."""
    nonfinite_limit: Count = 100
    """After so many steps of one network in a row without a finite gradient the run stops with a dump."""
    metrics: tuple[Literal["fd", "kid", "pr", "coverage"], ...] = ()
    """Taken at every snapshot but the one that a signal asks for; see `aigc_ext.metrics`."""
    metric_images: Annotated[int, Range(ge=2)] = 5000
    """How many generated images they are taken of."""
    log: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where figures and sample grids go too; see `training.loggers`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the networks' arithmetic (autocast); weights and losses are float32."""
    channels_last: bool = False
    """Memory format of images and convolutions."""
    workers: Annotated[int, Range(ge=0)] = 0
    """Threads that read images ahead; 0 suits data that is held in memory."""
    device: str = "auto"
    """'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'."""
    threads: Count | None = None
    """CPU threads of PyTorch; null leaves PyTorch's choice. Results are the same bits for the same number."""
    deterministic: bool = False
    """Ask PyTorch for deterministic algorithms (a CUDA matter: CPU runs repeat bit for bit either way)."""
    malloc: Literal["default", "keep"] = "default"
    """'keep' tells glibc not to give freed memory back to the system; see `training.malloc`."""

    @property
    def total_images(self) -> int:
        return _images(self.kimg)

    @property
    def tick_images(self) -> int:
        return _images(self.tick)

    def override(self, key: str, value: Any) -> TrainConfig:
        """A copy with one dotted key (`"g_optim.lr"`) set."""
        tree: Any = value
        for name in reversed(key.split(".")):
            tree = {name: tree}
        return TrainConfig.from_dict(tree, base=self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, path: str | Path, *, base: TrainConfig | None = None) -> TrainConfig:
        """Reads a config file; keys that it leaves out keep `base`'s value.

        Raises ConfigError naming the file for what is no JSON object, an unknown key or a wrong value.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"config {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"config {path} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"config {path} holds a {type(values).__name__}, but must hold a JSON object")
        try:
            return cls.from_dict(values, base=base)
        except ConfigError as error:
            raise ConfigError(f"config {path}: {error}") from error


def _images(kimg: float) -> int:
    """Rounded up; 16.1 are 16,100, although the product of the floats is a little more."""
    return max(1, math.ceil(round(kimg * 1000, 6)))


def parse_setting(setting: str) -> tuple[str, Any]:
    """Splits `a.b=value`; the value is JSON where it parses as such, else a string."""
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ConfigError(f"setting {setting!r} is not of the form key=value, such as g_optim.lr=0.0002")
    try:
        return key.strip(), json.loads(text)
    except ValueError:
        return key.strip(), text
