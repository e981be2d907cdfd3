# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Screenshots of the demo page, light, dark and on a phone: docs/images/demo*.png.

    python tools/demo_pictures.py

Needs Chromium on the PATH and the extras onnx and demo-test. Each picture carries a hash of the page's sources, and
tests/serving/test_demo.py compares it with what is there. It also prints how long each page took from its opening to
its first answer.
"""

import hashlib
import io
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image, PngImagePlugin

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))

from demo.page import ADAPTERS, WEB, build_page, load_collection
from demo.serve import launch

SOURCES = [*sorted(WEB.iterdir()), *sorted(ADAPTERS.rglob("*.safetensors"))]
IMAGES = ROOT / "docs" / "images"
SHOTS: dict[str, tuple[int, int, Literal["light", "dark"]]] = {  # width, height, colour scheme
    "demo.png": (1060, 700, "light"),
    "demo-dark.png": (1060, 700, "dark"),
    "demo-phone.png": (390, 1300, "light"),
}


def sources_hash() -> str:
    """SHA-256 of what decides how the page looks and what it says."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def take(address: str, to: Path) -> None:
    """All screenshots of the page. The dark one shows where the picture decides."""
    from playwright.sync_api import sync_playwright

    note = PngImagePlugin.PngInfo()
    note.add_text("sources", sources_hash())
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, scheme) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
            page.goto(address)
            page.wait_for_selector("html[data-answered]", state="attached")
            print(f"{name}: first answer {page.evaluate('firstAnswer'):.0f} ms after opening")
            if scheme == "dark":
                page.get_by_alt_text("a star").click()
                page.get_by_text("star.png, read as").wait_for()
                page.get_by_role("button", name="answer of shapes").click()
                page.locator("#heat").wait_for()
            shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            shot.quantize(256).save(to / name, optimize=True, pnginfo=note)
        browser.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        take(launch(build_page(load_collection(), Path(place) / "web")), IMAGES)
