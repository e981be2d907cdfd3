# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One graph for many adapters: its scores are the model's, tasks are added as files, and it runs without torch."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gated_prompt
from gated_prompt import AdapterMismatchError, GatedPromptError
from gated_prompt.images import decode
from gated_prompt.predictor import Predictor
from helpers.engines import CROP, TEMPERATURE, alone, export
from helpers.models import images

TF1 = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "size": 32, "sampling": "tf1", "round_to_bytes": False}


@pytest.fixture(scope="module")
def root(engines: Path) -> Path:
    return engines


@pytest.fixture(scope="module")
def exported(root: Path) -> Path:
    return root / "gated"


@pytest.fixture
def engine(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "engine"))


def runtime(folder: Path) -> object:
    """The program in the folder, as a module."""
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(root: Path, folder: Path, names: list[str]) -> None:
    pixels = images(len(names))
    found = runtime(folder).Engine(folder).scores(pixels.numpy(), names)
    for row, name, scores in zip(pixels, names, found, strict=True):
        np.testing.assert_allclose(scores, alone(root, name, row), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("names", [["cars"], ["birds", "birds"], ["cars", "birds", "birds", "cars", "cars"]])
def test_a_mixed_batch_has_the_scores_of_the_models(root: Path, exported: Path, names: list[str]) -> None:
    """Batch and number of adapters are free."""
    check(root, exported, names)


def test_zero_start_heads_on_several_blocks_and_probes_share_an_engine(root: Path, tmp_path: Path) -> None:
    """Also where they read other blocks, and where their prompts begin or end at others."""
    export(root, tmp_path / "zero", ["cells", "leaves", "probe", "early"])
    check(root, tmp_path / "zero", ["probe", "cells", "early", "leaves", "early", "cells", "probe"])
    with pytest.raises(AdapterMismatchError, match="early has num_virtual_tokens=2, but the engine has 3"):
        export(root, tmp_path / "mixed", ["birds", "early"])


def test_classes_that_an_adapter_does_not_have_score_minus_infinity(exported: Path) -> None:
    engine = runtime(exported).Engine(exported)
    seen = []
    session = engine.session

    class Spy:
        def run(self, *args: object) -> list[np.ndarray]:
            seen.extend(session.run(*args))
            return seen

    engine.session = Spy()
    engine.scores(images(2).numpy(), ["birds", "cars"])
    assert np.isneginf(seen[0][0, 3:]).all() and np.isfinite(seen[0][0, :3]).all() and np.isfinite(seen[0][1]).all()


def test_the_graph_holds_no_path_of_this_machine(exported: Path) -> None:
    content = (exported / "engine.onnx").read_bytes()
    assert str(Path(gated_prompt.__file__).parent).encode() not in content and b"stack_trace" not in content


def test_a_task_is_added_as_one_file(root: Path, engine: Path) -> None:
    from gated_prompt.engine.export import add_adapter

    graph = (engine / "engine.onnx").read_bytes()
    add_adapter(engine, "trees", root / "trees")
    assert (engine / "engine.onnx").read_bytes() == graph
    check(root, engine, ["trees", "birds", "trees"])


def test_an_adapter_of_another_structure_is_refused(root: Path, engine: Path) -> None:
    from gated_prompt.engine.export import add_adapter

    before = sorted(engine.rglob("*"))
    with pytest.raises(AdapterMismatchError, match="Export another engine"):
        add_adapter(engine, "cells", root / "cells")
    assert sorted(engine.rglob("*")) == before


def test_a_graph_that_differs_is_not_kept(
    root: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gated_prompt.engine import export as module
    from gated_prompt.engine import task_file

    wrong = task_file.as_row
    monkeypatch.setattr(task_file, "as_row", lambda *args: {k: v * 1.01 for k, v in wrong(*args).items()})
    monkeypatch.setattr(module, "_write_graph", lambda *args: shutil.copy(exported / "engine.onnx", args[-1]))
    with pytest.raises(GatedPromptError, match="differ from the model's"):
        export(root, tmp_path / "wrong", ["birds", "cars"])
    assert not list(tmp_path.iterdir())


PROGRAM = """
import sys
for name in ("torch", "transformers", "peft", "gated_prompt"):
    sys.modules[name] = None  # importing it fails
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_folder_runs_without_torch(root: Path, engine: Path, tmp_path: Path) -> None:
    photo, text = tmp_path / "a.png", tmp_path / "no photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photo)
    text.write_text("no photo")
    command = [sys.executable, "-c", PROGRAM, str(engine / "run.py"), str(photo), str(text), "--top", "1"]
    done = subprocess.run([*command, "--adapters", "cars", "birds"], capture_output=True, text=True, check=True)
    pixels = Predictor(["a"], CROP).transform()(decode(photo))
    lines = []
    for name in ("cars", "birds"):
        shares = torch.from_numpy(alone(root, name, pixels) / TEMPERATURE).softmax(-1)
        lines.append(f"{photo}\t{name}\t{name} {int(shares.argmax())} {float(shares.max()):.3f}")
    assert done.stdout.splitlines() == lines
    assert f"{text}: cannot be read" in done.stderr


def pictures() -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    found = {}
    for number, (width, height) in enumerate([(32, 32), (36, 36), (91, 47), (47, 91), (5, 300), (640, 331)]):
        image = Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for kind, settings in {"PNG": {}, "JPEG": {"quality": 90}}.items():
            exif = Image.Exif()
            exif[0x0112] = 1 + (3 * number + 5) % 8
            file = io.BytesIO()
            image.save(file, kind, exif=exif, **settings)
            found[f"{kind} {width} x {height}"] = file.getvalue()
    others = {
        "palette": Image.fromarray(draw.integers(0, 256, (60, 40, 3), dtype=np.uint8)).quantize(16),
        "transparent": Image.fromarray(draw.integers(0, 256, (60, 40, 4), dtype=np.uint8)),
        "grey": Image.fromarray(draw.integers(0, 256, (60, 40), dtype=np.uint8)),
        "16 bit": Image.fromarray(draw.integers(0, 65536, (60, 40), dtype=np.uint16)),
    }
    for name, image in others.items():
        file = io.BytesIO()
        image.save(file, "PNG")
        found[name] = file.getvalue()
    return found


@pytest.mark.parametrize("preparation", [CROP, TF1, {**TF1, "round_to_bytes": True}], ids=["crop", "tf1", "rounded"])
def test_images_become_the_pixels_of_training_bit_for_bit(preparation: dict[str, object]) -> None:
    from gated_prompt.engine import run

    transform = Predictor(["a"], preparation).transform()
    for name, content in pictures().items():
        with Image.open(io.BytesIO(content)) as image:
            found = run.prepare(run.upright(image), preparation)
        wanted = transform(decode(content)).numpy()
        assert found.dtype == wanted.dtype and found.tobytes() == wanted.tobytes(), name


def test_what_cannot_be_prepared_alike_is_refused() -> None:
    from gated_prompt.engine import run

    with pytest.raises(run.EngineError, match="cannot be prepared"):
        run.check_preparation({**TF1, "sampling": "antialias"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def huge(path: Path) -> None:
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "preparation": {**about["preparation"], "resize": 10**9}}))


def without_structure(path: Path) -> None:
    about = json.loads(path.read_text())
    del about["structure"]
    path.write_text(json.dumps(about))


def of_another_backbone(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "backbone_sha256": "0" * 64}))


def without_external_data(path: Path) -> None:
    """Have the graph read its weights from a file outside of the folder."""
    import onnx

    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    text = path.read_bytes()
    assert b"weights" in text
    path.write_bytes(text.replace(b"weights", b"../etc/"))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("adapters/birds.safetensors", truncate, "damaged"),
        ("engine.json", truncate, "damaged"),
        ("engine.json", of_another_backbone, "another backbone"),
        ("engine.json", huge, "sides of"),
        ("engine.json", without_structure, "lacks structure"),
        ("engine.onnx", truncate, "no graph"),
        ("engine.onnx", without_external_data, "no graph"),
        ("engine.onnx", Path.unlink, "missing"),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(engine: Path, file: str, damage: object, message: str) -> None:
    damage(engine / file)
    run = runtime(engine)
    with pytest.raises(run.EngineError, match=message):
        run.Engine(engine).scores(images(1).numpy(), ["birds"])


@pytest.mark.parametrize("name", ["../birds", "", "fish", "/etc/passwd"])
def test_names_of_no_adapter_are_refused(engine: Path, name: str) -> None:
    run = runtime(engine)
    with pytest.raises(run.EngineError, match="no adapter"):
        run.Engine(engine).load(name)


def test_int8_is_kept_only_if_it_agrees(root: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gated_prompt.engine import export as module

    graph = (engine / "engine.onnx").read_bytes()
    photos = [Image.new("RGB", (40, 40), color) for color in ("red", "green", "grey")]
    monkeypatch.setattr(module, "AGREEMENT", 1.1)
    assert "was not kept" in module._keep_if_alike(engine, ["birds", "cars"], photos)
    assert (engine / "engine.onnx").read_bytes() == graph and not (engine / "int8.onnx").exists()
    monkeypatch.setattr(module, "AGREEMENT", 0.0)
    assert "of 6 answers" in module._keep_if_alike(engine, ["birds", "cars"], photos)
    assert b"MatMulInteger" in (engine / "engine.onnx").read_bytes()


def test_the_command_exports_and_adds(
    root: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gated_prompt.cli import export as command
    from gated_prompt.engine import export as module

    monkeypatch.setattr(module, "_write_graph", lambda *args: shutil.copy(exported / "engine.onnx", args[-1]))
    folder = tmp_path / "engine"
    command.main(["--engine", str(folder), "--backbone", str(root / "backbone"), "--adapters", str(root / "birds")])
    run = shutil.copytree(root / "cars", tmp_path / "cars" / "adapter")  # as train leaves it
    command.main(["--engine", str(folder), "--add", str(run)])
    assert "scores differ from the model's by" in capsys.readouterr().out
    check(root, folder, ["cars", "birds"])
    with pytest.raises(GatedPromptError, match="exists"):
        command.main(["--engine", str(folder), "--adapters", str(root / "birds")])
