# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The demo: what its adapters reach, how its page is built and served. test_demo_page.py opens it in a browser."""

import re
import shutil
import socket
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

import demo_pictures
from demo import app, onnxruntime_web, page, serve, shapes, task_images
from gated_prompt import GatedPromptError
from gated_prompt.images import decode
from gated_prompt.serving.pool import AdapterPool, load_pool
from gated_prompt.shipped import SHIPPED_BACKBONE
from helpers.data_files import real_data

NAMES = ["digits", "objects", "shapes"]
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "demo.md"


@pytest.fixture(scope="module")
def pool() -> AdapterPool:
    return load_pool(str(SHIPPED_BACKBONE), 2**30, 1024)


def answers(pool: AdapterPool, name: str, images: list[Image.Image]) -> list[str]:
    """The likeliest class of each image."""
    found = []
    with pool.hold(page.load_collection()[name]) as resident:
        transform, names = resident.predictor.transform(), resident.predictor.names
        for begin in range(0, len(images), 100):
            pixels = torch.stack([transform(image) for image in images[begin : begin + 100]])
            found += [names[row.argmax()] for row in pool.logits(pixels, [resident] * len(pixels))]
    return found


# Adapters.


@pytest.mark.parametrize("name", NAMES)
def test_cards_state_the_accuracy_that_the_adapters_reach(pool: AdapterPool, name: str) -> None:
    """On the test part, and it does not trail the linear probe of the same blocks."""
    if name == "objects":
        drawn = task_images.objects("test", real_data("cifar10_jpeg"))
    else:
        drawn = {"digits": task_images.digits, "shapes": task_images.shapes}[name]("test")
    classes, contents = zip(*((label, content) for label, content, _ in drawn), strict=True)
    found = answers(pool, name, [decode(content) for content in contents])
    right = sum(one == wanted for one, wanted in zip(found, classes, strict=True)) / len(classes)
    rows = re.findall(r"^\| `(\w+)` \|.* (\d+\.\d) % \| (\d+\.\d) % \|$", DOCUMENTATION.read_text(), re.MULTILINE)
    ours, probe = {task: (float(one), float(other)) for task, one, other in rows}[name]
    assert 100 * right == pytest.approx(ours, abs=0.11)
    assert ours >= probe - 0.5


def test_examples_are_answered_correctly(pool: AdapterPool) -> None:
    assert {path.name for path in page.SAMPLES.iterdir()} == set(page.EXAMPLES)
    for file, label in page.EXAMPLES.items():
        task = "digits" if file.startswith("digit") else "shapes"
        (found,) = answers(pool, task, [decode(page.SAMPLES / file)])
        assert label.endswith(found), f"{file}: {found}"


def test_committed_adapters_are_small_and_name_no_machine() -> None:
    assert sorted(path.name for path in page.ADAPTERS.iterdir()) == NAMES
    for name in NAMES:
        files = list((page.ADAPTERS / name).iterdir())
        assert sum(path.stat().st_size for path in files) < 250_000
        for path in files:
            if path.suffix in (".md", ".json"):
                assert not re.search(r"[\s\"`(]/\w", path.read_text()), "a path that begins at a machine's root"


def test_what_cards_say_of_the_accuracy(tmp_path: Path) -> None:
    assert re.fullmatch(r"\d+\.\d % on its validation part", page.measured(page.ADAPTERS / "objects" / "README.md"))
    assert page.measured(tmp_path / "README.md") is None
    (tmp_path / "README.md").write_text("---\nlibrary_name: peft\n---\n\n- Classes: cat, dog\n")
    assert page.measured(tmp_path / "README.md") is None


# Images to train on.


def test_shapes_are_the_same_every_time_and_of_no_other_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {part: list(shapes.draw_part(part)) for part in shapes.PARTS}
    names = [name for name, _ in drawn["test"]]
    assert {name: names.count(name) for name in shapes.SHAPES} == dict.fromkeys(shapes.SHAPES, 100)
    single = {image.tobytes() for part in drawn.values() for _, image in part}
    assert len(single) == sum(shapes.PARTS.values())
    monkeypatch.setattr(shapes, "PARTS", {"train": 10, "validation": 0, "test": 5})
    monkeypatch.setattr(task_images, "OBJECTS", {"train": 6, "test": 2})
    task_images.main(["--output_dir", str(tmp_path), "--cifar10", str(real_data("cifar10_jpeg"))])
    counts = {task: len(list((tmp_path / task / "train").rglob("*.*"))) for task in NAMES}
    assert counts == {"digits": 1000, "objects": 6, "shapes": 10}
    assert len(list((tmp_path / "digits" / "test").rglob("*.png"))) == 797
    written = decode(tmp_path / "shapes" / "train" / "star" / "0003.png")
    assert written.tobytes() == drawn["train"][3][1].tobytes()


# The page as files.


def test_folders_that_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match="holds no adapters"):
        page.load_collection(tmp_path)
    shutil.copytree(page.ADAPTERS / "objects", tmp_path / "objects")
    (tmp_path / "objects" / "adapter_model.safetensors").write_bytes(b"nothing")
    if not onnxruntime_web.is_fetched():
        pytest.skip("onnxruntime-web is not there; make web fetches it")
    with pytest.raises(GatedPromptError, match=r"objects.* not a readable safetensors file"):
        page.build_page(page.load_collection(tmp_path), tmp_path / "web")
    assert not (tmp_path / "web").exists() and not (tmp_path / ".web.partial").exists()


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(GatedPromptError, match="is not a page of an earlier build"):
        page.build_page(page.load_collection(), tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


def test_only_the_pinned_archive_is_kept(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.add(__file__, "package/dist/ort.wasm.bundle.min.mjs")
    with pytest.raises(GatedPromptError, match=r"SHA-512 .* expected .* not kept"):
        onnxruntime_web.fetch(tmp_path / "kept", (tmp_path / "other.tgz").as_uri())
    with pytest.raises(GatedPromptError, match=r"cannot be fetched .* Connect to the network once"):
        onnxruntime_web.fetch(tmp_path / "kept", (tmp_path / "missing.tgz").as_uri())
    assert not (tmp_path / "kept").exists()


def test_it_is_served_to_this_machine_alone(tmp_path: Path) -> None:
    (tmp_path / "a.mjs").write_text("1")
    address = serve.launch(tmp_path)
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address + "a.mjs") as answer:
        assert answer.headers.get_content_type() == "text/javascript"
    with pytest.raises(urllib.error.HTTPError, match="501"):  # nothing can be uploaded
        urllib.request.urlopen(urllib.request.Request(address, data=b"x"))
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address + "../" * 9 + "etc/passwd")


def test_faults_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"^error: .* holds no adapters"):
        app.main(["--adapters", str(tmp_path)])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(serve, "build_page", lambda *args: tmp_path)
        with pytest.raises(SystemExit, match=r"^error: .*in use"):
            app.main(["--port", str(taken.getsockname()[1])])


@pytest.mark.parametrize("name", demo_pictures.SHOTS)
def test_pictures_in_the_documentation_show_the_page_as_it_is(name: str) -> None:
    picture = Image.open(demo_pictures.IMAGES / name)
    assert picture.info["sources"] == demo_pictures.sources_hash(), "python tools/demo_pictures.py"
    assert picture.size == demo_pictures.SHOTS[name][:2]
