# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the figures share: colours for light and dark pages, text, and the frame of an SVG file.

A file follows the reader's colour scheme by a media query. Series have colours of Okabe and Ito, which colour-blind
readers can distinguish. A marker or a label says the same again.
"""

from collections.abc import Iterable
from pathlib import Path

IMAGES = Path(__file__).parents[2] / "docs" / "images"
LIGHT = {"paper": "#ffffff", "ink": "#1b1f24", "soft": "#6a737d", "block": "#eef1f4", "edge": "#b9c1ca"}
DARK = {"paper": "#14171c", "ink": "#e8ebef", "soft": "#9aa4b0", "block": "#232932", "edge": "#4a5462"}
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


def text(
    x: float, y: float, words: str, colour: str = "ink", size: int = 13, look: str = "", anchor: str = "middle"
) -> str:
    """Words at (x, y); `look`: further attributes."""
    end = f" {look}" if look else ""
    return f'<text x="{x:g}" y="{y:g}" class="{colour}" font-size="{size}" text-anchor="{anchor}"{end}>{words}</text>'


def picture(width: int, height: int, title: str, parts: Iterable[str], defs: str = "") -> str:
    """The text of an SVG file. `title` is read to those who do not see it."""
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="{FONT}" '
        'stroke-width="1.5">\n'
        f"<title>{title}</title>\n"
        f"<style>{_rules(LIGHT)} @media (prefers-color-scheme: dark) {{ {_rules(DARK)} }}</style>\n"
        f"<defs>{defs}</defs>\n"
        f'<rect width="{width}" height="{height}" rx="14" class="paper"/>\n'
        f'<g stroke-linejoin="round">\n{body}\n</g>\n</svg>\n'
    )


def _rules(colours: dict[str, str]) -> str:
    fills = [f".{name} {{ fill: {colour} }}" for name, colour in colours.items()]
    return " ".join([*fills, *(f".{name}-line {{ stroke: {colour} }}" for name, colour in colours.items())])
