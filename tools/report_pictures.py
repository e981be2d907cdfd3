# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Screenshots of a report, light, dark and on a phone: docs/images/report*.png, of a run on scanned digits.

    python tools/report_pictures.py

Needs Chromium on the PATH and the extras train and demo-test. Each picture carries a hash of the page's sources, and
tests/finetune/test_report.py compares it with what is there.
"""

import hashlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gated_prompt" / "finetune"
SOURCES = [PACKAGE / name for name in ("base.html", "parts.html", "report.html", "svg.py")]
IMAGES = ROOT / "docs" / "images"
SHOTS: dict[str, tuple[int, int, Literal["light", "dark"]]] = {  # width, height, colour scheme
    "report.png": (1000, 1300, "light"),
    "report-dark.png": (1000, 1300, "dark"),
    "report-phone.png": (390, 1300, "light"),
}
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EACH = 50  # images of a class
MISLABELLED = {(0, 7): 8, (4, 11): 1}  # (digit, number of its image) -> the folder it lies in, to be found


def sources_hash() -> str:
    """SHA-256 of what decides how a report looks."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def make_run(folder: Path) -> Path:
    """Probe the shipped backbone on scikit-learn's scanned digits; the report."""
    from sklearn.datasets import load_digits

    from gated_prompt.cli import probe

    pixels, labels = load_digits(return_X_y=True)
    counts = [0] * 10
    for scan, digit in zip(pixels.reshape(-1, 8, 8), labels, strict=True):
        index, label = counts[digit], digit
        counts[digit] += 1
        if index < EACH:
            if (digit, index) in MISLABELLED:
                label = MISLABELLED[digit, index]
            place = folder / "digits" / NAMES[label] / f"{index:02d}-{digit}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((15 * scan).astype("uint8")).resize((32, 32), Image.Resampling.BICUBIC).save(place)
    places = ["--output_dir", str(folder / "runs" / "digits"), "--cache_dir", str(folder / "features")]
    probe.main(["--train_dir", str(folder / "digits"), *places])
    return folder / "runs" / "digits" / "report.html"


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
