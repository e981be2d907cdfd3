"""The file beside an adapter that says what its logits mean and how pictures become pixels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoModel

from gated_prompt import DamagedAdapterError, GatedPromptError, find_vision_transformer
from gated_prompt.errors import DataError
from gated_prompt.images import decode
from gated_prompt.predictor import FILE, Predictor, preparation_of, read_predictor
from gated_prompt.transforms import ResizeCenterCrop, ResizeSquare

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
CROP = {"mean": MEAN, "std": STD, "resize": 40, "crop": 32}
SQUARE = {"mean": MEAN, "std": STD, "size": 32, "sampling": "tf1", "round_to_bytes": False}
NAMES = ["cat", "chien", "鳥"]


def picture() -> Image.Image:
    return Image.effect_mandelbrot((50, 70), (-2, -1.5, 1, 1.5), 40).convert("RGB")


@pytest.mark.parametrize("preparation", [CROP, SQUARE])
def test_it_is_read_as_it_was_written(tmp_path: Path, preparation: dict[str, object]) -> None:
    written = Predictor(NAMES, preparation, "multi_label", "facebook/dinov2-small", {"num_hidden_layers": 6}, "both")
    written.write(tmp_path)
    assert read_predictor(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("old", "new"), [("classes", "single_label"), ("labels", "multi_label"), ("numbers", "regression")]
)
def test_older_files_name_the_problem_otherwise(tmp_path: Path, old: str, new: str) -> None:
    Predictor(NAMES, CROP).write(tmp_path)
    file = tmp_path / FILE
    file.write_text(file.read_text().replace('"single_label"', f'"{old}"'))
    assert read_predictor(tmp_path).problem == new


def test_thousands_of_long_names_are_read_as_they_were_written(tmp_path: Path, monkeypatch) -> None:
    names = [f"{i:05}_Animalia_Chordata_Aves_Passeriformes_Corvidae_Corvus_species_{i % 97:03}" for i in range(4000)]
    Predictor(names, CROP).write(tmp_path)
    assert (tmp_path / FILE).stat().st_size > 2**18 and read_predictor(tmp_path).names == names
    monkeypatch.setattr("gated_prompt.predictor.LONGEST", 2**18)
    with pytest.raises(GatedPromptError, match=r"with 4000 names would have \d+ bytes, more than 262144. Shorten"):
        Predictor(names, CROP).write(tmp_path)
    monkeypatch.undo()
    with pytest.raises(GatedPromptError, match="is not valid Unicode"):
        Predictor(["caf\udce9", "b"], CROP).write(tmp_path)
    assert read_predictor(tmp_path).names == names  # refused before anything is written


@pytest.mark.parametrize("reads", [None, "both"])
def test_a_base_of_one_block(backbone: Path, reads: str | None) -> None:
    made = Predictor(NAMES, SQUARE, base={"num_hidden_layers": 1}, reads=reads).load_base(backbone)
    assert len(find_vision_transformer(made).blocks) == 1
    assert made(torch.rand(2, 3, 32, 32)).logits.shape == (2, 3)


def test_pixels_are_those_of_training() -> None:
    crop = ResizeCenterCrop(MEAN, STD, train=False, resize=40, crop=32)
    assert torch.equal(Predictor(NAMES, CROP).transform()(picture()), crop(picture()))
    square = ResizeSquare(MEAN, STD, size=32)
    assert Predictor(NAMES, preparation_of(square)) == Predictor(NAMES, SQUARE)
    assert torch.equal(Predictor(NAMES, SQUARE).transform()(picture()), square(picture()))


@pytest.mark.parametrize("antialias", [False, True])
def test_pixels_of_files_written_before_sampling_existed(tmp_path: Path, antialias: bool) -> None:
    """They were sampled at half-pixel centres and rounded to bytes."""
    old = {"mean": MEAN, "std": STD, "size": 32, "antialias": antialias}
    (tmp_path / FILE).write_text(json.dumps({"names": NAMES, "preparation": old}))
    pixels = torch.tensor(np.array(picture())).permute(2, 0, 1)[None].float()
    levels = F.interpolate(pixels, (32, 32), mode="bilinear", align_corners=False, antialias=antialias)[0].round()
    wanted = (levels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(read_predictor(tmp_path).transform()(picture()), wanted)


def test_answers_by_the_kind_of_problem() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0])
    classes = Predictor(NAMES, CROP).answer(logits, 2)
    assert [name for name, _ in classes] == ["chien", "鳥"]
    assert classes[0][1] == pytest.approx(0.66524, abs=1e-5)  # e^2 / (1 + e + e^2)
    labels = Predictor(NAMES, CROP, "multi_label").answer(logits, 9)
    assert [round(score, 4) for _, score in labels] == [0.8808, 0.7311, 0.5]
    assert Predictor(NAMES, CROP, "regression").answer(logits, 1) == list(zip(NAMES, [0.0, 2.0, 1.0], strict=True))


def test_fields_of_other_programs_are_ignored(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"names": NAMES, "preparation": CROP, "made_by": "another"}))
    assert read_predictor(tmp_path) == Predictor(NAMES, CROP)


@pytest.mark.parametrize("reads", [None, "cls", "both"])
def test_the_base_is_made_again(backbone: Path, reads: str | None) -> None:
    made = Predictor(NAMES, SQUARE, "multi_label", "moved/away", {"num_hidden_layers": 2}, reads).load_base(backbone)
    assert len(find_vision_transformer(made).blocks) == 2
    assert made.config.problem_type == "multi_label_classification"
    assert made.classifier.weight.shape == (3, (2 if reads == "both" else 1) * made.config.hidden_size)
    pixels = torch.rand(2, 3, 32, 32)
    short = AutoModel.from_pretrained(backbone, num_hidden_layers=2).eval()
    with torch.no_grad():
        tokens = short(pixels).last_hidden_state
        read = torch.cat((tokens[:, 0], tokens[:, 1:].mean(1)), 1) if reads == "both" else tokens[:, 0]
        torch.testing.assert_close(made(pixels).logits, made.classifier(read))


def test_a_base_that_cannot_be_made() -> None:
    with pytest.raises(GatedPromptError, match=r"does not name the backbone. Name it"):
        Predictor(NAMES, CROP, reads="both").load_base()
    for reads in (None, "both"):
        with pytest.raises(GatedPromptError, match="cannot load the backbone 'no/such'"):
            Predictor(NAMES, CROP, backbone="no/such", reads=reads).load_base()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": []}, "a list of names"),
        ({"names": [1, 2, 3]}, "a list of names"),
        ({"problem": "riddle"}, "Choose from: single_label, multi_label, regression"),
        ({"backbone": 3}, "Expected text for the first"),
        ({"base": {"trust_remote_code": True}}, "Expected text for the first"),
        ({"base": {"num_hidden_layers": True}}, "Expected text for the first"),
        ({"base": [3]}, "Expected text for the first"),
        ({"reads": "all"}, "Choose from: null, cls, mean, both"),
        ({"preparation": {}}, "needs exactly"),
        ({"preparation": CROP | {"train": True}}, "needs exactly"),
        ({"preparation": CROP | {"mean": [0.5]}}, "three numbers"),
        ({"preparation": CROP | {"mean": [0.5, 0.5, float("nan")]}}, "three numbers"),
        ({"preparation": CROP | {"std": [1, 1, 0]}}, "a std of 0"),
        ({"preparation": CROP | {"crop": 10**9}}, "whole numbers from 1 to 4096"),
        ({"preparation": CROP | {"crop": True}}, "whole numbers"),
        ({"preparation": SQUARE | {"sampling": "bicubic"}}, "Expected one of tf1, half_pixel, antialias"),
        ({"preparation": SQUARE | {"sampling": ["tf1"]}}, "Expected one of tf1, half_pixel, antialias"),
        ({"preparation": SQUARE | {"round_to_bytes": 1}}, "true or false"),
        ({"preparation": CROP | {"crop": 41}}, "crops 41 pixels of 40"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    values = {"names": NAMES, "preparation": CROP, **change}
    with pytest.raises(DataError, match=message):
        Predictor(**values)
    (tmp_path / FILE).write_text(json.dumps(values))
    with pytest.raises(DamagedAdapterError, match=message) as refusal:
        read_predictor(tmp_path)
    assert FILE in str(refusal.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"names": ["a"]}', '{"names": ["a"], "names": ["b"]}'])
def test_files_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DamagedAdapterError, match="lacks"):
        read_predictor(tmp_path)
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DamagedAdapterError):
        read_predictor(tmp_path)


def test_pictures_of_strangers_are_limited(tmp_path: Path) -> None:
    for kind in ("PNG", "TIFF"):
        picture().save(tmp_path / f"picture.{kind}", kind)
    data = (tmp_path / "picture.PNG").read_bytes()
    assert decode(data, formats=("PNG",), most_pixels=3500).size == (50, 70)
    with pytest.raises(DataError, match="has 50 x 70 pixels, more than 3499"):
        decode(data, "sent", most_pixels=3499)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode((tmp_path / "picture.TIFF").read_bytes(), "sent", formats=("PNG", "JPEG"))
