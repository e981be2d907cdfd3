"""What train_images.py reads: folders, tables and data sets, what it leaves out, and how it divides them."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import datasets
import pytest
import torch

from gated_prompt import GatedPromptError
from gated_prompt.errors import DataError
from gated_prompt.finetune.arguments import DataArguments, parse
from gated_prompt.finetune.division import draw_shots, hold_back
from gated_prompt.finetune.folder import find_parts, read_folder
from gated_prompt.finetune.image_set import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from gated_prompt.finetune.labels import Reading
from gated_prompt.finetune.sources import read_parts
from gated_prompt.finetune.table import read_table
from helpers.picture_folder import COLOURS, make_folder, paint


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "photos")


def test_a_folder_with_everything_that_lies_around_in_one(photos: Path) -> None:
    (photos / "gul" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (photos / "gul" / "notes.txt").write_text("hello")
    (photos / "gul" / ".hidden.png").write_bytes(b"")
    (photos / ".cache").mkdir()
    (photos / "loose.png").write_bytes(b"")
    (photos / "empty").mkdir()
    data, _ = read_folder(photos).without_broken(show=False)
    assert (data.problem, data.names) == (SINGLE_LABEL, tuple(COLOURS))
    assert data.targets.bincount().tolist() == [12, 12, 12]
    assert set(data.skipped) == {"gul/broken.jpg", "gul/notes.txt", "loose.png", "empty"}
    assert "cannot be decoded" in data.skipped["gul/broken.jpg"]
    assert [p.name for p in data.pictures][:2] == ["blå/01.png", "blå/02.png"]
    assert {p.name for p in data.pictures} >= {"rød/deeper/03.png"}


def test_names_are_the_same_however_their_accents_are_stored(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / unicodedata.normalize("NFD", "blå")).mkdir(parents=True)
    paint((0, 0, 0), 0).save(tmp_path / "other" / unicodedata.normalize("NFD", "blå") / "1.png")
    assert read_folder(tmp_path / "other", tuple(COLOURS)).targets.tolist() == [0]


def test_the_fingerprint_follows_content_labels_and_names(photos: Path) -> None:
    def key() -> str:
        return read_folder(photos).without_broken(show=False)[1]

    first = key()
    assert key() == first
    paint((1, 2, 3), 7).save(photos / "gul" / "01.png")
    second = key()
    (photos / "gul" / "01.png").rename(photos / "rød" / "99.png")
    assert len({first, second, key()}) == 3


def test_parts_by_name_and_by_option(photos: Path, tmp_path: Path) -> None:
    divided = tmp_path / "divided"
    for part in ("train", "val"):
        make_folder(divided / part, 4)
    found = read_parts(DataArguments(train_dir=str(divided)), show=False)
    assert (len(found.train), len(found.validation), found.test) == (12, 12, None)
    found = read_parts(DataArguments(train_dir=str(photos), test_dir=str(divided / "val")), show=False)
    assert found.test is not None and len(found.test) == 12
    assert (len(found.train), len(found.validation)) == (30, 6)


def test_a_csv_with_one_class_each(photos: Path) -> None:
    lines = ["image,label", "gul/01.png,10", "rød/01.png,9", "rød/02.png,9"]
    (photos / "list.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    data = read_table(photos / "list.csv", "image", ["label"])
    assert (data.problem, data.names, data.targets.tolist()) == (SINGLE_LABEL, ("9", "10"), [1, 0, 0])
    assert data.pictures[0].decode().size == (40, 36)


def test_several_labels(photos: Path) -> None:
    rows = [{"image": "gul/01.png", "label": ["warm", "light"]}, {"image": "blå/01.png", "label": []}]
    (photos / "list.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    data = read_table(photos / "list.jsonl", "image", ["label"])
    assert (data.problem, data.names) == (MULTI_LABEL, ("light", "warm"))
    assert data.targets.tolist() == [[1, 1], [0, 0]]
    (photos / "list.csv").write_text("image,label\ngul/01.png,warm; light\nblå/01.png,\n")
    assert torch.equal(read_table(photos / "list.csv", "image", ["label"], Reading(MULTI_LABEL)).targets, data.targets)


def test_numbers(photos: Path) -> None:
    (photos / "list.csv").write_text("file,size\ngul/01.png,1.5\nrød/01.png,2\n")
    data = read_table(photos / "list.csv", "file", ["size"])
    assert (data.problem, data.names, data.targets.tolist()) == (REGRESSION, ("size",), [[1.5], [2.0]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("image,label\ngul/01.png,\n", "line 2, column 'label', is empty"),
        ("picture,label\ngul/01.png,a\n", "line 2, has no 'image'. Its columns are picture, label"),
        ("image,label\ngul/01.png,a\n", "has 1 classes in column 'label'. Expected at least two"),
        ("image,label\n", "lists no images"),
    ],
)
def test_faults_of_tables(photos: Path, content: str, words: str) -> None:
    (photos / "list.csv").write_text(content)
    with pytest.raises(DataError, match=words):
        read_table(photos / "list.csv", "image", ["label"])


def test_a_line_that_is_no_json(photos: Path) -> None:
    (photos / "list.jsonl").write_text('{"image": "gul/01.png", "label": 1.5}\n{oops\n')
    with pytest.raises(DataError, match=r"list.jsonl, line 2, is not JSON"):
        read_table(photos / "list.jsonl", "image", ["label"])


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    features = datasets.Features({"img": datasets.Image(), "kind": datasets.ClassLabel(names=list(COLOURS))})
    rows = {"img": [paint(colour, i) for i, colour in enumerate(COLOURS.values())] * 4, "kind": [0, 1, 2] * 4}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "set" / "train-00000.parquet")
    args = DataArguments(dataset=str(tmp_path / "set"), image_column="img", label_column=["kind"])
    found = read_parts(args, show=False)
    assert found.train.names == tuple(COLOURS)
    assert (len(found.train), len(found.validation)) == (9, 3)
    assert found.train.pictures[0].decode().size == (40, 36)
    args = DataArguments(dataset=str(tmp_path / "set"), image_column="image")
    with pytest.raises(DataError, match=r"has no column 'image'. It has img, kind. Give --image_column"):
        read_parts(args, show=False)


def rows_of(labels: list[object], feature: object, folder: Path, split: str = "train") -> None:
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = {"image": [paint((9, 9, 9), i) for i in range(len(labels))], "label": labels}
    datasets.Dataset.from_dict(rows, features).to_parquet(folder / f"{split}-00000.parquet")


@pytest.mark.parametrize("value", [-1, None])
def test_hidden_labels_of_a_data_set_are_no_class(tmp_path: Path, value: int | None, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    classes = datasets.ClassLabel(names=["a", "none"])
    for name, labels in (("hidden", [value] * 3), ("part", [0, 1, value] * 3)):
        (tmp_path / name).mkdir()
        rows_of([0, 1] * 3, classes, tmp_path / name)
        rows_of(labels, classes, tmp_path / name, "test")
    args = DataArguments(dataset=str(tmp_path / "hidden"), test_split="test")
    with pytest.raises(DataError, match=r"none of the 3 images of .* test has a label \(row 0, column 'label'"):
        read_parts(args, show=False)
    args.dataset = str(tmp_path / "part")
    with pytest.raises(DataError, match=r"3 of 9 labels of .* test are missing: row 2"):
        read_parts(args, show=False)
    args.missing_labels = "skip"
    test = read_parts(args, show=False).test
    assert test is not None and (test.names, test.targets.tolist()) == (("a", "none"), [0, 1] * 3)


def test_a_missing_text_of_a_data_set_is_no_class(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows_of([None, "b", "c"] * 3, datasets.Value("string"), tmp_path)
    with pytest.raises(DataError, match=r"3 of 9 labels of .* train are missing: row 0, column 'label', is empty"):
        read_parts(DataArguments(dataset=str(tmp_path)), show=False)


def test_every_class_is_held_back_in_its_share(photos: Path) -> None:
    for _ in range(9):  # 3 of 12 remain
        next(iter(sorted((photos / "gul").rglob("*.png")))).unlink()
    data = read_folder(photos)
    train, validation = hold_back(data, 0.25, seed=0)
    assert validation.targets.bincount().tolist() == [3, 1, 3]
    assert train.targets.bincount().tolist() == [9, 2, 9]
    names = {p.name for p in train.pictures}, {p.name for p in validation.pictures}
    assert not names[0] & names[1] and len(names[0] | names[1]) == len(data)
    again, other = hold_back(data, 0.25, seed=0)[1], hold_back(data, 0.25, seed=1)[1]
    assert (
        [p.name for p in again.pictures] == [p.name for p in validation.pictures] != [p.name for p in other.pictures]
    )
    assert draw_shots(train, 2, seed=0).targets.bincount().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of --train_dir, --train_file and --dataset, not none"),
        (["--train_dir", "a", "--dataset", "b"], "not train_dir and dataset"),
        (["--train_dir", "a", "--methods", "magic"], "invalid choice: 'magic'"),
        (["--train_dir", "a", "--learning_rate", "fast"], "--learning_rate is 'fast'"),
        (["--train_dir", "a", "--num_train_epochs", "0", "--label_smoothing", "2"], "epochs is 0.*smoothing is 2.0"),
        (["--train_dir", "a", "--seeds", "1", "1"], "given twice"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str) -> None:
    with pytest.raises(GatedPromptError, match=words):
        parse(arguments)


def test_what_lies_beside_parts_is_named_and_left_out(tmp_path: Path, capsys) -> None:
    for part in ("01_Training", "dev", "test_set"):
        make_folder(tmp_path / part, 4)
    make_folder(tmp_path / "unlabeled" / "more", 1)
    (tmp_path / "__MACOSX" / "train" / "gul").mkdir(parents=True)
    (tmp_path / "labels").mkdir()
    found = read_parts(DataArguments(train_dir=str(tmp_path)), show=True)
    assert found.train.names == tuple(COLOURS) and found.test is not None
    assert [len(part) for part in (found.train, found.validation, found.test)] == [12, 12, 12]
    assert set(found.left_out) == {"labels/", "unlabeled/"}
    assert "left out: labels/: is not one of the parts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["train"], r"holds train/, which looks like the train part, and no other part. Give --train_dir .*/train to"),
        (["train", "cat"], "holds train/, which looks like the train part, and no other"),
        (["train", "val", "valid"], "has val/ and valid/, which both look like the validation part"),
        (["val", "test"], "holds test/ and val/, but no train/"),
        (["fold1", "fold_2"], "holds fold1/, fold_2/, which look like folds of one data set rather than classes"),
    ],
)
def test_parts_that_are_not_clear_are_refused(tmp_path: Path, folders: list[str], words: str) -> None:
    for name in folders:
        make_folder(tmp_path / name, 2)
    with pytest.raises(DataError, match=words):
        read_parts(DataArguments(train_dir=str(tmp_path)), show=False)


def test_a_class_may_be_called_like_a_part(tmp_path: Path) -> None:
    for name in ("train", "car", "plane"):
        (tmp_path / name).mkdir()
        paint((0, 0, 0), 0).save(tmp_path / name / "1.png")
    assert find_parts(tmp_path) == ({"train": tmp_path}, {})
    shutil.rmtree(tmp_path / "car")
    (tmp_path / "plane").rename(tmp_path / "test")
    with pytest.raises(DataError, match="holds test/, train/, but their images are not in folders of a class"):
        find_parts(tmp_path)


def test_names_that_are_not_utf8_can_be_stored(photos: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(bytes(photos) + b"/gr\xfcn"))
    (photos / "gul").rename(odd)
    (odd / "01.png").rename(Path(os.fsdecode(bytes(odd) + b"/\xff\n.png")))
    (odd / "02.png").rename(Path(os.fsdecode(bytes(odd) + b"/\xff.txt")))
    data, _ = read_folder(photos).without_broken(show=False)
    assert "gr\\xfcn" in data.names and "gr\\xfcn/\\xff.txt" in data.skipped
    json.dumps([*data.names, *data.skipped, *(p.name for p in data.pictures)], ensure_ascii=False).encode()
    assert "gr\\xfcn/\\xff\n.png" in {picture.name for picture in data.pictures}


def test_the_same_picture_with_two_labels_is_listed(photos: Path, capsys) -> None:
    shutil.copy(photos / "gul" / "01.png", photos / "rød" / "copy.png")
    shutil.copy(photos / "gul" / "02.png", photos / "gul" / "copy.png")  # the same label: no contradiction
    found = read_parts(DataArguments(train_dir=str(photos)), show=True)
    assert found.contradictions == ["gul/01.png (gul) = rød/copy.png (rød)"]
    assert "the same content with different labels: gul/01.png (gul) = rød/copy.png (rød)" in capsys.readouterr().out


def test_what_is_read_is_said_before_time_is_spent(photos: Path, capsys) -> None:
    lines = ["image,size", *(f"gul/{i:02d}.png,{i / 2}" for i in (1, 2, 4, 5, 7))]
    (photos / "list.csv").write_text("\n".join(lines))
    args = DataArguments(train_file=str(photos / "list.csv"), label_column=["size"])
    read_parts(args, show=True)
    said = capsys.readouterr().out
    assert f"column 'size' of {photos}/list.csv holds numbers: it holds numbers with a fraction, such as 0.5" in said
    assert "5 images, " in said and "from 0.5 to 3.5" in said


def test_other_parts_are_read_like_the_training_part(photos: Path) -> None:
    """Whole numbers there are values too, and a cell with one label is one of several."""
    (photos / "train.csv").write_text("image,label\ngul/01.png,1.5\ngul/02.png,2\n")
    (photos / "val.csv").write_text("image,label\ngul/04.png,1\ngul/05.png,2\n")
    args = DataArguments(train_file=str(photos / "train.csv"), validation_file=str(photos / "val.csv"))
    assert read_parts(args, show=False).validation.targets.tolist() == [[1], [2]]
    (photos / "train.csv").write_text("image,label\ngul/01.png,b;a\ngul/02.png,b\n")
    (photos / "val.csv").write_text("image,label\ngul/04.png,a\ngul/05.png,\n")
    args.problem = MULTI_LABEL
    assert read_parts(args, show=False).validation.targets.tolist() == [[1, 0], [0, 0]]


def test_folders_that_hold_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--train_dir 'nowhere' is not a folder"):
        read_parts(DataArguments(train_dir="nowhere"), show=False)
    (tmp_path / "one").mkdir()
    paint((0, 0, 0), 0).save(tmp_path / "one" / "1.png")
    with pytest.raises(DataError, match=r"has 1 subfolders with images. Expected at least two"):
        read_parts(DataArguments(train_dir=str(tmp_path)), show=False)
