"""WaveNet: what a sample depends on, and that step by step it is what it learned to be."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aigc_ext.config import ConfigError
from aigc_ext.models import WaveNet, WaveNetConfig, build_network
from aigc_ext.models.wavenet import SILENCE, decode, encode
from aigc_ext.ops import wavenet_step_
from tests.ops.suite import check_budget

SMALL: dict[str, Any] = {
    "channels": 10,
    "gates": 9,
    "skips": 12,
    "hidden": 14,
    "dilations": (1, 3, 2),
    "length": 40,
    "sample_rate": 100,
    "frame": 0.07,  # six, of seven samples each
}


def network(**options: Any) -> WaveNet:
    torch.manual_seed(0)
    net = WaveNet(**{**SMALL, "num_classes": 4, **options}).double()
    torch.nn.init.normal_(net.output.weight, 0.0, 0.3)  # which begins at 0
    return net


def step_logits(net: WaveNet, codes: Tensor, c: Tensor | None) -> Tensor:
    _, logits = wavenet_step_(
        net.new_state(len(codes)),
        net.step_weights(),
        net.step_condition(len(codes), c),
        net.settings.dilations,
        given=codes,
        hop=net.settings.hop,
        with_logits=True,
    )
    return logits


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("num_classes", [0, 4])
@pytest.mark.parametrize("frame", [0.0, 0.07])
def test_step_by_step_it_is_the_convolution(taps: int, num_classes: int, frame: float) -> None:
    """Beyond the end of the longest queue and of the last frame."""
    net = network(taps=taps, num_classes=num_classes, frame=frame)
    codes = torch.randint(0, 256, (3, 50))
    c = torch.tensor([0, 3, 1]) if num_classes else None
    torch.testing.assert_close(step_logits(net, codes, c), net(codes, c), rtol=1e-10, atol=1e-10)


def test_in_float32_it_is_within_the_error_budget() -> None:
    net = network(channels=48, gates=48, skips=64, hidden=64, dilations=(1, 3, 9) * 2)
    codes, c = torch.randint(0, 256, (2, 80)), torch.tensor([0, 2])
    truth, single = net(codes, c), copy.deepcopy(net).float()
    check_budget(step_logits(single, codes, c), single(codes, c), truth, torch.float32, "logits")


@pytest.mark.parametrize("taps", [2, 4])
def test_a_sample_depends_on_the_receptive_field_alone(taps: int) -> None:
    net = network(taps=taps)
    field, length = net.settings.receptive_field, 40
    codes, c = torch.randint(0, 256, (1, length)), torch.tensor([1])
    for place in (0, 5, length - 1):
        changed = codes.clone()
        changed[0, place] = (changed[0, place] + 100) % 256
        differs = (net(changed, c) != net(codes, c)).any(2)[0].nonzero().flatten().tolist()
        assert set(differs) <= set(range(place + 1, min(place + field, length - 1) + 1))
        if place + field < length:
            assert differs[0] == place + 1
            assert differs[-1] == place + field


def test_the_loss_is_the_mean_over_what_is_counted() -> None:
    net = network(tail=0.05)  # 5 samples
    items = torch.randint(-9000, 9000, (3, 40)).to(torch.int16)
    items[0, 20:], items[1] = 0, 0
    items[0, 19] = 1
    labels = torch.tensor([2, 0, 3])
    nats, count = net.loss(items, labels)
    assert count.item() == 25 + 5 + 40
    codes = encode(items)
    each = -net(codes, labels).log_softmax(2).gather(2, codes[..., None])[..., 0]
    torch.testing.assert_close(nats, each[0, :25].sum() + each[1, :5].sum() + each[2].sum())
    gradients = torch.autograd.grad(nats, list(net.parameters()))
    counted = torch.arange(40) < torch.tensor([25, 5, 40])[:, None]
    at_once = net._nats(items, counted, labels)  # as on a card
    torch.testing.assert_close(at_once, nats)
    for ours, other in zip(gradients, torch.autograd.grad(at_once, list(net.parameters())), strict=True):
        torch.testing.assert_close(ours, other)


def test_the_loss_of_no_items_is_nothing() -> None:
    nats, count = network().loss(torch.zeros(0, 5, dtype=torch.int16), torch.zeros(0, dtype=torch.int64))
    assert (nats.item(), count.item()) == (0, 0)
    nats.backward()


def test_it_learns_a_wave() -> None:
    torch.manual_seed(0)
    net = WaveNet(**{**SMALL, "num_classes": 2})
    wave = torch.sin(torch.arange(80) * 0.3)
    items = torch.stack([wave * 8000, wave * 500]).to(torch.int16)
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    losses = []
    for _ in range(120):
        nats, count = net.loss(items, torch.tensor([0, 1]))
        optimizer.zero_grad()
        (nats / count).backward()
        optimizer.step()
        losses.append(nats.item() / count.item())
    assert losses[0] == pytest.approx(np.log(256), rel=1e-3)
    assert losses[-1] < 0.5
    made = net.sample([0, 0], [0, 1], temperature=0.0).astype(float)
    assert np.abs(made[0]).max() > 5 * np.abs(made[1]).max() > 0


@pytest.mark.parametrize("num_classes", [0, 4])
def test_each_seed_alone_is_as_in_a_batch(num_classes: int) -> None:
    net = network(num_classes=num_classes).float()
    seeds = [5, 0, 5, 2**63 - 1, *range(20, 50)]
    together = net.sample(seeds)
    assert together.dtype == np.int16
    assert together.shape == (len(seeds), 40)
    for row in (0, 1, 3, 33):
        assert (net.sample(seeds[row : row + 1])[0] == together[row]).all()
    assert (together[0] == together[2]).all()
    assert any((a != b).any() for a, b in itertools.pairwise(together))
    assert (net.sample([5], seconds=0.25)[0] == together[0, :25]).all()


def test_the_class_and_the_temperature_count() -> None:
    net = network().float()
    same = [net.sample([7], [c]) for c in (0, 1)]
    assert (same[0] != same[1]).any()
    cold = net.sample([7, 8], [0, 0], temperature=0.0)
    assert (cold[0] == cold[1]).all()
    net.trained_classes = [2]
    assert (net.sample([7]) == net.sample([7], [2])).all()


def test_the_codes_of_the_mu_law() -> None:
    samples = torch.arange(-32768, 32768).to(torch.int16)
    codes = encode(samples)
    assert (codes.diff() >= 0).all()
    assert codes[32768] == SILENCE
    assert decode(torch.tensor([SILENCE])).item() == 0
    assert (int(codes.min()), int(codes.max())) == (0, 255)
    # Near 0, where the steps are less than 3, some codes have no samples; all others come back.
    assert torch.equal(decode(encode(decode(torch.arange(256)))), decode(torch.arange(256)))
    error = (decode(codes).double() - samples).abs()[1800:-1800]  # the loudest are cut off
    assert (error <= 0.025 * samples.double().abs()[1800:-1800] + 3).all()


def test_a_config_makes_the_same_network() -> None:
    net = network()
    again = build_network(net.config)
    assert again.config == net.config
    assert again.media == "audio"
    assert again.sample_rate == 100
    again.double().load_state_dict(net.state_dict())
    codes, c = torch.randint(0, 256, (1, 9)), torch.tensor([0])
    assert torch.equal(again(codes, c), net(codes, c))
    default = WaveNetConfig()
    assert default.receptive_field >= 0.2 * default.sample_rate


BAD_SAMPLES: list[tuple[dict[str, Any], str]] = [
    ({"seeds": [-1]}, r"seeds has -1, but must have integers from 0 to"),
    ({"seeds": [1, 2], "classes": [0]}, r"classes has 1 entries, but must have one per seed, 2"),
    ({"seeds": [1], "classes": [4]}, r"classes has 4, but must have integers from 0 to 3"),
    ({"seeds": [1], "seconds": 0.0}, r"seconds is 0.0, but must be more than 0"),
    ({"seeds": [1], "temperature": float("nan")}, r"temperature is nan, but must be a finite number"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_SAMPLES)
def test_bad_arguments_of_sample(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network().sample(**arguments)


def test_bad_items_and_settings() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"items are torch.int64 of shape \(1, 4\), but must be int16"):
        net.loss(torch.zeros(1, 4, dtype=torch.int64), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"codes have 256, but must have numbers from 0 to 255"):
        net(torch.tensor([[256]]), torch.tensor([0]))
    with pytest.raises(ValueError, match="unconditional"):
        network(num_classes=0).sample([1], [0])
    with pytest.raises(ConfigError, match="dilations has 129 layers, but must have at most 128"):
        WaveNetConfig(dilations=(1,) * 129)
