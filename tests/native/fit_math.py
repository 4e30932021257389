"""Fits the polynomials of csrc/core/math.h and prints them: `python tests/native/fit_math.py` (needs mpmath).

Weighted least squares on Chebyshev nodes in 60 digits, which comes within a factor of two of minimax. The
coefficients are rounded one after the other, the lowest power first, and the others refitted to the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import numpy as np

mp.mp.dps = 60
Function = Callable[[mp.mpf], mp.mpf]


@dataclass(frozen=True)
class Fit:
    name: str
    meaning: str
    f: Function
    weight: Function  # times (polynomial - f): the relative error of what is computed
    low: mp.mpf
    high: mp.mpf
    terms: dict[type, int]


half_ln2 = mp.log(2) / 2 * mp.mpf("1.001")
widest_s = (mp.sqrt(2) - 1) / (mp.sqrt(2) + 1) * mp.mpf("1.001")
tanh_limit = mp.mpf("0.55")
eighth_turn = mp.pi / 4 * mp.mpf("1.02")

FITS = [
    Fit(
        "kExpm1",
        "(expm1(r) - r) / r^2 on |r| <= ln(2)/2",
        lambda r: (mp.expm1(r) - r) / r**2,
        lambda r: r,
        -half_ln2,
        half_ln2,
        {np.float32: 5, np.float64: 10},
    ),
    Fit(
        "kLog",
        "(2 atanh(s) - 2 s) / s^3 by z = s^2; s = f / (2 + f) with 1 + f in [sqrt(1/2), sqrt(2)]",
        lambda z: (2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z) - 2) / z,
        lambda z: z / 2,
        mp.mpf(0),
        widest_s**2,
        {np.float32: 3, np.float64: 7},
    ),
    Fit(
        "kTanh",
        "(tanh(x) - x) / x^3 by z = x^2; |x| <= 0.55",
        lambda z: (mp.tanh(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
        lambda z: z,
        mp.mpf(0),
        tanh_limit**2,
        {np.float32: 5, np.float64: 11},
    ),
    Fit(
        "kSin",
        "(sin(r) - r) / r^3 by z = r^2; |r| <= pi/4",
        lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z,
        lambda z: z,
        mp.mpf(0),
        eighth_turn**2,
        {np.float32: 3, np.float64: 6},
    ),
    Fit(
        "kCos",
        "(cos(r) - 1 + r^2/2) / r^4 by z = r^2; |r| <= pi/4",
        lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2,
        lambda z: z**2,
        mp.mpf(0),
        eighth_turn**2,
        {np.float32: 3, np.float64: 6},
    ),
]


def chebyshev_nodes(low: mp.mpf, high: mp.mpf, n: int) -> list[mp.mpf]:
    return [low + (high - low) * (1 - mp.cos(mp.pi * (i + mp.mpf(1) / 2) / n)) / 2 for i in range(n)]


def fit(job: Fit, dtype: type) -> tuple[list[float], float]:
    """Coefficients from the lowest power up, and the largest relative error that they cause."""
    terms = job.terms[dtype]
    nodes = chebyshev_nodes(job.low, job.high, 120)
    weight = [job.weight(x) for x in nodes]
    rest = [job.f(x) for x in nodes]  # f less the terms that are rounded already
    coefficients: list[float] = []
    for k in range(terms):
        a = mp.matrix([[w * x**p for p in range(k, terms)] for w, x in zip(weight, nodes, strict=True)])
        b = mp.matrix([w * y for w, y in zip(weight, rest, strict=True)])
        lowest = float(dtype(float(mp.lu_solve(a, b)[0])))
        rest = [y - mp.mpf(lowest) * x**k for x, y in zip(nodes, rest, strict=True)]
        coefficients.append(lowest)
    return coefficients, float(max(abs(w * y) for w, y in zip(weight, rest, strict=True)))


def main() -> None:
    for job in FITS:
        print(f"{job.name}: {job.meaning}")
        for dtype in job.terms:
            coefficients, error = fit(job, dtype)
            suffix = "f" if dtype is np.float32 else ""
            print(f"  {dtype.__name__}, relative error {error:.1e}:")
            print("    " + ", ".join(f"{c.hex()}{suffix}" for c in coefficients))
    ln2 = mp.log(2)
    for dtype, bits in ((np.float32, 15), (np.float64, 41)):
        high = mp.floor(ln2 * 2**bits) / 2**bits
        print(f"ln2, {dtype.__name__}: {float(high).hex()} + {float(dtype(float(ln2 - high))).hex()}")
    half_pi = mp.pi / 2
    parts: list[Any] = []
    for bits in (32, 66):
        parts.append(mp.floor((half_pi - sum(parts)) * 2**bits) / 2**bits)
    parts.append(half_pi - sum(parts))
    print("pi/2: " + " + ".join(float(part).hex() for part in parts))


if __name__ == "__main__":
    main()
