"""Segmentation data on real ADE20K and CamVid files, and on small faulty ones."""

import warnings

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gated_prompt.data import ade20k
from gated_prompt.errors import DataError
from gated_prompt.images import InexactDataWarning
from helpers.data_files import real_data


def test_real_ade20k_labels_are_reduced_by_one_and_zero_is_ignored():
    root = real_data("ade20k_mini", "ADEChallengeData2016")
    with pytest.warns(InexactDataWarning, match="3 images, expected 2000"):
        data = ade20k.load_folder(root, "validation")
    assert (len(data), data.num_classes) == (3, 150)
    assert data.class_names[:3] == ("wall", "building", "sky")
    ignored = 0
    for index in range(3):
        image, mask = data[index]
        file = root / "annotations" / "validation" / f"ADE_val_0000000{index + 1}.png"
        stored = np.asarray(Image.open(file)).astype(int)
        labels = np.asarray(mask).astype(int)
        assert image.mode == "RGB"
        assert mask.size == image.size
        assert np.array_equal(labels, np.where(stored == 0, 255, stored - 1))
        ignored += (labels == 255).sum()
    assert ignored > 0


def test_real_camvid_is_read_by_the_same_loader():
    root = real_data("camvid_subset")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no size is published for a subset, so there is nothing to warn of
        data = {split: ade20k.load_folder(root, split, ade20k.CAMVID) for split in ("train", "val", "test")}
    assert [len(each) for each in data.values()] == [120, 40, 40]
    seen = set()
    for index in range(0, 40, 8):
        _, mask = data["val"][index]
        stored = np.asarray(Image.open(data["val"].masks.paths[index])).astype(int)
        assert np.array_equal(np.asarray(mask), np.where(stored == 11, 255, stored))
        seen |= set(np.unique(mask).tolist())
    assert seen == {*range(11), 255}
    assert data["val"].class_names is None


def write_pair(root, image_size=(4, 3), values=((0, 1, 150, 2),) * 3, mode="L", stems=("a", "a")):
    for kind in ("images", "annotations"):
        (root / kind / "training").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", image_size).save(root / "images" / "training" / f"{stems[0]}.jpg")
    mask = Image.fromarray(np.array(values, np.uint8))
    (mask if mode == "L" else mask.convert(mode)).save(root / "annotations" / "training" / f"{stems[1]}.png")


def test_labels_by_hand(tmp_path):
    write_pair(tmp_path)
    with pytest.warns(InexactDataWarning):
        _, mask = ade20k.load_folder(tmp_path, "training")[0]
    assert np.asarray(mask)[0].tolist() == [255, 0, 149, 1]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"image_size": (4, 4)}, r"a.png has size \(4, 3\), but its image has \(4, 4\)"),
        ({"values": ((0, 1, 151, 2),) * 3}, r"a.png contains the value 151, expected 1 to 150 .* \(0,\) for ignored"),
        ({"mode": "RGB"}, r"a.png has mode RGB, expected one byte"),
    ],
)
def test_faulty_label_map_is_named(tmp_path, change, fault):
    write_pair(tmp_path, **change)
    with pytest.warns(InexactDataWarning):
        data = ade20k.load_folder(tmp_path, "training")
    with pytest.raises(DataError, match=fault):
        data[0]


def test_unpaired_and_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"images/training has no JPEGs"):
        ade20k.load_folder(tmp_path, "training")
    write_pair(tmp_path, stems=("a", "b"))
    with pytest.raises(DataError, match=r"2 file\(s\) of images/training and .* no counterpart. The first is a"):
        ade20k.load_folder(tmp_path, "training")


def test_wrong_number_of_class_names_is_refused(tmp_path):
    write_pair(tmp_path)
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t1\t1\twall\n")
    with pytest.raises(DataError, match=r"lists 1 class name\(s\), expected 150"):
        ade20k.load_folder(tmp_path, "training")


def test_hub_copy(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    write_pair(tmp_path / "files")
    files = [
        tmp_path / "files" / kind / "training" / f"a.{end}"
        for kind, end in (("images", "jpg"), ("annotations", "png"))
    ]
    image, mask = ([{"bytes": file.read_bytes(), "path": file.name}] for file in files)
    schema = datasets.Features({"image": datasets.Image(), "annotated": datasets.Image()}).arrow_schema
    (tmp_path / "copy" / "data").mkdir(parents=True)
    table = pa.table({"image": image, "annotated": mask}).cast(schema)
    pq.write_table(table, tmp_path / "copy" / "data" / "train-00000-of-00001.parquet")
    with pytest.warns(InexactDataWarning, match="1 images, expected 20210"):
        data = ade20k.load_hub("training", path=tmp_path / "copy")
    assert np.asarray(data[0][1])[0].tolist() == [255, 0, 149, 1]
    with pytest.raises(DataError, match="'train' is not a split of ADE20K"):
        ade20k.load_hub("train")
