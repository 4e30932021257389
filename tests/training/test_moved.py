"""Names that were in aigc_ext.training before the GAN became a task are still found there."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest

OLD = {
    "": "PRESETS STATISTICS AdaAugment AdversarialStep Checkpoint CheckpointError ConfigError DiffAugment "
    "NonFiniteError Objective Replay ResumePoint RunError TrainConfig TrainResult Trainer adjusted_p "
    "find_resume_point newest_checkpoint read_checkpoint replay",
    "augment": "AdaAugment adjusted_p DiffAugment",
    "blur": "blurred",
    "config": "ConfigError Range Count NonNegative Positive Fraction DataConfig MLPGeneratorConfig "
    "MLPDiscriminatorConfig DCGANGeneratorConfig DCGANDiscriminatorConfig SNGANGeneratorConfig "
    "SNGANDiscriminatorConfig StyleGAN2GeneratorConfig StyleGAN2DiscriminatorConfig "
    "StyleGAN3GeneratorConfig R3GANGeneratorConfig R3GANDiscriminatorConfig LossConfig AdamConfig EMAConfig "
    "AugmentConfig TrainConfig parse_setting",
    "cost": "Cost probe",
    "loop": "TrainResult Trainer",
    "nonfinite": "NonFiniteError Replay make_objective replay",
    "presets": "PRESETS",
    "recipe": "complete check_fits part_size smaller_groups ramp between blur_sigma make_augment "
    "adjust_augment",
    "run": "RunError ResumePoint next_run_name create_run find_resume_point check_resumable StatsLog Run",
    "step": "STATISTICS Mixing StepInputs Objective AdversarialStep with_labels",
}


@pytest.mark.parametrize("module", OLD)
def test_an_old_name_is_the_new_one(module):
    old = importlib.import_module(f"aigc_ext.training.{module}".rstrip("."))
    for name in OLD[module].split():
        found: dict[str, Any] = {}
        exec(f"from {old.__name__} import {name}", found)
        assert getattr(old, name) is found[name]
        home = sys.modules[getattr(found[name], "__module__", old.__name__)]
        assert getattr(home, name, found[name]) is found[name], "another object than where it is defined"
    with pytest.raises(AttributeError, match="nothing"):
        old.nothing  # noqa: B018


def test_every_form_of_import(monkeypatch):
    import aigc_ext.training.step
    import aigc_ext.training.step as step

    from aigc_ext.tasks import gan
    from aigc_ext.training import recipe  # type: ignore[attr-defined]

    assert step is aigc_ext.training.step
    assert step.AdversarialStep is gan.AdversarialStep
    assert recipe.complete is importlib.import_module("aigc_ext.tasks.gan.recipe").complete
    everything: dict[str, Any] = {}
    exec("from aigc_ext.training import *", everything)
    assert everything["Trainer"] is gan.Trainer


def test_the_engine_loads_no_task():
    code = (
        "import sys, aigc_ext.training, aigc_ext.training.step, aigc_ext.training.cost\n"
        "found = [name for name in sys.modules if name.startswith('aigc_ext.tasks')]\n"
        "assert not found, found\n"
        "aigc_ext.training.step.Objective\n"
        "assert 'aigc_ext.tasks.gan' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
