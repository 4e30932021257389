from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aigc_ext
from aigc_ext.models import (
    DCGANGenerator,
    MLPGenerator,
    R3GANGenerator,
    SNGANGenerator,
    StyleGAN2Generator,
    StyleGAN3Generator,
    Vocoder,
    build_generator,
)
from aigc_ext.sampling import ExportError, export_generator
from aigc_ext.tasks.gan import PRESETS
from tests.sampling.stand_in import stand_in

STYLE2: dict[str, Any] = {"z_dim": 5, "w_dim": 6, "mapping_layers": 1, "channel_base": 32, "channel_max": 4}
STYLE3: dict[str, Any] = {**STYLE2, "num_layers": 2, "num_critical": 1, "margin_size": 1}
GENERATORS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLPGenerator((1, 4, 4), z_dim=5, hidden=(8, 6)),
    "mlp-cond": lambda: MLPGenerator((1, 4, 4), z_dim=5, hidden=(8, 6), num_classes=3),
    "dcgan": lambda: DCGANGenerator((3, 16, 16), z_dim=5, channels=2),
    "style": stand_in,
    "sngan-cond": lambda: SNGANGenerator((3, 8, 8), z_dim=5, channels=2, num_classes=3),
    "r3gan": lambda: R3GANGenerator((3, 8, 8), z_dim=5, channel_max=4, blocks=1, group_size=2),
    "r3gan-cond": lambda: R3GANGenerator((3, 8, 8), 5, channel_max=4, blocks=1, group_size=2, num_classes=3),
    "stylegan2-cond": lambda: StyleGAN2Generator((3, 8, 8), num_classes=3, **STYLE2),
    "stylegan3-t-cond": lambda: StyleGAN3Generator((1, 8, 8), "t", num_classes=3, **STYLE3),
    "stylegan3-r": lambda: StyleGAN3Generator((1, 8, 8), "r", **STYLE3),
}


def build(name):
    """With weights and statistics of a size at which every layer shows in the output."""
    torch.manual_seed(0)
    generator = GENERATORS[name]().train()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
        for buffer in generator.buffers():
            buffer.copy_(buffer * 1.2)
    return generator


def inputs(generator, count):
    rng = torch.Generator().manual_seed(100 + count)
    z = torch.randn(count, generator.z_dim, generator=rng)
    return (z, torch.randint(3, (count,), generator=rng)) if generator.num_classes else (z,)


def assert_images(images, generator, arguments):
    generator.eval()
    with torch.no_grad():
        expected = generator(*arguments)
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("name", ["mlp", "mlp-cond", "dcgan", "style", "stylegan2-cond"])
def test_pt2(tmp_path, name, decompose):
    generator = build(name)
    path = tmp_path / "g.pt2"
    exported = export_generator(generator, path, decompose=decompose, provenance={"model_sha256": "ab"})
    assert generator.training
    assert all(parameter.requires_grad for parameter in generator.parameters())
    assert exported.difference < 1e-5
    ours = {
        "mlp": {"fused_mlp"},
        "mlp-cond": {"fused_mlp"},
        "dcgan": {"convolution", "convolution_act", "batch_norm_act"},
        "style": set(),
        "stylegan2-cond": {"pixel_norm", "linear_act", "convolution", "bias_act", "upfirdn2d"},
    }[name]
    assert exported.ops == ([] if decompose else sorted(f"aigc::{op}" for op in ours))
    files = {"aigc_ext.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    for count in (1, 2, 7):
        arguments = inputs(generator, count)
        assert_images(program(*arguments), generator, arguments)
    assert json.loads(files["aigc_ext.json"]) == {
        "version": aigc_ext.__version__,
        "z_dim": generator.z_dim,
        "num_classes": generator.num_classes,
        "value_range": list(generator.value_range),
        "model_sha256": "ab",
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_at_its_real_size_with_any_batch(tmp_path, monkeypatch, preset):
    """There the layers choose between kernels by the number of pixels, over all images of a batch."""
    if preset not in ("mlp", "sngan", "stylegan2"):  # a minute of arithmetic, which small ones test
        monkeypatch.setattr("aigc_ext.sampling.export._check", lambda *_: 0.0)
    generator = build_generator(replace(PRESETS[preset].generator, image_shape=(3, 64, 64)))
    exported = export_generator(generator, tmp_path / "g.pt2")
    assert exported.difference < 1e-5
    if preset in ("sngan", "stylegan2"):
        assert {"aigc::conv3x3", "aigc::convolution"} <= set(exported.ops)


def test_a_fixed_batch(tmp_path):
    generator = build("mlp")
    export_generator(generator, tmp_path / "g.pt2", batch=2)
    program = torch.export.load(tmp_path / "g.pt2").module()
    arguments = inputs(generator, 2)
    assert_images(program(*arguments), generator, arguments)
    with pytest.raises(Exception, match="2"):
        program(*inputs(generator, 3))


@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in ("mlp", "style")])
def test_onnx(tmp_path, name):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    generator = build(name)
    path = tmp_path / "g.onnx"
    exported = export_generator(generator, path, provenance={"model_sha256": "ab"})
    assert (exported.format, exported.ops) == ("onnx", [])
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "pkg.torch.aten"}
    record = {entry.key: entry.value for entry in model.metadata_props}["aigc_ext"]
    assert json.loads(record)["model_sha256"] == "ab"
    runtime = pytest.importorskip("onnxruntime")
    assert exported.checked_by == "onnxruntime"
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        arguments = inputs(generator, count)
        feed = dict(zip(("z", "c"), (x.numpy() for x in arguments), strict=False))
        (images,) = session.run(["images"], feed)
        assert_images(torch.from_numpy(images), generator, arguments)


class Odd(nn.Module):
    """What goes wrong, by `fault`."""

    z_dim, num_classes, value_range = 3, 0, (0.0, 1.0)

    def __init__(self, fault):
        super().__init__()
        self.fault, self.linear, self.calls = fault, nn.Linear(3, 4), 0

    def forward(self, z):
        images = self.linear(z).reshape(-1, 1, 2, 2)
        if self.fault == "decides on values" and images.sum() > 0:
            return images
        if self.fault == "takes one batch size for all":
            images = images + torch.ones(z.shape[0] // 3 * 3, 1, 1, 1)
        if self.fault == "filters each image":
            images = torch.nn.functional.conv2d(
                images.transpose(0, 1), z[:, :1, None, None], groups=z.shape[0]
            )
            images = images.transpose(0, 1)
        if self.fault == "is another program each time":
            self.calls += 1
            images = images * self.calls
        return images


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("decides on values", "torch cannot export Odd: "),
        ("takes one batch size for all", r"torch cannot export Odd: .*batch"),
        ("is another program each time", "the exported program differs from the generator by "),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(tmp_path, fault, message):
    with pytest.raises(ExportError, match=message):
        export_generator(Odd(fault), tmp_path / "g.pt2")
    assert list(tmp_path.iterdir()) == []


def test_what_onnx_lacks_is_named(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    with pytest.raises(ExportError, match=r"cannot write this as ONNX: .*conv2d.*; with a fixed batch"):
        export_generator(Odd("filters each image"), tmp_path / "g.onnx")
    export_generator(Odd("filters each image"), tmp_path / "g.onnx", batch=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("g.bin", {}, "format is 'bin', but must be one of pt2, onnx"),
        ("g.onnx", {"decompose": False}, "decompose is False, but ONNX"),
        ("g.pt2", {"batch": 0}, "batch is 0, but must be at least 1"),
    ],
)
def test_wrong_arguments(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        export_generator(build("mlp"), tmp_path / name, **options)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript: pip install aigc_ext\[onnx\]"):
        export_generator(build("mlp"), tmp_path / "g.onnx")


def vocoder(**options: Any) -> Vocoder:
    torch.manual_seed(0)
    small = {"n_mels": 6, "n_fft": 64, "window": 32, "hop": 16, "channels": 8, "upsample": (4,), "taps": 6}
    made = Vocoder(**{**small, "dilations": (1, 3), **options}).train()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def assert_waves(run: Callable[[Tensor], Tensor], network: Vocoder, *, count: int | None = None) -> None:
    """For other numbers and lengths than those of the trace."""
    for batch, frames in ((1, 1), (2, 3), (7, 50)) if count is None else ((count, 1), (count, 50)):
        mels = torch.randn(batch, 6, frames) - 4
        with torch.no_grad():
            expected = network.vocode(mels)
        assert expected.shape == (batch, 16 * frames)
        torch.testing.assert_close(run(mels), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("options", [{}, {"upsample": (), "taps": 12}, {"upsample": (2, 3), "hop": 12}])
def test_a_vocoder_of_any_length(tmp_path, decompose, options):
    network = vocoder(**options)
    exported = export_generator(network, tmp_path / "v.pt2", decompose=decompose, provenance={"by": "us"})
    assert network.training
    assert exported.difference < 1e-5
    assert exported.ops == ([] if decompose else ["aigc::filtered_snake"])
    files = {"aigc_ext.json": ""}
    program = torch.export.load(tmp_path / "v.pt2", extra_files=files).module()
    if not options:
        assert_waves(program, network)
    else:
        mels = torch.randn(2, 6, 11)
        torch.testing.assert_close(program(mels), network.vocode(mels).detach(), rtol=1e-4, atol=1e-6)
    frames = {"n_fft": 64, "hop": network.hop, "window": 32}
    assert json.loads(files["aigc_ext.json"]) == {
        "version": aigc_ext.__version__,
        "sample_rate": 8000,
        "value_range": [-1.0, 1.0],
        "mels": {"n_mels": 6, **frames, "floor": 1e-4},
        "by": "us",
    }


def test_a_vocoder_as_onnx(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    network = vocoder()
    for batch in (None, 2):
        exported = export_generator(network, tmp_path / "v.onnx", batch=batch)
        assert (exported.checked_by, exported.ops) == ("onnxruntime", [])
        session = runtime.InferenceSession(tmp_path / "v.onnx", providers=["CPUExecutionProvider"])

        def run(mels: Tensor, session: Any = session) -> Tensor:
            return torch.from_numpy(session.run(["wave"], {"mels": mels.numpy()})[0])

        assert_waves(run, network, count=batch)


def test_a_vocoder_at_its_real_size(tmp_path):
    exported = export_generator(Vocoder(), tmp_path / "v.pt2", decompose=True)
    assert exported.difference < 1e-4
