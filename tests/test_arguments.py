"""What a program sees of the library: objects that say what they are, and errors that name the argument."""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
import torch

import aigc_ext
from aigc_ext.data import BatchStream, TensorImages
from aigc_ext.metrics import MetricSet, Moments, RandomFeatures, SampleClassifier
from aigc_ext.models import MLPDiscriminator, MLPGenerator, StyleGAN2Generator
from aigc_ext.sampling import Sampler, save_pretrained
from aigc_ext.tasks.gan import PRESETS, TrainConfig, Trainer
from aigc_ext.training.checkpoint import Checkpoint, serialize

IMAGES = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SHAPE = (1, 8, 8)


def trainer(data, tmp_path, **options) -> Trainer:
    torch.manual_seed(0)
    networks = MLPGenerator(SHAPE, hidden=(8,)), MLPDiscriminator(SHAPE, hidden=(8,))
    return Trainer(
        *networks, data, TrainConfig(kimg=0.064, batch=32, device="cpu", **options), outdir=tmp_path
    )


def test_a_trainer_takes_what_a_program_has(tmp_path) -> None:
    np.save(tmp_path / "images.npy", IMAGES[:, 0].numpy())
    forms = (
        TensorImages("data", IMAGES),
        IMAGES,
        IMAGES[:, 0].numpy(),
        torch.utils.data.TensorDataset(IMAGES / 255),
        tmp_path / "images.npy",
        str(tmp_path / "images.npy"),
    )
    weights = []
    for form in forms:
        made = trainer(form, tmp_path)
        made.fit()
        weights.append(torch.cat([p.detach().flatten() for p in made.state.generator.parameters()]))
    assert all(one.equal(weights[0]) for one in weights)
    assert (tmp_path / "00001-mlp-images").is_dir()
    with pytest.raises(
        TypeError, match=r"of type DataLoader, but must be what it loads from: pass data.dataset"
    ):
        trainer(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES)), tmp_path)


def test_metrics_take_it_too() -> None:
    assert MetricSet(["kid"], IMAGES, num_images=8, extractor="random").dataset.image_shape == SHAPE


def test_every_object_says_what_it_is(tmp_path) -> None:
    data = TensorImages("dots", IMAGES, torch.arange(40) % 2)
    generator = MLPGenerator(SHAPE, hidden=(8,))
    shown = {
        "Sampler": (Sampler(generator), "MLPGenerator, images 1x8x8, z_dim 100, on cpu"),
        "Trainer": (trainer(data, tmp_path), "mlp: 0 of 0.064 kimg of <TensorImages dots: 40 images 1x8x8"),
        "GANTask": (trainer(data, tmp_path).task, "MLPGenerator and MLPDiscriminator on <TensorImages dots"),
        "BatchStream": (BatchStream(data, 4, 0), "at 0: batches of 4 of <TensorImages dots"),
        "MetricSet": (MetricSet(["kid"], data, num_images=9, extractor="random"), "kid: 9 images against"),
        "RandomFeatures": (RandomFeatures(1, seed=7), "random-1-7"),
        "Moments": (Moments.of(torch.randn(9, 3)), "of 9 vectors of 3"),
        "SampleClassifier": (SampleClassifier.train(IMAGES, data.labels, steps=1), "of 2 classes, "),
    }
    for name, (made, words) in shown.items():
        assert repr(made).startswith(f"<{name} ")
        assert words in repr(made)
        assert " at 0x" not in repr(made)
    checkpoint = Checkpoint(tmp_path, {"step": 1}, {"ema": {"w": torch.zeros(1000)}})
    assert repr(checkpoint) == f"Checkpoint(path={tmp_path!r})"


def test_no_public_class_is_left_with_an_address() -> None:
    """Those that are only derived from show what the derived ones do."""
    bases = {"Rule", "Task", "FeatureExtractor"}
    packages = "compat config data losses metrics models nn ops optim reporting sampling tasks.gan training"
    ours = {
        f"{package}.{name}": value
        for package in packages.split()
        for name, value in inspect.getmembers(importlib.import_module(f"aigc_ext.{package}"), inspect.isclass)
        if value.__module__.startswith("aigc_ext") and name not in bases
    }
    assert [name for name, value in ours.items() if value.__repr__ is object.__repr__] == []
    assert len(ours) > 50


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(KeyError) as error:
        PRESETS["stylegan"]
    assert str(error.value).startswith(
        "there is no preset 'stylegan'; did you mean 'stylegan2'? there are mlp, dcgan, sngan, stylegan2,"
    )
    assert PRESETS.get("stylegan") is None
    assert "stylegan" not in PRESETS


@pytest.mark.parametrize("value", ["0.7", None, True, float("nan"), -1])
def test_a_truncation_that_is_no_number(value) -> None:
    sampler = Sampler(MLPGenerator(SHAPE, hidden=(8,)))
    with pytest.raises(
        ValueError, match=f"truncation is {value!r}, but must be a finite number of at least 0"
    ):
        sampler.sample([0], truncation=value)
    sampler.sample([0], truncation=np.float32(0.5))


def test_a_cutoff_that_is_no_integer() -> None:
    sampler = Sampler(StyleGAN2Generator((1, 8, 8), z_dim=4, w_dim=4, channel_base=64, channel_max=8))
    for value in ("1", 1.5, True):
        with pytest.raises(
            ValueError, match=f"truncation_cutoff is {value!r}, but must be an integer from 0 to"
        ):
            sampler.sample([0], truncation=0.5, truncation_cutoff=value)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="latents is a ndarray, but must be a tensor"):
        sampler.render(np.zeros((1, 4), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device is 'gpu', but must be one that torch knows, such as 'cpu' or 'cuda:0'"),
        ("cuda:99", r"device is 'cuda:99', but this PyTorch sees \d+ CUDA devices"),
        (None, "device is None, but must be one that torch knows"),
    ],
)
def test_a_device_that_is_not_there(tmp_path, device, message) -> None:
    generator = MLPGenerator(SHAPE, hidden=(8,))
    save_pretrained(tmp_path, generator.config, serialize(generator.state_dict()))
    calls = [
        lambda: Sampler.from_pretrained(tmp_path, device=device),
        lambda: MetricSet(["kid"], IMAGES, num_images=8, extractor="random", device=device),
        lambda: RandomFeatures(1, device=device),
        lambda: aigc_ext.metrics.InceptionFeatures("weights.pth", device=device),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()
