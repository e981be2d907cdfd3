"""`gated-prompt train` and `predict` on label maps, end to end on a tiny ViT: what they leave, resuming, formats."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from gated_prompt import GatedPromptError
from gated_prompt.finetune.layout import gives_masks
from gated_prompt.finetune.segmentation import command, predict
from gated_prompt.segmentation.predictor import read_mask_predictor
from gated_prompt.sharing.classifier import load_trained
from gated_prompt.training.best_epoch import BestEpoch
from helpers import two_processes
from helpers.accelerate_state import fresh
from helpers.shapes import NAMES, draw, save

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
QUICK = ["--num_virtual_tokens", "3", "--image_size", "32", "--num_train_epochs", "2"]


def run(backbone: Path, data: Path, output: Path, *more: str) -> dict:
    place = ["--output_dir", str(output), "--cache_dir", str(output.parent / "features")]
    return command.main(["--train_dir", str(data), "--backbone", str(backbone), *QUICK, *place, *more])


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("data") / "shapes")


@pytest.fixture(scope="module")
def done(backbone: Path, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with a test part."""
    output = tmp_path_factory.mktemp("runs") / "shapes"
    methods = ["--methods", "zero_start", "gated", "conv"]
    run(
        backbone,
        shapes,
        output,
        "--test_dir",
        str(shapes),
        *methods,
        "--loss",
        "ce_dice",
        "--class_weights",
        "balanced",
    )
    fresh()
    return output


def results_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def numpy_mean_iou(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Of true and predicted label maps, from sets of pixels."""
    values = []
    for label in range(len(NAMES)):
        both = sum(int(((t == label) & (p == label)).sum()) for t, p in pairs)
        either = sum(int((((t == label) | (p == label)) & (t != 255)).sum()) for t, p in pairs)
        values += [both / either] if either else []
    return float(np.mean(values))


def test_what_a_run_leaves(done: Path) -> None:
    results = results_of(done)
    names = [row["name"] for row in results["comparison"]]
    assert names == ["frozen, linear map", "zero_start, seed 0", "gated, seed 0", "conv, seed 0"]
    assert sum(row["chosen"] for row in results["comparison"]) == 1 and results["sentence"].startswith("Use ")
    assert [results["data"][part]["count"] for part in ("train", "validation", "test")] == [8, 2, 10]
    assert results["folds"] == 5 and read_mask_predictor(done / results["use"]).names == list(NAMES)
    page = (done / "report.html").read_text()
    assert page.count("<figure>") == 2 and "Which classes are confused" in page and results["sentence"][:40] in page


def test_the_test_score_is_that_of_an_independent_loop(done: Path) -> None:
    """Pixels, model, upsampling and mIoU done by hand."""
    use = done / results_of(done)["use"]
    predictor = read_mask_predictor(use)
    model, pairs = load_trained(use, predictor), []
    for index in range(10):
        image, truth = draw(index, (48, 64) if index % 3 else (64, 48))
        side = (32, 40) if index % 3 else (40, 32)  # 32 x 42.7 pixels in patches of 8
        pixels = np.asarray(image.resize(side[::-1], Image.Resampling.BILINEAR), dtype=np.float32) / 255
        pixels = (pixels - predictor.preparation["mean"]) / predictor.preparation["std"]
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels).permute(2, 0, 1)[None].float()).logits
        large = interpolate(logits, truth.shape, mode="bilinear", align_corners=False)
        pairs.append((truth, large[0].argmax(0).numpy()))
    assert results_of(done)["test"]["mean_iou"] == pytest.approx(numpy_mean_iou(pairs), abs=2e-3)


def test_training_starts_as_the_frozen_map(done: Path) -> None:
    """Zero-start prompts change nothing before the first step."""
    rows = results_of(done)["comparison"]
    assert rows[1]["curve"][0]["mean_iou"] == pytest.approx(rows[0]["mean_iou"], abs=1e-6)
    assert [point["epoch"] for point in rows[1]["curve"]] == [0, 1, 2]


@pytest.mark.parametrize("kind", [pytest.param("palette", marks=pytest.mark.slow), "rgb"])
def test_other_ways_to_store_masks_give_the_same_numbers(
    kind: str, done: Path, backbone: Path, shapes: Path, tmp_path: Path
) -> None:
    folder = save(tmp_path / "shapes", kind)
    colours = ["--palette", str(folder / "palette.csv"), "--ignore_label", "unknown"] if kind == "rgb" else []
    frozen = []
    for data, more in ((shapes, []), (folder, colours)):
        options = ["--methods", "none", "--blocks", "1", "3", *more]
        frozen.append(run(backbone, data, tmp_path / "run" / data.parent.name, *options))
        fresh()
    assert frozen[0]["candidates"] == frozen[1]["candidates"] and frozen[0]["confusion"] == frozen[1]["confusion"]


def test_a_stopped_run_ends_with_the_same_bytes(
    done: Path, backbone: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--methods", "zero_start", "--blocks", "1", "3"]
    run(backbone, shapes, tmp_path / "whole", *options)
    fresh()
    saving = BestEpoch.after_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BestEpoch, "after_epoch", lambda self, n: _stop() if n == 2 else saving(self, n))
        with pytest.raises(KeyboardInterrupt):
            run(backbone, shapes, tmp_path / "stopped", *options)
    fresh()
    with pytest.raises(GatedPromptError, match="holds a run with other settings"):
        run(backbone, shapes, tmp_path / "stopped", *options, "--loss", "ce_dice")
    fresh()
    run(backbone, shapes, tmp_path / "stopped", *options)
    name = Path("runs", "zero_start-seed0", "adapter", "adapter_model.safetensors")
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def _stop() -> dict[str, float]:
    raise KeyboardInterrupt


def test_predict_writes_label_maps_and_resumes(
    done: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two adapters of prompts and the linear map; what is there already is not written again."""
    runs = [str(done / "runs" / f"{name}-seed0" / "adapter") for name in ("zero_start", "gated")]
    adapters = [*runs, str(done / "frozen")]
    arguments = ["--images", str(shapes / "images"), "--adapters", *adapters, "--output", str(tmp_path / "out")]
    assert gives_masks(arguments)
    assert predict.main(arguments) == 0
    folders = sorted(path for path in (tmp_path / "out").iterdir())
    assert len(folders) == 3 and all(len(list(folder.glob("*.png"))) == 10 for folder in folders)
    predictor = read_mask_predictor(done / "frozen")
    image, _ = draw(1)
    wanted = predictor.label_map(load_trained(done / "frozen", predictor), image)
    made = Image.open(tmp_path / "out" / "frozen" / "01.png")
    assert made.mode == "P" and np.array_equal(np.asarray(made), wanted)
    assert made.getpalette()[:9] == predictor.palette()[:3].ravel().tolist()
    assert Image.open(tmp_path / "out" / "frozen" / "01.overlay.jpg").size == image.size
    for name, folder in zip(("zero_start", "gated"), runs, strict=True):  # in one pass, and alone
        one = read_mask_predictor(folder)
        alone = one.label_map(load_trained(Path(folder), one), image)
        mixed = next(f for f in folders if name in f.name)
        assert np.mean(np.asarray(Image.open(mixed / "01.png")) != alone) < 0.01
    (tmp_path / "out" / "frozen" / "01.png").unlink()
    capsys.readouterr()
    assert predict.main(arguments) == 0
    assert "10 images, 3 adapter(s), 1 label maps written" in capsys.readouterr().out
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "broken.png").write_bytes(b"no image")
    shutil.copy(shapes / "images" / "01.png", tmp_path / "new")
    assert predict.main(["--images", str(tmp_path / "new"), *arguments[2:-1], str(tmp_path / "other")]) == 1
    assert (tmp_path / "other" / "frozen" / "01.png").is_file()


@pytest.mark.slow
def test_export_gives_the_same_map(done: Path, shapes: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    image = str(shapes / "images" / "01.png")
    file = tmp_path / "shapes.onnx"
    predict.main(["--images", image, "--adapters", str(done / "frozen"), "--export", str(file)])
    import onnxruntime

    predictor = read_mask_predictor(done / "frozen")
    pixels = predictor.pixels(Image.open(image), 8)
    logits = onnxruntime.InferenceSession(file).run(None, {"pixel_values": pixels[None].numpy()})[0]
    assert logits.shape == (1, 3, *pixels.shape[1:])


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_find_what_one_finds(backbone: Path, shapes: Path, tmp_path: Path) -> None:
    """The frozen backbone's numbers are the same, and training starts at them in both."""
    options = ["--blocks", "1", "3", "--methods", "zero_start"]
    one = run(backbone, shapes, tmp_path / "one", *options)
    fresh()
    places = ["--output_dir", str(tmp_path / "two"), "--cache_dir", str(tmp_path / "other")]
    data = ["--train_dir", str(shapes), "--backbone", str(backbone)]
    worker = Path(two_processes.__file__).with_name("segmentation_worker.py")
    two_processes.run(worker, *data, *QUICK, *places, *options)
    both = results_of(tmp_path / "two")
    assert both["candidates"] == one["candidates"]
    assert both["comparison"][0]["mean_iou"] == pytest.approx(one["comparison"][0]["mean_iou"], abs=1e-6)
    assert both["comparison"][1]["curve"][0]["mean_iou"] == pytest.approx(both["comparison"][0]["mean_iou"], abs=1e-6)
