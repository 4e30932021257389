from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aigc_ext.data import normalize, to_uint8

ALL_BYTES = torch.arange(256, dtype=torch.uint8)
RANGES = [(0.0, 1.0), (-1.0, 1.0)]


@pytest.mark.parametrize("value_range", RANGES)
def test_round_trip_is_exact_for_all_values(value_range: tuple[float, float]) -> None:
    images = normalize(ALL_BYTES, value_range)
    assert images.dtype == torch.float32
    assert (images[0].item(), images[255].item()) == value_range
    assert torch.equal(to_uint8(images, value_range), ALL_BYTES)


@given(low=st.floats(-100, 100), width=st.floats(0.01, 1000))
def test_round_trip_is_exact_in_any_sensible_range(low: float, width: float) -> None:
    value_range = (low, low + width)
    assert torch.equal(to_uint8(normalize(ALL_BYTES, value_range), value_range), ALL_BYTES)


@pytest.mark.parametrize("value_range", RANGES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_to_uint8_is_within_half_a_step_of_the_value_in_any_dtype(
    value_range: tuple[float, float], dtype: torch.dtype
) -> None:
    low, high = value_range
    images = torch.linspace(low, high, 1001, dtype=torch.float64).to(dtype)
    exact = (images.double() - low) / (high - low) * 255
    assert (to_uint8(images, value_range).double() - exact).abs().max() <= 0.5 + 1e-4


def test_to_uint8_clamps_and_gives_0_for_nan() -> None:
    images = torch.tensor([-math.inf, -7.0, math.nan, 7.0, math.inf])
    assert to_uint8(images, (-1.0, 1.0)).tolist() == [0, 0, 0, 255, 255]


def test_neither_changes_its_input() -> None:
    images = torch.tensor([0.25, 0.75])
    to_uint8(images, (0.0, 1.0))
    assert images.tolist() == [0.25, 0.75]
    stored = ALL_BYTES.clone()
    normalize(stored, (0.0, 1.0))
    assert torch.equal(stored, ALL_BYTES)


@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (2, 3, 4, 5)])
def test_shape_is_kept(shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape, dtype=torch.uint8)
    assert normalize(images, (0.0, 1.0)).shape == shape
    assert to_uint8(images.float(), (0.0, 1.0)).shape == shape


@pytest.mark.parametrize("value_range", [(1.0, 0.0), (0.0, 0.0), (math.nan, 1.0), (0.0, math.inf)])
def test_a_wrong_range_is_named(value_range: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"value_range is .*, but must be two finite numbers"):
        normalize(ALL_BYTES, value_range)
    with pytest.raises(ValueError, match=r"value_range is .*, but must be two finite numbers"):
        to_uint8(ALL_BYTES.float(), value_range)


def test_a_wrong_dtype_is_named() -> None:
    with pytest.raises(ValueError, match=r"images are torch\.float32, but must be torch\.uint8"):
        normalize(ALL_BYTES.float(), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"images are torch\.uint8, but must be floating point"):
        to_uint8(ALL_BYTES, (0.0, 1.0))
