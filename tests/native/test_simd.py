from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from .conftest import Isa

BITS = {"float64": np.uint64, "float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}
ACCUMULATE = {"float64": "float64", "float32": "float32", "float16": "float32", "bfloat16": "float32"}
ALL_16_BIT = np.arange(2**16, dtype=np.uint16)
QUIET = np.uint32(0x400000)


def widened(dtype: str, u: np.ndarray) -> np.ndarray:
    """The float32 bits of 16-bit patterns."""
    if dtype == "bfloat16":
        return u.astype(np.uint32) << 16
    return u.view(np.float16).astype(np.float32).view(np.uint32)


def narrowed(dtype: str, u: np.ndarray) -> np.ndarray:
    """The 16-bit patterns nearest to float32 bits, ties to even; NaN keeps sign and payload, made quiet."""
    sign = (u >> 16).astype(np.uint16) & np.uint16(0x8000)
    is_nan = (u & np.uint32(0x7FFFFFFF)) > 0x7F800000
    if dtype == "bfloat16":
        nan = ((u | QUIET) >> 16).astype(np.uint16)
        return np.where(is_nan, nan, _round_bfloat16(u))
    nan = sign | np.uint16(0x7E00) | ((u >> 13).astype(np.uint16) & np.uint16(0x3FF))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(is_nan, nan, u.view(np.float32).astype(np.float16).view(np.uint16))


def _round_bfloat16(u: np.ndarray) -> np.ndarray:
    """By comparing the distances to the two neighbours, which are consecutive bit patterns."""
    below = (u >> 16).astype(np.uint16)
    above = below + np.uint16(1)  # away from 0; after the largest finite one, the pattern of infinity
    rest = u & np.uint32(0xFFFF)
    up = (rest > 0x8000) | ((rest == 0x8000) & (below & np.uint16(1) == 1))
    return np.where(up, above, below)


@lru_cache
def narrowing_inputs() -> np.ndarray:
    """Over 10 million float32 patterns, and around each 16-bit value and each midpoint of two neighbours."""
    sweep = np.arange(0, 2**32, 401, dtype=np.uint64).astype(np.uint32)
    assert sweep.size > 10_000_000
    edges = []
    for dtype in ("float16", "bfloat16"):
        value = widened(dtype, ALL_16_BIT)
        value = value[(value & 0x7F800000) != 0x7F800000].astype(np.int64)
        magnitude = np.unique(value & 0x7FFFFFFF)
        midpoint = (magnitude[:-1] + magnitude[1:]) // 2
        for centre in (magnitude, midpoint):
            for offset in (-1, 0, 1):
                pattern = np.maximum(centre + offset, 0).astype(np.uint32)
                edges += [pattern, pattern | np.uint32(0x80000000)]
    # 65504 and 65520 bound float16's overflow; then infinity, NaNs with small and large payloads
    special = [0x477FE000, 0x477FEFFF, 0x477FF000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF]
    both_signs = np.array(special + [s | 0x80000000 for s in special], np.uint32)
    return np.concatenate([sweep, *edges, both_signs])


@lru_cache
def narrowing_outputs(dtype: str) -> np.ndarray:
    return narrowed(dtype, narrowing_inputs())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_pattern_widens(isa: Isa, dtype: str) -> None:
    got = isa(f"widen.{dtype}", ALL_16_BIT, np.zeros(2**16, np.uint32))
    want = widened(dtype, ALL_16_BIT)
    is_nan = (want & 0x7FFFFFFF) > 0x7F800000
    assert is_nan.sum() in (2 * (2**10 - 1), 2 * (2**7 - 1))
    np.testing.assert_array_equal(got | np.where(is_nan, QUIET, 0), want | np.where(is_nan, QUIET, 0))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrowing_rounds_to_nearest_even(isa: Isa, dtype: str) -> None:
    u = narrowing_inputs()
    got = isa(f"narrow.{dtype}", u, np.zeros(u.size, np.uint16))
    wrong = np.flatnonzero(got != narrowing_outputs(dtype))
    assert wrong.size == 0, (
        f"{wrong.size} of {u.size}; first {u[wrong[0]]:#010x} -> {got[wrong[0]]:#06x}, "
        f"not {narrowing_outputs(dtype)[wrong[0]]:#06x}"
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_storing_what_was_loaded_changes_nothing(isa: Isa, dtype: str) -> None:
    quiet, infinity = (0x200, 0x7C00) if dtype == "float16" else (0x40, 0x7F80)
    magnitude = ALL_16_BIT & 0x7FFF
    is_nan = magnitude > infinity
    may_differ = is_nan.astype(np.uint16) * np.uint16(quiet)
    np.testing.assert_array_equal(isa(f"copy.{dtype}", ALL_16_BIT) | may_differ, ALL_16_BIT | may_differ)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_are_copied_bit_by_bit(isa: Isa, dtype: str) -> None:
    u = np.random.default_rng(3).integers(0, np.iinfo(BITS[dtype]).max, 1001, BITS[dtype])
    np.testing.assert_array_equal(isa(f"copy.{dtype}", u), u)


@pytest.mark.parametrize("dtype", BITS)
def test_scalars_convert_as_vectors_do(isa: Isa, dtype: str) -> None:
    u = np.random.default_rng(4).integers(0, np.iinfo(BITS[dtype]).max, 2000, BITS[dtype])
    wide = np.zeros(u.size, ACCUMULATE[dtype])
    loaded = isa(f"load_scalar.{dtype}", u, wide)
    np.testing.assert_array_equal(loaded, isa(f"widen.{dtype}", u, wide))
    x = np.random.default_rng(5).normal(0, 1e3, 2000).astype(ACCUMULATE[dtype])
    stored = isa(f"store_scalar.{dtype}", x, np.zeros_like(u))
    np.testing.assert_array_equal(stored, isa(f"narrow.{dtype}", x, np.zeros_like(u)))


@pytest.mark.parametrize("dtype", BITS)
def test_partial_load_reads_n_elements_and_zeroes_the_rest(isa: Isa, dtype: str) -> None:
    width = isa.width(dtype)
    u = np.random.default_rng(6).integers(1, 0x3C00, width, BITS[dtype])  # positive and finite in every type
    wide = isa(f"widen.{dtype}", u, np.zeros(width, ACCUMULATE[dtype]))
    got = isa(f"load_last.{dtype}", u, np.full((width, width), 7, ACCUMULATE[dtype]))
    for n in range(width):
        np.testing.assert_array_equal(got[n], np.concatenate([wide[width - n :], np.zeros(width - n)]))


@pytest.mark.parametrize("dtype", BITS)
def test_partial_store_writes_n_elements(isa: Isa, dtype: str) -> None:
    width = isa.width(dtype)
    x = np.arange(1, width + 1).astype(ACCUMULATE[dtype])
    sentinel = BITS[dtype](0xABAB)
    got = isa(f"store_first.{dtype}", x, np.full((width, width), sentinel, BITS[dtype]))
    stored = isa(f"narrow.{dtype}", x, np.zeros(width, BITS[dtype]))
    assert sentinel not in stored
    for n in range(width):
        np.testing.assert_array_equal(got[n], np.where(np.arange(width) < n, stored, sentinel))


@pytest.mark.parametrize("dtype", BITS)
def test_arrays_of_every_length(isa: Isa, dtype: str) -> None:
    """Input and output end at an inaccessible page: a read or write beyond either ends the process."""
    for n in range(3 * isa.width(dtype) + 1):
        u = np.random.default_rng(n).integers(1, 0x3C00, n, BITS[dtype])
        np.testing.assert_array_equal(isa(f"copy.{dtype}", u), u)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_broadcast_keeps_the_bits(isa: Isa, dtype: str) -> None:
    info = np.finfo(dtype)
    x = np.array([0.0, -0.0, 1.5, -info.max, info.smallest_subnormal, -np.inf, np.nan], dtype)
    got = isa(f"broadcast.{dtype}", x, np.zeros((x.size, isa.width(dtype)), dtype))
    np.testing.assert_array_equal(
        got.view(BITS[dtype]), np.broadcast_to(x.view(BITS[dtype])[:, None], got.shape)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_horizontal_sum_adds_pairwise_halves(isa: Isa, dtype: str) -> None:
    x = np.random.default_rng(7).normal(0, 1, (500, isa.width(dtype))).astype(dtype)
    x *= np.float32(10) ** np.random.default_rng(8).integers(-6, 6, x.shape).astype(dtype)
    want = x
    while want.shape[1] > 1:
        half = want.shape[1] // 2
        want = want[:, :half] + want[:, half:]
    got = isa(f"horizontal_sum.{dtype}", x, np.zeros(500, dtype))
    np.testing.assert_array_equal(got, want[:, 0])
    if isa.width(dtype) > 2:
        assert np.any(got != np.cumsum(x, axis=1, dtype=dtype)[:, -1]), (
            "the order must be visible in the sums"
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_and_bits(isa: Isa, dtype: str) -> None:
    width = isa.width(dtype)
    bits = np.arange(2**width, dtype=np.uint32)
    lanes = (bits[:, None] >> np.arange(width, dtype=np.uint32)) & 1
    negative = np.where(lanes == 1, -1, 1).astype(dtype)
    np.testing.assert_array_equal(isa(f"negative_bits.{dtype}", negative, np.zeros_like(bits)), bits)
    masks = isa(f"mask.{dtype}", bits, np.zeros(lanes.shape, BITS[dtype]))
    np.testing.assert_array_equal(masks, lanes.astype(BITS[dtype]) * np.iinfo(BITS[dtype]).max)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bits_above_the_width_are_ignored(isa: Isa, dtype: str) -> None:
    width = isa.width(dtype)
    bits = np.array([5, 5 | 1 << width, 0xFFFFFFFF << width & 0xFFFFFFFF], np.uint32)
    masks = isa(f"mask.{dtype}", bits, np.zeros((3, width), BITS[dtype]))
    np.testing.assert_array_equal(masks[1], masks[0])
    assert not masks[2].any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_select_takes_each_lane_by_its_mask(isa: Isa, dtype: str) -> None:
    x = np.random.default_rng(9).normal(0, 1, 333).astype(dtype)
    x[::10] = np.nan
    np.testing.assert_array_equal(isa(f"select.{dtype}", x), np.abs(x))
