"""Line plots as SVG, without a library: a few lines over one axis, linear or logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

import msgspec

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 168, 40, 52
_COLOURS = ("#1f6fb4", "#d9622b", "#2f8f4e", "#8b4bb0", "#b8860b", "#c2185b", "#455a64", "#00838f")


class Plot(msgspec.Struct, frozen=True, kw_only=True):
    """Some lines, by name, each a sequence of (x, y). `name` becomes part of the file's name."""

    name: str
    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    log_x: bool = False
    log_y: bool = False


class _Axis:
    def __init__(self, values: list[float], *, log: bool, low_px: float, high_px: float) -> None:
        self._log = log
        self._low_px, self._high_px = low_px, high_px
        if log:
            values = [value for value in values if value > 0] or [1.0]
            self.ticks = [
                10.0**power for power in range(floor(log10(min(values))), ceil(log10(max(values))) + 1)
            ]
            if len(self.ticks) < 2:
                self.ticks = [self.ticks[0], self.ticks[0] * 10]
        else:
            step = _step(max([*values, 1e-12]) - min([0.0, *values]))
            first = floor(min([0.0, *values]) / step)
            self.ticks = [step * count for count in range(first, ceil(max([*values, 1e-12]) / step) + 1)]
        self._low, self._high = self._scaled(self.ticks[0]), self._scaled(self.ticks[-1])

    def _scaled(self, value: float) -> float:
        return log10(value) if self._log else value

    def place(self, value: float) -> float:
        part = (self._scaled(value) - self._low) / (self._high - self._low)
        return self._low_px + part * (self._high_px - self._low_px)


def _step(span: float) -> float:
    rough = span / 6
    power = 10.0 ** floor(log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def svg(plot: Plot) -> str:
    """Return the plot as an SVG document."""
    points = [point for line in plot.lines.values() for point in line]
    x_axis = _Axis([x for x, _ in points], log=plot.log_x, low_px=_LEFT, high_px=_WIDTH - _RIGHT)
    y_axis = _Axis([y for _, y in points], log=plot.log_y, low_px=_HEIGHT - _BOTTOM, high_px=_TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="22" font-size="15" font-weight="600">{escape(plot.title)}</text>',
    ]
    for value in x_axis.ticks:
        x = x_axis.place(value)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#e4e7ea"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_short(value)}</text>'
        )
    for value in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#e4e7ea"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{_HEIGHT - 12}" text-anchor="middle">{escape(plot.x)}</text>')
    parts.append(
        f'<text x="18" y="{middle_y}" text-anchor="middle" transform="rotate(-90 18 {middle_y})">'
        f"{escape(plot.y)}</text>"
    )
    for index, (name, line) in enumerate(plot.lines.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        shown = [(x, y) for x, y in line if (not plot.log_x or x > 0) and (not plot.log_y or y > 0)]
        path = " ".join(f"{x_axis.place(x):.1f},{y_axis.place(y):.1f}" for x, y in shown)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if len(shown) <= 40:
            parts += [
                f'<circle cx="{x_axis.place(x):.1f}" cy="{y_axis.place(y):.1f}" r="3" fill="{colour}"/>'
                for x, y in shown
            ]
        y = _TOP + 10 + 20 * index
        parts.append(f'<path d="M{_WIDTH - _RIGHT + 12} {y}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{_WIDTH - _RIGHT + 36}" y="{y + 4}">{escape(name)}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
