# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The demo page: its functions without a browser, then the page itself in a real one.

GATED_PROMPT_SCREENSHOT=FILE keeps what the browser shows of an example: the picture in docs/demo.md.
"""

import base64
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from transformers import AutoModelForImageClassification

import gated_prompt
from demo import page as app
from demo import shapes
from demo import training as train_adapter
from demo.adapters import ADAPTERS, Adapter, Collection, load_collection, read_accuracy
from demo.pictures import MEGABYTES, picture_of_attention, picture_of_gates, read_image
from gated_prompt import GatedPromptConfig
from gated_prompt.errors import DataError
from gated_prompt.finetune.export import save_tensors
from gated_prompt.predictor import Predictor, read_predictor
from gated_prompt.shipped import SHIPPED_BACKBONE
from helpers.data_files import real_data
from paper.tasks import load_task, transform_for

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "demo.md"
NAMES = ["digits", "objects", "shapes"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def collection() -> Collection:
    return load_collection()


def star() -> Image.Image:
    return shapes.draw_shape("star", np.random.default_rng(3))


@pytest.fixture
def star_file(tmp_path: Path) -> Path:
    star().save(tmp_path / "star.png")
    return tmp_path / "star.png"


# Adapters.


@pytest.mark.parametrize("name", NAMES)
def test_a_mixed_batch_gives_what_the_adapter_gives_alone(collection: Collection, name: str) -> None:
    """Although heads of 5 and 10 classes are in it."""
    count = len(collection.adapters[name].class_names)
    base = AutoModelForImageClassification.from_pretrained(
        SHIPPED_BACKBONE, num_labels=count, ignore_mismatched_sizes=True, dtype="float32"
    )
    alone = gated_prompt.load(base, ADAPTERS / name).eval()
    with torch.no_grad():
        wanted = alone(collection.pixels(star(), name)[None]).logits.softmax(-1)[0]
    found = collection.predict(star(), NAMES)
    assert list(found) == NAMES
    assert list(found[name]) == collection.adapters[name].class_names
    assert {len(scores) for scores in found.values()} == {5, 10}
    torch.testing.assert_close(torch.tensor(list(found[name].values())), wanted)


def test_all_adapters_run_in_one_call(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = collection.model.forward
    monkeypatch.setattr(
        collection.model, "forward", lambda **inputs: calls.append(inputs["adapter_names"]) or forward(**inputs)
    )
    collection.predict(star(), ["shapes", "digits"])
    assert calls == [[collection.residents[name].key for name in ("shapes", "digits")]]
    assert collection.predict(star(), []) == {}


def images_of(name: str) -> list[tuple[Image.Image, str]]:
    """Test images of a task with the names of their classes, as the card of its adapter has them."""
    if name == "shapes":
        return [(image, shape) for shape, image in shapes.draw_part("test")]
    if name == "digits":
        return [(image, str(digit)) for image, digit in load_task("digits").eval]
    data = train_adapter.load_part("objects", real_data("cifar10_jpeg"), "test[:1000]")
    return [(image, data.class_names[label]) for image, label in data]


@pytest.mark.parametrize("name", NAMES)
def test_cards_state_the_accuracy_that_the_adapters_reach(collection: Collection, name: str) -> None:
    images, classes = zip(*images_of(name), strict=True)
    known, logits = collection.adapters[name], []
    for start in range(0, len(images), 100):
        pixels = torch.stack([collection.pixels(image, name) for image in images[start : start + 100]])
        logits += collection.pool.logits(pixels, [collection.residents[name]] * len(pixels))
    found = torch.stack(logits).argmax(1).tolist()
    right = [known.class_names[index] == wanted for index, wanted in zip(found, classes, strict=True)]
    assert sum(right) / len(right) == pytest.approx(known.accuracy, abs=2e-3)
    assert set(classes) == set(known.class_names)


def test_the_page_in_the_documentation_states_the_same(collection: Collection) -> None:
    rows = re.findall(r"^\| `?(\w+)`? \|.* (\d+\.\d) % \|[^|]*\|$", DOCUMENTATION.read_text(), re.MULTILINE)
    assert dict(rows) == {name: f"{100 * adapter.accuracy:.1f}" for name, adapter in collection.adapters.items()}


def test_committed_adapters_are_small_and_name_no_machine() -> None:
    assert sorted(path.name for path in ADAPTERS.iterdir()) == NAMES
    for name in NAMES:
        files = {path.name: path for path in (ADAPTERS / name).iterdir()}
        assert set(files) == {
            "README.md",
            "adapter_config.json",
            "adapter_model.safetensors",
            "gates.png",
            "predictor.json",
        }
        assert sum(path.stat().st_size for path in files.values()) < 80_000
        text = files["README.md"].read_text() + files["adapter_config.json"].read_text()
        assert not re.search(r"[\s\"`(]/\w", text), "a path that begins at a machine's root"


def test_cards_without_an_accuracy(tmp_path: Path) -> None:
    assert read_accuracy(tmp_path / "README.md") is None
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\n\n- Classes: cat, dog\n")
    assert read_accuracy(tmp_path / "README.md") is None
    assert read_accuracy(ADAPTERS / "digits" / "README.md") == pytest.approx(0.955, abs=1e-3)


def test_folders_that_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no adapters that can be shown"):
        load_collection(folder=tmp_path)
    shutil.copytree(ADAPTERS / "digits", tmp_path / "digits")
    (tmp_path / "digits" / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"digits: .* not a readable safetensors file"):
        load_collection(folder=tmp_path)
    shutil.copytree(ADAPTERS / "shapes", tmp_path / "shapes")
    (tmp_path / "notes").mkdir()
    found = load_collection(folder=tmp_path)
    assert list(found.adapters) == ["shapes"]
    assert found.skipped["notes"] == "it has neither an adapter nor a probe"
    assert "not a readable safetensors file" in found.skipped["digits"]


def test_what_train_leaves_is_shown(tmp_path: Path) -> None:
    """A run with a probe and prompts with zero start, which have no attention of their own to show."""
    names, preparation = ["cat", "dog"], read_predictor(ADAPTERS / "shapes").preparation
    runs = {name: tmp_path / name for name in ("probe", "prompts")}
    predictor = Predictor(names, preparation, reads="mean")
    probe = replace(predictor, base={"num_hidden_layers": 5}, backbone=str(SHIPPED_BACKBONE))
    model = probe.load_base().eval()
    save_tensors(model.classifier.state_dict(prefix="classifier."), runs["probe"] / "probe")
    probe.write(runs["probe"] / "probe")
    config = GatedPromptConfig(num_virtual_tokens=2, deep=True, zero_start=True, read_from=4)
    gated_prompt.save(get_peft_model(predictor.load_base(SHIPPED_BACKBONE), config), runs["prompts"] / "adapter")
    predictor.write(runs["prompts"] / "adapter")
    for name, use in {"probe": "probe", "prompts": "adapter"}.items():
        (runs[name] / "results.json").write_text(json.dumps({"use": use}))
    star().save(tmp_path / "star.png")
    shutil.copytree(ADAPTERS / "shapes", tmp_path / "shapes")
    found = load_collection(folder=tmp_path)
    assert list(found.adapters) == ["probe", "prompts", "shapes"]
    message, shown = app.answer(found, str(tmp_path / "star.png"), list(found.adapters), "prompts", 3)
    assert "by 3 adapters in one batch" in message
    with torch.no_grad():
        wanted = model(found.pixels(star(), "probe")[None]).logits.softmax(-1)[0]
    torch.testing.assert_close(torch.tensor([shown["probe"][0][name] for name in names]), wanted)
    assert [shown[name][1] is None for name in found.adapters] == [True, True, False]
    assert [found.has_gates(name) for name in found.adapters] == [False, False, True]


# Files and pictures.


def bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that are no images, and words of the message about each."""
    paths = {name: folder / f"{name}.png" for name in ("text", "empty", "cut", "pixels", "bytes")}
    paths["text"].write_text("not an image\n")
    paths["empty"].write_bytes(b"")
    star().resize((200, 200)).save(paths["cut"])
    paths["cut"].write_bytes(paths["cut"].read_bytes()[:1000])
    Image.new("1", (10_000, 6_000)).save(paths["pixels"])
    with paths["bytes"].open("wb") as file:
        file.truncate(31_000_000)
    words = {"text": "is not an image", "empty": "is not an image", "cut": "is damaged"}
    words |= {"pixels": "10000 x 6000 pixels", "bytes": "has 31 MB"}
    return {name: (paths[name], words[name]) for name in paths}


@pytest.mark.parametrize("name", ["text", "empty", "cut", "pixels", "bytes"])
def test_bad_files_become_a_message(collection: Collection, tmp_path: Path, name: str) -> None:
    path, words = bad_files(tmp_path)[name]
    with pytest.raises(DataError, match=words):
        read_image(path)
    message, shown = app.answer(collection, str(path), NAMES, "prompts", 11)
    assert words in message
    assert path.name in message
    assert str(tmp_path) not in message
    assert shown == {}


def test_images_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.new("L", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    image = read_image(tmp_path / "turned.jpg")
    assert (image.size, image.mode) == ((20, 40), "RGB")


def test_large_images_are_made_smaller_at_once(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    large = Image.fromarray(colours).resize((4000, 3000), Image.Resampling.NEAREST)
    for name, settings in {"a.jpg": {"quality": 95}, "a.png": {}, "a.webp": {"lossless": True}}.items():
        large.save(tmp_path / name, **settings)
        image = read_image(tmp_path / name)
        assert (image.size, image.mode) == ((1024, 768), "RGB")
        far = np.abs(np.asarray(image.resize((40, 30), Image.Resampling.BOX)).astype(int) - colours)
        assert far.mean() < 8, name
    assert read_image(ADAPTERS.parent / "samples" / sorted(os.listdir(ADAPTERS.parent / "samples"))[0]).size[0] <= 1024


def test_grey_of_16_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 30_000, dtype=np.uint16)).save(tmp_path / "scan.png")
    assert read_image(tmp_path / "scan.png").getpixel((0, 0)) == (117, 117, 117)


def test_the_server_takes_no_larger_file_than_the_page_says(collection: Collection) -> None:
    pytest.importorskip("gradio", reason="the extra [demo] has it, and make test-web installs it")
    httpx = pytest.importorskip("httpx")
    page = app.build_page(collection)
    url = app.launch(page).rstrip("/") + "/gradio_api/upload"
    try:
        for size, status in ((1_000, 200), (MEGABYTES * 1_100_000, 413)):
            assert httpx.post(url, files={"files": ("x.bin", b"\0" * size)}, timeout=60).status_code == status
    finally:
        page.close()


def test_answer(collection: Collection, star_file: Path) -> None:
    assert app.answer(collection, None, NAMES, "prompts", 11) == (app.ASK, {})
    assert app.answer(collection, str(star_file), [], "prompts", 11) == (app.CHOOSE, {})
    message, shown = app.answer(collection, str(star_file), ["shapes", "digits"], "cls", 3)
    assert message == "star.png, read as 32 x 32 pixels by 2 adapters in one batch."
    assert list(shown) == ["shapes", "digits"]
    for name, (scores, picture) in shown.items():
        assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
        wanted = picture_of_attention(collection.attention(star(), name), star(), "cls", 3)
        assert picture.tobytes() == wanted.tobytes()


def test_the_first_example_is_answered_correctly(collection: Collection) -> None:
    assert set(app.EXAMPLES) == {path.name for path in app.SAMPLES.iterdir()}
    _, shown = app.answer(collection, str(app.SAMPLES / app.EXAMPLES[0]), ["digits"], "prompts", 11)
    scores = shown["digits"][0]
    assert max(scores, key=scores.get) == re.search(r"\d", app.EXAMPLES[0]).group()


def test_pictures_can_be_read_on_a_light_and_on_a_dark_page(collection: Collection) -> None:
    """Nothing lies behind them, and their text contrasts with white and with black."""
    keys = {collection.residents["digits"].key: "digits"}
    for picture in (
        picture_of_gates(collection.model, keys),
        picture_of_attention(collection.attention(star(), "digits"), star(), "prompts", 11),
    ):
        pixels = np.asarray(picture)
        assert pixels.shape[-1] == 4 and pixels[0, 0, 3] == 0
        solid = pixels[pixels[..., 3] == 255][:, :3].tolist()
        assert solid.count([0x76, 0x76, 0x76]) > 50 and solid.count([255, 255, 255]) < 50


def test_attention_is_seen_patch_by_patch(collection: Collection) -> None:
    """Over a plain image all colour is attention; titles and scales are cut off."""
    plain = Image.new("RGB", (32, 32), "grey")

    def seen(name: str, token: str, block: int, image: Image.Image = plain) -> bytes:
        picture = picture_of_attention(collection.attention(star(), name), image, token, block)
        width, height = picture.size
        part = picture.crop((width // 20, height // 8, width * 11 // 20, height * 7 // 8))
        assert len(part.getcolors(part.width * part.height)) > 20, "blank"
        return part.tobytes()

    asked = [("shapes", "prompts", 11), ("shapes", "prompts", 0), ("shapes", "cls", 11), ("digits", "prompts", 11)]
    assert len({seen(*each) for each in asked}) == len(asked)
    assert seen(*asked[0]) != seen(*asked[0], star())


def test_picture_of_gates(collection: Collection) -> None:
    keys = {collection.residents[name].key: name for name in ("digits", "shapes")}
    one, two = (picture_of_gates(collection.model, dict(list(keys.items())[:count])) for count in (1, 2))
    assert one.size == two.size
    assert one.tobytes() != two.tobytes()


# Training.


def test_shapes_are_the_same_every_time_and_of_no_other_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {part: list(shapes.draw_part(part)) for part in shapes.PARTS}
    names = [name for name, _ in drawn["test"]]
    assert {name: names.count(name) for name in shapes.SHAPES} == dict.fromkeys(shapes.SHAPES, 100)
    single = {image.tobytes() for part in drawn.values() for _, image in part}
    assert len(single) == sum(shapes.PARTS.values())
    monkeypatch.setattr(shapes, "PARTS", {"train": 10, "validation": 5, "test": 5})
    shapes.main(["--output_dir", str(tmp_path)])
    with Image.open(tmp_path / "test" / "star" / "0003.png") as written:
        assert written.tobytes() == drawn["test"][3][1].tobytes()
    data = train_adapter.load_part("shapes", tmp_path, "train")
    assert [data.class_names[label] for label in data.labels] == sorted([*shapes.SHAPES] * 2)


@pytest.mark.usefixtures("fresh_accelerate")
def test_an_adapter_of_ones_own_images_joins_the_page(backbone: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for count, name in enumerate(("cat", "dog", "eel")):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for index in range(2):
                picture = Image.new("RGB", (40, 30), (80 * count, 50, 100 * index))
                picture.save(tmp_path / "photos" / split / name / f"{index}.png")
    options = {"--task": "pets", "--data_dir": tmp_path / "photos", "--output_dir": tmp_path / "run"}
    options |= {"--backbone": backbone, "--num_train_epochs": 1, "--warmup_epochs": 0, "--num_virtual_tokens": 2}
    results = train_adapter.main([str(word) for pair in options.items() for word in pair] + ["--linear_probe", "no"])
    predictor = read_predictor(tmp_path / "run" / "adapter")
    assert (predictor.names, predictor.backbone) == (["cat", "dog", "eel"], str(backbone))
    assert predictor.transform() == transform_for(str(backbone), "digits")
    shutil.copytree(tmp_path / "run" / "adapter", tmp_path / "adapters" / "pets")
    own = load_collection(backbone, tmp_path / "adapters")
    assert own.adapters == {"pets": Adapter(["cat", "dog", "eel"], pytest.approx(results["accuracy"]))}
    assert list(own.predict(star(), ["pets"])["pets"]) == ["cat", "dog", "eel"]


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("options", "words"),
    [([], "--data_dir is missing"), (["--data_dir", "nowhere"], "nowhere is not a folder")],
)
def test_faults_in_what_to_train_on(tmp_path: Path, options: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        train_adapter.main(["--task", "pets", "--output_dir", str(tmp_path / "run"), *options])


# The page.


def test_without_gradio_the_page_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match="make web"):
        app.main([])


@pytest.fixture(scope="module")
def address(collection: Collection) -> Iterator[str]:
    """Where the page is served while these tests run."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed; the extra [demo] has it, and make test-web installs it")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed; the extra [demo-test] has it, and make test-web installs it")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH; on Debian apt-get install chromium brings it")
    page = app.build_page(collection)
    yield app.launch(page)
    page.close()


@pytest.fixture
def browser_page(address: str) -> Iterator[Any]:
    """The loaded page; afterwards: it has asked no other host for anything, and its scripts met no error."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)  # a busy machine is slow
        hosts, errors = set(), []
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.get_by_role("heading", name=app.TITLE).wait_for()
        yield page
        browser.close()
    assert hosts - {None} == {"127.0.0.1"}  # None: data: and blob:
    assert not errors


def drop(page: Any, path: Path) -> None:
    """Let go of a file above the upload field, as the browser does it with a mouse."""
    content = base64.b64encode(path.read_bytes()).decode()
    moved = page.evaluate_handle(
        """([content, name]) => {
            const moved = new DataTransfer();
            moved.items.add(new File([Uint8Array.from(atob(content), c => c.charCodeAt(0))], name));
            return moved;
        }""",
        [content, path.name],
    )
    page.locator("#file button").first.dispatch_event("drop", {"dataTransfer": moved})


def test_an_image_is_dropped_and_answers_appear(browser_page: Any, star_file: Path) -> None:
    browser_page.get_by_text(app.ASK).wait_for()
    drop(browser_page, star_file)
    for name in NAMES:
        browser_page.locator(f"#scores-{name} .label").first.wait_for()
        picture = browser_page.locator(f"#attention-{name} img")
        picture.wait_for()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 300
    assert browser_page.get_by_text(app.ASK).count() == 0
    browser_page.get_by_label("objects").uncheck()
    browser_page.get_by_role("heading", name="objects").wait_for(state="hidden")
    assert browser_page.locator("#attention-shapes img").is_visible()
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser_page.evaluate(wide) == 0  # nothing hangs over


def test_a_bad_file_gets_a_message(browser_page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not an image\n")
    drop(browser_page, tmp_path / "notes.txt")
    browser_page.get_by_text("notes.txt is not an image that can be read here").wait_for()
    assert "Traceback" not in browser_page.content()
    assert not browser_page.locator("#attention-shapes img").is_visible()


def test_an_example_is_clicked(browser_page: Any) -> None:
    browser_page.locator(".gallery-item, .gallery button").first.click()
    browser_page.get_by_text("digit-2.png, read as 32 x 32 pixels by 3 adapters").wait_for()
    browser_page.locator("#preview img").wait_for()
    for name in NAMES:
        browser_page.locator(f"#attention-{name} img").wait_for()
    if kept := os.environ.get("GATED_PROMPT_SCREENSHOT"):
        browser_page.wait_for_load_state("networkidle")
        browser_page.screenshot(path=kept, full_page=True)
