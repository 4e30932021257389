"""aigc_ext.bench.step: the plain networks and their step compute the same as ours, and all contenders run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aigc_ext.bench.step import Size, cases, eager, first_step, networks, ours, sizes
from benchmarks.harness import Setting, run_module

SIZES = list(sizes(quick=True))
CASES = [(size, penalize) for size in SIZES for penalize in {False, *size.penalties}]


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(("size", "penalize"), CASES)
def test_plain_and_ours_take_the_same_step(size: Size, penalize: bool, grouped: bool) -> None:
    if grouped and not size.preset.startswith("stylegan"):
        pytest.skip("there are no modulated convolutions")
    torch.manual_seed(0)
    config = size.config()
    generator, discriminator = (network.double() for network in networks(config))
    real = torch.randn(size.batch, *config.generator.image_shape, dtype=torch.float64)
    z = torch.randn(size.batch, generator.z_dim, dtype=torch.float64)  # type: ignore[call-overload]
    expected = first_step(eager(generator, discriminator, config, penalize, grouped=grouped), real, z)
    got = first_step(ours(generator, discriminator, config, penalize), real, z)
    for role in "GD":
        gradients = expected[f"{role}'s gradients"]
        whole = float(torch.stack([gradient.norm() for gradient in gradients]).norm())
        assert whole > 0
        torch.testing.assert_close(got[f"{role}'s gradients"], gradients, rtol=1e-6, atol=1e-10 * whole)
        # Where a gradient is only rounding errors, so is the direction of Adam's first step.
        clear = [gradient.abs() > 1e-8 * whole for gradient in gradients]
        assert all(mask.any() for mask in clear if mask.numel() > 100)

        def chosen(tensors: list[Tensor], clear: list[Tensor] = clear) -> Tensor:
            return torch.cat([t[mask] for t, mask in zip(tensors, clear, strict=True)])

        for name in (role, "the average of G") if role == "G" else (role,):
            torch.testing.assert_close(chosen(got[name]), chosen(expected[name]), rtol=0, atol=1e-9)


def test_every_contender_runs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(run_module(cases, Setting(quick=True), [torch.get_num_threads()]))
    assert "left out" not in capsys.readouterr().out
    assert len({row["case"] for row in rows}) == len(SIZES)
    traced = {"aigc_ext", "aigc_ext, eager step", "plain networks, traced"}
    assert {"eager", "eager, grouped", "compile", *traced} <= {row["contender"] for row in rows}
