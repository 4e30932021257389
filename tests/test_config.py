"""Settings that check themselves; what a run is told is in tests/tasks/gan/test_train_config.py."""

from __future__ import annotations

import pytest

from aigc_ext.config import ConfigError, parse_setting


@pytest.mark.parametrize(
    ("setting", "parsed"),
    [
        ("batch=8", ("batch", 8)),
        ("g_optim.lr=1e-3", ("g_optim.lr", 1e-3)),
        ("generator.hidden=[1, 2]", ("generator.hidden", [1, 2])),
        ("data.cond=true", ("data.cond", True)),
        ("ema.rampup=null", ("ema.rampup", None)),
        ("loss.kind=hinge", ("loss.kind", "hinge")),
        ("data.source=a=b", ("data.source", "a=b")),
    ],
)
def test_settings(setting, parsed):
    assert parse_setting(setting) == parsed


@pytest.mark.parametrize("setting", ["batch", "=3", ""])
def test_a_setting_without_key_or_value(setting):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        parse_setting(setting)


def test_a_message_is_of_bounded_length():
    with pytest.raises(ConfigError, match=r"setting '=aaa.* \.\.\. .*, such as g_optim.lr=0.0002") as error:
        parse_setting("=" + "a" * 30_000)
    assert len(str(error.value)) < 2100
