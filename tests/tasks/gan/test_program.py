"""The recorded forms of the adversarial step: traced has the bits of the eager step, compiled its values."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aigc_ext.config import ConfigError
from aigc_ext.data import TensorImages
from aigc_ext.losses import AdversarialLoss
from aigc_ext.models import DCGANDiscriminator, DCGANGenerator, build_discriminator, build_generator
from aigc_ext.optim import AdamEMA
from aigc_ext.tasks.gan import (
    PRESETS,
    AdaAugment,
    AdversarialStep,
    Mixing,
    Objective,
    StepInputs,
    TrainConfig,
    Trainer,
    find_resume_point,
    recipe,
)
from aigc_ext.tasks.gan import fastest as measuring
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config
from tests.training.helpers import files_of

SIDE, BATCH, LABELS = 8, 4, 3
CHANNELS = {"channel_base": 32, "channel_max": 4}
STYLE: dict[str, Any] = {"z_dim": 6, "w_dim": 6, "mapping_layers": 1, **CHANNELS}
STYLE3 = {**STYLE, "num_layers": 3}
NETWORKS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mlp": ({"z_dim": 6, "hidden": (5,)}, {"hidden": (5,)}),
    "dcgan": ({"z_dim": 6, "channels": 4}, {"channels": 4}),
    "sngan": ({"z_dim": 6, "channels": 4}, {"channels": 4}),
    "stylegan2": (STYLE, CHANNELS),
    "stylegan3-t": (STYLE3, CHANNELS),
    "stylegan3-r": (STYLE3, CHANNELS),
    "r3gan": ({"z_dim": 6, **CHANNELS, "blocks": 1}, {**CHANNELS, "blocks": 1}),
}


def config_of(preset: str, **overrides: Any) -> TrainConfig:
    """A preset with its objective and tiny networks."""
    made, shape, (g, d) = PRESETS[preset], (3, SIDE, SIDE), NETWORKS[preset]
    shared: dict[str, Any] = {"image_shape": shape}
    shared["num_classes"] = LABELS if overrides.pop("cond", False) else 0
    made = replace(
        made,
        batch=BATCH,
        generator=replace(made.generator, **shared, **g),
        discriminator=replace(made.discriminator, **shared, **d),
    )
    for key, value in overrides.items():
        made = made.override(key.replace("__", "."), value)
    images = torch.randint(256, (1, *shape), dtype=torch.uint8)
    return recipe.complete(made, TensorImages("noise", images))


class Pair:
    """An eager step and one of another mode, of equal networks."""

    def __init__(self, settings: TrainConfig, mode: str) -> None:
        torch.manual_seed(0)
        self.settings = settings
        g, d = build_generator(settings.generator), build_discriminator(settings.discriminator)
        self.format = torch.channels_last if settings.channels_last else torch.contiguous_format
        for network in (g, d):
            network.to(memory_format=self.format)  # type: ignore[call-overload]
        augment = recipe.make_augment(settings.augment, (-1.0, 1.0))
        if isinstance(augment, AdaAugment):
            augment.set_p(0.5)
        self.steps = [self._made(*copy.deepcopy((g, d, augment)), mode) for mode in ("eager", mode)]

    def _made(self, g: nn.Module, d: nn.Module, augment: nn.Module | None, mode: Any) -> AdversarialStep:
        emas = [p.detach().clone() for p in g.parameters()]
        adams = [
            AdamEMA(network.parameters(), **recipe.rates(adam, 0.0), eps=adam.eps, ema_params=averages)
            for network, adam, averages in (
                (g, self.settings.g_optim, emas),
                (d, self.settings.d_optim, None),
            )
        ]
        objective = recipe.make_objective(d, self.settings, augment)
        return AdversarialStep(g, d, objective, *adams, mode=mode)

    def take(self, index: int, kind: tuple[bool, bool, bool], **options: Any) -> list[dict[str, Any]]:
        """What the steps leave after a step with other numbers than the one before."""
        rng = torch.Generator().manual_seed(index)
        loss = self.settings.loss
        real = torch.rand(BATCH, 3, SIDE, SIDE, generator=rng) * 2 - 1
        real = real.contiguous(memory_format=self.format)
        z = torch.randn(BATCH, 6, generator=rng)
        labels = torch.arange(BATCH) % LABELS if self.settings.generator.num_classes else None  # type: ignore[attr-defined]
        mixing = Mixing(z.flip(0), torch.arange(BATCH)) if loss.mixing else None
        options = {"seed": index, "gamma": 0.5 + index, "blur_sigma": 0.0, **options}
        found = []
        for step in self.steps:
            torch.manual_seed(index)
            for adam in (step.g_optimizer, step.d_optimizer):
                rates = {
                    "lr": 1e-3 / (1 + index),
                    "betas": (0.1 * (index % 3), 0.9),
                    "weight_decay": 20.0 * index,
                }
                adam.param_groups[0].update(rates)
            step.g_optimizer.ema_decay = 0.5 + 0.1 * (index % 4)  # type: ignore[attr-defined]
            penalize, train_generator, stretch = kind
            chosen: dict[str, Any] = {
                "train_generator": train_generator,
                "stretch": stretch,
                "mixing": mixing,
            }
            statistics = step(real, z, labels, penalize=penalize, **chosen, **options)
            inputs = step.inputs
            assert inputs is not None
            left: dict[str, Any] = {"statistics": statistics, "fake": inputs.fake, "path": step.path_mean}
            left["random"] = torch.get_rng_state()
            for role in ("generator", "discriminator"):
                adam = getattr(step, f"{role[0]}_optimizer")
                left |= {f"{role}.{k}": v.clone() for k, v in getattr(step, role).state_dict().items()}
                left[f"{role}.averages"] = [t.clone() for t in adam._emas[0]]
                left[f"{role}.adam"] = [t.clone() for p in adam.state.values() for t in p.values()]
                left[f"{role}.skipped"] = adam.skipped.clone()
            found.append(left)
        return found


def assert_same(one: Any, other: Any, tolerance: float = 0.0) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)


def kinds_of(settings: TrainConfig) -> list[tuple[bool, bool, bool]]:
    return list(dict.fromkeys(recipe.kinds_of_steps(settings)))


@pytest.mark.parametrize(("preset", "seeded"), [*((preset, True) for preset in PRESETS), ("r3gan", False)])
def test_traced_has_the_bits_of_the_eager_step(preset: str, seeded: bool) -> None:
    pair = Pair(config_of(preset), "traced")
    kinds = kinds_of(pair.settings)
    assert len(kinds) > 1 or preset in ("dcgan", "r3gan")
    for index, kind in enumerate([*kinds, *kinds]):
        eager, traced = pair.take(index, kind, **({} if seeded else {"seed": None}))
        assert_same(traced, eager)
        assert traced["statistics"][:1].isfinite()
    programs = pair.steps[1]._programs
    assert len(programs) == len(kinds)
    for program in programs.values():
        for node in program._graph.nodes:  # what the capture of a CUDA graph refuses
            tags = getattr(node.target, "tags", ())
            assert not {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output} & set(tags)


@pytest.mark.parametrize(
    "overrides",
    [
        {"cond": True},
        {"precision": "bfloat16"},
        {"augment__kind": "diffaug"},
        {"loss__kind": "relativistic_avg"},
        {"loss__l2_weight": 0.1, "loss__r2": True},
        {"loss__attack": 0.1},
    ],
    ids=str,
)
def test_traced_follows_the_settings(overrides: dict[str, Any]) -> None:
    pair = Pair(config_of("stylegan2", **overrides), "traced")
    for index in range(2):
        eager, traced = pair.take(index, (True, True, True))
        assert_same(traced, eager)


# Of all presets, `python -m benchmarks step` compares the first step: Inductor takes a minute for some.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("preset", ["dcgan", "r3gan"])
def test_compiled_is_the_eager_step_within_rounding(preset: str) -> None:
    pair = Pair(config_of(preset, augment__kind="noaug"), "compiled")
    for index in range(2):
        eager, compiled = pair.take(index, (True, True, False))
        for name in eager:
            # Adam's first steps are as long for a gradient of rounding errors as for any other.
            atol = 3e-3 if name.startswith(("generator", "discriminator")) else 1e-4
            torch.testing.assert_close(compiled[name], eager[name], rtol=1e-3, atol=atol, equal_nan=True)
    (program,) = pair.steps[1]._programs.values()
    assert program._compiled is not None


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiling_needs_a_compiler() -> None:
    from torch._inductor import config as inductor

    pair = Pair(config_of("dcgan"), "compiled")
    because = r"there is no C\+\+ compiler: install g\+\+ .* or set step to 'traced', which needs none"
    with inductor.patch({"cpp.cxx": ("/nowhere/g++",)}):
        with pytest.raises(ConfigError, match=f"step is 'compiled', but {because}"):
            pair.take(0, (False, True, False))
        images = torch.zeros(BATCH, 3, SIDE, SIDE)
        inputs = StepInputs(images, images, torch.zeros(BATCH, 6), None, False)
        assert re.match(because, pair.steps[1].refusal(inputs, mode="compiled") or "")
        assert pair.steps[1].refusal(inputs, mode="traced") is None


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    pair = Pair(config_of("sngan"), "traced")
    for index in range(4):
        eager, traced = pair.take(index, (False, True, False), **({"seed": 7} if index == 2 else {}))
        assert_same(traced, eager)
        if index == 1:
            for step in pair.steps:
                first: Any = next(step.generator.parameters())
                first.data[0] = torch.nan
        if index == 2:
            assert traced["generator.skipped"] == 1
            for step in pair.steps:
                next(step.generator.parameters()).data[0] = 0.0


def exchange_a_module(step: Any) -> None:
    step.discriminator.layers[1] = copy.deepcopy(step.discriminator.layers[1])


def freeze(step: Any) -> None:
    next(step.discriminator.parameters()).requires_grad_(False)


def load_optimizer(step: Any) -> None:
    step.d_optimizer.load_state_dict(copy.deepcopy(step.d_optimizer.state_dict()))


def eval_mode(step: Any) -> None:
    step.generator.eval()


def other_eps(step: Any) -> None:
    step.g_optimizer.param_groups[0]["eps"] = 0.3


def other_loss(step: Any) -> None:
    step.objective.loss = AdversarialLoss("hinge")


def other_mean(step: Any) -> None:
    step.path_mean = torch.ones(())


@pytest.mark.parametrize("change", [freeze, load_optimizer, eval_mode, other_eps, other_loss, other_mean])
def test_what_changes_between_steps_is_seen(change: Any) -> None:
    preset = "stylegan2" if change is other_mean else "dcgan"
    pair = Pair(config_of(preset, augment__kind="noaug"), "traced")
    kind = (True, True, preset == "stylegan2")
    pair.take(0, kind)
    for step in pair.steps:
        change(step)
    for index in (1, 2):
        eager, traced = pair.take(index, kind)
        assert_same(traced, eager)


class Reading(PlainDiscriminator):
    def forward(self, images: Tensor) -> Tensor:
        y = super().forward(images)
        return y if y.sum() > -1e9 else 2 * y


def own_step(discriminator: nn.Module, mode: Any = "traced", optimizer: Any = AdamEMA) -> AdversarialStep:
    torch.manual_seed(0)
    generator = PlainGenerator()
    return AdversarialStep(
        *(generator, discriminator, Objective(discriminator, AdversarialLoss(), gamma=0.1)),
        *(optimizer(network.parameters()) for network in (generator, discriminator)),
        mode=mode,
    )


def test_networks_of_others_with_dropout() -> None:
    torch.manual_seed(3)
    discriminator = PlainDiscriminator()
    steps = [own_step(copy.deepcopy(discriminator), mode) for mode in ("eager", "traced")]
    for index in range(3):
        rng = torch.Generator().manual_seed(index)
        real, z = torch.rand(BATCH, 1, 4, 4, generator=rng), torch.randn(BATCH, 6, generator=rng)
        eager, traced = (step(real, z, penalize=True, seed=index) for step in steps)
        assert_same(traced, eager)
    for one, other in zip(steps[0].generator.parameters(), steps[1].generator.parameters(), strict=True):
        assert torch.equal(one, other)


def hooked() -> Iterator[AdversarialStep]:
    step = own_step(PlainDiscriminator())
    step.generator.register_forward_hook(lambda *_: None)
    yield step
    step = own_step(PlainDiscriminator())
    next(step.generator.parameters()).register_hook(lambda gradient: gradient)
    yield step


def test_what_cannot_be_recorded_is_refused() -> None:
    real, z = torch.rand(BATCH, 1, 4, 4), torch.randn(BATCH, 6)
    first, second = hooked()
    parts = own_step(PlainDiscriminator())
    parts.part_size = 2
    for step, because in (
        (first, "a PlainGenerator has a hook"),
        (second, "a parameter has a hook"),
        (parts, "the batch has parts"),
        (own_step(Reading()), "it cannot be recorded: something in it reads a number from a tensor"),
        (
            own_step(PlainDiscriminator(), optimizer=torch.optim.Adam),
            "the generator's optimizer is no AdamEMA",
        ),
    ):
        before = [t.clone() for t in step.generator.state_dict().values()]
        with pytest.raises(ConfigError, match=f"step is 'traced', but {because}"):
            step(real, z, penalize=True, seed=0)
        assert_same([*step.generator.state_dict().values()], before)


# ---- runs --------------------------------------------------------------------------------------------------

DCGAN: dict[str, Any] = {
    "generator": {"family": "dcgan", "z_dim": 8, "channels": 6},
    "discriminator": {"family": "dcgan", "channels": 6},
    "loss__gamma": 0.1,
    "loss__r1_interval": 3,
    "kimg": 0.25,
}


@pytest.mark.parametrize("mode", ["traced", "compiled"])
def test_a_run_that_cannot_be_recorded_is_refused(mode: str) -> None:
    with pytest.raises(ConfigError, match=f"step is '{mode}', but the batch has parts"):
        Trainer.from_config(config(step=mode, batch_gpu=5))


def test_a_run_keeps_the_mode_that_was_measured(monkeypatch: Any, tmp_path: Any) -> None:
    eager = Trainer.from_config(config(**DCGAN, step="eager"), outdir=tmp_path / "eager").fit()
    monkeypatch.setattr(measuring, "SHORT", 0.0)
    monkeypatch.setattr(measuring, "_chosen", lambda costs: TRACED)
    trainer = Trainer.from_config(config(**DCGAN), outdir=tmp_path / "auto")
    done = trainer.fit()
    assert trainer.config.step == "traced"
    assert json.loads((done.run_dir / "config.json").read_text())["step"] == "traced"
    assert "step: traced, " in (done.run_dir / "log.txt").read_text()
    # Measuring has left no trace: the run is the eager one, to the bit.
    assert files_of(done.checkpoint) | {"state.json": b""} == files_of(eager.checkpoint) | {"state.json": b""}

    monkeypatch.setattr(measuring, "SHORT", 1e9)
    point = find_resume_point(str(done.run_dir), tmp_path)
    assert point.config.step == "traced"
    going_on = Trainer.from_config(point.config.override("kimg", 0.5))
    going_on.restore(point)
    whole = Trainer.from_config(
        config(**{**DCGAN, "kimg": 0.5}, step="eager"), outdir=tmp_path / "whole"
    ).fit()
    assert files_of(going_on.fit().checkpoint) | {"state.json": b""} == files_of(whole.checkpoint) | {
        "state.json": b""
    }


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_a_compiled_run_resumes_to_the_bit(tmp_path: Any) -> None:
    options: dict[str, Any] = {"step": "compiled", "batch": 25}
    whole = Trainer.from_config(config(**options, kimg=0.25), outdir=tmp_path / "whole").fit()
    first = Trainer.from_config(config(**options, kimg=0.1), outdir=tmp_path / "parts").fit()
    point = find_resume_point(str(first.run_dir), tmp_path)
    going_on = Trainer.from_config(point.config.override("kimg", 0.25))
    going_on.restore(point)
    assert files_of(going_on.fit().checkpoint) == files_of(whole.checkpoint)
    eager = Trainer.from_config(config(kimg=0.25, step="eager"), outdir=tmp_path / "eager")
    eager.fit()
    for one, other in zip(going_on.task.ema.parameters(), eager.task.ema.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_short_run_measures_nothing(tmp_path: Any) -> None:
    trainer = Trainer.from_config(config(**DCGAN), outdir=tmp_path)
    trainer.fit()
    assert trainer.config.step == "auto"
    assert not trainer.task._take_step._programs


TRACED = measuring.Way("traced")


def test_a_run_keeps_the_precision_that_was_measured(monkeypatch: Any, tmp_path: Any) -> None:
    given = Trainer.from_config(
        config(**DCGAN, step="eager", precision="bfloat16"), outdir=tmp_path / "given"
    ).fit()
    monkeypatch.setattr(measuring, "SHORT", 0.0)
    monkeypatch.setattr(
        measuring, "_chosen", lambda costs: max(costs, key=lambda way: way.autocast is not None)
    )
    monkeypatch.setattr(measuring, "_WORTH", 0.0)
    trainer = Trainer.from_config(config(**DCGAN, step="eager", precision="auto"), outdir=tmp_path / "auto")
    done = trainer.fit()
    assert trainer.config.precision == "bfloat16"
    assert json.loads((done.run_dir / "config.json").read_text())["precision"] == "bfloat16"
    assert "step: eager in bfloat16, " in (done.run_dir / "log.txt").read_text()
    assert files_of(done.checkpoint) | {"state.json": b""} == files_of(given.checkpoint) | {"state.json": b""}

    point = find_resume_point(str(done.run_dir), tmp_path)
    changed = Trainer.from_config(point.config.override("precision", "auto"))
    with pytest.raises(
        ConfigError, match="precision is 'auto', which is for a new run; this one has 'bfloat16'"
    ):
        changed.restore(point)


@pytest.mark.parametrize("family", ["mlp", "dcgan"])
def test_precision_is_settled_where_nothing_is_measured(family: str, tmp_path: Any) -> None:
    """A short run, and one that the native step takes."""
    options: dict[str, Any] = DCGAN if family == "dcgan" else {"kimg": 0.25}
    trainer = Trainer.from_config(config(**options, precision="auto"), outdir=tmp_path)
    done = trainer.fit()
    assert trainer.config.precision == "float32"
    assert json.loads((done.run_dir / "config.json").read_text())["precision"] == "float32"


class Clock:
    """Stands for a step: each mode takes its time, the first time more; bfloat16 a fraction of it."""

    def __init__(self, times: dict[str, float], once: dict[str, float]) -> None:
        self.times, self.once, self.now = times, dict(once), 0.0
        self.mode, self.operations, self.bfloat16 = "auto", 0, 1.0
        self.objective: Any = SimpleNamespace(autocast=None)
        self.tensors: list[Tensor] = []
        self.recorded: list[torch.dtype | None] = []
        self.failing: dict[str, Exception] = {}

    def state(self) -> Clock:
        return self

    def refusal(self, inputs: Any, mode: str) -> str | None:
        return None if mode in self.times else "not here"

    def __call__(self, *_: Any, **kind: Any) -> None:
        if self.mode in self.failing:
            raise self.failing[self.mode]
        if self.mode == "traced" and self.objective.autocast not in self.recorded:
            self.recorded.append(self.objective.autocast)
            self.operations += 400
        factor = 1.0 if self.objective.autocast is None else self.bfloat16
        self.now += factor * self.times[self.mode] + self.once.pop(self.mode, 0.0)


@pytest.mark.parametrize(
    ("times", "once", "steps", "chosen"),
    [
        ({"eager": 0.1, "traced": 0.05}, {}, 10, None),  # a second in all
        ({"eager": 0.1, "traced": 0.05}, {}, 1500, "traced"),
        ({"eager": 0.1, "traced": 0.11}, {}, 1500, "eager"),
        ({"eager": 0.1, "traced": 0.09}, {"traced": 20.0}, 1500, "eager"),  # recording is not repaid
        ({"eager": 0.1, "traced": 0.09, "compiled": 0.01}, {}, 2000, "traced"),  # 6 s to compile are too many
        ({"eager": 0.1, "traced": 0.09, "compiled": 0.05}, {"compiled": 9.0}, 9000, "compiled"),
        ({"eager": 0.1, "traced": 0.09, "compiled": 0.085}, {"compiled": 99.0}, 9000, "traced"),
    ],
)
def test_the_choice(times: Any, once: Any, steps: int, chosen: str | None, monkeypatch: Any) -> None:
    clock: Any = Clock(times, once)
    monkeypatch.setattr(measuring, "_now", lambda device: clock.now)
    step = own_step(PlainDiscriminator())
    step(torch.rand(BATCH, 1, 4, 4), torch.randn(BATCH, 6))
    assert step.inputs is not None
    found = measuring.fastest(clock, step.inputs, [(False, True, False)], steps)
    assert (found and found[0].mode) == chosen
    assert (clock.mode, clock.objective.autocast) == ("auto", None)
    if found:
        assert found[1].startswith(f"{chosen}")
        assert ("compiling would take about 6 s" in found[1]) == (steps == 2000)


@pytest.mark.parametrize(
    ("bfloat16", "modes", "chosen"),
    [
        (0.5, True, "traced in bfloat16"),
        (0.95, True, "traced"),
        (0.5, False, "eager in bfloat16"),
        (2.0, False, "eager"),
    ],
)
def test_the_choice_of_precision(bfloat16: float, modes: bool, chosen: str, monkeypatch: Any) -> None:
    clock: Any = Clock({"eager": 0.1, "traced": 0.05}, {})
    clock.mode, clock.bfloat16 = "eager", bfloat16
    monkeypatch.setattr(measuring, "_now", lambda device: clock.now)
    step = own_step(PlainDiscriminator())
    step(torch.rand(BATCH, 1, 4, 4), torch.randn(BATCH, 6))
    assert step.inputs is not None
    kinds = [(False, True, False)]
    found = measuring.fastest(clock, step.inputs, kinds, 9000, modes=modes, precisions=True)
    assert found is not None
    assert str(found[0]) == chosen
    assert found[1].startswith(chosen)
    # What was measured and not taken is said.
    assert ("bfloat16 only" in found[1]) == ("bfloat16" not in chosen)
    assert (clock.mode, clock.objective.autocast) == ("eager", None)


def test_a_mode_that_fails_is_not_chosen(monkeypatch: Any) -> None:
    clock: Any = Clock({"eager": 0.1, "traced": 0.05, "compiled": 0.01}, {})
    monkeypatch.setattr(measuring, "_now", lambda device: clock.now)
    step = own_step(PlainDiscriminator())
    step(torch.rand(BATCH, 1, 4, 4), torch.randn(BATCH, 6))
    assert step.inputs is not None
    clock.failing["compiled"] = RuntimeError("no such thing\nat all")
    found = measuring.fastest(clock, step.inputs, [(False, True, False)], 9000)
    assert found is not None
    assert found[0] == TRACED
    assert found[1].endswith("compiling failed, RuntimeError: no such thing)")
    clock.failing["traced"] = ConfigError("step is 'traced', but a Linear has a hook")
    found = measuring.fastest(clock, step.inputs, [(False, True, False)], 9000)
    assert found == (
        measuring.Way("eager"),
        "eager (a step: eager 100.0 ms; step is 'traced', but a Linear has a hook)",
    )
    assert clock.mode == "auto"


def test_auto_measures_only_networks_of_ours(tmp_path: Path, monkeypatch: Any) -> None:
    """A subclass may do something that is not recorded, such as fading in by a number in Python."""

    class Fading(DCGANDiscriminator):
        pass

    measured: list[Any] = []
    monkeypatch.setattr("aigc_ext.tasks.gan.trainer.fastest", lambda step, *_, **__: measured.append(step))
    images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8)
    settings = PRESETS["dcgan"].override("batch", 8).override("kimg", 0.016).override("device", "cpu")
    for family in (Fading, DCGANDiscriminator):
        networks = DCGANGenerator((1, 8, 8), channels=4), family((1, 8, 8), channels=4)
        Trainer(*networks, images, settings, outdir=tmp_path).fit()
    assert [type(step.discriminator) for step in measured] == [DCGANDiscriminator]
