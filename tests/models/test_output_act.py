from __future__ import annotations

from typing import Any

import pytest
import torch

from aigc_ext.models import build_generator

_FAMILIES = {
    "stylegan2": {"z_dim": 4, "w_dim": 4, "mapping_layers": 1, "channel_max": 4},
    "stylegan3": {"z_dim": 4, "w_dim": 4, "mapping_layers": 1, "channel_max": 4, "num_layers": 3},
    "r3gan": {"z_dim": 4, "channel_max": 4, "group_size": 4},
}


def _built(family: str, **options: str) -> Any:
    return build_generator({"family": family, "image_shape": [3, 8, 8], **_FAMILIES[family], **options})


@pytest.mark.parametrize("family", _FAMILIES)
def test_tanh_is_that_of_the_linear_output(family):
    linear, limited = _built(family, output_act="linear").eval(), _built(family, output_act="tanh").eval()
    limited.load_state_dict(linear.state_dict())
    z = 3 * torch.randn(5, 4)
    torch.testing.assert_close(limited(z), linear(z).tanh(), rtol=1e-5, atol=1e-6)
    assert limited.config["output_act"] == "tanh"
    assert build_generator(limited.config).config == limited.config
    assert _built(family).config["output_act"] == "linear"


@pytest.mark.parametrize("family", _FAMILIES)
def test_an_unknown_output_is_refused(family):
    with pytest.raises(ValueError, match="output_act is 'sigmoid', but must be one of 'linear', 'tanh'"):
        _built(family, output_act="sigmoid")
