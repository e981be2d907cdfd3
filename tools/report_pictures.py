# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Screenshots of a report, light, dark and on a phone: docs/images/report*.png, of a run on drawn shapes.

    python tools/report_pictures.py

Needs Chromium on the PATH and the extras train and demo-test. Each picture carries a hash of the page's sources, and
tests/finetune/test_report.py compares it with what is there.
"""

import hashlib
import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gated_prompt" / "finetune"
SOURCES = [PACKAGE / name for name in ("base.html", "parts.html", "report.html", "svg.py")]
IMAGES = ROOT / "docs" / "images"
SHOTS = {  # width, height, colour scheme
    "report.png": (1000, 1250, "light"),
    "report-dark.png": (1000, 1250, "dark"),
    "report-phone.png": (390, 1250, "light"),
}
EACH, SWAPPED = 40, 2  # images of a class; stars that lie in the folder of the circles


def sources_hash() -> str:
    """SHA-256 of what decides how a report looks."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def make_run(folder: Path) -> Path:
    """Train on drawn shapes with the shipped backbone; the report."""
    import numpy as np

    sys.path.append(str(ROOT / "examples"))
    from demo.shapes import SHAPES, draw_shape
    from gated_prompt.cli import train

    rng = np.random.default_rng(0)
    for name in SHAPES:
        for index in range(EACH):
            label = "circle" if name == "star" and index < SWAPPED else name
            place = folder / "shapes" / label / f"{name}-{index:02d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            draw_shape(name, rng).save(place)
    places = ["--output_dir", str(folder / "runs" / "shapes"), "--cache_dir", str(folder / "features")]
    rate = ["--learning_rate", "0.01", "--num_train_epochs", "15"]
    train.main(["--train_dir", str(folder / "shapes"), *places, *rate])
    return folder / "runs" / "shapes" / "report.html"


def take(report: Path, to: Path) -> None:
    """All screenshots of a report."""
    from playwright.sync_api import sync_playwright

    note = PngImagePlugin.PngInfo()
    note.add_text("sources", sources_hash())
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scheme) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(report.as_uri())
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            shot.quantize(128).save(to / name, optimize=True, pnginfo=note)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        take(make_run(Path(place)), IMAGES)
