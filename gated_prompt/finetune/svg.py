# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Line charts as SVG inside a page: its style sheet gives them colours and fonts, so they follow light and dark."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 250  # close to the width of a phone, so that text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 38  # margins for the labels of the axes
COLOURS = 7  # .s0 to .s6 in the style sheet
MARKS = (  # paths around 0, 0, so that a chart can be read without its colours
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "M-3.5 -3.5h7v7h-7z",
    "M0 -4.5L4.5 3.5H-4.5z",
    "M0 -5L5 0L0 5L-5 0z",
)
MANY = 60  # lines with more points have no markers


@dataclass(frozen=True)
class Line:
    """A named line, with gaps at values that are not finite."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]

    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(y)]


def percent(value: float) -> str:
    """A share, as all reports write it: 0.9312 is "93.1 %", which no line break parts."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def plain(value: float) -> str:
    """A number with four digits."""
    return f"{value:.4g}"


def ticks(low: float, high: float, most: int, whole: bool = False) -> list[float]:
    """Return about `most` round values that enclose `low` and `high`, only integers with `whole`."""
    if high - low < 1e-12:
        gap = max(abs(low) * 0.1, 1e-3)
        low, high = low - gap, high + gap
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    step = max(1.0, round(step)) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def line_chart(
    title: str,
    along: str,
    lines: Sequence[Line],
    text: Callable[[float], str] = plain,
    *,
    read: Sequence[int] = (),
    start: float | None = None,
) -> Markup:
    """A figure: title, legend above the plot, and the plot. `lines` need at least one finite point.

    Args:
        title: what the values are.
        along: name of the horizontal axis, which counts in integers.
        lines: in the order of the legend.
        text: writes a value of the vertical axis.
        read: places on the horizontal axis with a band behind them.
        start: a dashed horizontal line at the value before training.
    """
    points = [point for line in lines for point in line.points()]
    values = [y for _, y in points] + ([] if start is None else [start])
    share = text is percent
    rows = [one for one in ticks(min(values), max(values), 5) if not share or -1e-9 <= one <= 1 + 1e-9]
    bottom, top = min(rows[0], *values), max(rows[-1], *values)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    columns = [x for x in ticks(first, last, 9, whole=True) if first <= x <= last]

    def place_x(x: float) -> float:
        return round(LEFT + 10 + (WIDTH - LEFT - RIGHT - 20) * (x - first) / max(last - first, 1), 1)

    def place_y(y: float) -> float:
        return round(TOP + 6 + (HEIGHT - TOP - BOTTOM - 12) * (top - y) / (top - bottom), 1)

    parts = [f'<path class="band" d="M{place_x(x)} {TOP}V{HEIGHT - BOTTOM}"/>' for x in read if first <= x <= last]
    for y in rows:
        label = f"{100 * y:.4g} %" if share else plain(y)
        parts.append(f'<path class="grid" d="M{LEFT} {place_y(y)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place_y(y) + 4}" text-anchor="end">{label}</text>')
    parts += [
        f'<text x="{place_x(x)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:.0f}</text>' for x in columns
    ]
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(along)}</text>')
    if start is not None:
        parts.append(f'<path class="start" d="M{LEFT} {place_y(start)}H{WIDTH - RIGHT}"/>')
    for index, line in enumerate(lines):
        parts.append(_drawn(index, line, along, text, place_x, place_y))
    legend = "".join(f"<span>{_key(index)}{escape(line.name)}</span>" for index, line in enumerate(lines))
    if start is not None:
        legend += '<span><svg class="key" viewBox="-10 -6 20 12"><path class="start" d="M-10 0H10"/></svg>start</span>'
    about = "; ".join(_said(line, along, text) for line in lines)
    return Markup(
        f'<figure class="chart"><figcaption><b>{escape(title)}</b><br>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}: {about}")}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _drawn(
    index: int,
    line: Line,
    along: str,
    text: Callable[[float], str],
    place_x: Callable[[float], float],
    place_y: Callable[[float], float],
) -> str:
    """A line with its markers, each with its value under the pointer."""
    points = [(place_x(x), place_y(y), f"{line.name}, {along} {x:.0f}: {text(y)}") for x, y in line.points()]
    colour = f"s{index % COLOURS}"
    path = "L".join(f"{x} {y}" for x, y, _ in points)
    drawn = f'<path class="line {colour}" d="M{path}"/>' if len(points) > 1 else ""
    if len(points) > MANY:
        return drawn
    mark = MARKS[index % len(MARKS)]
    return drawn + "".join(
        f'<path class="mark {colour}" d="{mark}" transform="translate({x} {y})"><title>{escape(said)}</title></path>'
        for x, y, said in points
    )


def _key(index: int) -> str:
    colour = f"s{index % COLOURS}"
    return (
        f'<svg class="key" viewBox="-10 -6 20 12" aria-hidden="true"><path class="line {colour}" d="M-10 0H10"/>'
        f'<path class="mark {colour}" d="{MARKS[index % len(MARKS)]}"/></svg>'
    )


def _said(line: Line, along: str, text: Callable[[float], str]) -> str:
    """A line in words, for those who hear the page."""
    points = line.points()
    if not points:
        return f"{line.name} has no values"
    if len(points) == 1:
        return f"{line.name} {text(points[0][1])}"
    (first, start), (last, end) = points[0], points[-1]
    return f"{line.name} from {text(start)} at {along} {first:.0f} to {text(end)} at {along} {last:.0f}"
