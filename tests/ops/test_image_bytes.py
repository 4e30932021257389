"""`ops._image_bytes` against `to_uint8`."""

from __future__ import annotations

import pytest
import torch

from aigc_ext.data import normalize, to_uint8
from aigc_ext.ops._image_bytes import _image_bytes, has_image_bytes, image_bytes

pytestmark = pytest.mark.skipif(not has_image_bytes(torch.empty(0)), reason="this library has no kernel")


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0), (-0.3, 2.7)])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 3, 7, 17), (2, 4, 5, 33), (0, 3, 4, 4), (16, 1, 28, 28)])
def test_the_bytes_are_those_of_to_uint8(shape: tuple[int, ...], value_range: tuple[float, float]) -> None:
    torch.manual_seed(0)
    images = torch.randn(shape)
    flat = images.flatten()
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -0.0])
    flat[: len(odd)] = odd[: len(flat)]
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        expected = to_uint8(given, value_range).permute(0, 2, 3, 1)
        got = image_bytes(given, *value_range)
        assert got.is_contiguous()
        assert torch.equal(got, expected)


def test_halves_round_to_even_and_all_levels_are_kept() -> None:
    halves = (torch.arange(-2.0, 258.0) + 0.5).reshape(1, 1, 1, -1)
    assert torch.equal(image_bytes(halves, 0.0, 255.0), to_uint8(halves, (0.0, 255.0)).movedim(1, -1))
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(image_bytes(normalize(levels, (-1.0, 1.0)), -1.0, 1.0), levels.movedim(1, -1))


def test_the_op_and_its_fake() -> None:
    torch.library.opcheck(torch.ops.aigc.image_bytes.default, (torch.randn(2, 3, 4, 5), -1.0, 127.5))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_wrong_arguments(device: str) -> None:
    with pytest.raises(RuntimeError, match=r"x has shape \[2, 3\], but must be \[N, C, H, W\]"):
        _image_bytes(torch.zeros(2, 3, device=device), 0.0, 1.0)
    with pytest.raises(RuntimeError, match="x must be of dtype float32"):
        _image_bytes(torch.zeros(1, 1, 2, 3, device=device, dtype=torch.float64), 0.0, 1.0)
