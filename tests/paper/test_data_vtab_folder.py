"""The "vtab-1k" folder layout and the original layouts, on real images and on damaged copies."""

import random
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from gated_prompt.data.vtab import (
    TASKS,
    InexactDataWarning,
    LabelledImages,
    Provenance,
    load_folder,
    load_original,
    split_keys,
    tfds_order,
)
from gated_prompt.data.vtab_original import kitti_label, kitti_video_splits
from gated_prompt.errors import DataError
from helpers.data_files import real_data

COUNTS = {"train800": 80, "val200": 20, "train800val200": 100, "test": 60}


@pytest.fixture
def layout():
    return real_data("vtab1k_layout_fixture")


@pytest.fixture
def copy(layout, tmp_path):
    """A copy of one task that a test may damage."""
    shutil.copytree(layout / "vtab-1k" / "dtd", tmp_path / "dtd")
    return tmp_path


@pytest.mark.parametrize("task", ["dtd", "oxford_flowers102", "caltech101"])
@pytest.mark.parametrize("split", COUNTS)
def test_reduced_layout_is_read_and_declared(layout, task, split):
    with pytest.warns(InexactDataWarning, match=f"lists {COUNTS[split]} images, expected"):
        data = load_folder(layout, task, split)
    assert len(data) == COUNTS[split] == data.provenance.count
    assert data.provenance.expected_count == TASKS[task].size_of(split)
    assert (data.provenance.exact, data.provenance.state) == (False, "inexact")
    assert data.num_classes == TASKS[task].num_classes  # not max(label) + 1
    image, label = data[3]
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert label == data.labels[3]


def test_joined_split_is_the_two_others(layout):
    with pytest.warns(InexactDataWarning):
        train, val, both = (
            load_folder(layout / "vtab-1k", "dtd", s) for s in ("train800", "val200", "train800val200")
        )
    assert both.labels == train.labels + val.labels
    assert np.array_equal(np.asarray(both[80][0]), np.asarray(val[0][0]))


def test_expected_count_of_a_reduced_copy_is_recorded(layout):
    with pytest.warns(InexactDataWarning, match="lists 80 images, expected 80"):
        data = load_folder(layout, "dtd", "train800", expected_count=80)
    assert data.provenance.expected_count == 80
    assert not data.provenance.exact


def write_layout(folder, count, label="1", end="\n", kind="jpg"):
    (folder / "kitti" / "images" / "train800").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(folder / "kitti" / "images" / "train800" / f"000000.{kind}")
    lines = [f"images/train800/000000.{kind} {label}{end}"] * count
    (folder / "kitti" / "train800.txt").write_text("".join(lines), newline="")


def test_complete_layout_is_lossy_blank_lines_and_line_ends_notwithstanding(tmp_path):
    write_layout(tmp_path, 800, end=" \r\n\r\n")
    with pytest.warns(InexactDataWarning, match="the benchmark's examples, encoded with loss.*JPEG of quality 75"):
        data = load_folder(tmp_path, "kitti", "train800")
    assert (data.provenance.state, data.provenance.exact) == ("lossy", False)
    assert data.provenance.to_dict()["state"] == "lossy"
    assert data.labels == [1] * 800


def test_complete_layout_without_loss_is_exact(tmp_path):
    write_layout(tmp_path, 800, kind="png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_folder(tmp_path, "kitti", "train800")
    assert (data.provenance.state, data.provenance.exact) == ("exact", True)


def test_label_beyond_the_classes_is_refused(tmp_path):
    write_layout(tmp_path, 800, label="4")
    with pytest.raises(DataError, match=r"000000.jpg has label 4, expected 0 to 3 for kitti"):
        load_folder(tmp_path, "kitti", "train800")


@pytest.mark.parametrize("label", ["-1", "x", "1.0", ""])
def test_malformed_line_is_refused_with_its_number(tmp_path, label):
    write_layout(tmp_path, 800, label=label)
    with pytest.raises(DataError, match=r"train800.txt, line 1: expected 'images/.../000000.jpg 12', found"):
        load_folder(tmp_path, "kitti", "train800")


def test_missing_folder_list_and_image_are_named(copy):
    with pytest.raises(DataError, match=r"kitti is a folder. Expected the 'vtab-1k' layout"):
        load_folder(copy, "kitti", "test")
    (copy / "dtd" / "images" / "test" / "000007.jpg").unlink()
    with pytest.raises(DataError, match=r"lists 1 missing image\(s\). The first is .*test/000007.jpg"):
        load_folder(copy, "dtd", "test")
    (copy / "dtd" / "val200.txt").unlink()
    with pytest.raises(DataError, match=r"val200.txt is missing"):
        load_folder(copy, "dtd", "val200")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no image"])
def test_damaged_image_is_named(copy, damage):
    file = copy / "dtd" / "images" / "test" / "000007.jpg"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(InexactDataWarning):
        data = load_folder(copy, "dtd", "test")
    data[6]
    with pytest.raises(DataError, match=r"test/000007.jpg cannot be decoded"):
        data[7]


def test_labels_and_images_must_be_as_many():
    record = Provenance("dtd", "test", "here", None, True, "", 0, 0)
    with pytest.raises(DataError, match="0 images but 1 labels"):
        LabelledImages([], [0], num_classes=47, provenance=record)
    with pytest.raises(DataError, match="has 2 class names, expected 47"):
        LabelledImages([], [], num_classes=47, class_names=["a", "b"], provenance=record)


def test_part_of_dtd_is_split_by_hash_order():
    folder = real_data("dtd10")
    with pytest.raises(DataError, match="has 10 class folders with JPEGs, expected 47"):
        load_original(folder, "dtd", "train800")
    with pytest.warns(InexactDataWarning, match="1200 images of 10 classes, split in hash order"):
        data = {s: load_original(folder, "dtd", s, subset=True) for s in ("train800", "val200", "test")}
    names = {s: [f"{p.parent.name}/{p.name}" for p in data[s].images.paths] for s in data}
    everything = [p.relative_to(folder / "images").as_posix() for p in folder.glob("images/*/*.jpg")]
    assert names["train800"] + names["val200"] + names["test"] == tfds_order(everything, "train")
    assert [len(names[s]) for s in names] == [800, 200, 200]
    test = data["test"]
    assert (test.num_classes, test.class_names[2]) == (10, sorted({n.split("/")[0] for n in everything})[2])
    assert [test.class_names[label] for label in test.labels] == [n.split("/")[0] for n in names["test"]]


def write_dtd(folder):
    classes = [f"class{i:02d}" for i in range(47)]
    names = [f"{c}/{c}_{i:04d}.jpg" for c in classes for i in range(120)]
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).touch()
    random.Random(0).shuffle(names)
    splits = {"train": names[:1880], "validation": names[1880:3760], "test": names[3760:]}
    (folder / "labels").mkdir()
    for split, file in (("train", "train1.txt"), ("validation", "val1.txt"), ("test", "test1.txt")):
        (folder / "labels" / file).write_text("\n".join(splits[split]) + "\n")
    return splits


def test_dtd_with_its_split_lists_is_exact(tmp_path):
    expected = split_keys("dtd", write_dtd(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_original(tmp_path, "dtd", "train800val200")
    names = [path.relative_to(tmp_path / "images").as_posix() for path in data.images.paths]
    assert names == expected["train800"] + expected["val200"]
    assert data.labels == [int(name[5:7]) for name in names]
    assert data.provenance.exact
    (tmp_path / "images" / names[0]).unlink()
    with pytest.raises(DataError, match=f"{names[0]} is missing"):
        load_original(tmp_path, "dtd", "train800")
    (tmp_path / "labels" / "val1.txt").unlink()
    with pytest.raises(DataError, match=r"train1.txt, val1.txt or test1.txt is missing"):
        load_original(tmp_path, "dtd", "train800")


def test_kitti_labels_of_real_images():
    folder = real_data("kitti_mini")
    assert [kitti_label(folder, f"{i:06d}.png") for i in range(3)] == [3, 2, 2]
    with pytest.raises(DataError, match=r"label_2/000009.txt is missing"):
        kitti_label(folder, "000009.png")


def write_devkit(mapping, videos=141, frames=53):
    mapping.mkdir(parents=True)
    lines = [f"2011_09_26 drive_{v:04d}_sync {f:010d}" for v in range(videos) for f in range(frames)]
    order = list(range(1, len(lines) + 1))
    random.Random(0).shuffle(order)
    (mapping / "train_mapping.txt").write_text("\n".join(lines) + "\n")
    (mapping / "train_rand.txt").write_text(",".join(map(str, order)) + "\n")
    return [(line - 1) // frames for line in order]  # image -> video


def test_kitti_is_split_by_video(tmp_path):
    video_of = write_devkit(tmp_path / "mapping")
    splits = kitti_video_splits(tmp_path / "mapping")
    videos = {name: {video_of[int(file[:6])] for file in files} for name, files in splits.items()}
    assert sorted(file for files in splits.values() for file in files) == [f"{i:06d}.png" for i in range(141 * 53)]
    assert [len(videos[name]) for name in ("train", "validation", "test")] == [113, 14, 14]
    assert not videos["train"] & videos["test"]
    # The same samples, drawn with NumPy alone from its legacy generator with seed 123.
    draw = np.random.RandomState(123)
    test = set(draw.choice(141, 14, replace=False).tolist())
    rest = [v for v in range(141) if v not in test]
    assert videos["test"] == test
    assert videos["validation"] == {rest[i] for i in draw.choice(127, 14, replace=False)}


def test_kitti_with_another_devkit_or_none_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"train_mapping.txt is missing. It is in KITTI's object devkit"):
        load_original(tmp_path, "kitti", "test")
    write_devkit(tmp_path / "mapping")
    with pytest.raises(DataError, match="kitti: split 'train' has 5989 keys, expected all 6347"):
        load_original(tmp_path, "kitti", "test")


def test_other_tasks_have_no_original_loader(tmp_path):
    with pytest.raises(DataError, match="'dmlab' cannot be read from its original files"):
        load_original(tmp_path, "dmlab", "test")
