# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Draws the path of the tokens through the blocks, in colours for light and for dark pages.

    python docs/figures/token_flow.py

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; shape and label say the same again.
"""

from pathlib import Path

IMAGES = Path(__file__).parents[1] / "images"
LIGHT = {"paper": "#ffffff", "ink": "#1b1f24", "soft": "#6a737d", "block": "#eef1f4", "edge": "#b9c1ca"}
DARK = {"paper": "#14171c", "ink": "#e8ebef", "soft": "#9aa4b0", "block": "#232932", "edge": "#4a5462"}
CLS, PROMPT, PATCH = "#56B4E9", "#E69F00", "#009E73"

WIDTH, HEIGHT = 1020, 330
TOP, STEP, SIDE = 98, 28, 20  # first row, distance of the rows, side of a token
ROWS = {"cls": 0, "prompt": (1, 2), "patch": (3, 4, 5)}
PROMPT_ROW = TOP + 1.5 * STEP + SIDE / 2


def text(x: float, y: float, words: str, fill: str, size: int = 13, style: str = "", anchor: str = "middle") -> str:
    look = f'fill="{fill}" font-size="{size}" text-anchor="{anchor}" {style}'.rstrip()
    return f'<text x="{x:g}" y="{y:g}" {look}>{words}</text>'


def token(x: float, row: int, fill: str, ghost: bool = False) -> str:
    y = TOP + row * STEP
    look = f'fill="none" stroke="{fill}" stroke-dasharray="3 3"' if ghost else f'fill="{fill}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{SIDE}" height="{SIDE}" rx="4" {look}/>'


def column(x: float, prompts: bool, ghost: bool = False) -> list[str]:
    """One row of tokens, upright: CLS, then prompts, then patches."""
    drawn = [token(x, 0, CLS), *(token(x, row, PATCH) for row in ROWS["patch"])]
    return drawn + [token(x, row, PROMPT, ghost) for row in ROWS["prompt"] if prompts or ghost]


def arrow(x: float, y: float, to_x: float, to_y: float, colour: str) -> str:
    return f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" stroke="{colour}" fill="none" marker-end="url(#head)"/>'


def block(x: float, name: str, colours: dict[str, str], temperature: bool) -> list[str]:
    middle, width = x + 50, 100
    drawn = [
        f'<rect x="{x:g}" y="{TOP - 14}" width="{width}" height="{6 * STEP + 20}" rx="10" '
        f'fill="{colours["block"]}" stroke="{colours["edge"]}"/>',
        text(middle, TOP + 16, name, colours["ink"], 14, 'font-weight="600"'),
        text(middle, TOP + 140, "frozen", colours["soft"], 12),
    ]
    if temperature:
        drawn += [text(middle, TOP + 76, "attention", colours["ink"], 12)]
        drawn += [text(middle, TOP + 94, "logits / &#964;", colours["ink"], 12, 'font-weight="600"')]
    return drawn


def gate(x: float, after: float, colours: dict[str, str]) -> list[str]:
    """The prompts of the column that ends at `x` pass over the block and meet its output in the gate at `after`."""
    over, out = TOP - 30, f"M{after - 34:g} {PROMPT_ROW:g} H{after - 14:g}"
    return [
        f'<path d="M{x:g} {PROMPT_ROW:g} h10 V{over} H{after:g} V{PROMPT_ROW - 14:g}" fill="none" stroke="{PROMPT}" '
        'stroke-width="2" stroke-dasharray="5 4" marker-end="url(#orange)"/>',
        f'<path d="{out}" stroke="{PROMPT}" stroke-width="2" fill="none" marker-end="url(#orange)"/>',
        text((x + after) / 2, over - 8, "(1 &#8722; g) &#183; in", colours["ink"]),
        text(after, PROMPT_ROW + 29, "g &#183; out", colours["ink"]),
        f'<circle cx="{after:g}" cy="{PROMPT_ROW:g}" r="12" fill="{colours["paper"]}" stroke="{PROMPT}" '
        'stroke-width="2.5"/>',
        text(after, PROMPT_ROW + 5, "g", colours["ink"], 14, 'font-style="italic" font-weight="600"'),
    ]


def flow(colours: dict[str, str]) -> str:
    """The whole picture as SVG."""
    ink, soft, patches = colours["ink"], colours["soft"], TOP + 4.5 * STEP - 4
    parts = [*column(30, False), *block(80, "0 to k&#8722;1", colours, False), *column(214, True)]
    parts += [text(204, TOP - 58, "P learned prompts", ink)]
    parts += [
        f'<path d="M196 {TOP - 50} V{PROMPT_ROW:g} H210" fill="none" stroke="{PROMPT}" stroke-width="2" '
        'marker-end="url(#orange)"/>'
    ]
    parts += [*block(264, "block k", colours, True), *gate(236, 398, colours), *column(428, True)]
    parts += [text(474, TOP + 92, "&#8230;", ink, 26), *column(500, True)]
    parts += [*block(550, "block L&#8722;2", colours, True), *gate(522, 684, colours), *column(714, True)]
    parts += [*block(764, "block L&#8722;1", colours, True), *column(896, False, ghost=True)]
    parts += [text(906, TOP - 34, "prompts", ink), text(906, TOP - 19, "leave", ink)]
    for start, end in [(54, 76), (184, 210), (238, 260), (368, 424), (524, 546), (654, 710), (738, 760), (868, 892)]:
        parts.append(arrow(start, patches, end, patches, soft))
    parts += [
        arrow(920, patches, 944, patches, soft),
        f'<rect x="948" y="{patches - 42:g}" width="56" height="84" rx="10" fill="none" stroke="{PROMPT}" '
        'stroke-width="2.5"/>',
        text(976, patches - 4, "norm,", ink),
        text(976, patches + 14, "head", ink),
    ]
    x, foot = 30.0, HEIGHT - 18
    for fill, words in ((CLS, "CLS and other prefix tokens"), (PROMPT, "prompts"), (PATCH, "patches")):
        parts.append(f'<rect x="{x:g}" y="{foot - 12}" width="14" height="14" rx="3" fill="{fill}"/>')
        parts.append(text(x + 22, foot, words, ink, anchor="start"))
        x += 50 + 7 * len(words)
    trained = "trained (orange): prompts, gates g, head; and the temperatures &#964;"
    parts.append(text(WIDTH - 30, foot, trained, ink, anchor="end"))
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
        for name, colour in (("head", soft), ("orange", PROMPT))
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" stroke-width="1.5">\n'
        "<title>Prompts join the tokens before block k, pass gates, and leave after the last block</title>\n"
        f"<defs>{markers}</defs>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" fill="{colours["paper"]}"/>\n'
        f'<g stroke-linejoin="round">\n{body}\n</g>\n</svg>\n'
    )


def pictures() -> dict[Path, str]:
    """Text of both files."""
    return {IMAGES / "token_flow_light.svg": flow(LIGHT), IMAGES / "token_flow_dark.svg": flow(DARK)}


if __name__ == "__main__":
    for target, svg in pictures().items():
        target.write_text(svg, encoding="utf-8")
