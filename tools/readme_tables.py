"""The generated parts of the README and of docs/ that no script of examples/ writes, from what is committed.

    python tools/readme_tables.py

rewrites them and the figures of `tools/figures/`. `test_readme_tables.py` compares.
"""

import json
import runpy
import sys
from dataclasses import fields
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))


import measured_tables
import race_page
from gated_prompt import GatedPromptConfig
from paper.markdown import fill
from speed.tables import summary, tables
from study_results import read

ROOT = Path(__file__).parents[1]
README, DOCS, TIMES = ROOT / "README.md", ROOT / "docs", ROOT / "examples" / "speed" / "README.md"
FIGURES = [ROOT / "tools" / "figures" / name for name in ("token_flow.py", "charts.py", "many_tasks.py")]


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
    speed = json.loads((ROOT / "examples/speed/results/cpu.json").read_text())
    found = read("real")
    miniature = measured_tables.miniature(read("miniature"))
    parts = {
        README: {"accuracy": measured_tables.readme(race_page.read(), found)},
        DOCS / "benchmark.md": {"published": measured_tables.published()},
        DOCS / "which_method.md": {"ladder": measured_tables.ladder(found), "miniature": miniature},
        DOCS / "settings.md": {"settings": settings()},
        DOCS / "speed.md": {"speed": "\n".join(summary(speed))},
        TIMES: {"tables": tables(speed)},
    }
    return {page: fill(page.read_text(), of_page) for page, of_page in parts.items()}


if __name__ == "__main__":
    for page, text in new_pages().items():
        page.write_text(text)
    for script in FIGURES:
        runpy.run_path(str(script), run_name="__main__")
