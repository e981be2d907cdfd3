# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The demo page in Chromium, on a tiny backbone with two adapters and a probe: it says what run.py says."""

import base64
import importlib.util
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

import gated_prompt
from demo import onnxruntime_web, page, serve
from gated_prompt import GatedPromptConfig
from gated_prompt.heads import TokenClassifier
from gated_prompt.predictor import Predictor
from helpers.models import vit

PREPARATION = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "resize": 36, "crop": 32}
CLASSES = {"birds": 3, "cars": 5, "probe": 4}
PROMPTS = dict(num_virtual_tokens=2, deep=True, zero_start=True, prompt_dropout=0.0, temperature=False)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
QUIET += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a camera that shows a clock
NEEDED = {
    "playwright": "playwright is not installed; make test-web installs it",
    "onnxscript": "onnxscript is not installed; the extra [onnx] has it",
}


def write_task(folder: Path, name: str) -> None:
    predictor = Predictor(
        [f"{name} {i}" for i in range(CLASSES[name])], PREPARATION, reads="both", blocks=[1, 2], temperature=1.5
    )
    torch.manual_seed(CLASSES[name])
    model: Any = TokenClassifier(vit(num_labels=0, num_hidden_layers=3).vit, predictor.names, "both", [1, 2])
    if name == "probe":
        (folder / name).mkdir(parents=True)
        save_file(model.classifier.state_dict(prefix="classifier."), folder / name / "trained.safetensors")
    else:
        model = get_peft_model(model, GatedPromptConfig(**PROMPTS))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter))
        gated_prompt.save(model, folder / name)
    predictor.write(folder / name)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for module, reason in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(reason)
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH; on Debian apt-get install chromium brings it")
    if not onnxruntime_web.is_fetched():
        pytest.skip("onnxruntime-web is not there; make web and make test-web fetch it")
    root = tmp_path_factory.mktemp("demo")
    vit(num_labels=0, num_hidden_layers=3).save_pretrained(root / "backbone")
    for name in CLASSES:
        write_task(root / "tasks", name)
    return page.build_page(page.load_collection(root / "tasks"), root / "site", root / "backbone")


@pytest.fixture(scope="module")
def run(site: Path) -> ModuleType:
    """The program that an export leaves."""
    spec = importlib.util.spec_from_file_location("run", site / "engine" / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield one
        one.close()


@pytest.fixture
def open_page(site: Path, browser: Any) -> Iterator[Any]:
    """Opens the page until its first answer. Afterwards: it has asked no other host for anything, without an error."""
    address, opened, hosts, errors = serve.launch(site), [], set(), []

    def one(**options: Any) -> Any:
        found = browser.new_page(**{"viewport": {"width": 1000, "height": 800}, **options})
        found.set_default_timeout(60_000)  # a busy machine is slow
        found.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        found.on("pageerror", lambda error: errors.append(str(error)))
        found.goto(address)
        found.wait_for_selector("html[data-answered]", state="attached")
        opened.append(found)
        return found

    yield one
    for each in opened:
        each.close()
    assert hosts - {None} == {"127.0.0.1"}  # None: data: and blob:
    assert not errors


def drop(opened: Any, name: str, content: bytes) -> None:
    """Let go of a file above the page, as the browser does it with a mouse."""
    opened.evaluate(
        """([content, name]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: moved, bubbles: true }));
        }""",
        [base64.b64encode(content).decode(), name],
    )


def says(opened: Any, text: str) -> None:
    opened.locator("#message", has_text=re.compile(text)).wait_for()


def scores(opened: Any) -> dict[str, list[float]]:
    """What the cards of the tasks that are on hold."""
    cards = opened.locator("article:not(.off)").all()
    return {one.get_attribute("data-task"): json.loads(one.get_attribute("data-scores")) for one in cards}


def picture(seed: int = 0, size: tuple[int, int] = (90, 60)) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def expected(run: ModuleType, site: Path, image: Image.Image, strength: float = 1) -> dict[str, np.ndarray]:
    """Scores by run.py, with what is read of the prompts scaled by `strength`."""
    engine = run.Engine(site / "engine")
    pixels = run.prepare(run.upright(image), engine.about["preparation"])
    for name in CLASSES:
        engine.load(name)
        tensors = engine.tasks[name].tensors
        if strength < 1:
            tensors["head_gates"] = np.arctanh(strength * np.tanh(tensors["head_gates"]))
    return dict(zip(CLASSES, engine.scores(np.stack([pixels] * 3), list(CLASSES)), strict=True))


def check(found: dict[str, list[float]], wanted: dict[str, np.ndarray], tolerance: float = 1e-3) -> None:
    assert list(found) == list(wanted)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=tolerance)


def test_its_answers_are_those_of_run_py(open_page: Any, run: ModuleType, site: Path) -> None:
    opened = open_page()
    with Image.open(page.SAMPLES / "digit-2.png") as first:
        check(scores(opened), expected(run, site, first))
    drop(opened, "photo.png", encoded(picture()))
    says(opened, r"photo\.png, read as 32 x 32 pixels by 3 tasks in one pass")
    check(scores(opened), expected(run, site, picture()))
    labels = run.Engine(site / "engine").classify([picture()], ["cars"])[0]["cars"]
    assert opened.locator("article[data-task=cars] li").all_inner_texts() == [
        f"{label}\n{100 * share:.1f} %" for label, share in labels
    ]
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was turned by 90 degrees
    photo = encoded(picture(1), "jpeg", quality=95, exif=turned)
    drop(opened, "photo.jpg", photo)
    says(opened, r"photo\.jpg")
    check(scores(opened), expected(run, site, Image.open(io.BytesIO(photo))), tolerance=0.05)  # decoders differ


def test_pixels_are_prepared_bit_for_bit(open_page: Any, run: ModuleType) -> None:
    opened, draw = open_page(), np.random.default_rng(0)
    for width, height in ((8, 8), (36, 36), (40, 37), (333, 250), (33, 301), (1, 7)):
        colours = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        rgba = np.dstack([colours, np.full((height, width), 255, np.uint8)]).tobytes()
        found = opened.evaluate(
            """async ([bytes, width, height, preparation]) => {
                const { prepare } = await import("./prepare.js");
                const data = Uint8ClampedArray.from(atob(bytes), c => c.charCodeAt(0));
                return Array.from(prepare({ data, width, height }, preparation));
            }""",
            [base64.b64encode(rgba).decode(), width, height, PREPARATION],
        )
        np.testing.assert_array_equal(np.float32(found), run.prepare(Image.fromarray(colours), PREPARATION).ravel())


def test_the_slider_scales_what_is_read_of_the_prompts(open_page: Any, run: ModuleType, site: Path) -> None:
    """0 is the frozen backbone below the trained heads. A probe stays what it is."""
    opened = open_page()
    drop(opened, "photo.png", encoded(picture()))
    says(opened, r"photo\.png")
    full = scores(opened)
    for percent in (50, 0):
        before = opened.locator("html").get_attribute("data-answered")
        opened.locator("#strength").fill(str(percent))
        opened.locator(f"html:not([data-answered='{before}'])").wait_for(state="attached")
        assert opened.locator("#strength-value").inner_text() == f"{percent} %"
        check(scores(opened), expected(run, site, picture(), percent / 100))
    assert scores(opened)["birds"] != full["birds"] and scores(opened)["probe"] == pytest.approx(
        full["probe"], abs=1e-4
    )


def test_tasks_are_switched_by_keyboard(open_page: Any, run: ModuleType, site: Path) -> None:
    opened = open_page()
    opened.get_by_role("switch", name="cars").focus()
    opened.keyboard.press("Space")
    says(opened, "by 2 tasks")
    assert list(scores(opened)) == ["birds", "probe"]
    for name in ("birds", "probe"):
        opened.get_by_role("switch", name=name).focus()
        opened.keyboard.press("Space")
    says(opened, "Switch on at least one task")


def test_where_the_picture_decides(open_page: Any) -> None:
    opened = open_page()
    button = opened.get_by_role("button", name="Show where the picture decides the answer of birds")
    button.click()
    opened.locator("#heat").wait_for()
    says(opened, "Bright parts decide the answer of birds")
    button.click()
    opened.locator("#heat").wait_for(state="hidden")


def test_faulty_files_become_a_sentence(open_page: Any, site: Path, tmp_path: Path) -> None:
    opened = open_page()
    before = scores(opened)
    task = (site / "engine" / "adapters" / "cars.safetensors").read_bytes()
    tensors = load_file(site / "engine" / "adapters" / "cars.safetensors")
    about = {"task": json.dumps({"names": ["a"] * 5, "problem": "single_label", "backbone_sha256": "0" * 64})}
    save_file(tensors, tmp_path / "other.safetensors", about)
    for name, content, words in (
        ("cut.png", encoded(picture())[:200], r"cut\.png is damaged, or not a picture"),
        ("notes.txt", b"not an image\n", r"notes\.txt is damaged, or not a picture"),
        ("strip.png", encoded(Image.new("RGB", (900, 3))), "900 x 3 pixels, which is too narrow"),
        ("cut.safetensors", task[:-8], r"cut\.safetensors was not added: it is not a complete safetensors file"),
        ("empty.safetensors", b"", r"empty\.safetensors was not added: it is not a complete"),
        ("other.safetensors", (tmp_path / "other.safetensors").read_bytes(), "exported for another backbone"),
    ):
        drop(opened, name, content)
        says(opened, words)
        assert opened.locator("#message.error").is_visible()
    assert scores(opened) == before
    drop(opened, "more.safetensors", task)
    says(opened, "by 4 tasks")
    assert scores(opened)["more"] == pytest.approx(scores(opened)["cars"], abs=1e-4)


def test_the_camera(open_page: Any) -> None:
    opened = open_page()
    opened.get_by_role("button", name="Camera").click()
    says(opened, "camera, read as 32 x 32 pixels by 3 tasks")
    opened.get_by_role("button", name="Camera").click()
    opened.locator("#video").wait_for(state="hidden")


def test_light_dark_and_on_a_phone(open_page: Any) -> None:
    """Text contrasts with its background, and nothing hangs over the width of a phone."""
    grounds = {}
    for scheme in ("light", "dark"):
        opened = open_page(color_scheme=scheme, viewport={"width": 390, "height": 800})
        colours = opened.evaluate(
            "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name].match(/[0-9.]+/g))"
        )
        text, grounds[scheme] = (sum(map(float, colour[:3])) for colour in colours)
        assert abs(text - grounds[scheme]) > 450
        assert opened.evaluate("document.documentElement.scrollWidth") == 390
    assert grounds["light"] > 600 and grounds["dark"] < 200
