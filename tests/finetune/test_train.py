"""train_images.py and predict.py end to end on a tiny ViT: what they leave behind, going on after a stop, faults."""

import ast
import csv
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import AutoModel, ViTImageProcessor
from transformers.models.vit.modeling_vit import ViTEmbeddings

import gated_prompt
import gated_prompt.cli.train as train_images
from gated_prompt import GatedPromptConfig, GatedPromptError
from gated_prompt.cli import predict
from gated_prompt.finetune.arguments import parse
from gated_prompt.finetune.backbone import Backbone
from gated_prompt.finetune.division import Division, Parts, hold_back
from gated_prompt.finetune.experiment import Experiment
from gated_prompt.finetune.fit import CHECKPOINTS
from gated_prompt.finetune.folder import read_folder
from gated_prompt.finetune.image_experiment import ImageExperiment
from gated_prompt.finetune.image_set import SINGLE_LABEL, ImageSet, Pixels
from gated_prompt.finetune.metrics import main_measure
from gated_prompt.finetune.table import read_table
from gated_prompt.predictor import read_predictor
from gated_prompt.sharing.classifier import HEAD, TENSORS, load_trained
from gated_prompt.training import token_cache as prefix_cache
from helpers import two_processes
from helpers.accelerate_state import fresh
from helpers.families import CASES, HERE
from helpers.picture_folder import COLOURS, make_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUICK = ["--num_train_epochs", "4", "--num_virtual_tokens", "3", "--per_device_train_batch_size", "8"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"))


def run(backbone: Path, photos: Path, output: Path, *more: str) -> dict:
    place = ["--output_dir", str(output), "--cache_dir", str(output.parent / "features")]
    data = [] if "--train_file" in more else ["--train_dir", str(photos)]
    return train_images.main([*data, "--backbone", str(backbone), *QUICK, *place, *more])


@pytest.fixture(scope="module")
def finished(backbone: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run of prompts on the second block, with a test part."""
    output = tmp_path_factory.mktemp("runs") / "photos"
    run(backbone, photos, output, "--read_block", "1", "--test_dir", str(photos), "--learning_rate", "0.003")
    fresh()
    return output


def parts_of(output: Path) -> tuple[ImageSet, ImageSet]:
    """Train and validation part of a run."""
    settings = json.loads((output / "settings.json").read_text())
    return hold_back(read_folder(Path(settings["train_dir"])), 0.2, 0)


def results_of(output: Path) -> dict:
    return json.loads((output / "results.json").read_text())


def test_what_a_run_leaves_behind(finished: Path, photos: Path) -> None:
    results = results_of(finished)
    assert [row["name"] for row in results["comparison"]] == ["linear probe", "zero_start, seed 0"]
    assert sum(row["chosen"] for row in results["comparison"]) == 1
    assert (results["block"], len(results["blocks"]), results["names"]) == (1, 4, list(COLOURS))
    assert [results["data"][part]["count"] for part in ("train", "validation", "test")] == [30, 6, 36]
    assert 0 <= results["test"]["interval"][0] <= results["test"]["accuracy"] <= results["test"]["interval"][1] <= 1
    assert results["use"] in ("adapter", "probe") and results["sentence"].startswith("Use ")
    assert len(results["near_duplicates"]) == 36  # the test part is that of training
    assert all(row["image"] == row["labelled_image"] for row in results["near_duplicates"])
    found = list(csv.DictReader((finished / "label_suspects.csv").read_text().splitlines()))
    assert [row["image"] for row in found] == [row["image"] for row in results["label_suspects"]]
    assert read_predictor(finished / results["use"]).temperature == results["temperature"] != 1
    curve = results["comparison"][1]["curve"]
    assert [point["epoch"] for point in curve] == list(range(len(curve)))
    card = (finished / "adapter" / "README.md").read_text()
    assert "gated_prompt.load_classifier(" in card and "blå, gul, rød" in card
    assert not (finished / "runs" / "zero_start-seed0" / CHECKPOINTS).exists()


def test_the_adapter_is_that_of_the_best_epoch(finished: Path) -> None:
    """Loaded as a user loads it, it gives the measure that the table has for it."""
    results = results_of(finished)
    predictor = read_predictor(finished / "adapter")
    assert (predictor.base, predictor.reads) == ({}, "both")
    assert GatedPromptConfig.from_pretrained(str(finished / "adapter")).read_from == 1
    model = gated_prompt.load(predictor.load_base(), finished / "runs" / "zero_start-seed0" / "adapter").eval()
    _, held = parts_of(finished)
    with torch.no_grad():
        found = model(torch.stack([pixels for pixels, _ in Pixels(held, predictor)])).logits
    stored = load_file(finished / "runs" / "zero_start-seed0" / "scores.safetensors")["scores"]
    best = max(point["accuracy"] for point in results["comparison"][1]["curve"])
    torch.testing.assert_close(found, stored, atol=1e-5, rtol=1e-5)
    assert float((found.argmax(1) == held.targets).double().mean()) == pytest.approx(best)
    assert results["comparison"][1]["measures"]["accuracy"] == pytest.approx(best)


def test_reading_after_a_block_is_a_backbone_that_ends_there(finished: Path) -> None:
    """The adapter on the whole backbone, against the same tensors on one shortened as for LoRA and the probe."""
    whole, short = read_predictor(finished / "adapter"), read_predictor(finished / "probe")
    assert short.base == {"num_hidden_layers": 2}
    model = gated_prompt.load(whole.load_base(), finished / "adapter").eval()
    config = GatedPromptConfig.from_pretrained(str(finished / "adapter"))
    other = get_peft_model(short.load_base(), replace(config, read_from=None, num_layers=None))
    set_peft_model_state_dict(other, load_file(finished / "adapter" / "adapter_model.safetensors"))
    _, held = parts_of(finished)
    pixels = torch.stack([one for one, _ in Pixels(held, whole)])
    with torch.no_grad():
        assert torch.equal(model(pixels).logits, other.eval()(pixels).logits)


def test_the_code_of_the_card_says_what_predict_says(
    finished, backbone, photos, tmp_path, monkeypatch, capsys
) -> None:
    """Pasted into a folder with backbone, adapter and a picture."""
    Image.open(photos / "gul" / "01.png").save(tmp_path / "photo.jpg")
    (tmp_path / "path" / "of" / "this").mkdir(parents=True)
    (tmp_path / "path" / "of" / backbone.name).symlink_to(backbone)
    (tmp_path / "path" / "of" / "this" / "adapter").symlink_to(finished / "adapter")
    monkeypatch.chdir(tmp_path)
    predict.main(["--images", "photo.jpg", "--adapters", str(finished / "adapter"), "--output", "said.jsonl"])
    said = json.loads((tmp_path / "said.jsonl").read_text())
    capsys.readouterr()
    exec((finished / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0], {})
    names, scores = zip(*ast.literal_eval(capsys.readouterr().out), strict=True)
    assert list(names) == said["classes"] and scores == pytest.approx(said["scores"], abs=1e-5)


def test_the_chosen_is_never_behind_the_probe(finished: Path) -> None:
    rows = results_of(finished)["comparison"]
    chosen = next(row for row in rows if row["chosen"])
    assert chosen["measures"]["accuracy"] >= rows[0]["measures"]["accuracy"]


def test_the_probe_is_a_logistic_regression_of_a_model_that_ends_there(finished: Path, backbone: Path) -> None:
    """Weight and bias in probe/ against scikit-learn on features that the test computes from transformers itself."""
    train, held = parts_of(finished)
    train = train.joined(held)  # the probe is fitted to all labelled images in the end
    pixels = torch.stack([p for p, _ in Pixels(train, read_predictor(finished / "probe"))])
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(backbone, num_hidden_layers=2)(pixels).last_hidden_state
    features = torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1).double().numpy()
    scaler = StandardScaler().fit(features)
    l2 = results_of(finished)["blocks"][1]["l2"]
    oracle = LogisticRegression(C=1 / l2, max_iter=2000, tol=1e-8).fit(scaler.transform(features), train.targets)
    weight, bias = (load_file(finished / "probe" / TENSORS)[name].double().numpy() for name in HEAD)
    found = features @ weight.T + bias
    np.testing.assert_allclose(found, oracle.decision_function(scaler.transform(features)), atol=0.02)


def test_predictions_are_those_of_the_run_and_go_on_after_a_stop(finished: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(photos / "gul" / "01.png", tmp_path / "new")
    (tmp_path / "new" / "broken.png").write_bytes(b"nothing")
    arguments = ["--images", str(tmp_path / "new"), str(photos), "--batch_size", "7", "--top", "2"]
    adapters = ["--adapters", str(finished / "adapter"), str(finished / "probe")]
    predict.main([*arguments, *adapters, "--output", str(tmp_path / "whole.csv")])
    rows = list(csv.DictReader((tmp_path / "whole.csv").read_text().splitlines()))
    assert len(rows) == 2 * 38
    assert "cannot be decoded" in rows[1]["error"] and rows[1]["class_1"] == ""
    assert all(float(row["score_1"]) >= float(row["score_2"]) for row in rows if not row["error"])
    content = (tmp_path / "whole.csv").read_bytes()
    (tmp_path / "cut.csv").write_bytes(content[: len(content) // 3])  # in the middle of a line
    predict.main([*arguments, *adapters, "--output", str(tmp_path / "cut.csv")])
    assert sorted((tmp_path / "cut.csv").read_bytes().splitlines()) == sorted(content.splitlines())
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(GatedPromptError, match="holds something other than predictions"):
        predict.main([*arguments, *adapters, "--output", str(tmp_path / "other.csv")])
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_how_unlike_the_training_images_an_image_is(finished: Path, photos: Path, tmp_path: Path) -> None:
    Image.fromarray(np.indices((36, 40)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB").save(tmp_path / "odd.png")
    arguments = ["--images", str(photos / "gul"), str(tmp_path / "odd.png"), "--unlike"]
    output = tmp_path / "unlike.csv"
    predict.main([*arguments, "--adapters", str(finished / "probe"), "--output", str(output)])
    *known, odd = (float(row["unlike"]) for row in csv.DictReader(output.read_text().splitlines()))
    assert odd == 1 and max(known) == 0  # these are the images that it was fitted to
    with pytest.raises(GatedPromptError, match="--unlike needs"):
        predict.main([*arguments, "--adapters", str(finished / "adapter"), "--output", str(output)])


def test_an_adapter_that_changed_is_asked_again(finished: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ["--images", str(photos / "gul"), "--output", str(tmp_path / "all.csv")]
    scores = {}
    for kind in ("adapter", "probe"):  # two answers of one name
        shutil.rmtree(tmp_path / "mine", ignore_errors=True)
        shutil.copytree(finished / kind, tmp_path / "mine")
        for _ in range(2):  # the second time nothing is left to do
            predict.main([*arguments, "--adapters", str(tmp_path / "mine")])
        rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
        scores[kind] = [row["score_1"] for row in rows[-12:]]
    assert len(rows) == 2 * 12 and len({row["weights"] for row in rows}) == 2
    assert scores["adapter"] != scores["probe"]


def test_adapters_of_one_backbone_share_a_pass(finished: Path, backbone: Path, photos: Path, tmp_path: Path) -> None:
    """Rows of a mixed batch are those of each adapter alone, whatever block each of them reads."""
    run(backbone, photos, tmp_path / "run", "--read_block", "2", "--learning_rate", "0.003", "--num_train_epochs", "1")
    second = tmp_path / "run" / "adapter"
    calls = []
    handle = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: calls.append(1) if type(module).__name__ == "Scorer" else None
    )
    output = tmp_path / "mixed.jsonl"
    names = [str(finished / "adapter"), str(second)]
    predict.main(["--images", str(photos / "gul"), "--adapters", *names, "--output", str(output)])
    handle.remove()
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(calls) == 1 and len(rows) == 24
    for name in names:
        alone = tmp_path / "alone.jsonl"
        alone.unlink(missing_ok=True)
        predict.main(["--images", str(photos / "gul"), "--adapters", name, "--output", str(alone)])
        wanted = [json.loads(line)["scores"] for line in alone.read_text().splitlines()]
        np.testing.assert_allclose([row["scores"] for row in rows if row["adapter"] == name], wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["adapter", "probe"])
def test_onnx(finished: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is needed for the ONNX export")
    pytest.importorskip("onnxruntime", reason="onnxruntime is needed to run the ONNX file")
    predict.main(["--adapters", str(finished / kind), "--export", str(tmp_path / "m.onnx")])
    assert (tmp_path / "m.onnx").stat().st_size > 10_000 and len(list(tmp_path.iterdir())) == 1


def test_progress_names_the_rates_and_the_epoch(backbone, photos, tmp_path, capsys) -> None:
    run(backbone, photos, tmp_path / "out", "--methods", "linear")
    out, err = capsys.readouterr()
    bars = {line.partition(": ")[0] for line in re.split(r"[\r\n]", err) if "linear" in line}
    raced = [(1, rate) for rate in (0.001, 0.0001, 0.0003, 0.003)]
    labels = {f"linear, race {number}/2, rate {rate:g}, head {rate:g}" for number, rate in raced}
    assert {f"{label}, epoch 1/1" for label in labels} < bars
    assert {bar for bar in bars if "seed" in bar} == {
        "linear, seed 0",
        *(f"linear, seed 0, epoch {n}/4" for n in (1, 2, 3, 4)),
    }
    assert len({bar for bar in bars if "race 2/2" in bar and "epoch" in bar}) == 2
    assert "\x1b[A" not in err  # no bar below another
    assert re.search(r"^linear: learning rate 0\.\d+$", out, re.MULTILINE)


def test_stopped_in_race_and_training_it_ends_with_the_same_bytes(backbone, photos, tmp_path, monkeypatch) -> None:
    more = ["--per_device_train_batch_size", "3", "--num_train_epochs", "5", "--ema_decay", "0.5"]
    more += ["--gradient_accumulation_steps", "2", "--read_block", "last"]
    run(backbone, photos, tmp_path / "straight", *more)
    step, found = torch.optim.AdamW.step, []
    for limit in (8, 27, 8):  # steps after which an attempt dies: in the race, and twice in the 25 of the full run.
        # The first of each attempt is for the estimate of its time.
        fresh()
        count = 0

        def step_or_die(self, *args, limit=limit, **kwargs):
            nonlocal count
            count += 1
            if count > limit:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", step_or_die)
            with pytest.raises(KeyboardInterrupt):
                run(backbone, photos, tmp_path / "killed", *more)
        race = json.loads((tmp_path / "killed" / "runs" / "zero_start-race.json").read_text())
        checkpoints = tmp_path / "killed" / "runs" / "zero_start-seed0" / CHECKPOINTS
        found.append((len(race), max((path.name for path in checkpoints.glob("*")), default="")))
    assert found == [(7, ""), (14, "step_00000010"), (14, "step_00000020")]
    fresh()
    run(backbone, photos, tmp_path / "killed", *more)
    for name in ("adapter/adapter_model.safetensors", "probe/trained.safetensors", "runs/zero_start-race.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    fresh()
    with monkeypatch.context() as patch:  # what is finished is read: prompts and head are not started once more
        patch.delattr(Experiment, "beginning")
        run(backbone, photos, tmp_path / "killed", *more)
    fresh()
    with pytest.raises(
        GatedPromptError, match=r"holds a run with other settings \(seeds\): seeds was \[0\], now \[3\]"
    ):
        run(backbone, photos, tmp_path / "killed", *more, "--seeds", "3")


def test_blocks_below_the_prompts_run_once_per_image(backbone, photos, tmp_path, monkeypatch, capsys) -> None:
    seen: list[int] = []
    forward = ViTEmbeddings.forward

    def counted(self, pixel_values, *args, **kwargs):
        seen.append(len(pixel_values))
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(ViTEmbeddings, "forward", counted)
    more = ["--augment", "false", "--read_block", "last", "--insert_at", "1"]
    passes, adapters = [], []
    for name, limit in (("pixels", 1000), ("kept", prefix_cache.MOST_BYTES)):
        fresh()
        seen.clear()
        monkeypatch.setattr(prefix_cache, "MOST_BYTES", limit)
        run(backbone, photos, tmp_path / name, *more)
        passes.append(sum(seen))
        adapters.append(load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"))
        assert not list((tmp_path / name / "runs").glob("*tokens*"))
    assert "and at most 9.31323e-07 GiB are kept" in capsys.readouterr().out
    # Only the first run: features of 36 images, 1 to see the size, 3 batches of 8 for the clock, 4 epochs of 30, 5
    # scores of 6 images. Only the second: tokens of 36 images, the first image of both parts twice more, and a pair of
    # made-up ones.
    assert passes[0] - passes[1] == 36 + 1 + 3 * 8 + 4 * 30 + 5 * 6 - (36 + 2 * 2 + 2)
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.slow
def test_two_processes_find_what_one_finds(finished: Path, backbone: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ["--train_dir", str(photos), "--test_dir", str(photos), "--backbone", str(backbone), *QUICK]
    arguments += ["--read_block", "1", "--learning_rate", "0.003", "--per_device_train_batch_size", "4"]
    places = ["--output_dir", str(tmp_path / "two"), "--cache_dir", str(tmp_path / "features")]
    (tmp_path / "train.py").write_text("import gated_prompt.cli.train\ngated_prompt.cli.train.main()\n")
    printed = two_processes.run(tmp_path / "train.py", *arguments, *places)
    assert printed.count("Use ") == 1
    one, two = results_of(finished), results_of(tmp_path / "two")
    assert two["blocks"] == one["blocks"] and two["comparison"][0] == one["comparison"][0]
    start = [row["comparison"][1]["curve"][0] for row in (one, two)]
    # The head's start, from two shares; of their prompts, drawn from the tokens of each, others are taken.
    assert start[0]["loss"] == pytest.approx(start[1]["loss"], rel=1e-2)
    assert [two["data"][part]["count"] for part in ("train", "validation", "test")] == [30, 6, 36]


def table(photos: Path, file: Path, label) -> list[str]:
    names = sorted(photos.rglob("*.png"))
    rows = [{"image": str(path), "label": label(path.relative_to(photos).parts[0], i)} for i, path in enumerate(names)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return ["--train_file", str(file)]


def test_several_labels_and_methods(backbone, photos, tmp_path) -> None:
    labels = {"blå": ["cold"], "gul": ["warm", "light"], "rød": ["warm"]}
    data = table(photos, tmp_path / "list.jsonl", lambda name, _: labels[name])
    methods = ["deep", "zero_start", "lora", "full", "linear"]
    more = ["--methods", *methods, "--learning_rate", "0.001", "--num_train_epochs", "1"]
    results = run(backbone, photos, tmp_path / "run", *data, *more, "--class_weights", "balanced")
    assert (results["problem"], results["names"]) == ("multi_label", ["cold", "light", "warm"])
    probe, *rows = results["comparison"]
    assert [row["name"].split(",")[0] for row in rows] == methods
    assert probe["measures"]["mean_average_precision"] > 0.9
    for row in rows[
        1:
    ]:  # without prompts, or with those that begin as nothing, nothing stands between the head and the probe
        assert row["curve"][0]["mean_average_precision"] == probe["measures"]["mean_average_precision"]
    folders = ["adapter", "adapter", "adapter", "model", "model"]
    kept = [f"{method}-seed0/{folder}" for method, folder in zip(methods, folders, strict=True)]
    assert_loaded_as_they_were_scored(tmp_path / "run", kept)


def assert_loaded_as_they_were_scored(output: Path, kept: list[str]) -> None:
    """Each folder, loaded with its backbone, gives the scores that the run has noted."""
    _, held = hold_back(read_table(output.parent / "list.jsonl", "image", ["label"]), 0.2, 0)
    for place in kept:
        folder = output / "runs" / place
        predictor = read_predictor(folder)
        with torch.no_grad():
            found = load_trained(folder, predictor)(torch.stack([p for p, _ in Pixels(held, predictor)])).logits
        torch.testing.assert_close(found, load_file(folder.parent / "scores.safetensors")["scores"])


def test_numbers(backbone, photos, tmp_path) -> None:
    data = table(photos, tmp_path / "list.jsonl", lambda name, _: {"blå": 0.5, "gul": 2.5, "rød": 1.0}[name])
    results = run(backbone, photos, tmp_path / "run", *data, "--learning_rate", "0.001", "--num_train_epochs", "1")
    assert (results["problem"], results["measure"]) == ("regression", "mean_absolute_error")
    errors = [row["measures"]["mean_absolute_error"] for row in results["comparison"]]
    assert min(errors) < 0.5 and next(r for r in results["comparison"] if r["chosen"])["measures"]["r2"] > 0.5
    assert_loaded_as_they_were_scored(tmp_path / "run", ["zero_start-seed0/adapter"])


def test_a_backbone_without_a_classifier_of_its_own(photos, tmp_path) -> None:
    """DINOv3, from the folder to a prediction."""
    case = next(case for case in CASES if case.name == "DINOv3ViTModel")
    case.build().save_pretrained(tmp_path / "dinov3")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "dinov3")
    more = ["--learning_rate", "0.001", "--num_train_epochs", "1", "--methods", "gated", "lora"]
    results = run(tmp_path / "dinov3", photos, tmp_path / "run", *more)
    assert len(results["comparison"]) == 3
    folders = [str(tmp_path / "run" / "runs" / f"{name}-seed0" / "adapter") for name in ("gated", "lora")]
    output = tmp_path / "said.jsonl"
    predict.main(["--images", str(photos / "gul"), "--adapters", *folders, "--output", str(output), "--top", "1"])
    said = [json.loads(line)["classes"] for line in output.read_text().splitlines()]
    assert len(said) == 24 and said.count(["gul"]) > 20


@pytest.mark.parametrize(
    ("id", "method"), [("ViTModel", "zero_start"), ("Data2VecVisionModel-mean", "gated")], ids=["fits", "rules it out"]
)
def test_the_default_method_fits_the_backbone(id: str, method: str, tmp_path) -> None:
    next(case for case in HERE if case.id == id).build().save_pretrained(tmp_path)
    _, args, _ = parse(["--train_dir", "unused", "--backbone", str(tmp_path)])
    assert (args.methods, Backbone(args.backbone).best_method) == ([], method)


def test_prompts_start_as_tokens_of_the_images(finished: Path, backbone: Path) -> None:
    _, args, prompts = parse(["--train_dir", "unused", "--backbone", str(backbone), "--num_virtual_tokens", "3"])
    train, validation = parts_of(finished)
    predictor = read_predictor(finished / "adapter")
    parts, measure = Parts(train, validation, None, {}), main_measure(SINGLE_LABEL, "auto", 3)
    known, division = Backbone(args.backbone), Division.of(parts, 0.2, 0, refit=True)
    experiment = ImageExperiment(
        args, prompts, Accelerator(cpu=True), known, predictor, (1,), parts, division, measure, 1.0, None
    )
    begin = experiment.beginning("gated", 0, finished, train)
    fresh()
    (prompt,) = (tensor for name, tensor in begin.items() if "classifier" not in name)
    base = AutoModel.from_pretrained(backbone).eval()
    pixels = torch.stack([p for p, _ in Pixels(train, predictor)])
    with torch.no_grad():  # they enter block 1, half-way to the one that is read
        tokens = base(pixels, output_hidden_states=True).hidden_states[1][:, 1:].flatten(0, 1)
    distances = torch.cdist(prompt.reshape(3, -1), tokens, compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.amin(1).max()) < 1e-4


def test_bf16(backbone, photos, tmp_path, monkeypatch) -> None:
    """As `accelerate launch --mixed_precision bf16`: what is trained stays float32, and scores alike without it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    results = run(backbone, photos, tmp_path / "run", "--learning_rate", "0.003", "--num_train_epochs", "2")
    assert results["comparison"][1]["curve"][-1]["epoch"] == 2
    folder = tmp_path / "run" / "runs" / "zero_start-seed0"
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    _, held = hold_back(read_folder(photos), 0.2, 0)
    predictor = read_predictor(folder / "adapter")
    pixels = torch.stack([one for one, _ in Pixels(held, predictor)])
    with torch.no_grad():
        found = load_trained(folder / "adapter", predictor)(pixels).logits
    stored = load_file(folder / "scores.safetensors")["scores"]
    assert not torch.equal(found, stored)  # it was autocast
    torch.testing.assert_close(found, stored, atol=0.05 * float(found.abs().max()), rtol=0)


def test_trackers_get_the_validation_measure(backbone, photos, tmp_path, monkeypatch) -> None:
    logged = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: logged.append((step, values)))
    results = run(backbone, photos, tmp_path / "run", "--learning_rate", "0.001", "--num_train_epochs", "2")
    curve = results["comparison"][1]["curve"]
    assert [values["validation_accuracy"] for _, values in logged] == [point["accuracy"] for point in curve[1:]]
    assert [values["validation_loss"] for _, values in logged] == [point["loss"] for point in curve[1:]]
    assert all({"loss", "learning_rate"} <= values.keys() for _, values in logged)


def test_the_report_is_one_file_without_scripts_or_links(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert results_of(finished)["sentence"].replace("'", "&#39;") in page
    sources = re.findall(r'src="([^"]{0,30})', page)
    assert len(sources) >= 4 and all(source.startswith("data:image/") for source in sources)
    assert "<script" not in page and "<link" not in page and "http" not in page


def test_a_backbone_that_is_not_there(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match="cannot load --backbone"):
        run(tmp_path / "nothing", photos, tmp_path / "run")
    assert not (tmp_path / "run" / "settings.json").exists()  # the folder is free for the right name


def test_the_report_in_a_browser(finished: Path, tmp_path: Path) -> None:
    """Every drawing is decoded and has its place, and the page is no wider than the window."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH; on Debian apt-get install chromium brings it")
    look = "Array.from(document.images, i => i.naturalWidth * (i.getBoundingClientRect().width > 20))"
    width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    script = f"<script>document.title = JSON.stringify([...{look}, {width}])</script></body>"
    page = (finished / "report.html").read_text().replace("</body>", script)
    (tmp_path / "page.html").write_text(page)
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1000,900", "--dump-dom", (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    *images, too_wide = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1)))
    assert too_wide <= 0
    assert len(images) == page.count("<img ") >= 4 and min(images) > 0
