from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from .conftest import Isa
from .ulp import REFERENCES, exact, ulp_error

DTYPES = ["float32", "float64"]
FUNCTIONS = list(REFERENCES)
# In ULP, as csrc/core/math.h states it.
LIMIT = {
    "exp": 1.1,
    "expm1": 1.75,
    "log": 1.0,
    "log1p": 1.5,
    "sin": 1.5,
    "cos": 1.5,
    "tanh": 1.5,
    "sigmoid": 1.85,
    "softplus": 1.7,
    "sqrt": 0.5,
    "rsqrt": 1.5,
    "abs": 0.0,
}
ROUNDING = 1e-3  # of the reference
INF = float("inf")
NAN = float("nan")


def bits_type(dtype: str) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if dtype == "float32" else np.uint64


@lru_cache
def samples(dtype: str) -> np.ndarray:
    """Every exponent with both signs, NaN and infinities; and densely where the functions bend and end."""
    bits = np.dtype(bits_type(dtype)).itemsize * 8
    count = 400_000 if dtype == "float32" else 100_000
    patterns = (np.arange(count, dtype=np.uint64) * np.uint64(2**bits // count)).astype(bits_type(dtype))
    patterns ^= np.random.default_rng(1).integers(0, 2 ** (bits - 20), count, dtype=patterns.dtype)
    end = 120 if dtype == "float32" else 800
    lines = [np.linspace(-a, a, count // 4) for a in (0.01, 1, 4, 20, end)]
    ones = 1 + np.linspace(-1, 1, 20_001) * 1000 * np.finfo(dtype).eps
    return np.concatenate([patterns.view(dtype), *[x.astype(dtype) for x in (*lines, ones, -ones)]])


@lru_cache
def expected(function: str, dtype: str) -> np.ndarray:
    return exact(function, samples(dtype))


def assert_close(function: str, x: np.ndarray, got: np.ndarray, want: np.ndarray, limit: float) -> None:
    error = ulp_error(got, want)
    bad = ~(error <= limit + ROUNDING)
    if bad.any():
        worst = int(np.nanargmax(np.where(np.isnan(error), np.inf, error)))
        pytest.fail(
            f"{function}({float(x[worst]).hex()} = {x[worst]!r}) is {got[worst]!r}, not {want[worst]!r}: "
            f"{error[worst]:.3f} ULP; {bad.sum()} of {x.size} are above {limit} ULP"
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_error_on_a_dense_grid(isa: Isa, function: str, dtype: str) -> None:
    x = samples(dtype)
    assert_close(function, x, isa(f"{function}.{dtype}", x), expected(function, dtype), LIMIT[function])


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_error_on_drawn_arrays(isa: Isa, dtype: str, data: st.DataObject) -> None:
    width: Literal[32, 64] = 32 if dtype == "float32" else 64
    numbers = st.one_of(st.floats(width=width), st.floats(-20, 20, width=width))
    x = data.draw(hnp.arrays(dtype, st.integers(0, 37), elements=numbers))
    for function in FUNCTIONS:
        got = isa(f"{function}.{dtype}", x)
        assert_close(function, x, got, exact(function, x), LIMIT[function])


# Pairs, since 0.0 and -0.0 are the same key.
SPECIAL: dict[str, list[tuple[float, float]]] = {
    "exp": [(0.0, 1), (-0.0, 1), (INF, INF), (-INF, 0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1)],
    "log": [(1, 0.0), (0.0, -INF), (-0.0, -INF), (INF, INF), (-INF, NAN), (-1, NAN)],
    "log1p": [(0.0, 0.0), (-0.0, -0.0), (-1, -INF), (INF, INF), (-INF, NAN), (-1.5, NAN)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1), (-0.0, 1), (INF, NAN), (-INF, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1), (-INF, -1)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1), (-INF, 0)],
    "softplus": [(INF, INF), (-INF, 0)],
    "sqrt": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-1, NAN)],
    "rsqrt": [(0.0, INF), (-0.0, -INF), (INF, 0), (-1, NAN)],
    "abs": [(0.0, 0.0), (-0.0, 0.0), (INF, INF), (-INF, INF)],
}


@pytest.mark.parametrize("form", ["", "scalar_"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_special_values(isa: Isa, function: str, dtype: str, form: str) -> None:
    info = np.finfo(dtype)
    table = [*SPECIAL[function], (NAN, NAN), (-NAN, NAN)]
    largest = float(info.max)
    if function in ("exp", "expm1", "softplus"):
        table.append((largest, largest if function == "softplus" else INF))
    if function in ("expm1", "log1p", "sin", "tanh"):
        tiny = float(info.tiny)
        for x in (float(info.smallest_subnormal), tiny, tiny * 0.7):
            table += [(x, x), (-x, -x)]
    x, want = np.array(table, dtype).T.copy()
    got = isa(f"{form}{function}.{dtype}", x)
    np.testing.assert_array_equal(got, want)
    number = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(want[number]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tails_keep_their_relative_accuracy(isa: Isa, dtype: str) -> None:
    """Both go through the denormals to 0, as exp does."""
    lowest = -104.5 if dtype == "float32" else -745.5
    x = np.linspace(lowest, lowest * 0.8, 10_001).astype(dtype)
    for function in ("sigmoid", "softplus"):
        got = isa(f"{function}.{dtype}", x)
        assert_close(function, x, got, exact("exp", x), LIMIT[function])
        assert np.all(np.diff(got) >= 0)
        assert got[0] == 0
        assert np.any((got > 0) & (got < np.finfo(dtype).tiny))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ["sin", "cos"])
def test_sine_and_cosine_near_their_zeros_and_of_large_numbers(isa: Isa, function: str, dtype: str) -> None:
    """Next to a multiple of pi/2, nearly all digits of the argument cancel; and there is an end to the
    numbers that the vectors reduce."""
    n = np.concatenate([np.arange(0, 90_000), np.geomspace(9e4, 2e6, 20_001).round()])
    zeros = (n * (np.longdouble(np.pi) / 2)).astype(dtype)
    ends = np.concatenate([a * np.linspace(0.999, 1.001, 10_001) for a in (2.0**17, 2.0**20, 2.0**28, 1e30)])
    near = (np.nextafter(zeros, np.array(to, dtype)) for to in (-INF, INF))
    x = np.concatenate([zeros, *near, ends.astype(dtype)])
    assert_close(function, x, isa(f"{function}.{dtype}", x), exact(function, x), LIMIT[function])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ["sin", "cos", "tanh", "abs"])
def test_symmetry(isa: Isa, function: str, dtype: str) -> None:
    x = samples(dtype)
    x = x[~np.isnan(x)]
    sign = -1 if function in ("sin", "tanh") else 1
    np.testing.assert_array_equal(isa(f"{function}.{dtype}", -x), sign * isa(f"{function}.{dtype}", x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_result_does_not_depend_on_position(isa: Isa, function: str, dtype: str) -> None:
    width = isa.width(dtype)
    x = np.random.default_rng(2).normal(0, 3, 5 * width + 1).astype(dtype)
    whole = isa(f"{function}.{dtype}", x).view(bits_type(dtype))
    for start in range(2 * width):
        for stop in range(len(x) - width, len(x) + 1):
            part = isa(f"{function}.{dtype}", x[start:stop]).view(bits_type(dtype))
            np.testing.assert_array_equal(part, whole[start:stop])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_scalar_form(isa: Isa, function: str, dtype: str) -> None:
    """The C library's functions, and what is composed of them, which rounds more often."""
    x = samples(dtype)[::37]
    got = isa(f"scalar_{function}.{dtype}", x)
    limit = LIMIT[function] if function in ("sqrt", "abs") else 3.0
    assert_close(function, x, got, expected(function, dtype)[::37], limit)


@pytest.mark.parametrize("form", ["", "scalar_"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_max_min_clamp(isa: Isa, dtype: str, form: str) -> None:
    values = np.array([-INF, -2.5, -1, 0.0, 1, 3, INF, NAN], dtype)
    a, b = (v.ravel() for v in np.meshgrid(values, values))
    for name, reference in (("max", np.maximum), ("min", np.minimum)):
        got = isa(f"{form}{name}.{dtype}", np.stack([a, b]), np.empty_like(a))
        np.testing.assert_array_equal(got, reference(a, b), err_msg=f"NaN if either is: {name}")
    x, low, high = (v.ravel() for v in np.meshgrid(values, values[:-1], values[:-1]))
    ordered = low <= high
    x, low, high = (np.resize(v[ordered], 224) for v in (x, low, high))  # a multiple of every width
    got = isa(f"{form}clamp.{dtype}", np.stack([x, low, high]), np.empty_like(x))
    np.testing.assert_array_equal(got, np.clip(x, low, high))


def test_ulp_error_measures_ulps() -> None:
    for dtype, wide in (("float32", np.float64), ("float64", np.longdouble)):
        info = np.finfo(dtype)
        x = np.array([1, 1.5, -1.5, 1e-30, info.tiny, info.smallest_subnormal, 0], dtype)
        moved = x
        for steps in range(4):
            np.testing.assert_array_equal(ulp_error(moved, x.astype(wide)), np.full(x.size, steps))
            moved = np.nextafter(moved, np.array(INF, dtype))
        halfway = np.array([1], wide) + np.array([info.eps], wide) / 2
        assert ulp_error(np.array([1], dtype), halfway)[0] == 0.5
        assert ulp_error(np.array([INF], dtype), np.array([INF], wide))[0] == 0
        assert ulp_error(np.array([INF], dtype), np.array([info.max], wide))[0] == 1
        assert ulp_error(np.array([-INF], dtype), np.array([INF], wide))[0] > 1e6
        assert ulp_error(np.array([NAN], dtype), np.array([NAN], wide))[0] == 0
        assert np.isnan(ulp_error(np.array([NAN, 1], dtype), np.array([1, NAN], wide))).all()
