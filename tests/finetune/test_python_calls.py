"""`finetune.train` and `finetune.probe_blocks`: what the commands find, by one load and one Accelerator."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image
from transformers import ViTModel

from gated_prompt import GatedPromptError, finetune
from helpers.accelerate_state import fresh
from helpers.picture_folder import make_folder

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"))


def test_a_training_loads_the_backbone_once(backbone: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    """Two methods with a search for rates each, and one refit: the first report, the answer, and new images."""
    loads, load = [], ViTModel.from_pretrained.__func__
    monkeypatch.setattr(
        ViTModel, "from_pretrained", classmethod(lambda cls, *a, **k: loads.append(1) or load(cls, *a, **k))
    )
    places = dict(output_dir=tmp_path / "out", cache_dir=tmp_path / "features")
    settings = dict(num_train_epochs=2, num_virtual_tokens=2, per_device_train_batch_size=16, augment=False)
    probes = finetune.probe_blocks(backbone, photos, methods=["linear", "zero_start"], **places, **settings)
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (
        not first["complete"]
        and first["use"] == "probe"
        and "Training continues" in (tmp_path / "out" / "report.html").read_text()
    )
    assert len(loads) == 1 and len(probes.blocks) == 4 and probes.read_blocks == first["read_blocks"]
    fresh()
    made, make = [], Accelerator.__init__
    monkeypatch.setattr(Accelerator, "__init__", lambda self, **k: made.append(1) or make(self, **k))
    result = finetune.train(
        train_dir=photos, backbone=backbone, methods=["linear", "zero_start"], **places, **settings
    )
    assert len(loads) == 2 and len(made) == 1
    assert result.results["complete"] and result.results["blocks"] == probes.blocks
    assert [row["name"] for row in result.table] == ["linear probe", "linear, seed 0", "zero_start, seed 0"]
    assert result.results["trained_on"] == 36 and "fitted to all 36 labelled images" in result.sentence
    assert result.results["estimate"]["images"] in (6, 36)  # the held-back part, or all of them out of fold
    file = photos / "gul" / "01.png"
    by_name, by_image = result.predict([file, Image.open(file)], top=2)
    assert by_name == by_image and len(by_name) == 2 and sum(share for _, share in by_name) <= 1


def test_several_blocks_are_predicted_with(backbone: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    """Whatever the folds say: a set of blocks, from the probe to prompts below the same head."""
    from gated_prompt.finetune import probing

    chosen = lambda found, key=None: next((one for one in found if len(one.blocks) == 3), None)  # noqa: E731
    study = probing.study

    def with_the_set(features, depth, readable, sets, division, measure, weights, show):
        done = study(features, depth, readable, sets, division, measure, weights, show)
        best = chosen(done.candidates)
        fit = probing.fit_kept(best, features(best.blocks), division, weights)
        return probing.Study(done.neighbours, done.candidates, best, *fit)

    monkeypatch.setattr("gated_prompt.finetune.probing.study", with_the_set)
    settings = dict(num_train_epochs=1, num_virtual_tokens=2, learning_rate=0.001, methods=["gated", "lora"])
    result = finetune.train(
        train_dir=photos, backbone=backbone, output_dir=tmp_path / "out", cache_dir=tmp_path / "f", **settings
    )
    blocks = result.results["read_blocks"]
    assert len(blocks) == 3
    for folder in ("probe", "runs/gated-seed0/adapter", "runs/lora-seed0/adapter"):
        assert json.loads((tmp_path / "out" / folder / "predictor.json").read_text())["blocks"] == blocks
    start = [row["curve"][0] for row in result.table[1:]]
    assert start[1]["accuracy"] == pytest.approx(result.table[0]["measures"]["accuracy"], abs=0.2)
    assert len(result.predict([photos / "gul" / "01.png"])[0]) == 3


def test_mistakes_are_those_of_the_command_line(backbone: Path) -> None:
    with pytest.raises(GatedPromptError, match=r"unknown option '--train_dri=x'. Did you mean --train_dir\?"):
        finetune.train(train_dri="x")
    with pytest.raises(GatedPromptError, match="invalid choice: 'nouns'"):
        finetune.train(train_dir="x", problem="nouns")
    with pytest.raises(GatedPromptError, match="invalid int value"):
        finetune.probe_blocks(backbone, "x", num_train_epochs=1.5)
