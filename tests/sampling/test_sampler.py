from __future__ import annotations

import json
import random
import resource
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aigc_ext.models import MLPGenerator
from aigc_ext.sampling import (
    ConvertError,
    PretrainedError,
    Sampler,
    convert_checkpoint,
    load_pretrained,
    save_pretrained,
)
from aigc_ext.tasks.gan import TrainConfig, Trainer
from aigc_ext.training.checkpoint import serialize


class Chaotic(nn.Module):
    """Magnifies the last bits of a GEMM's result, so that the slightest difference changes whole pixels."""

    value_range = (0.0, 1.0)

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = MLPGenerator((3, 5, 4), z_dim=33, hidden=(130, 77), num_classes=num_classes)
        self.z_dim, self.num_classes = 33, num_classes

    def forward(self, z, c=None):
        return self.inner(z, c) * 3e6 % 1.0


def make(num_classes: int = 0) -> MLPGenerator:
    torch.manual_seed(1)
    return MLPGenerator((1, 4, 6), z_dim=7, hidden=(16, 16), num_classes=num_classes)


@pytest.mark.parametrize("classes", [0, 5])
def test_a_seed_is_the_same_image_whatever_it_is_sampled_with(classes):
    sampler = Sampler(Chaotic(classes))
    seeds = [0, 1, 2, 3, 15, 16, 17, 1000, 2**31, 2**63 - 1, *range(40, 60)]
    alone = {seed: sampler.sample([seed])[0] for seed in seeds}
    rng = random.Random(0)
    for _ in range(25):
        chosen = rng.choices(seeds, k=rng.randrange(1, 70))
        images = sampler.sample(chosen)
        assert images.shape == (len(chosen), 5, 4, 3)
        for seed, image in zip(chosen, images, strict=True):
            assert np.array_equal(image, alone[seed])
    assert len({image.tobytes() for image in alone.values()}) == len(seeds)


def test_the_image_does_not_depend_on_the_mode_of_the_generator():
    norm = nn.BatchNorm1d(4)
    generator = nn.Sequential(nn.Linear(3, 4), norm, nn.Dropout(0.5), nn.Unflatten(1, (1, 2, 2)))
    sampler = Sampler(generator, z_dim=3, value_range=(-1.0, 1.0))
    generator.train()
    one = sampler.sample(range(5))
    assert generator.training
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 0
    generator.eval()
    assert np.array_equal(one, sampler.sample(range(5)))
    assert not generator.training


def test_no_global_random_numbers_are_used():
    sampler = Sampler(make(3))
    state = torch.get_rng_state()
    sampler.sample(range(5))
    assert torch.equal(state, torch.get_rng_state())


def test_output():
    sampler = Sampler(make())
    images = sampler.sample([3, 4])
    assert (images.shape, images.dtype) == ((2, 4, 6, 1), np.uint8)
    pil = sampler.sample([3, 4], output="pil")
    assert [image.mode for image in pil] == ["L", "L"]
    assert pil[0].size == (6, 4)
    assert all(np.array_equal(np.asarray(p), image[:, :, 0]) for p, image in zip(pil, images, strict=True))


def test_the_values_are_those_of_the_generator():
    generator = make()
    z = torch.randn(7, generator=torch.Generator().manual_seed(12))
    with torch.no_grad():
        expected = (generator(z[None]) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(Sampler(generator).sample([12])[0] - expected).max() <= 1


def test_truncation_shrinks_z():
    generator = make()
    sampler = Sampler(generator)
    zero = sampler.sample(range(20), truncation=0)
    assert np.array_equal(zero, np.broadcast_to(zero[0], zero.shape))
    z = torch.randn(7, generator=torch.Generator().manual_seed(5)) * 0.3
    with torch.no_grad():
        expected = (generator(z[None]) * 255).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(sampler.sample([5], truncation=0.3)[0] - expected).max() <= 1
    assert np.array_equal(sampler.sample([5], truncation=1), sampler.sample([5]))
    assert not np.array_equal(sampler.sample([5], truncation=0.3), sampler.sample([5]))


def test_classes():
    sampler = Sampler(make(4))
    by_class = [sampler.sample([7], c)[0] for c in range(4)]
    assert len({image.tobytes() for image in by_class}) == 4
    mixed = sampler.sample([7] * 6, [3, 0, 0, 2, 1, 3])
    assert all(np.array_equal(image, by_class[c]) for image, c in zip(mixed, [3, 0, 0, 2, 1, 3], strict=True))
    assert np.array_equal(sampler.sample([7, 7], np.int64(2)), np.stack([by_class[2]] * 2))
    # Without classes the seed decides, the same for everyone and about evenly.
    seeds = range(200)
    own = sampler.resolve_classes(seeds)
    assert own is not None
    assert np.array_equal(sampler.sample(seeds), sampler.sample(seeds, own))
    assert min(np.bincount(own, minlength=4)) > 30
    assert sampler.resolve_classes([5, 9]) == [own[5], own[9]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, -1]}, f"seed is -1, but must be an integer from 0 to {2**63 - 1}"),
        ({"seeds": [2**63]}, f"seed is {2**63}, but must be"),
        ({"seeds": [1.0]}, "seed is 1.0, but must be an integer"),
        ({"seeds": [True]}, "seed is True, but must be an integer"),
        ({"seeds": ["1"]}, "seed is '1', but must be an integer"),
        ({"seeds": 3}, "seeds is 3, but must be a sequence of integers"),
        ({"seeds": [1], "classes": 4}, "class is 4, but must be an integer from 0 to 3"),
        ({"seeds": [1], "classes": -1}, "class is -1, but must be an integer from 0 to 3"),
        ({"seeds": [1], "classes": 0.5}, "class is 0.5, but must be an integer from 0 to 3"),
        ({"seeds": [1], "classes": [0.5]}, "class is 0.5, but must be an integer from 0 to 3"),
        ({"seeds": [1, 2], "classes": [0]}, "classes has 1 entries, but must have one per seed, 2"),
        ({"seeds": [1], "truncation": float("nan")}, "truncation is nan, but must be a finite number"),
        ({"seeds": [1], "truncation": -0.5}, "truncation is -0.5, but must be a finite number of at least 0"),
        ({"seeds": [1], "output": "jpeg"}, "output is 'jpeg', but must be 'numpy' or 'pil'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError) as error:
        Sampler(make(4)).sample(**arguments)
    assert message in str(error.value)


def test_classes_for_an_unconditional_generator():
    with pytest.raises(ValueError, match="classes is 3, but this generator is unconditional"):
        Sampler(make()).sample([1], 3)


def test_a_generator_without_attributes():
    with pytest.raises(ValueError, match="Linear has no attribute z_dim; pass z_dim="):
        Sampler(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no attribute value_range; pass value_range="):
        Sampler(nn.Linear(2, 2), z_dim=2)


# Generators on disk


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = TrainConfig.from_dict(
        {
            "data": {"source": "digits", "cond": True},
            "generator": {"z_dim": 7, "hidden": [8, 8]},
            "discriminator": {"hidden": [8, 8]},
            "batch": 50,
            "kimg": 0.2,
            "tick": 0.1,
            "snap": 1,
            "device": "cpu",
        }
    )
    return Trainer.from_config(config, outdir=tmp_path_factory.mktemp("runs")).fit()


def test_from_a_run_a_checkpoint_and_a_model(run):
    samplers = [
        Sampler.from_pretrained(path) for path in (run.run_dir, run.checkpoint, run.model, str(run.model))
    ]
    images = [sampler.sample(range(6)) for sampler in samplers]
    assert all(np.array_equal(images[0], other) for other in images)
    assert len({sampler.model_sha256 for sampler in samplers}) == 1
    assert samplers[0].model_sha256 is not None
    assert len(samplers[0].model_sha256) == 64
    assert not samplers[0].generator.training
    assert not any(p.requires_grad for p in samplers[0].generator.parameters())
    older = Sampler.from_pretrained(run.checkpoint.with_name("000000-100"))
    assert not np.array_equal(older.sample(range(6)), images[0])
    assert older.model_sha256 != samplers[0].model_sha256


def test_round_trip(tmp_path):
    generator = make(3)
    save_pretrained(tmp_path / "model", generator.config, serialize(generator.state_dict()))
    loaded, _ = load_pretrained(tmp_path / "model")
    assert loaded.config == generator.config
    assert np.array_equal(Sampler(loaded).sample(range(3)), Sampler(generator).sample(range(3)))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
        "sha256.json",
    ]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("source", "damage", "message"),
    [
        ("model", lambda p: truncate(p / "model.safetensors"), "cannot be loaded: "),
        ("model", lambda p: (p / "config.json").unlink(), "config.json cannot be read (No such file"),
        ("model", lambda p: truncate(p / "config.json"), "config.json is not JSON"),
        ("model", lambda p: (p / "config.json").write_text("[]"), "config.json must hold a JSON object"),
        (
            "model",
            lambda p: edit(p / "config.json", family="x"),
            "network family is 'x', but must be one of",
        ),
        ("model", lambda p: edit(p / "config.json", z_dim=9), "2 of another shape: "),
        ("model", lambda p: edit(p / "config.json", depth=9), "depth"),
        ("checkpoint", lambda p: truncate(p / "ema.safetensors"), "ema.safetensors was altered"),
        ("checkpoint", lambda p: (p / "ema.safetensors").unlink(), "ema.safetensors cannot be read"),
        ("checkpoint", lambda p: edit(p / "state.json", nimg=1), "state.json was altered"),
        (
            "checkpoint",
            lambda p: (p / "state.json").write_text("{}"),
            "state.json is not that of a checkpoint",
        ),
        (
            "checkpoint",
            lambda p: (p / "state.json").write_text('{"generator": 1, "files": []}'),
            "not that of a",
        ),
        (
            "run_dir",
            lambda p: shutil.rmtree(p / "model"),
            "is a run that has not written its first model yet",
        ),
    ],
)
def test_what_is_damaged_is_named(run, tmp_path, source, damage, message):
    path = tmp_path / "damaged"
    shutil.copytree(getattr(run, source), path)
    (path / "sha256.json").unlink(missing_ok=True)  # as of a model that was written without
    damage(path)
    with pytest.raises(PretrainedError) as error:
        Sampler.from_pretrained(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture
def model(tmp_path):
    generator = make(3)
    save_pretrained(tmp_path / "model", generator.config, serialize(generator.state_dict()))
    return tmp_path / "model"


def test_no_single_bit_flip_goes_unnoticed(model):
    """It is refused, or it changes nothing that counts, as in a blank of the config."""
    loaded, _ = load_pretrained(model)
    state, rng = loaded.state_dict(), random.Random(0)
    refused = 0
    for name in ("config.json", "model.safetensors", "sha256.json"):
        whole = (model / name).read_bytes()
        for _ in range(150):
            bit = rng.randrange(8 * len(whole))
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            (model / name).write_bytes(damaged)
            try:
                other, _ = load_pretrained(model)
            except PretrainedError:
                refused += 1
                continue
            assert other.config == loaded.config
            assert all(value.equal(state[key]) for key, value in other.state_dict().items())
        (model / name).write_bytes(whole)
    assert refused > 400


def test_what_was_altered_is_named(model):
    edit(model / "config.json", z_dim=7, num_classes=3)  # the same values, in another form
    with pytest.raises(
        PretrainedError, match=r"config.json was altered .* if it was changed on purpose, delete"
    ):
        load_pretrained(model)
    (model / "sha256.json").unlink()
    load_pretrained(model)
    (model / "sha256.json").write_text('{"model.safetensors": ["0"]}')
    with pytest.raises(PretrainedError, match=r"model.safetensors was altered .*match sha256.json"):
        load_pretrained(model)
    (model / "sha256.json").write_text('{"model.safetensors": "0"}')
    with pytest.raises(PretrainedError, match="must hold lists of digests"):
        load_pretrained(model)


@pytest.mark.parametrize("digests", [True, False])
def test_a_model_can_be_read_whenever_its_writer_dies(model, monkeypatch, digests):
    """After each of the files that a newer model replaces."""
    if not digests:
        (model / "sha256.json").unlink()
    for seed in range(3):
        torch.manual_seed(seed)
        generator = MLPGenerator((1, 4, 6), z_dim=7, hidden=(16, 16), num_classes=3)
        weights = serialize(generator.state_dict())
        for left in range(4):
            written: list[Path] = []

            def replace_file(path, data, left=left, written=written):
                if len(written) == left:
                    raise KeyboardInterrupt
                written.append(path)
                path.write_bytes(data)

            with monkeypatch.context() as patch:
                patch.setattr("aigc_ext._files.replace_file", replace_file)
                with suppress(KeyboardInterrupt):
                    save_pretrained(model, generator.config, weights)
            load_pretrained(model)
        assert load_pretrained(model)[0].state_dict()["head.weight"].equal(generator.head.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(model, value):
    generator = make(3)
    state = generator.state_dict()
    state["head.bias"][3] = value
    save_pretrained(model, generator.config, serialize(state))
    with pytest.raises(PretrainedError, match=r"head.bias has values that are not finite"):
        load_pretrained(model)


def test_weights_of_another_kind(model):
    generator = make(3)
    for dtype in (torch.int8, torch.complex64):
        state = {name: value.to(dtype) for name, value in generator.state_dict().items()}
        save_pretrained(model, generator.config, serialize(state))
        with pytest.raises(PretrainedError, match="of another kind"):
            load_pretrained(model)
    state = {name: value.half() for name, value in generator.state_dict().items()}
    save_pretrained(model, generator.config, serialize(state))
    assert load_pretrained(model)[0].state_dict()["head.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"family": "mlp", "hidden": [200_000, 200_000]}, "of another shape"),
        ({"family": "mlp", "hidden": [1] * 300_000}, "at most 256"),
        ({"family": "mlp", "hidden": [10**400]}, "cannot be loaded"),
        ({"family": "mlp", "num_classes": 10**13}, "of another shape"),
        ({"family": "stylegan2", "mapping_layers": 10**6}, "at most 256"),
        ({"family": "stylegan3", "num_layers": 10**6}, "at most 256"),
        ({"family": "stylegan3", "channel_base": 2**40, "channel_max": 2**20}, "unknown"),
        ({"family": "r3gan", "blocks": 10**6}, "at most 256"),
        ({"family": "dcgan", "image_shape": [3, 2**30, 2**30]}, "cannot be loaded"),
        ({"family": "sngan", "channels": 2**30}, "overflowed"),
    ],
)
def test_a_config_cannot_ask_for_more_than_the_weights(model, config, message):
    """Neither for memory nor for time: a claim of 160 GB is refused before anything of that size is made."""
    (model / "sha256.json").unlink()
    (model / "config.json").write_text(json.dumps(config))
    peak, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(model)
    assert time.perf_counter() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000  # KiB
    with pytest.raises(ConvertError):
        convert_checkpoint(model / "model.safetensors", model / "other", config=config)
    assert time.perf_counter() - begin < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 200_000


def test_what_is_nothing_of_ours(tmp_path):
    with pytest.raises(PretrainedError, match=r"is no model .*, no checkpoint .* and no run"):
        load_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match="is no directory, but must be a run, a checkpoint or a model"):
        load_pretrained(tmp_path / "missing")
    (tmp_path / "file").write_text("")
    with pytest.raises(PretrainedError, match="is no directory"):
        load_pretrained(tmp_path / "file")
