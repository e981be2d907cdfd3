"""The generated parts of the README and the pages on speed, from what is committed: families, speed, miniature.

    python tests/readme_tables.py

writes them anew; `test_readme_tables.py` compares.
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
from speed_tables import summary, tables

ROOT = Path(__file__).parents[1]
README, SPEED, TIMES = ROOT / "README.md", ROOT / "docs" / "speed.md", ROOT / "examples" / "speed" / "README.md"


def new_pages() -> dict[Path, str]:
    """Text of the three pages, by file."""
    measured = json.loads((ROOT / "examples/speed/results/cpu.json").read_text())
    short = "\n".join(summary(measured))
    miniature = table.methods(records.read(ROOT / "examples/miniature/results", RECIPE))
    parts = {"families": family_table.summary(), "speed": short, "miniature": miniature}
    return {
        README: fill(README.read_text(), parts),
        SPEED: fill(SPEED.read_text(), {"speed": short}),
        TIMES: fill(TIMES.read_text(), {"tables": tables(measured)}),
    }


if __name__ == "__main__":
    for page, text in new_pages().items():
        page.write_text(text)
