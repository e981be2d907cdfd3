"""`load_classifier`: from a folder to answers in one call, for each kind of thing that a run leaves."""

import json
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import save_file

import gated_prompt
from gated_prompt import DamagedAdapterError, GatedPromptConfig, GatedPromptError, load_classifier
from gated_prompt.finetune.export import save_trained
from gated_prompt.finetune.methods import add_lora
from gated_prompt.finetune.onnx_file import check_export, metadata
from gated_prompt.predictor import Predictor
from gated_prompt.sharing.classifier import TENSORS

NAMES = ["cat", "chien", "鳥"]
SQUARE = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "size": 32, "antialias": True}


def picture() -> Image.Image:
    return Image.effect_mandelbrot((50, 70), (-2, -1.5, 1, 1.5), 40).convert("RGB")


@pytest.mark.parametrize("kind", ["prompts", "lora", "probe"])
def test_it_answers_and_knows_its_classes(backbone: Path, tmp_path: Path, kind: str) -> None:
    predictor = Predictor(NAMES, SQUARE, backbone=str(backbone), reads="both")
    model = predictor.load_base()
    torch.nn.init.normal_(model.classifier.weight)
    if kind == "prompts":
        model = get_peft_model(model, GatedPromptConfig(num_virtual_tokens=2))
    elif kind == "lora":
        model = add_lora(model, 2)
    else:
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
    model.eval()
    save_trained(model, tmp_path / "run" / "adapter", predictor)
    (tmp_path / "run" / "results.json").write_text(json.dumps({"use": "adapter"}))
    picture().save(tmp_path / "photo.png")
    with torch.no_grad():
        wanted = predictor.answer(model(pixel_values=predictor.transform()(picture())[None]).logits[0], 2)
    found = load_classifier(tmp_path / "run")
    assert found(tmp_path / "photo.png", top=2) == found((tmp_path / "photo.png").read_bytes(), 2) == wanted
    assert found(picture(), top=2) == wanted
    assert found.model.config.id2label == dict(enumerate(NAMES))
    assert found.model.config.label2id == {name: index for index, name in enumerate(NAMES)}
    assert found.model.config.problem_type == "single_label_classification" and not found.model.training


def test_a_backbone_that_has_moved(backbone: Path, tmp_path: Path) -> None:
    predictor = Predictor(NAMES, SQUARE, backbone="moved/away")
    model = Predictor(NAMES, SQUARE, backbone=str(backbone)).load_base()
    tensors = {name: value for name, value in model.state_dict().items() if name.startswith("classifier.")}
    save_file(tensors, tmp_path / TENSORS)
    predictor.write(tmp_path)
    assert len(load_classifier(tmp_path, backbone)(picture())) == 3
    with pytest.raises(GatedPromptError, match="moved/away"):
        load_classifier(tmp_path)


def test_what_is_no_classifier(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match=r"there is no folder .*missing.*and the Hub gave no such repository"):
        load_classifier(tmp_path / "missing")
    with pytest.raises(DamagedAdapterError, match=r"lacks predictor\.json"):
        load_classifier(tmp_path)
    (tmp_path / "settings.json").write_text("{}")
    with pytest.raises(GatedPromptError, match=r"has not finished. Repeat its gated-prompt train command"):
        load_classifier(tmp_path)
    for text in ("[]", "{", '{"used": 1}'):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(DamagedAdapterError, match=r"results\.json is not what gated-prompt train writes"):
            load_classifier(tmp_path)


def test_an_onnx_file_says_what_its_numbers_mean(monkeypatch) -> None:
    found = {name: json.loads(value) for name, value in metadata(Predictor(NAMES, SQUARE)).items()}
    assert found == {"names": NAMES, "problem": Predictor(NAMES, SQUARE).problem, **SQUARE}
    with pytest.raises(GatedPromptError, match="--export takes one of --adapters"):
        check_export(2)
    monkeypatch.setattr("gated_prompt.finetune.onnx_file.find_spec", lambda name: None if name == "onnxscript" else 1)
    with pytest.raises(GatedPromptError, match="--export needs onnxscript: pip install onnxscript"):
        check_export(1)


def test_code_of_a_backbone_is_not_run(tmp_path: Path, monkeypatch) -> None:
    from gated_prompt.sharing.backbone import check_code, load_backbone

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    values = {"model_type": "vit_of_mine", "auto_map": {"AutoConfig": "mine.MyConfig", "AutoModel": "mine.MyModel"}}
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "mine.py").write_text("raise RuntimeError('run')")
    for load in (load_backbone, lambda place: check_code(place, False)):
        with pytest.raises(GatedPromptError, match=r"code of its own, which is not run.*trust_remote_code true"):
            load(str(tmp_path))
    for reads in (None, "cls"):
        with pytest.raises(GatedPromptError, match="cannot load the backbone"):
            Predictor(NAMES, SQUARE, backbone=str(tmp_path), reads=reads).load_base()
    check_code(str(tmp_path), True)


def test_the_card_of_an_adapter_shows_it(backbone: Path, tmp_path: Path) -> None:
    model = get_peft_model(Predictor(NAMES, SQUARE, backbone=str(backbone)).load_base(), GatedPromptConfig())
    names = [f"bird {i}" for i in range(4000)]
    card = gated_prompt.model_card(model, labels=names, predictor=True).text
    assert 'gated_prompt.load_classifier("path/of/this/adapter", backbone="path/of/backbone' in card
    assert "bird 199, ... (4000 in all: `predictor.json`)" in card and "bird 200" not in card
