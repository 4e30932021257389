"""Weights of one network as the start of another, for every family."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aigc_ext.models import TransformerConfig, build_discriminator, build_generator, build_network
from aigc_ext.models.transfer import transfer_weights

STYLE = {"z_dim": 8, "w_dim": 6, "mapping_layers": 2, "channel_base": 64, "channel_max": 4}
GENERATORS: dict[str, dict[str, Any]] = {
    "mlp": {"z_dim": 8, "hidden": [12, 8]},
    "dcgan": {"z_dim": 8, "channels": 4},
    "sngan": {"z_dim": 8, "channels": 4},
    "stylegan2": STYLE,
    "stylegan3": {**STYLE, "num_layers": 4},
    "r3gan": {"z_dim": 8, "channel_base": 64, "channel_max": 4, "blocks": 1},
}
DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "mlp": {"hidden": [12, 8]},
    "dcgan": {"channels": 4},
    "sngan": {"channels": 4},
    "stylegan2": {"channel_base": 64, "channel_max": 4},
    "r3gan": {"channel_base": 64, "channel_max": 4, "blocks": 1},
}
NETWORKS = [("generator", family) for family in GENERATORS] + [
    ("discriminator", family) for family in DISCRIMINATORS
]
ROLES = pytest.mark.parametrize(("role", "family"), NETWORKS, ids=[f"{r}-{f}" for r, f in NETWORKS])


def network(role: str, family: str, side: int = 16, channels: int = 3, classes: int = 0) -> nn.Module:
    settings = {
        "family": family,
        "image_shape": (channels, side, side),
        "num_classes": classes,
        **(GENERATORS if role == "generator" else DISCRIMINATORS)[family],
    }
    made = (build_generator if role == "generator" else build_discriminator)(settings)
    for name, value in made.state_dict().items():
        if value.is_floating_point() and not name.endswith(
            "_filter"
        ):  # so that no two tensors are equal by their initialisation
            value.add_(torch.rand_like(value))
    return made


def numbers(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def check(target: nn.Module, source: nn.Module) -> tuple[set[str], set[str]]:
    """Transfers, checks that every tensor is what the answer says, and returns the names taken and new."""
    before, given = numbers(target), numbers(source)
    answer = transfer_weights(target, source.state_dict())
    after = numbers(target)
    places = given | {
        name: given[other] for name, other in renamed(target, before, given).items() if other in given
    }
    for name in answer.taken:
        assert torch.equal(after[name], places[name]), name
    for name in answer.new:
        assert torch.equal(after[name], before[name]), name
    constant = {name for name in after if name.endswith("_filter")}
    for name in constant:
        assert torch.equal(after[name], before[name]), name
    listed = [*answer.taken, *answer.partly, *answer.new]
    assert len(listed) == len(set(listed))
    assert set(listed) == after.keys() - constant
    assert all(torch.equal(given[name], source.state_dict()[name]) for name in given)
    assert str(answer).startswith(f"{len(answer.taken)} of {len(listed)} tensors taken")
    return set(answer.taken), set(answer.new)


def renamed(target: nn.Module, own: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, str]:
    """By hand: the layers of a network that grows at its start, counted from the end."""
    found = {}
    for prefix, first in getattr(target, "grows_before", {}).items():
        most = [
            max(int(n.split(".")[1]) for n in names if n.startswith(prefix + ".")) for names in (own, given)
        ]
        for name in own:
            parts = name.split(".")
            if parts[0] == prefix and int(parts[1]) >= first:
                moved = int(parts[1]) - most[0] + most[1]
                if moved >= first:
                    found[name] = ".".join([prefix, str(moved), *parts[2:]])
    return found


@ROLES
def test_the_same_architecture_takes_everything(role, family):
    target, source = network(role, family), network(role, family)
    assert not check(target, source)[1]
    inputs = torch.randn(4, 8) if role == "generator" else torch.randn(4, 3, 16, 16)
    options = {"noise_mode": "const"} if family in ("stylegan2", "stylegan3") and role == "generator" else {}
    assert torch.equal(target.eval()(inputs, **options), source.eval()(inputs, **options))


@ROLES
def test_another_number_of_classes_renews_only_what_knows_them(role, family):
    _, new = check(network(role, family, classes=5), network(role, family, classes=3))
    assert 0 < len(new) <= 3
    for name in new:
        assert any(word in name for word in ("embedding", "label_mapping"))


@ROLES
@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0)])
def test_what_multiplies_z_is_kept_with_and_without_classes(role, family, before, after):
    target, source = network(role, family, classes=after), network(role, family, classes=before)
    old = numbers(target)
    answer = transfer_weights(target, source.state_dict())
    if role == "discriminator":
        assert answer.partly == []
        assert all("embedding" in n or "label_mapping" in n or "head" in n for n in answer.new)
        return
    (name,) = answer.partly
    axis = 0 if family == "dcgan" else 1
    mixed, given = target.state_dict()[name], source.state_dict()[name]
    assert torch.equal(mixed.narrow(axis, 0, 8), given.narrow(axis, 0, 8))
    if after:
        assert torch.equal(
            mixed.narrow(axis, 8, mixed.shape[axis] - 8), old[name].narrow(axis, 8, mixed.shape[axis] - 8)
        )
    assert all("embedding" in n for n in answer.new)


@ROLES
@pytest.mark.parametrize(("before", "after"), [(16, 32), (32, 16)])
def test_another_resolution_takes_the_layers_of_the_same_shape(role, family, before, after):
    target, source = network(role, family, side=after), network(role, family, side=before)
    taken, new = check(target, source)
    assert len(taken) > len(new) or family in ("mlp", "dcgan")
    assert taken


def test_layers_correspond_counted_from_the_coarsest_images():
    source = network("discriminator", "stylegan2", side=16)
    target = network("discriminator", "stylegan2", side=32)
    new = check(target, source)[1]
    assert {name for name in new if name.startswith("blocks.")} == {
        name for name in target.state_dict() if name.startswith("blocks.0.") and "filter" not in name
    }
    assert torch.equal(target.blocks[2].conv1.weight, source.blocks[1].conv1.weight)  # type: ignore[index, union-attr]
    # The first block of SNGAN's is the one that sees the image.
    source, target = (network("discriminator", "sngan", side=side) for side in (16, 32))
    taken, new = check(target, source)
    assert "blocks.0.conv1.parametrizations.weight.original" in taken
    assert all(name.startswith("blocks.1.") for name in new)


@ROLES
def test_other_channels_renew_what_touches_the_image(role, family):
    taken, new = check(network(role, family, channels=1), network(role, family, channels=3))
    assert new
    assert len(taken) > len(new)
    # A weight's singular vectors go with it.
    for name in taken:
        if name.endswith(("._u", "._v")):
            assert name.rpartition(".0._")[0] + ".original" in taken


def test_a_network_of_others_takes_what_has_the_same_name():
    target, source = nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2))
    answer = transfer_weights(
        target, {"weight": torch.ones(2, 3), "bias": torch.ones(3), "more": torch.ones(1)}
    )
    assert (answer.taken, answer.unused) == (["weight"], ["more"])
    assert answer.new == {"bias": "(2,), but (3,) in the source"}
    assert transfer_weights(source, target.state_dict()).unused == ["weight", "bias"]


def autoencoder(**settings: Any) -> nn.Module:
    small = {"image_shape": (3, 8, 8), "channels": [4, 4], "bottleneck": "vq", "code_dim": 4, "num_codes": 6}
    made = build_network({"family": "autoencoder", **small, **settings})
    for value in made.state_dict().values():
        value.add_(torch.rand_like(value) if value.is_floating_point() else 1)
    return made


def test_a_codebook_is_taken_with_the_averages_that_it_consists_of():
    quantizer = {"quantizer.codebook", "quantizer.sums", "quantizer.counts", "quantizer.updates"}
    target, source = autoencoder(), autoencoder()
    taken, new = check(target, source)
    assert quantizer <= taken
    assert not new
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(target.eval()(images), source.eval()(images))
    # As many counts, but of codes that these are not.
    _, new = check(autoencoder(code_dim=5), source)
    assert quantizer < new
    assert all(name.startswith(("quantizer", "encoder.last", "decoder.first")) for name in new)
    assert check(autoencoder(num_codes=7), source)[1] == quantizer


def test_an_autoencoder_of_other_images_takes_every_convolution():
    assert not check(autoencoder(image_shape=(3, 16, 24)), autoencoder())[1]
    _, new = check(autoencoder(num_classes=3), autoencoder())
    assert new == {"encoder.embedding.weight", "decoder.embedding.weight"}


def test_rows_of_a_source_that_is_not_ours_have_no_meanings():
    settings = TransformerConfig(vocabulary=6, outputs=6, length=4, width=8, heads=2, layers=1, hidden=8)
    target, source = (settings.network(settings) for _ in range(2))
    assert transfer_weights(target, source.state_dict()).taken == list(source.state_dict())
    longer = replace(settings, vocabulary=8)
    done = transfer_weights(longer.network(longer), source.state_dict())
    assert done.new == {"embedding.weight": "(8, 8), but (6, 8) in the source"}
    done = transfer_weights(longer.network(longer), source.state_dict(), settings)
    assert done.rows == {"embedding.weight": "6 of 8 rows"}
    assert str(done).endswith("; of embedding.weight 6 of 8 rows")
    wider = replace(longer, width=16)
    done = transfer_weights(wider.network(wider), source.state_dict(), settings)
    assert done.new["embedding.weight"] == "(8, 16), but (6, 8) in the source"
