# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Charts as SVG: panels of lines beside each other, and panels of bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor

from drawing import picture, text
from gated_prompt.plots import COLOURS

MARKERS = (
    "M-5 0 a5 5 0 1 0 10 0 a5 5 0 1 0 -10 0",
    "M-4.5 -4.5 h9 v9 h-9 z",
    "M0 -6 L6 5 H-6 z",
    "M0 -6.5 L6 0 L0 6.5 L-6 0 z",
    "M0 6 L6 -5 H-6 z",
)
WIDTH, HEIGHT, LEFT, TOP, FOOT, GAP = 720, 330, 64, 38, 52, 46
INSET = 14  # between the frame of a panel and its first and last positions
LINE, LETTER = 18, 7  # height of a line of text and mean width of a letter
Points = Mapping[int, float]  # value by position


@dataclass(frozen=True)
class Panel:
    """Lines over common axes. Positions (blocks, epochs, numbers of tasks) stand at equal distances.

    Attributes:
        series: The points of each line, by its name.
        step: Distance of the horizontal rules.
        heading: What the panel shows. Empty where it is the only one.
        spread: Half the length of the error bars, by the name of the line.
        level: Name and height of a dashed line.
        reach: Values that the vertical axis includes besides those drawn.
    """

    series: Mapping[str, Points]
    step: float
    heading: str = ""
    spread: Mapping[str, Points] = field(default_factory=dict)
    level: tuple[str, float] | None = None
    reach: Sequence[float] = ()

    @property
    def positions(self) -> list[int]:
        """All positions, in order."""
        return sorted({position for points in self.series.values() for position in points})

    @property
    def extent(self) -> list[float]:
        """Values that the vertical axis includes, in no order."""
        drawn = [] if self.level is None else [self.level[1]]
        for name, points in self.series.items():
            half = self.spread.get(name, {})
            drawn += [y + sign * half.get(x, 0) for x, y in points.items() for sign in (-1, 1)]
        return [*drawn, *self.reach]


@dataclass(frozen=True)
class Axes:
    """Where a panel lies in the picture."""

    panel: Panel
    left: float
    right: float

    @property
    def limits(self) -> tuple[int, int]:
        """The lowest and the highest horizontal rule, counted in steps from zero."""
        extent = self.panel.extent
        return floor(min(extent) / self.panel.step), ceil(max(extent) / self.panel.step)

    def across(self, position: int) -> float:
        """Where a position lies."""
        positions = self.panel.positions
        share = positions.index(position) / max(len(positions) - 1, 1)
        return round(self.left + INSET + share * (self.right - self.left - 2 * INSET), 1)

    def up(self, value: float) -> float:
        """Where a value lies."""
        low, high = self.limits
        return round(HEIGHT - FOOT - (value / self.panel.step - low) / (high - low) * (HEIGHT - FOOT - TOP), 1)

    def frame(self, along: str) -> list[str]:
        """Rules, numbers and words."""
        parts = [text(self.left, TOP - 16, self.panel.heading, anchor="start", look='font-weight="600"')]
        low, high = self.limits
        for value in (count * self.panel.step for count in range(low, high + 1)):
            y = self.up(value)
            parts.append(f'<path d="M{self.left:g} {y:g} H{self.right:g}" class="edge-line" stroke-width="1"/>')
            parts.append(text(self.left - 8, y + 4, f"{value:g}", "soft", 12, anchor="end"))
        parts += [text(self.across(x), HEIGHT - FOOT + 20, str(x), "soft", 12) for x in self.panel.positions]
        parts.append(text((self.left + self.right) / 2, HEIGHT - 12, along))
        if self.panel.level is not None:
            parts.append(_dashes(self.left, self.up(self.panel.level[1]), self.right - self.left))
        return parts

    def lines(self) -> list[str]:
        """The lines with their markers, and error bars, which stand beside each other."""
        parts = []
        for count, (name, points) in enumerate(self.panel.series.items()):
            half = self.panel.spread.get(name, {})
            aside = 5 * (count - (len(self.panel.series) - 1) / 2) if half else 0
            places = {x: (self.across(x) + aside, self.up(y)) for x, y in points.items()}
            path = " L".join("{:g} {:g}".format(*place) for place in places.values())
            parts.append(f'<path d="M{path}" stroke="{COLOURS[count]}" stroke-width="2.5" fill="none"/>')
            for x, length in half.items():
                ends = f"{self.up(points[x] - length):g} V{self.up(points[x] + length):g}"
                parts.append(f'<path d="M{places[x][0]:g} {ends}" stroke="{COLOURS[count]}"/>')
            parts += [_marker(count, *place) for place in places.values()]
        return parts

    def names(self) -> list[str]:
        """The names of the lines, at their ends, one below the other."""
        ends = {name: self.up(list(points.values())[-1]) for name, points in self.panel.series.items()}
        if self.panel.level is not None:
            ends[self.panel.level[0]] = self.up(self.panel.level[1])
        parts, y = [], 0.0
        for below, name in zip(reversed(range(len(ends))), sorted(ends, key=lambda name: ends[name]), strict=True):
            y = min(max(y + LINE, ends[name]), HEIGHT - FOOT - LINE * below)
            if name in self.panel.series:
                parts.append(_marker(list(self.panel.series).index(name), self.right + 12, y))
            else:
                parts.append(_dashes(self.right + 4, y, 16))
            parts.append(text(self.right + 26, y + 4, name, anchor="start"))
        return parts


def lines(title: str, along: str, up: str, panels: Sequence[Panel]) -> str:
    """Panels beside each other, with the names of their lines at the right of the last.

    Args:
        title: Read to those who do not see the picture.
        along: What the positions are.
        up: What the values are. Empty where the headings say it.
        panels: At most two are legible at the width of a page. The same lines in each.
    """
    return picture(WIDTH, HEIGHT, title, line_parts(along, up, panels))


def line_parts(along: str, up: str, panels: Sequence[Panel]) -> list[str]:
    """What `lines` puts into its picture, for pictures that hold more than panels."""
    last = panels[-1]
    longest = max(len(name) for name in [*last.series, *(last.level or ())[:1]])
    whole = WIDTH - LEFT - 38 - LETTER * longest
    wide = (whole - GAP * (len(panels) - 1)) / len(panels)
    middle = (TOP + HEIGHT - FOOT) / 2
    parts = [text(18, middle, up, look=f'transform="rotate(-90 18 {middle:g})"')]
    for count, panel in enumerate(panels):
        left = LEFT + count * (wide + GAP)
        axes = Axes(panel, round(left, 1), round(left + wide, 1))
        parts += [*axes.frame(along), *axes.lines()]
    return [*parts, *axes.names()]


def bars(title: str, panels: Mapping[str, Mapping[str, float]], marked: tuple[str, ...]) -> str:
    """Panels of horizontal bars with their values; bars with a name that starts with one of `marked` stand out."""
    names = list(next(iter(panels.values())))
    left, row, wide, gap = 232, 30, 190, 50
    height = 62 + row * len(names)
    parts = [text(left - 12, 62 + row * count, name, anchor="end") for count, name in enumerate(names)]
    for place, (heading, values) in enumerate(panels.items()):
        x, most = left + place * (wide + gap), max(values.values())
        parts.append(text(x, 28, heading, anchor="start", look='font-weight="600"'))
        for count, (name, value) in enumerate(values.items()):
            y, width = 48 + row * count, round(value / most * wide, 1)
            look = f'fill="{COLOURS[0]}"' if name.startswith(marked) else 'class="edge"'
            parts.append(f'<rect x="{x}" y="{y}" width="{width:g}" height="18" rx="3" {look}/>')
            parts.append(text(x + width + 6, y + 14, f"{value:.1f}", anchor="start"))
    return picture(WIDTH, height, title, parts)


def _marker(count: int, x: float, y: float) -> str:
    return f'<path d="{MARKERS[count]}" transform="translate({x:g} {y:g})" fill="{COLOURS[count]}"/>'


def _dashes(left: float, y: float, length: float) -> str:
    return f'<path d="M{left:g} {y:g} h{length:g}" class="soft-line" stroke-dasharray="6 4"/>'
