"""What is called again and again is replayed: with the same bits, and only while nothing was replaced."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aigc_ext.models import MLPGenerator
from aigc_ext.sampling import Sampler
from aigc_ext.sampling._replay import Replays
from tests.sampling.test_any_batch import GENERATORS, build, sizes_of_calls


def known(sampler: Sampler) -> list[Any]:
    return list(sampler._replays._known.values())


@pytest.mark.parametrize("name", GENERATORS)
def test_every_family_is_replayed(name: str) -> None:
    generator = build(name)
    sampler = Sampler(generator)
    options: list[dict[str, Any]] = [{}]
    if sampler.style_based:
        options += [{"truncation": 0.7, "truncation_cutoff": 2, "noise_mode": "none"}]
    for option in options:
        for seeds in ([3], [4, 5], [9]):
            expected = Sampler(generator).sample(seeds, **option)
            for _ in range(4):
                assert np.array_equal(sampler.sample(seeds, **option), expected)
    assert len(known(sampler)) == 2 * len(options)
    assert all(one.program is not None for one in known(sampler))


def test_the_third_call_runs_no_python_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sizes_of_calls(monkeypatch, MLPGenerator)
    sampler = Sampler(build("mlp"))
    for _ in range(4):
        sampler.sample(range(3))
    assert sizes == [2, 1, 2, 1]


def add_to_the_weights(generator: Any) -> None:
    with torch.no_grad():
        generator.head.weight.add_(0.3)


def other_storage(generator: Any) -> None:
    generator.head.weight.data = generator.head.weight.data * 1.5


def other_parameter(generator: Any) -> None:
    generator.head.weight = nn.Parameter(generator.head.weight * 1.5)


def other_weights(generator: Any) -> None:
    generator.load_state_dict({name: value * 1.5 for name, value in generator.state_dict().items()})


def other_setting(generator: Any) -> None:
    generator.head.gain = 0.5


def hook(generator: Any) -> None:
    generator.head.register_forward_hook(lambda module, given, made: made * 0.5)


def doubled(generator: Any) -> None:
    generator.double().head.weight.data.add_(0.3)


@pytest.mark.parametrize(
    "change",
    [add_to_the_weights, other_storage, other_parameter, other_weights, other_setting, hook, doubled],
)
def test_a_change_shows(change: Callable[[Any], None]) -> None:
    generator = build("mlp")
    sampler = Sampler(generator)
    before = [sampler.sample([1]) for _ in range(3)][-1]
    change(generator)
    expected = Sampler(generator).sample([1])
    assert not np.array_equal(before, expected)
    for _ in range(4):
        assert np.array_equal(sampler.sample([1]), expected)


def test_a_buffer_that_was_replaced_shows() -> None:
    generator = build("sngan")
    sampler = Sampler(generator)
    for _ in range(3):
        before = sampler.sample([1])
    generator.norm.running_mean = generator.norm.running_mean + 0.7
    assert not np.array_equal(sampler.sample([1]), before)
    for _ in range(3):
        assert np.array_equal(sampler.sample([1]), Sampler(generator).sample([1]))


def test_a_copy_has_its_own_weights() -> None:
    sampler = Sampler(build("mlp"))
    images = [sampler.sample([1]) for _ in range(3)][-1]
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert not known(other)
        add_to_the_weights(other.generator)
        made = [other.sample([1]) for _ in range(3)][-1]
        assert not np.array_equal(made, images)
    assert np.array_equal(sampler.sample([1]), images)


def test_latents_of_another_kind_are_another_call() -> None:
    generator = build("stylegan2")
    sampler = Sampler(generator)
    w = sampler.map([1, 2])
    expected = Sampler(generator).render(w)
    kinds = [w, w.double(), w.transpose(0, 1).contiguous().transpose(0, 1), w.detach().requires_grad_()]
    for _ in range(3):
        for latents in kinds:
            assert np.array_equal(sampler.render(latents), expected)
    z = sampler._draw([1, 2])
    assert all(np.array_equal(sampler.render(z), sampler.render(z.double())) for _ in range(3))


def test_few_programs_are_kept() -> None:
    sampler = Sampler(build("mlp"))
    for k in range(40):
        for _ in range(2):
            sampler.sample([1], truncation=k / 40)
    assert len(known(sampler)) == 32


class Net(nn.Module):
    def __init__(self, compute: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.compute = nn.Parameter(torch.randn(3)), compute
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def in_place(net: Any, x: Tensor) -> Tensor:
    made = x * net.weight
    made[:, 1:].add_(made[:, :1])
    made += 1
    return made


def of_lists(net: Any, x: Tensor) -> Tensor:
    parts = torch.split(torch.cat([x, x * net.weight], 1), 2, dim=1)
    return torch.stack(torch._foreach_mul(list(parts), 2.0)).sum(0)


def of_constants(net: Any, x: Tensor) -> Tensor:
    return x @ torch.eye(3) + torch.full((3,), 2.0)


def its_argument(net: Any, x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("compute", [in_place, of_lists, of_constants, its_argument])
def test_operations(compute: Callable[[Any, Tensor], Tensor]) -> None:
    net, replays = Net(compute), Replays()
    for _ in range(5):
        x = torch.randn(4, 3)
        with torch.no_grad():
            assert torch.equal(replays.run("key", [net], net, x), compute(net, x.clone()))
    (known,) = replays._known.values()
    assert known.program is not None


def reads_a_number(net: Any, x: Tensor) -> Tensor:
    return x * float(x.sum()) if float(x.sum()) > 0 else x


def draws(net: Any, x: Tensor) -> Tensor:
    return x + torch.randn(3)


def counts(net: Any, x: Tensor) -> Tensor:
    net.count.add_(1)
    return x + net.count


def changes_what_it_is_given(net: Any, x: Tensor) -> Tensor:
    return x.add_(1)


def of_numbers(net: Any, x: Tensor) -> Tensor:
    return x + torch.tensor(x.numpy().max())


def through_numpy(net: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() + 1) + net.weight


def makes_what_no_operation_made(net: Any, x: Tensor) -> Tensor:
    return torch.from_numpy(x.numpy() + 1)


@pytest.mark.parametrize(
    "compute",
    [
        *(reads_a_number, draws, counts, changes_what_it_is_given),
        *(of_numbers, through_numpy, makes_what_no_operation_made),
    ],
)
def test_what_cannot_be_replayed_is_called(compute: Callable[[Any, Tensor], Tensor]) -> None:
    net, other, replays = Net(compute), Net(compute), Replays()
    other.load_state_dict(net.state_dict())
    for seed in range(5):
        x = torch.randn(4, 3)
        with torch.no_grad():
            torch.manual_seed(seed)
            made = replays.run("key", [net], net, x.clone())
            torch.manual_seed(seed)
            assert torch.equal(made, compute(other, x.clone()))
    (known,) = replays._known.values()
    assert known.refused
