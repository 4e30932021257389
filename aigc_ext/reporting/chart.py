"""Line charts as inline SVG, no wider than a phone, so that the text is legible there too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

Point = tuple[float, float]

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 12, 10, 36
_COLOURS = ("#1d5fbf", "#c2410c", "#0f766e", "#7e22ce")
_MAX_POINTS = 400


def number(value: float) -> str:
    """A number formatted for people: about four digits, with thousands separators."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e15:
        return f"{value:.1e}"
    return f"{value:.4g}" if 0 < abs(value) < 1000 else f"{value:,.0f}"


def line_chart(
    title: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    x_label: str,
    y_range: tuple[float, float] | None = None,
) -> str:
    """A chart with a line, or dots, for each named series of finite (x, y); "" if there are no points.

    Series of more than 400 points are averaged over runs of points, and the chart says so.

    Args:
        y_range: the minimum range of the y axis; by default that of the points.
    """
    series = [(name, points) for name, points in series if points]
    if not series:
        return ""
    step = max(math.ceil(len(points) / _MAX_POINTS) for _, points in series)
    drawn = [[_mean(points[i : i + step]) for i in range(0, len(points), step)] for _, points in series]
    xs = [x for points in drawn for x, _ in points]
    ys = [y for points in drawn for _, y in points] + list(y_range or ())
    x_ticks, x_low, x_high = _axis(min(xs), max(xs), tight=True)
    y_ticks, y_low, y_high = _axis(min(ys), max(ys), tight=False)

    def at(x: float, y: float) -> tuple[float, float]:
        right = _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        down = _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(right, 1), round(down, 1)

    parts = []
    for tick in y_ticks:
        _, y = at(x_low, tick)
        parts.append(f'<path class="rule" d="M{_LEFT} {y}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        x, _ = at(tick, y_low)
        text = f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{number(tick)}</text>'
        parts.append(text)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    label = f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    parts.append(label)
    for points, colour in zip(drawn, _cycle(len(drawn)), strict=True):
        spots = [at(x, y) for x, y in points]
        path = "L".join(f"{x} {y}" for x, y in spots)
        parts.append(f'<path class="line" stroke="{colour}" d="M{path}"/>')
        if len(spots) <= 30:
            parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in spots]
    legend = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)} <b>{number(points[-1][1])}</b></span>'
        for (name, points), colour in zip(series, _cycle(len(series)), strict=True)
    )
    note = f'<p class="note">Each point is the mean of {step} rows.</p>' if step > 1 else ""
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3><div class="legend">{legend}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>{note}</figure>"
    )


def _cycle(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]


def _mean(points: Sequence[Point]) -> Point:
    return sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points)


def _axis(low: float, high: float, *, tight: bool) -> tuple[list[float], float, float]:
    """Ticks at round numbers, and the ends of the axis: those of the values if tight, otherwise round too."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(low) / 2 or 0.5
        low, high = low - room, high + room
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [i * step for i in range(first, last + 1)]
    if not tight:
        return ticks, ticks[0], ticks[-1]
    return [tick for tick in ticks if low <= tick <= high], low, high
