from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from aigc_ext import models
from aigc_ext.models import MLPDiscriminator, MLPGenerator


def test_the_reference_generator():
    G = MLPGenerator()
    assert {k: tuple(v.shape) for k, v in G.state_dict().items() if "weight" in k} == {
        "layers.0.weight": (256, 100),
        "layers.1.weight": (128, 256),
        "layers.2.weight": (64, 128),
        "head.weight": (784, 64),
    }
    z = torch.randn(3, 100)
    x = z
    acts = [lambda v: F.leaky_relu(v, 0.2)] * 2 + [torch.tanh, torch.sigmoid]
    for layer, act in zip([*G.layers, G.head], acts, strict=True):
        x = act(F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(G(z), x.reshape(3, 1, 28, 28))


def test_the_reference_discriminator():
    D = MLPDiscriminator()
    images = torch.rand(3, 1, 28, 28)
    p = dict(D.named_parameters())
    assert len(D.layers) == 2
    x = F.leaky_relu(F.linear(images.flatten(1), p["layers.0.weight"], p["layers.0.bias"]), 0.2)
    x = torch.tanh(F.linear(x, p["layers.1.weight"], p["layers.1.bias"]))
    assert x.shape == (3, 64)
    torch.testing.assert_close(D(images), F.linear(x, D.head.weight, D.head.bias))


@pytest.mark.parametrize("num_classes", [0, 7])
@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 5, 4), (4, 1, 1)])
@pytest.mark.parametrize("batch", [0, 1, 6])
def test_shapes_and_ranges(num_classes, image_shape, batch):
    G = MLPGenerator(image_shape, z_dim=5, hidden=(16, 8), num_classes=num_classes)
    D = MLPDiscriminator(image_shape, hidden=(8,), num_classes=num_classes)
    c = torch.randint(num_classes, (batch,)) if num_classes else None
    images = G(torch.randn(batch, 5), c)
    assert images.shape == (batch, *image_shape)
    assert images.dtype == torch.float32
    low, high = G.value_range
    assert ((images >= low) & (images <= high)).all()
    assert D(images, c).shape == (batch, 1)


def test_the_label_decides_what_comes_out():
    G, D = MLPGenerator(num_classes=10), MLPDiscriminator(num_classes=10)
    z, c = torch.randn(1, 100).expand(10, 100), torch.arange(10)
    images = G(z, c)
    assert torch.pdist(images.flatten(1)).min() > 1e-3
    assert D(images[:1].expand(10, 1, 28, 28), c).unique().numel() == 10
    torch.testing.assert_close(G(z, c)[3:5], G(z[3:5], c[3:5]))


@pytest.mark.parametrize("num_classes", [0, 3])
def test_r1_reaches_every_weight_of_the_discriminator(num_classes):
    D = MLPDiscriminator((1, 3, 3), hidden=(6, 4), num_classes=num_classes).double()
    c = torch.tensor([0, 2, 1, 1]) if num_classes else None
    parameters = dict(D.named_parameters())
    x = torch.rand(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def penalty(x, *values):
        logits = torch.func.functional_call(D, dict(zip(parameters, values, strict=True)), (x, c))
        (dx,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        return dx.square().sum() / len(x)

    assert torch.autograd.gradcheck(penalty, (x, *parameters.values()))
    gradients = torch.autograd.grad(penalty(x, *parameters.values()), D.head.weight)
    assert gradients[0].abs().min() > 0


@pytest.mark.parametrize("num_classes", [0, 4])
def test_config_makes_the_same_architecture(num_classes):
    G = MLPGenerator((3, 4, 5), z_dim=6, hidden=[7, 8], num_classes=num_classes)
    D = MLPDiscriminator((3, 4, 5), hidden=[9], num_classes=num_classes)
    for network, build in ((G, models.build_generator), (D, models.build_discriminator)):
        config = json.loads(json.dumps(network.config))
        assert config["family"] == "mlp"
        assert config == network.config
        again = build(config)
        assert type(again) is type(network)
        assert again.config == network.config
        again.load_state_dict(network.state_dict())
        network.config["num_classes"] = 99
        assert network.config == config
    assert (G.z_dim, G.image_shape, G.num_classes, G.value_range) == (6, (3, 4, 5), num_classes, (0.0, 1.0))


def test_copies_are_independent():
    G = MLPGenerator((1, 4, 4), z_dim=3)
    ema = copy.deepcopy(G)
    z = torch.randn(2, 3)
    torch.testing.assert_close(ema(z), G(z), rtol=0, atol=0)
    torch.nn.init.zeros_(G.get_parameter("layers.0.weight"))
    assert not torch.equal(ema(z), G(z))


def test_compiled_whole():
    G = MLPGenerator((1, 4, 4), z_dim=3, hidden=(5, 6), num_classes=2)
    D = MLPDiscriminator((1, 4, 4), hidden=(5, 6), num_classes=2)
    z, c = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])

    def logits(z, c):
        return D(G(z, c), c)

    compiled = torch.compile(logits, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(z, c), logits(z, c))
    parameters = [*G.parameters(), *D.parameters()]
    ours = torch.autograd.grad(compiled(z, c).sum(), parameters)
    torch.testing.assert_close(ours, torch.autograd.grad(logits(z, c).sum(), parameters))


def test_autocast_takes_the_narrow_images_of_the_generator():
    G, D = MLPGenerator((1, 4, 4), z_dim=3), MLPDiscriminator((1, 4, 4))
    z = torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        images = G(z)
        logits = D(images.bfloat16())
    torch.testing.assert_close(logits.float(), D(G(z)), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPGenerator((28, 28)), r"image_shape is \(28, 28\), but must be \(C, H, W\)"),
        (lambda: MLPDiscriminator((1, 0, 28)), r"image_shape is \(1, 0, 28\)"),
        (lambda: MLPGenerator(z_dim=0), "z_dim is 0, but must be at least 1"),
        (lambda: MLPGenerator(hidden=()), r"hidden is \(\), but must be at least one width"),
        (lambda: MLPDiscriminator(hidden=(8, -1)), r"hidden\[1\] is -1, but must be at least 1"),
        (lambda: MLPGenerator(num_classes=-1), "num_classes is -1, but must be at least 0"),
        (lambda: MLPDiscriminator(num_classes=-1), "num_classes is -1, but must be at least 0"),
        (
            lambda: models.build_generator({"family": "vae"}),
            "generator family is 'vae', but must be one of dcgan, mlp",
        ),
        (
            lambda: models.build_discriminator({}),
            "discriminator family is None, but must be one of dcgan, mlp",
        ),
    ],
)
def test_wrong_configurations_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_argument_in_a_config_is_named():
    with pytest.raises(TypeError, match="depth"):
        models.build_generator({"family": "mlp", "depth": 3})


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.randn(2, 4), r"z has shape \(2, 4\), but must be \(N, 3\)"),
        (torch.randn(3), r"z has shape \(3,\), but must be \(N, 3\)"),
        (torch.randn(2, 3, 1), r"z has shape \(2, 3, 1\)"),
        (
            torch.randn(2, 3, dtype=torch.float64),
            "z is torch.float64, but must be torch.float32, like the weights",
        ),
        (torch.ones(2, 3, dtype=torch.int64), "z is torch.int64, but must be torch.float32"),
    ],
)
def test_wrong_latents_are_named(z, message):
    with pytest.raises(ValueError, match=message):
        MLPGenerator((1, 2, 2), z_dim=3)(z)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 1, 4, 2), r"images has shape \(2, 1, 4, 2\), but must be \(N, 1, 2, 2\)"),
        (torch.rand(2, 4), r"images has shape \(2, 4\), but must be \(N, 1, 2, 2\)"),
        (torch.ones(2, 1, 2, 2, dtype=torch.uint8), "images is torch.uint8, but must be torch.float32"),
    ],
)
def test_wrong_images_are_named(images, message):
    with pytest.raises(ValueError, match=message):
        MLPDiscriminator((1, 2, 2))(images)


LABELS = [
    (0, torch.tensor([0, 0]), r"c was given, but this network is unconditional \(num_classes is 0\)"),
    (3, None, "c is None, but this network is conditional: pass labels from 0 to 2"),
    (3, torch.tensor([0, 3]), "c has labels from 0 to 3, but they must be from 0 to 2"),
    (3, torch.tensor([-1, 1]), "c has labels from -1 to 1, but they must be from 0 to 2"),
    (3, torch.tensor([0.0, 1.0]), "c is torch.float32, but must be torch.int64"),
    (3, torch.tensor([0]), r"c has shape \(1,\), but must be \(2,\)"),
    (3, torch.tensor([[0], [1]]), r"c has shape \(2, 1\), but must be \(2,\)"),
]


@pytest.mark.parametrize(("num_classes", "c", "message"), LABELS)
def test_wrong_labels_are_named(num_classes, c, message):
    with pytest.raises(ValueError, match=message):
        MLPGenerator((1, 2, 2), z_dim=3, num_classes=num_classes)(torch.randn(2, 3), c)
    with pytest.raises(ValueError, match=message):
        MLPDiscriminator((1, 2, 2), num_classes=num_classes)(torch.rand(2, 1, 2, 2), c)
