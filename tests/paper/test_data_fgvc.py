"""Fine-grained data sets: VPT's lists, official lists, the seeded validation split, Hub copies."""

import json
import warnings

import datasets
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from gated_prompt.data import fgvc
from gated_prompt.data.fgvc_original import READERS
from gated_prompt.errors import DataError
from gated_prompt.images import InexactDataWarning
from helpers.hub_copies import row_of_pixel, write_split


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("name", "sizes"),
    {
        "cub": (5394, 600, 5794),
        "nabirds": (21536, 2393, 24633),
        "flowers": (1020, 1020, 6149),
        "dogs": (10800, 1200, 8580),
        "cars": (7329, 815, 8041),
    }.items(),
)
def test_sizes_are_those_of_vpts_lists(name, sizes):
    assert tuple(fgvc.FGVC[name].size_of(split) for split in fgvc.SPLITS) == sizes


def write_cub(folder, rows=range(5994 + 5794)):
    """Image i has class i % 200 + 1 and is a training image if i < 5994."""
    folder.mkdir(exist_ok=True)
    (folder / "images.txt").write_text("".join(f"{i + 1} {i % 200 + 1:03d}.Bird/{i:05d}.jpg\n" for i in rows))
    (folder / "image_class_labels.txt").write_text("".join(f"{i + 1} {i % 200 + 1}\n" for i in rows))
    (folder / "train_test_split.txt").write_text("".join(f"{i + 1} {int(i < 5994)}\n" for i in rows))


def images_of(data):
    return [int(path.stem) for path in data.images.paths]


def test_cub_folder_keeps_the_official_test_and_draws_a_tenth_to_validate(tmp_path):
    write_cub(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        test = fgvc.load_folder(tmp_path, "cub", "test")
    assert sorted(images_of(test)) == list(range(5994, 11788))
    assert test.provenance.exact
    with pytest.warns(InexactDataWarning, match=r"\(seed 0\) is the validation split. VPT's differs"):
        train, val = (fgvc.load_folder(tmp_path, "cub", split) for split in ("train", "val"))
    assert (len(train), len(val)) == (5394, 600)
    assert sorted(images_of(train) + images_of(val)) == list(range(5994))
    assert val.labels == [i % 200 for i in images_of(val)]
    assert val.images.paths[0].parent.parent == tmp_path / "images"
    with pytest.warns(InexactDataWarning):
        again, other = (fgvc.load_folder(tmp_path, "cub", "val", seed=seed) for seed in (0, 1))
    assert images_of(again) == images_of(val) != images_of(other)
    write_cub(tmp_path, rows=range(5994 + 5794 - 1, -1, -1))
    with pytest.warns(InexactDataWarning):
        backwards = fgvc.load_folder(tmp_path, "cub", "val")
    assert images_of(backwards) == images_of(val)  # the order of the lists must not matter


def test_nabirds_class_ids_with_gaps_become_consecutive(tmp_path):
    ids = [1000, 295, 298, 1000]  # as text, 1000 would sort before 295
    (tmp_path / "images.txt").write_text("".join(f"{i:032x} {label:04d}/{i}.jpg\n" for i, label in enumerate(ids)))
    (tmp_path / "image_class_labels.txt").write_text("".join(f"{i:032x} {label}\n" for i, label in enumerate(ids)))
    (tmp_path / "train_test_split.txt").write_text("".join(f"{i:032x} {i % 2}\n" for i in range(4)))
    images = tmp_path / "images"
    assert READERS["nabirds"](tmp_path) == {
        "train": [(images / "0295" / "1.jpg", 0), (images / "1000" / "3.jpg", 2)],
        "test": [(images / "1000" / "0.jpg", 2), (images / "0298" / "2.jpg", 1)],
    }


@pytest.mark.parametrize(
    ("file", "change", "fault"),
    [
        ("images.txt", lambda text: text + "99999 x.jpg\n", "do not list the same images"),
        ("image_class_labels.txt", lambda text: text.replace(" 200\n", " 199\n"), "has 199 classes, expected 200"),
        (
            "train_test_split.txt",
            lambda text: text.replace("\n2 1\n", "\n2 0\n"),
            "5993 images in cub's official train",
        ),
        ("train_test_split.txt", lambda text: text + "broken\n", "line 11789: expected 'image value', found 'broken'"),
        ("images.txt", None, r"images.txt is missing"),
    ],
)
def test_faults_of_official_lists_are_named(tmp_path, file, change, fault):
    write_cub(tmp_path)
    if change is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(change((tmp_path / file).read_text()))
    with pytest.raises(DataError, match=fault):
        fgvc.load_folder(tmp_path, "cub", "test")


def test_flowers_has_an_official_validation_split(tmp_path):
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([i % 102 + 1 for i in range(8189)], np.uint8)[None]})
    ids = {"tstid": range(1, 6150), "trnid": range(6150, 7170), "valid": range(7170, 8190)}
    savemat(tmp_path / "setid.mat", {name: np.array(rows, np.uint16)[None] for name, rows in ids.items()})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        val = fgvc.load_folder(tmp_path, "flowers", "val")
    assert [path.name for path in val.images.paths] == [f"image_{i:05d}.jpg" for i in ids["valid"]]
    assert val.labels == [(i - 1) % 102 for i in ids["valid"]]


def test_dogs_and_cars_lists(tmp_path):
    for split, size in (("train", 4), ("test", 3)):
        names = np.array([[f"n{i}-Dog/{i}.jpg"] for i in range(size)], dtype=object)
        savemat(tmp_path / f"{split}_list.mat", {"file_list": names, "labels": np.arange(1, size + 1)[:, None]})
    dogs = READERS["dogs"](tmp_path)
    assert (len(dogs["train"]), dogs["test"][2]) == (4, (tmp_path / "Images" / "n2-Dog" / "2.jpg", 2))
    (tmp_path / "devkit").mkdir()
    for file, size in (("devkit/cars_train_annos.mat", 4), ("cars_test_annos_withlabels.mat", 3)):
        cars = np.zeros(size, dtype=[("bbox_x1", object), ("class", object), ("fname", object)])
        for i in range(size):
            cars[i] = (1, i + 1, f"{i + 1:05d}.jpg")
        savemat(tmp_path / file, {"annotations": cars[None]})
    cars = READERS["cars"](tmp_path)
    assert (len(cars["train"]), cars["test"][2]) == (4, (tmp_path / "cars_test" / "00003.jpg", 2))
    (tmp_path / "test_list.mat").write_text("no MATLAB file")
    with pytest.raises(DataError, match=r"test_list.mat is not a MATLAB file"):
        fgvc.load_folder(tmp_path, "dogs", "test")


def write_json(folder, sizes=(5394, 600, 5794), classes=200):
    for split, size in zip(fgvc.SPLITS, sizes, strict=True):
        (folder / f"{split}.json").write_text(
            json.dumps({f"{split}/{i}.jpg": 7 + 2 * (i % classes) for i in range(size)})
        )


def test_vpts_lists_are_exact_and_their_class_ids_become_consecutive(tmp_path):
    write_json(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = {split: fgvc.load_json(tmp_path, "cub", split) for split in fgvc.SPLITS}
    assert data["val"].provenance.exact
    assert data["val"].labels == [i % 200 for i in range(600)]
    assert data["val"].images.paths[3] == tmp_path / "images" / "val" / "3.jpg"
    write_json(tmp_path, sizes=(5394, 150, 5794))
    with pytest.warns(InexactDataWarning, match=r"val.json lists 150 images, expected 600"):
        assert fgvc.load_json(tmp_path, "cub", "val").labels == list(range(150))  # a list may lack classes


def test_faults_of_vpts_lists_are_named(tmp_path):
    with pytest.raises(DataError, match=r"test.json is missing. Without VPT's lists"):
        fgvc.load_json(tmp_path, "cars", "test")
    write_json(tmp_path, classes=199)
    with pytest.raises(DataError, match="hold 199 classes, expected 200"):
        fgvc.load_json(tmp_path, "cub", "test")
    for text, fault in (
        ("{", "is not valid JSON"),
        ('{"a.jpg": "one"}', "does not have the form"),
        ("[1]", "does not have the form"),
    ):
        (tmp_path / "test.json").write_text(text)
        with pytest.raises(DataError, match=fault):
            fgvc.load_json(tmp_path, "cub", "test")


def test_image_that_a_list_names_and_that_is_not_there_is_named(tmp_path):
    write_json(tmp_path)
    data = fgvc.load_json(tmp_path, "cub", "test")
    with pytest.raises(DataError, match=r"images/test/5.jpg is missing"):
        data[5]
    (tmp_path / "images" / "test").mkdir(parents=True)
    Image.new("L", (4, 3), 9).save(tmp_path / "images" / "test" / "5.jpg")
    assert (data[5][0].mode, data[5][0].size, data[5][1]) == ("RGB", (4, 3), 5)


def test_hub_copy_of_cub(tmp_path):
    for split, size in (("train", 5994), ("test", 5794)):
        labels = [row % 200 for row in range(size)]
        write_split(tmp_path, split, size, label=labels, names={"label": [f"bird {i}" for i in range(200)]})
    test = fgvc.load_hub("cub", "test", path=tmp_path)
    assert test.provenance.exact
    assert test.class_names[7] == "bird 7"
    with pytest.warns(InexactDataWarning):
        train, val = (fgvc.load_hub("cub", split, path=tmp_path) for split in ("train", "val"))
    rows = {name: [row_of_pixel(data[i][0]) for i in range(len(data))] for name, data in (("t", train), ("v", val))}
    assert sorted(rows["t"] + rows["v"]) == list(range(5994))
    assert val.labels == [row % 200 for row in rows["v"]]


def test_what_the_hub_does_not_have_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nabirds has no Hub data set"):
        fgvc.load_hub("nabirds", "test")
    with pytest.raises(DataError, match=r"'birds' is not an FGVC data set. The data sets are: cub, nabirds"):
        fgvc.load_hub("birds", "test")
    with pytest.raises(DataError, match="'validation' is not an FGVC split"):
        fgvc.load_hub("cub", "validation")
    write_split(tmp_path, "test", 14, label=[0] * 14)
    with pytest.raises(DataError, match="has 14 images in dogs's official test split, expected 8580"):
        fgvc.load_hub("dogs", "test", path=tmp_path)
