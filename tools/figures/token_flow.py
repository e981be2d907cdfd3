# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Draws the path of the tokens through the blocks.

python tools/figures/token_flow.py
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
from drawing import IMAGES, picture, text

CLS, PROMPT, PATCH = "#56B4E9", "#E69F00", "#009E73"

WIDTH, HEIGHT = 1020, 330
TOP, STEP, SIDE = 98, 28, 20  # first row, distance of the rows, side of a token
ROWS = {"prompt": (1, 2), "patch": (3, 4, 5)}
PROMPT_ROW = TOP + 1.5 * STEP + SIDE / 2


def token(x: float, row: int, fill: str, ghost: bool = False) -> str:
    y = TOP + row * STEP
    look = f'fill="none" stroke="{fill}" stroke-dasharray="3 3"' if ghost else f'fill="{fill}"'
    return f'<rect x="{x:g}" y="{y:g}" width="{SIDE}" height="{SIDE}" rx="4" {look}/>'


def column(x: float, prompts: bool, ghost: bool = False) -> list[str]:
    """One row of tokens, upright: CLS, then prompts, then patches."""
    drawn = [token(x, 0, CLS), *(token(x, row, PATCH) for row in ROWS["patch"])]
    return drawn + [token(x, row, PROMPT, ghost) for row in ROWS["prompt"] if prompts or ghost]


def arrow(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<path d="M{x:g} {y:g} L{to_x:g} {to_y:g}" class="soft-line" fill="none" marker-end="url(#head)"/>'


def block(x: float, name: str, temperature: bool) -> list[str]:
    middle, width = x + 50, 100
    drawn = [
        f'<rect x="{x:g}" y="{TOP - 14}" width="{width}" height="{6 * STEP + 20}" rx="10" class="block edge-line"/>',
        text(middle, TOP + 16, name, "ink", 14, 'font-weight="600"'),
        text(middle, TOP + 140, "frozen", "soft", 12),
    ]
    if temperature:
        drawn += [text(middle, TOP + 76, "attention", "ink", 12)]
        drawn += [text(middle, TOP + 94, "logits / &#964;", "ink", 12, 'font-weight="600"')]
    return drawn


def gate(x: float, after: float) -> list[str]:
    """The prompts of the column that ends at `x` pass over the block and meet its output in the gate at `after`."""
    over, out = TOP - 30, f"M{after - 34:g} {PROMPT_ROW:g} H{after - 14:g}"
    return [
        f'<path d="M{x:g} {PROMPT_ROW:g} h10 V{over} H{after:g} V{PROMPT_ROW - 14:g}" fill="none" stroke="{PROMPT}" '
        'stroke-width="2" stroke-dasharray="5 4" marker-end="url(#orange)"/>',
        f'<path d="{out}" stroke="{PROMPT}" stroke-width="2" fill="none" marker-end="url(#orange)"/>',
        text((x + after) / 2, over - 8, "(1 &#8722; g) &#183; in"),
        text(after, PROMPT_ROW + 29, "g &#183; out"),
        f'<circle cx="{after:g}" cy="{PROMPT_ROW:g}" r="12" class="paper" stroke="{PROMPT}" stroke-width="2.5"/>',
        text(after, PROMPT_ROW + 5, "g", "ink", 14, 'font-style="italic" font-weight="600"'),
    ]


def flow() -> str:
    """The whole picture as SVG."""
    patches = TOP + 4.5 * STEP - 4
    parts = [*column(30, False), *block(80, "0 to k&#8722;1", False), *column(214, True)]
    parts += [text(204, TOP - 58, "P learned prompts")]
    parts += [
        f'<path d="M196 {TOP - 50} V{PROMPT_ROW:g} H210" fill="none" stroke="{PROMPT}" stroke-width="2" '
        'marker-end="url(#orange)"/>'
    ]
    parts += [*block(264, "block k", True), *gate(236, 398), *column(428, True)]
    parts += [text(474, TOP + 92, "&#8230;", "ink", 26), *column(500, True)]
    parts += [*block(550, "block L&#8722;2", True), *gate(522, 684), *column(714, True)]
    parts += [*block(764, "block L&#8722;1", True), *column(896, False, ghost=True)]
    parts += [text(906, TOP - 34, "prompts"), text(906, TOP - 19, "leave")]
    for start, end in [(54, 76), (184, 210), (238, 260), (368, 424), (524, 546), (654, 710), (738, 760), (868, 892)]:
        parts.append(arrow(start, patches, end, patches))
    parts += [
        arrow(920, patches, 944, patches),
        f'<rect x="948" y="{patches - 42:g}" width="56" height="84" rx="10" fill="none" stroke="{PROMPT}" '
        'stroke-width="2.5"/>',
        text(976, patches - 4, "norm,"),
        text(976, patches + 14, "head"),
    ]
    x, foot = 30.0, HEIGHT - 18
    for fill, words in ((CLS, "CLS and other prefix tokens"), (PROMPT, "prompts"), (PATCH, "patches")):
        parts.append(f'<rect x="{x:g}" y="{foot - 12}" width="14" height="14" rx="3" fill="{fill}"/>')
        parts.append(text(x + 22, foot, words, anchor="start"))
        x += 50 + 7 * len(words)
    trained = "trained (orange): prompts, gates g, head; and the temperatures &#964;"
    parts.append(text(WIDTH - 30, foot, trained, anchor="end"))
    markers = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" {colour}/></marker>'
        for name, colour in (("head", 'class="soft"'), ("orange", f'fill="{PROMPT}"'))
    )
    title = "Prompts join the tokens before block k, pass gates, and leave after the last block"
    return picture(WIDTH, HEIGHT, title, parts, markers)


def pictures() -> dict[Path, str]:
    """Text of the file."""
    return {IMAGES / "token_flow.svg": flow()}


if __name__ == "__main__":
    for target, svg in pictures().items():
        target.write_text(svg, encoding="utf-8")
