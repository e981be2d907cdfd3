"""The generated parts of README.md and docs/speed.md, from what is committed: families, speed, miniature, gates.

    python tests/readme_tables.py

writes them anew, and the picture of the gates; `test_readme_tables.py` compares.
"""

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))
sys.path.append(str(Path(__file__).parents[1] / "examples" / "speed"))
sys.path.append(str(Path(__file__).parents[1] / "examples" / "miniature"))

import family_table
import records
import table
from generated import fill
from run import RECIPE
from speed_tables import summary

ROOT = Path(__file__).parents[1]
README, SPEED = ROOT / "README.md", ROOT / "docs" / "speed.md"


def new_pages() -> dict[Path, str]:
    """Text of both pages, by file."""
    speed = "\n".join(summary(json.loads((ROOT / "examples/speed/results/cpu.json").read_text())))
    miniature = table.methods(records.read(ROOT / "examples/miniature/results", RECIPE))
    parts = {"families": family_table.summary(), "speed": speed, "miniature": miniature}
    return {
        README: fill(README.read_text(), parts),
        SPEED: fill(SPEED.read_text(), {"speed": speed}),
    }


if __name__ == "__main__":
    for page, text in new_pages().items():
        page.write_text(text)
