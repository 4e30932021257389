"""The settings of networks.

The settings of a family are a dataclass next to its network, the only place with each argument's name, type,
limits, default and meaning. The network's constructor, `build_generator` and `build_discriminator`,
`network.config`, a run's config and docs/presets.md read it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Annotated, Any, ClassVar, Concatenate, Literal, ParamSpec, TypeVar

from torch import Tensor, nn

from aigc_ext.config import Choice, Count, Range, Rule, UnknownKeyError

P = ParamSpec("P")
S = TypeVar("S", bound="NetworkConfig")
V = TypeVar("V")


class _Shape(Rule):
    def broken_rule(self, value: Sequence[int]) -> str | None:
        return None if len(value) == 3 and min(value) >= 1 else "(C, H, W), each at least 1"


_MAX_LAYERS = 256
"""More than any network has; a million layers of a damaged or hostile config would take minutes to make."""


class _Widths(Rule):
    def broken_rule(self, value: Sequence[int]) -> str | None:
        good = 1 <= len(value) <= _MAX_LAYERS
        return None if good else f"at least one width and at most {_MAX_LAYERS}, each at least 1"


_OUTSIDE_RUN = Rule()
OutsideRun = Annotated[V, _OUTSIDE_RUN]
"""Marks a field that is not a key of a run's config: it comes from the data, or a run uses the default."""
ImageShape = Annotated[Sequence[int], _Shape(), _OUTSIDE_RUN]
ClassCount = Annotated[int, Range(ge=0, lt=2**63), _OUTSIDE_RUN]
Widths = Annotated[Sequence[Count], _Widths()]
LayerCount = Annotated[int, Range(ge=1, le=_MAX_LAYERS)]
# In many images most pixels are black or white (digits, drawings, masks). A linear output does not reach
# these values exactly, so a discriminator can tell it apart by that alone; tanh does.
OutputAct = Literal["linear", "tanh"] | None


@dataclass(frozen=True)
class NetworkConfig(Choice):
    """The settings of a network: the arguments of its constructor, in order, and its family."""

    network: ClassVar[type[nn.Module]]

    family: str = field(default="", kw_only=True)

    @classmethod
    def key_names(cls) -> Sequence[str]:
        hints = cls.hints().items()
        return [name for name, hint in hints if _OUTSIDE_RUN not in getattr(hint, "__metadata__", ())]

    @classmethod
    def arguments(cls) -> list[str]:
        """The names of the constructor's arguments: all fields but the family."""
        return [f.name for f in dataclasses.fields(cls) if f.name != "family"]

    @classmethod
    def of(cls: type[S], arguments: Sequence[Any], keywords: Mapping[str, Any]) -> S:
        """The settings given to a constructor, either as one object or field by field.

        Raises:
            ConfigError: a value is not allowed.
            TypeError: too many arguments, or one given twice; an `UnknownKeyError` for an unknown one.
        """
        if len(arguments) == 1 and isinstance(arguments[0], cls) and not keywords:
            return arguments[0]
        for name in keywords:
            if name not in cls.arguments():
                raise UnknownKeyError("", name, cls.arguments())
        return cls(*arguments, **keywords)

    def architecture(self) -> dict[str, Any]:
        """All fields as JSON values."""
        values = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


@dataclass(frozen=True)
class GeneratorConfig(NetworkConfig, usual="mlp"):
    """The settings of a generator of images.

    Every family has `z_dim`, the length of a latent from N(0, 1), and `num_classes`, the number of labels, 0
    for an unconditional network. A run takes `image_shape`, (C, H, W), and `num_classes` from its data.
    """

    image_shape: ImageShape = (3, 64, 64)


@dataclass(frozen=True)
class DiscriminatorConfig(NetworkConfig, usual="mlp"):
    """A discriminator's settings."""


@dataclass(frozen=True)
class ImageDiscriminatorConfig(DiscriminatorConfig, usual="mlp"):
    """Of images: `image_shape`, (C, H, W), and `num_classes` are those of the data, as for a generator."""

    image_shape: ImageShape = (3, 64, 64)


@dataclass(frozen=True)
class ReconstructorConfig(NetworkConfig, usual="autoencoder"):
    """The settings of a network that gives back the item that it is given."""


@dataclass(frozen=True)
class SequenceConfig(NetworkConfig, usual="transformer"):
    """The settings of a network that predicts each element of a sequence from those before it."""


class Network(nn.Module):
    """A network made from its settings, which are also its attributes, under the same names."""

    grows_before: ClassVar[Mapping[str, int]] = {}
    """Lists of layers to which larger images add at the start, not the end: after how many that stay first.
    Between networks for images of different sizes, the later ones correspond counted from the end."""
    of_data: ClassVar[tuple[str, ...]] = ()
    """What the names of those tensors begin with that are not learned, but come with the data."""
    media: ClassVar[Literal["image", "audio", "text"]] = "image"
    """Of what it makes or judges."""
    settings: NetworkConfig
    image_shape: tuple[int, ...]  # of a network for images
    num_classes: int

    def __init__(self, settings: NetworkConfig) -> None:
        super().__init__()
        self.settings = settings
        vars(self).update({name: getattr(settings, name) for name in settings.arguments()})

    def __init_subclass__(cls) -> None:
        made_from = getattr(vars(cls).get("__init__"), "settings", None)
        if made_from is not None:
            made_from.network = cls

    @classmethod
    def row_meanings(cls, settings: Any, tensors: Mapping[str, Tensor]) -> Mapping[str, Sequence[Hashable]]:
        """For weights each row of which is of a token, a class or the like: of which, by the name of the
        weight. A network that begins with the weights of another takes the rows of the same, wherever they
        are.

        Args:
            settings: of a network of this class.
            tensors: its state_dict.
        """
        return {}

    @property
    def config(self) -> dict[str, Any]:
        """JSON values from which `models.build_network` or `build_discriminator` makes the same
        architecture."""
        return self.settings.architecture()


def takes(
    settings: Callable[P, S],
) -> Callable[[Callable[[Any, S], None]], Callable[Concatenate[Any, P], None]]:
    """Lets a constructor that takes settings also take their fields as its arguments."""
    cls: Any = settings

    def decorate(construct: Callable[[Any, S], None]) -> Callable[Concatenate[Any, P], None]:
        @functools.wraps(construct)
        def __init__(self: Any, *arguments: P.args, **keywords: P.kwargs) -> None:
            construct(self, cls.of(arguments, keywords))

        signature = inspect.signature(cls)
        own = next(iter(inspect.signature(construct).parameters.values())).replace(annotation=Parameter.empty)
        fields = [signature.parameters[name] for name in cls.arguments()]
        __init__.__signature__ = signature.replace(parameters=[own, *fields])  # type: ignore[attr-defined]
        __init__.settings = cls  # type: ignore[attr-defined]
        return __init__

    return decorate
