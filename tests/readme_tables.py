"""The generated parts of the README and of the pages on speed and settings, from what is committed.

    python tests/readme_tables.py

writes them anew, and the README's picture of gates; `test_readme_tables.py` compares.
"""

import json
import sys
from dataclasses import fields
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import family_table
from demo.adapters import load_collection
from gated_prompt import GatedPromptConfig, plots
from miniature import pages as table
from miniature import records
from miniature.runs import RECIPE
from recipe.generated import fill
from speed.tables import summary, tables

ROOT = Path(__file__).parents[1]
SETTINGS, GATES = ROOT / "docs" / "settings.md", ROOT / "docs" / "images" / "gates.png"
README, SPEED, TIMES = ROOT / "README.md", ROOT / "docs" / "speed.md", ROOT / "examples" / "speed" / "README.md"


def draw_gates(target: Path) -> None:
    """The gates of the demo page's adapters by block, as a picture for the README."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    collection = load_collection()
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    plots.plot_gates(collection.model, list(collection.adapters), ax=axes)
    figure.savefig(target, dpi=110)
    plt.close(figure)


def settings() -> str:
    """Name, default and help of every setting of ours that a user can choose."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for field in fields(GatedPromptConfig):
        text = field.metadata.get("help", "")
        if field.name in GatedPromptConfig.__annotations__ and not text.startswith("recorded"):
            rows.append(f"| `{field.name}` | `{field.default!r}` | {text} |")
    return "\n".join(rows)


def new_pages() -> dict[Path, str]:
    """Text of the pages, by file."""
    measured = json.loads((ROOT / "examples/speed/results/cpu.json").read_text())
    short = "\n".join(summary(measured))
    miniature = table.methods(records.read(ROOT / "examples/miniature/results", RECIPE))
    parts = {"families": family_table.summary(), "speed": short, "miniature": miniature}
    return {
        README: fill(README.read_text(), parts),
        SETTINGS: fill(SETTINGS.read_text(), {"settings": settings()}),
        SPEED: fill(SPEED.read_text(), {"speed": short}),
        TIMES: fill(TIMES.read_text(), {"tables": tables(measured)}),
    }


if __name__ == "__main__":
    for page, text in new_pages().items():
        page.write_text(text)
    draw_gates(GATES)
