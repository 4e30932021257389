"""Runs that go wrong say so in words, once; runs that go well don't."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from aigc_ext.cli import main
from aigc_ext.reporting import write_report
from aigc_ext.tasks.gan import PRESETS, TrainConfig, Trainer, find_resume_point
from aigc_ext.tasks.gan.step import AdversarialStep
from aigc_ext.tasks.gan.symptoms import symptoms, variety
from aigc_ext.training import RunError
from aigc_ext.training.run import StatsLog
from tests.tasks.gan.helpers import PlainDiscriminator, PlainGenerator, config
from tests.training.helpers import rows_of

EXAMPLES = Path(__file__).parents[3] / "examples"
SHORT = TrainConfig().override("kimg", 100)
# Columns of stats.jsonl, as measured in runs on mnist5k.
DEMO = {  # every 16 thousand; it becomes varied late
    "variety": [0.0, 0.018, 0.066, 0.12, 0.178, 0.389, 0.342, 0.433],
    "acc_real": [0.849, 0.887, 0.867, 0.877, 0.896, 0.885, 0.899, 0.887],
    "acc_fake": [0.923, 0.963, 0.954, 0.952, 0.953, 0.938, 0.941, 0.938],
    "loss_d": [0.879, 0.675, 0.763, 0.78, 0.75, 0.784, 0.783, 0.797],
    "loss_g": [1.824, 2.004, 1.727, 1.686, 1.737, 1.763, 1.656, 1.71],
}
WELL = {
    "variety": [0.55, 0.6, 0.7],
    "acc_real": [0.7, 0.75, 0.7],
    "acc_fake": [0.7, 0.72, 0.74],
    "loss_d": [1.1, 1.12, 1.09],
    "loss_g": [0.9, 0.95, 0.91],
}


def rows(columns: dict[str, list[float]], count: int = 20, tick: int = 4000) -> list[dict[str, Any]]:
    return [
        {"step": i + 1, "nimg": tick * (i + 1), **{k: v[i % len(v)] for k, v in columns.items()}}
        for i in range(count)
    ]


def images(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_variety() -> None:
    real = images(32, 3, 8, 8)
    assert variety(real, real.flip(0)) == 1
    assert variety(real, real / 2) == pytest.approx(0.5)
    assert variety(real, real[:1].expand(32, -1, -1, -1)) == 0
    few = real[:4].repeat(8, 1, 1, 1)  # each of four images eight times
    assert variety(real, few) == 0
    near = real[:1] + 0.01 * real
    assert variety(real, near) == pytest.approx(0.01, rel=0.05)


def test_variety_of_what_cannot_be_compared() -> None:
    real = images(8, 1, 4, 4)
    assert variety(real[:3], real[:3]) is None
    assert variety(real[:1].expand(8, -1, -1, -1), real) is None
    assert variety(real, real * torch.nan) is None


@pytest.mark.parametrize(
    ("columns", "name", "said"),
    [
        (
            {"variety": [0.02, 0.03]},
            "alike",
            "far more alike than the data (mode collapse): for 20 thousand images",
        ),
        ({"variety": [0.0]}, "alike", "have differed from each other by less than a tenth"),
        (
            {"acc_real": [0.97, 1.0], "acc_fake": [0.999]},
            "winner",
            "right about more than 95 % of all images for 52",
        ),
        (
            {"loss_d": [1.38629], "loss_g": [0.69315, 0.6932]},
            "standstill",
            "the losses stand still: for 20 thousand",
        ),
    ],
)
def test_each_symptom(columns: Any, name: str, said: str) -> None:
    found = symptoms(rows(WELL | columns), SHORT)
    assert found.keys() == {name}
    assert said in found[name]
    assert (
        "What to try, in a new run or from an earlier checkpoint (--resume RUN/checkpoints/...): --"
        in found[name]
    )


@pytest.mark.parametrize(
    "columns",
    [
        {"variety": [0.02, 0.03, 0.05, 0.2]},  # one row is well
        {"variety": [0.02, None, 0.02, 0.02]},  # one is not known
        {"acc_real": [1.0], "acc_fake": [0.9]},
        {"acc_real": [0.97, 0.94], "acc_fake": [1.0]},
        # The generator gains on it.
        {"acc_real": [1.0], "acc_fake": [1.0], "loss_g": [4 - 0.05 * i for i in range(20)]},
        {"acc_real": [1.0], "acc_fake": [1.0], "variety": [0.2 + 0.02 * i for i in range(20)]},
        {"loss_d": [1.3863]},  # one loss moves
        {"loss_d": [1.3863, 1.39], "loss_g": [0.6931]},
    ],
)
def test_what_does_not_last_is_no_symptom(columns: Any) -> None:
    assert symptoms(rows(WELL | columns), SHORT) == {}


def test_how_long_it_has_to_last() -> None:
    bad = {**WELL, "loss_d": [1.3], "loss_g": [0.7]}

    def first(tick: int, kimg: float) -> int:
        """The thousands of images after which it is said."""
        all_rows, settings = rows(bad, 400, tick), SHORT.override("kimg", kimg)
        return next(n for n in range(400) if symptoms(all_rows[:n], settings)) * tick // 1000

    assert first(1000, 10) == 21  # 20 thousand images from the first row on
    assert first(10_000, 10) == 50  # five rows
    assert first(1000, 600) == 31  # a twentieth of the run
    assert first(1000, 25_000) == 51


def test_a_young_generator_that_spreads_out_is_well() -> None:
    growing = [0.001 * 1.25**i for i in range(20)]
    assert growing[-1] < 0.1
    assert symptoms(rows({**WELL, "variety": growing}), SHORT) == {}
    assert symptoms(rows({**WELL, "variety": growing[::-1]}), SHORT).keys() == {"alike"}


def test_no_alarm_at_the_start_of_the_demo() -> None:
    whole = rows(DEMO, 8, 16_000)
    assert not any(symptoms(whole[:n], PRESETS["mlp"]) for n in range(9))


def test_the_advice_names_what_can_be_changed() -> None:
    bad = rows(
        {**WELL, "variety": [0.0], "acc_real": [1.0], "acc_fake": [1.0], "loss_d": [0.0], "loss_g": [9.0]}
    )
    plain = symptoms(bad, SHORT)
    assert (
        "--aug ada (now none); --gamma 1 (the R1 penalty, now off); another --seed (now 0)" in plain["alike"]
    )
    assert "--dlr 5e-05 (now 0.0001)" in plain["winner"]
    assert "--glr 0.001 --dlr 0.001 (now 0.0001 and 0.0001)" in plain["standstill"]
    relativistic = TrainConfig.from_json(EXAMPLES / "r3gan_cpu.json", base=PRESETS["r3gan"]).override(
        "loss.gamma", 0.5
    )
    assert "--aug fixed (now none); --gamma 2.5 (now 0.5)" in symptoms(bad, relativistic)["alike"]
    decayed = symptoms(bad * 2, PRESETS["mlp"])
    assert "--set g_optim.weight_decay=0 --gamma 0.5 (now 0.15 and 0.1)" in decayed["alike"]
    style = PRESETS["stylegan2"].override("generator.output_act", "linear").override("loss.gamma", 2.0)
    found = symptoms(bad * 1, style.override("kimg", 100.0))
    assert "--aug" not in found["alike"]
    assert "--set generator.output_act=tanh" in found["alike"]
    assert "--gamma 0.2 (now 2)" in found["standstill"]


def test_the_advised_options_exist(capsys) -> None:
    assert main(["train", "--help"]) == 0
    offered = capsys.readouterr().out
    bad = rows(
        {**WELL, "variety": [0.0], "acc_real": [1.0], "acc_fake": [1.0], "loss_d": [0.0], "loss_g": [9.0]}
    )
    words = " ".join(symptoms(bad, SHORT).values()).replace("(", " ").split()
    named = {word for word in words if word.startswith("--")}
    assert named == {"--aug", "--gamma", "--dlr", "--glr", "--seed", "--resume"}
    assert all(f"{option} " in offered for option in named)


# ---- real runs ---------------------------------------------------------------------------------------------


class Collapsed(PlainGenerator):
    """Makes one image, whatever its latent, but for a little of it that keeps the gradient."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return super().forward(z * 0 + 1) * 0.5 + 1e-4 * z.mean(dim=1)[:, None, None, None]


def collapsing(outdir: Path, generator: type[nn.Module] = Collapsed, **options: Any) -> Trainer:
    data = torch.randint(256, (500, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    settings = config(**{"kimg": 28.0, "tick": 4.0, "snap": 1, "batch": 250, **options})
    networks = generator().eval(), PlainDiscriminator()
    return Trainer(*networks, data, settings, outdir=outdir, z_dim=6, value_range=(-1.0, 1.0))


def test_a_collapsed_run_says_so_once_in_the_log_the_figures_and_the_report(tmp_path, caplog) -> None:
    done = collapsing(tmp_path).fit()
    written = rows_of(done.run_dir)
    assert all(row["variety"] < 0.1 for row in written)
    warned = [(row["nimg"], list(row["warnings"])) for row in written if "warnings" in row]
    assert warned == [(24_000, ["alike"])]
    text = written[5]["warnings"]["alike"]
    assert caplog.text.count(text) == 1
    log = (done.run_dir / "log.txt").read_text()
    assert log.count(f"WARNING {text}") == 1
    page = write_report(done.run_dir).read_text()
    assert page.count("At 24 kimg: the samples are far more alike than the data (mode collapse)") == 1


def test_a_resumed_run_warns_no_second_time_and_has_the_same_rows(tmp_path, caplog) -> None:
    whole = collapsing(tmp_path / "whole").fit()
    collapsing(tmp_path, kimg=24.0).fit()
    caplog.clear()
    resumed = collapsing(tmp_path)
    resumed.restore(find_resume_point("latest", tmp_path))
    done = resumed.fit()
    assert "far more alike" not in caplog.text

    def told(path: Path) -> list[Any]:
        timed = ("seconds", "img_per_sec", "memory_gb")
        return [{k: v for k, v in row.items() if k not in timed} for row in rows_of(path)]

    assert told(done.run_dir) == told(whole.run_dir)
    # From the checkpoint before, it is given again, at the same place.
    again = collapsing(tmp_path / "again")
    again.restore(find_resume_point(str(whole.run_dir / "checkpoints" / "000020"), tmp_path))
    assert told(again.fit().run_dir) == told(whole.run_dir)


@pytest.mark.parametrize(
    ("still", "expected"), [(("d_optim", "g_optim"), "standstill"), (("g_optim",), "winner"), ((), None)]
)
def test_runs_on_digits(tmp_path, still: tuple[str, ...], expected: str | None) -> None:
    settings = PRESETS["mlp"].override("kimg", 72.0).override("tick", 12.0).override("data.source", "digits")
    for optimizer in still:
        settings = settings.override(f"{optimizer}.lr", 1e-12).override(f"{optimizer}.lr_end", 1e-12)
    done = Trainer.from_config(settings.override("device", "cpu"), outdir=tmp_path).fit()
    found = {name for row in rows_of(done.run_dir) for name in row.get("warnings", {})}
    assert found - {"alike"} == ({expected} if expected else set())


def test_a_batch_in_parts_shows_as_much(tmp_path) -> None:
    """And a step that is one native op."""
    figures = []
    for more in ({}, {"batch_gpu": 7}, {"step": "eager"}):
        settings = config(batch=28, kimg=0.1, **more)
        figures.append(
            [row["variety"] for row in rows_of(Trainer.from_config(settings, outdir=tmp_path).fit().run_dir)]
        )
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    assert figures[0] == pytest.approx(figures[2], rel=1e-3)
    assert None not in figures[0]


def test_the_images_of_the_last_step() -> None:
    step: Any = AdversarialStep.__new__(AdversarialStep)
    step._native_done = None
    step._parts_done = [
        SimpleNamespace(real=torch.full((3, 1), real), fake=torch.full((3, 1), fake))
        for real, fake in ((0.0, 1.0), (2.0, 3.0))
    ]
    assert [x.flatten().tolist() for x in step.images(2)] == [[0, 0], [1, 1]]
    assert [x.flatten().tolist() for x in step.images(4)] == [[0, 0, 0, 2], [1, 1, 1, 3]]


@pytest.mark.parametrize("warnings", ["yes", 5, {"alike": 3}, [1]])
def test_damaged_warnings_are_named(tmp_path, warnings: Any) -> None:
    path = tmp_path / "stats.jsonl"
    path.write_text(json.dumps({"step": 1, "nimg": 5, "warnings": warnings}) + "\n")
    with pytest.raises(RunError, match=r"line 1: warnings must be an object of strings"):
        StatsLog(path).rows()
