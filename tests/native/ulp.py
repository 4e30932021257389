"""References in a wider type, and errors in units in the last place."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Reference = Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, np.ones_like(e)) / (1 + e)


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


REFERENCES: dict[str, Reference] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "abs": np.abs,
}


def exact(function: str, x: np.ndarray) -> np.ndarray:
    """The function in float64 for float32, in long double for float64: 1/2000 of x's rounding, or less."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    assert np.finfo(wide).nmant >= np.finfo(x.dtype).nmant + 11, "long double is no wider than float64 here"
    with np.errstate(all="ignore"):
        return REFERENCES[function](x.astype(wide))


def ulp_error(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in ULP of want in got's type.

    NaN where one of them is NaN, 0 where both are. Infinity counts as the number after the largest.
    """
    info = np.finfo(got.dtype)
    beyond = np.ldexp(want.dtype.type(1), int(info.maxexp))
    with np.errstate(invalid="ignore"):
        bounded = np.clip(want, -beyond, beyond)
        distance = np.abs(np.clip(got.astype(want.dtype), -beyond, beyond) - bounded)
        exponent = np.frexp(np.fmax(np.abs(bounded), info.tiny))[1] - 1  # fmax: any exponent will do for NaN
        unit = np.ldexp(want.dtype.type(1), exponent - info.nmant)
        error = np.where(np.isnan(got) & np.isnan(want), 0, distance / unit)
    return error.astype(np.float64)
