"""The native form of the adversarial step: equal to the eager one, and taken exactly where it is."""

from __future__ import annotations

import copy
import logging
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from aigc_ext import decompose
from aigc_ext.config import ConfigError
from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import MLPDiscriminator, MLPGenerator
from aigc_ext.nn import Linear
from aigc_ext.ops.gan_loss import KINDS
from aigc_ext.ops.mlp_gan_step import has_mlp_gan_step
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan import AdversarialStep, Mixing, Objective, Trainer, find_resume_point
from tests.tasks.gan.helpers import config

pytestmark = pytest.mark.skipif(
    not has_mlp_gan_step(torch.device("cpu")), reason="this library has no kernel of it"
)

SHAPE, Z = (1, 3, 4), 5


def make_step(
    mode: str = "auto",
    dtype: torch.dtype = torch.float64,
    g_hidden: tuple[int, ...] = (8, 6),
    d_hidden: tuple[int, ...] = (7, 5),
    loss: AdversarialLoss | None = None,
    average: bool = True,
    **objective: Any,
) -> AdversarialStep:
    torch.manual_seed(0)
    generator = MLPGenerator(SHAPE, z_dim=Z, hidden=g_hidden).to(dtype)
    discriminator = MLPDiscriminator(SHAPE, hidden=d_hidden).to(dtype)
    emas = [p.detach().clone() for p in generator.parameters()] if average else None
    # A large eps: a sum that should be 0 is noise, which a division by its own size would blow up.
    rates: dict[str, Any] = {"lr": 1e-2, "betas": (0.5, 0.99), "eps": 1e-2, "weight_decay": 0.1}
    return AdversarialStep(
        *(generator, discriminator),
        Objective(discriminator, loss or AdversarialLoss(), **objective),
        AdamEMA(generator.parameters(), **rates, ema_params=emas, ema_decay=0.9),
        AdamEMA(discriminator.parameters(), **rates),
        mode=mode,  # type: ignore[arg-type]
    )


def batch(n: int = 6, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    real, z = torch.rand(n, *SHAPE, generator=rng), torch.randn(n, Z, generator=rng)
    return real.to(dtype), z.to(dtype)


def everything(step: AdversarialStep) -> dict[str, Any]:
    """All that a step leaves behind."""
    found: dict[str, Any] = {}
    for name in ("generator", "discriminator"):
        network, adam = getattr(step, name), getattr(step, f"{name[0]}_optimizer")
        for key, p in network.named_parameters():
            found[f"{name}.{key}"] = p.detach().clone()
            found[f"{name}.{key}.grad"] = None if p.grad is None else p.grad.clone()
            for what, value in adam.state.get(p, {}).items():
                found[f"{name}.{key}.{what}"] = value.clone()
        found[f"{name}.emas"] = [t.clone() for t in adam._emas[0]]
        found[f"{name}.skipped"] = adam.skipped.clone()
    inputs = step.inputs
    assert inputs is not None
    found["inputs"] = [t for t in inputs if isinstance(t, Tensor)]
    found["settings"] = torch.tensor([hash(t) for t in inputs if not isinstance(t, Tensor)])
    found["random"] = torch.get_rng_state()
    return found


def assert_equal(ours: Any, theirs: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(
        ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True, allow_subclasses=False
    )


def without_none(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


@st.composite
def settings_of_a_step(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(KINDS))
    smoothing = draw(st.sampled_from([0.0, 0.2])) if kind in ("logistic", "minimax") else 0.0
    widths = st.lists(st.sampled_from([1, 2, 5, 17, 40]), min_size=1, max_size=3).map(tuple)
    return {
        "loss": AdversarialLoss(kind, smoothing, draw(st.sampled_from([0.0, 0.3]))),
        "gamma": draw(st.sampled_from([0.0, 0.7])),
        "r1_interval": draw(st.sampled_from([1, 4])),
        "r2": draw(st.booleans()),
        "g_hidden": draw(widths),
        "d_hidden": draw(widths),
        "average": draw(st.booleans()),
    }


@settings(max_examples=60)
@given(settings_of_a_step(), st.sampled_from([1, 2, 5, 33]), st.sampled_from([1, 2]), st.booleans())
def test_float64_is_the_eager_step(made: dict[str, Any], n: int, n_dis: int, seeded: bool) -> None:
    eager, native = make_step("eager", **made), make_step("native", **made)
    for index in range(5):
        real, z = batch(n, seed=index)
        options: dict[str, Any] = {
            "penalize": index % 2 == 0,
            "train_generator": (index + 1) % n_dis == 0,
            "seed": index if seeded else None,
            "gamma": 0.4 if index == 4 else None,
        }
        assert_equal(native(real, z, **options), eager(real, z, **options))
        ours, theirs = everything(native), everything(eager)
        assert ours.keys() == theirs.keys()
        assert_equal(without_none(ours), without_none(theirs), 1e-11 if index else 1e-12)


@pytest.mark.parametrize("penalize", [False, True])
def test_float32_is_the_eager_step_within_rounding(penalize: bool) -> None:
    steps = [make_step(mode, torch.float32, gamma=0.5) for mode in ("eager", "native")]
    truth = make_step("eager", torch.float64, gamma=0.5)
    for index in range(3):
        real, z = batch(seed=index, dtype=torch.float32)
        eager, native = (step(real, z, penalize=penalize) for step in steps)
        exact = truth(real.double(), z.double(), penalize=penalize).float()
        torch.testing.assert_close(native, eager, equal_nan=True, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(native, exact, equal_nan=True, rtol=1e-5, atol=1e-6)
    for one, other in zip(steps[1].generator.parameters(), truth.generator.parameters(), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_a_step_that_is_not_finite_changes_nothing(value: float, place: int) -> None:
    eager, native = make_step("eager", gamma=0.5), make_step("native", gamma=0.5)
    good, bad = batch(), batch(seed=2)
    bad[place][1] = value
    for step in (eager, native):
        step(*good, penalize=True)
    for images in (bad, good):
        assert_equal(native(*images, penalize=True), eager(*images, penalize=True))
        for name in ("generator", "discriminator"):
            ours, theirs = (
                {k: v for k, v in everything(step).items() if k.startswith(name) and ".grad" not in k}
                for step in (native, eager)
            )
            assert_equal(ours, theirs, 1e-11)
    assert isinstance(native.d_optimizer, AdamEMA)
    assert native.d_optimizer.skipped == 1


def test_both_can_take_turns() -> None:
    eager, mixed = make_step("eager", gamma=0.5), make_step(gamma=0.5)
    for index, mode in enumerate(("native", "eager", "eager", "native", "native", "eager")):
        mixed.mode = mode  # type: ignore[assignment]
        assert_equal(
            mixed(*batch(seed=index), penalize=True), eager(*batch(seed=index), penalize=True), 1e-11
        )
    assert_equal(without_none(everything(mixed)), without_none(everything(eager)), 1e-11)


def test_state_dicts_of_either_go_on_in_the_other() -> None:
    eager, native = make_step("eager"), make_step("native")
    for step in (eager, native):
        step(*batch())
    for name in ("generator", "discriminator"):
        one, other = (getattr(step, f"{name[0]}_optimizer") for step in (eager, native))
        states = one.state_dict(), other.state_dict()
        assert_equal(states[0]["state"], states[1]["state"])
        one.load_state_dict(copy.deepcopy(states[1]))
        other.load_state_dict(copy.deepcopy(states[0]))
    assert_equal(native(*batch(seed=3)), eager(*batch(seed=3)))


# ---- the choice --------------------------------------------------------------------------------------------


def route(step: AdversarialStep, caplog: pytest.LogCaptureFixture, *given: Any, **options: Any) -> str:
    caplog.set_level(logging.DEBUG, logger="aigc_ext")
    caplog.clear()
    step(*(given or batch()), **options)
    lines = [record.getMessage() for record in caplog.records]
    (said,) = [line for line in lines if line.startswith("AdversarialStep takes")]
    assert any(line.startswith("mlp_gan_step_ runs") for line in lines) == ("mlp_gan_step_" in said)
    return said


def test_a_plain_pair_takes_the_native_step(caplog: pytest.LogCaptureFixture) -> None:
    assert route(make_step(), caplog).startswith("AdversarialStep takes mlp_gan_step_: both networks are ")
    step = make_step(gamma=0.5)
    assert "takes mlp_gan_step_" in route(step, caplog, penalize=True, train_generator=False)
    step.part_size = 6
    assert "takes mlp_gan_step_" in route(step, caplog, penalize=True)


class OwnObjective(Objective):
    pass


class OwnGenerator(MLPGenerator):
    pass


def frozen(step: Any) -> None:
    step.discriminator.layers[0].bias.requires_grad_(False)


def forward_hook(step: Any) -> None:
    step.generator.layers[1].register_forward_hook(lambda *_: None)


def network_hook(step: Any) -> None:
    step.discriminator.register_forward_pre_hook(lambda *_: None)


def backward_hook(step: Any) -> None:
    step.discriminator.head.register_full_backward_hook(lambda *_: None)


def tensor_hook(step: Any) -> None:
    step.discriminator.head.weight.register_hook(lambda g: g)


def accumulate_hook(step: Any) -> None:
    step.discriminator.head.weight.register_post_accumulate_grad_hook(lambda p: None)


def optimizer_hook(step: Any) -> None:
    step.g_optimizer.register_step_post_hook(lambda *_: None)


def scheduler(step: Any) -> None:
    step.extra = torch.optim.lr_scheduler.ExponentialLR(step.g_optimizer, 0.9)


def own_forward(step: Any) -> None:
    step.generator.head.forward = step.generator.head.forward


def parametrized(step: Any) -> None:
    parametrizations.orthogonal(step.generator.layers[0])
    renew_optimizers(step)


def spectral(step: Any) -> None:
    nn.utils.spectral_norm(step.discriminator.layers[0])
    renew_optimizers(step)


def exchanged(step: Any) -> None:
    step.generator.head = nn.Sequential(nn.Linear(6, 12), nn.Sigmoid())
    renew_optimizers(step)


def clamped(step: Any) -> None:
    step.generator.head = Linear(6, 12, act="tanh", clamp=0.5, dtype=torch.float64)
    renew_optimizers(step)


def one_more_parameter(step: Any) -> None:
    step.generator.head.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    renew_optimizers(step)


def new_parameter(step: Any) -> None:
    step.generator.head.bias = nn.Parameter(step.generator.head.bias.detach().clone())


def tied(step: Any) -> None:
    step.generator.layers.append(Linear(6, 6, act="tanh", dtype=torch.float64))
    step.generator.layers.append(step.generator.layers[-1])
    renew_optimizers(step)


def renew_optimizers(step: Any) -> None:
    """Adam for all parameters, as after a change of the networks."""
    made = make_step_of(step.generator.double(), step.discriminator.double())
    step.__dict__.update(made.__dict__)


def make_step_of(generator: nn.Module, discriminator: nn.Module) -> AdversarialStep:
    return AdversarialStep(
        *(generator, discriminator),
        Objective(discriminator, AdversarialLoss()),
        *(AdamEMA(network.parameters()) for network in (generator, discriminator)),
    )


def two_groups(step: Any) -> None:
    first, *rest = step.discriminator.parameters()
    step.__dict__.update(
        AdversarialStep(
            *(step.generator, step.discriminator, step.objective, step.g_optimizer),
            AdamEMA([{"params": [first]}, {"params": rest}]),
        ).__dict__
    )


def tensor_rate(step: Any) -> None:
    step.g_optimizer.param_groups[0]["lr"] = torch.tensor(1e-3)


def other_optimizer(step: Any) -> None:
    step.__dict__.update(
        AdversarialStep(
            *(step.generator, step.discriminator, step.objective),
            *(torch.optim.Adam(network.parameters()) for network in (step.generator, step.discriminator)),
        ).__dict__
    )


def own_objective(step: Any) -> None:
    step.objective = OwnObjective(step.discriminator, AdversarialLoss())


def own_generator(step: Any) -> None:
    step.generator = OwnGenerator(SHAPE, z_dim=Z, hidden=(8, 6)).double()
    renew_optimizers(step)


def transposed_weight(step: Any) -> None:
    weight = step.generator.head.weight
    weight.data = weight.data.t().contiguous().t()
    renew_optimizers(step)


def augmented(step: Any) -> None:
    step.objective.augment = nn.Identity()


def patched(step: Any) -> None:
    step.objective.generate = Objective.generate.__get__(step.objective)


def in_parts(step: Any) -> None:
    step.part_size = 3


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (frozen, "a parameter of the discriminator is frozen or missing"),
        (forward_hook, "a layer of the generator has a hook or a forward of its own"),
        (network_hook, "the discriminator has a hook or a forward of its own"),
        (own_forward, "a layer of the generator has a hook or a forward of its own"),
        (backward_hook, "a layer of the discriminator has a hook or a forward of its own"),
        (tensor_hook, "a parameter of the discriminator has a hook"),
        (accumulate_hook, "a parameter of the discriminator has a hook"),
        (optimizer_hook, "the generator's optimizer has a hook or a step of its own"),
        (scheduler, "the generator's optimizer has a hook or a step of its own"),
        (parametrized, "a layer of the generator is a ParametrizedLinear, and no Linear"),
        (spectral, "a layer of the discriminator has a hook or a forward of its own"),
        (clamped, "a layer of the generator has a clamp"),
        (one_more_parameter, "a layer of the generator has other parameters than weight and bias"),
        (new_parameter, "the generator's optimizer has several groups, or not the layers' parameters"),
        (tied, "the generator's optimizer has several groups, or not the layers' parameters"),
        (two_groups, "the discriminator's optimizer has several groups, or not the layers' parameters"),
        (tensor_rate, "a rate of the generator's optimizer is a tensor"),
        (other_optimizer, "the generator's optimizer is no AdamEMA"),
        (own_objective, "the objective is no plain Objective"),
        (patched, "the objective is no plain Objective"),
        (augmented, "there is an augmentation"),
        (own_generator, "the generator is no MLPGenerator"),
        (transposed_weight, "a parameter of the generator is not on the CPU, contiguous and torch.float64"),
        (in_parts, "the batch has parts"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_anything_could_notice_takes_the_eager_step(
    change: Any, because: str, caplog: pytest.LogCaptureFixture
) -> None:
    step = make_step()
    assert "takes mlp_gan_step_" in route(step, caplog, seed=0)
    change(step)
    step.mode = "native"
    with pytest.raises(ConfigError, match="step is 'native', but "):
        step(*batch(), seed=0)
    step.mode = "auto"
    assert route(step, caplog, seed=0) == f"AdversarialStep takes eager: {because}"


@pytest.mark.parametrize("kind", ["labels", "blur", "autocast", "more real images", "latents that learn"])
def test_calls_that_take_the_eager_step(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    real, z = batch()
    if kind == "labels":
        step = make_step_of(
            *(
                network(SHAPE, hidden=(8, 6), num_classes=3).double()
                for network in (MLPGenerator, MLPDiscriminator)
            )
        )
        z = torch.randn(6, 100, dtype=torch.float64)
        labels = torch.arange(6) % 3
        assert "there are labels" in route(step, caplog, real, z, labels)
        return
    step = make_step()
    if kind == "blur":
        assert "the images are blurred" in route(step, caplog, blur_sigma=1.0)
        assert "takes mlp_gan_step_" in route(step, caplog, blur_sigma=0.0)
    elif kind == "autocast":
        step = make_step(dtype=torch.float32)
        given = batch(dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            assert "autocast is on" in route(step, caplog, *given)
        step.objective.autocast = torch.bfloat16
        assert "autocast is on" in route(step, caplog, *given)
    elif kind == "more real images":
        assert "the batch has other shapes" in route(step, caplog, torch.cat([real, real]), z)
    else:
        assert "the batch wants a gradient" in route(step, caplog, real, z.requires_grad_())
        assert z.grad is not None


def test_modes_take_the_eager_step(caplog: pytest.LogCaptureFixture) -> None:
    with decompose():
        assert "it is inside decompose()" in route(make_step(), caplog)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "there is a global hook" in route(make_step(), caplog)
    finally:
        handle.remove()


def test_mixed_styles_are_refused() -> None:
    step = make_step()
    real, z = batch()
    share = step.inputs
    assert share is None
    step(real, z)
    assert step.inputs is not None
    mixing = Mixing(z, torch.zeros(6, dtype=torch.int64))
    assert step.refusal(step.inputs._replace(mixing=mixing)) == (
        "there are labels, mixed styles or path lengths"
    )
    assert step.refusal(step.inputs, stretch=True) is not None
    assert step.refusal(step.inputs) is None


def test_a_wrong_batch_has_the_error_of_the_eager_step() -> None:
    real, z = batch()
    step = make_step()
    with pytest.raises(ValueError, match=r"z has shape \(6, 4\), but must be \(N, 5\)"):
        step(real, z[:, :4])
    assert step.inputs is None
    with pytest.raises(ValueError, match=r"images is torch.float32, but must be torch.float64"):
        step(real.float(), z)


def test_the_eager_mode_is_eager(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aigc_ext")
    make_step("eager")(*batch())
    assert not any("mlp_gan_step_" in record.getMessage() for record in caplog.records)


# ---- runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "because"),
    [
        ({"augment": {"kind": "diffaug"}}, "there is an augmentation"),
        ({"augment__blur_sigma": 1.0}, "the images are blurred"),
        ({"precision": "bfloat16"}, "autocast is on"),
        ({"batch_gpu": 5}, "the batch has parts"),
        ({"data__cond": True}, "there are labels"),
        ({"generator": {"family": "dcgan", "z_dim": 8, "channels": 6}}, "the generator is no MLPGenerator"),
    ],
)
def test_a_run_that_cannot_be_native_is_refused(overrides: dict[str, Any], because: str) -> None:
    with pytest.raises(ConfigError, match=f"step is 'native', but {because}"):
        Trainer.from_config(config(step="native", **overrides))
    Trainer.from_config(config(**overrides))


@pytest.mark.parametrize("modes", [("eager", "native"), ("native", "eager"), ("auto", "auto")])
def test_a_run_goes_on_in_another_mode(modes: tuple[str, str], tmp_path: Any) -> None:
    shared: dict[str, Any] = {"loss__gamma": 0.1, "loss__r1_interval": 2, "n_dis": 2, "kimg": 0.5}
    whole = Trainer.from_config(config(**shared, step="eager"), outdir=tmp_path / "whole")
    whole.fit()
    begun = Trainer.from_config(config(**{**shared, "kimg": 0.25}, step=modes[0]), outdir=tmp_path / "parts")
    directory = begun.fit().run_dir
    point = find_resume_point(str(directory), tmp_path / "parts")
    going_on = Trainer.from_config(point.config.override("kimg", 0.5).override("step", modes[1]))
    going_on.restore(point)
    going_on.fit()
    for name in ("generator", "discriminator", "ema"):
        for one, other in zip(
            getattr(going_on.task, name).parameters(), getattr(whole.task, name).parameters(), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_an_old_run_goes_on_eagerly(tmp_path: Any) -> None:
    directory = Trainer.from_config(config(kimg=0.1, step="eager"), outdir=tmp_path).fit().run_dir
    assert directory is not None
    assert find_resume_point(str(directory), tmp_path).config.to_dict()["step"] == "eager"
    old = config(step=None)
    assert "step" not in old.to_dict()
    assert type(old).from_dict(old.to_dict(), base=type(old).from_dict(type(old).before)) == old
    assert type(old).from_dict(old.to_dict()).step == "auto"
