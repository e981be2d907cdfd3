"""VTAB tasks from local copies of their Hub data sets: the right rows, the right labels, the right provenance."""

import json
import pickle
import warnings

import datasets
import pytest

from gated_prompt.data.vtab import SPLITS, TASKS, InexactDataWarning, load_hub, split_keys, tfds_order
from gated_prompt.data.vtab_hub_sources import HUB_SOURCES
from gated_prompt.errors import DataError
from helpers.data_files import real_data
from helpers.hub_copies import row_of_pixel, write_split

CIFAR_FIRST = {"train": [19, 29, 0, 11, 1, 86, 90, 28, 23, 31], "test": [49, 33, 72, 51, 71, 92, 15, 14, 23, 0]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_cifar(folder, change=lambda labels: labels):
    for split, size in TASKS["cifar"].sizes.items():
        labels = change(CIFAR_FIRST[split] + [row % 100 for row in range(10, size)])
        names = {"fine_label": [f"class {i}" for i in range(100)]}
        write_split(folder, split, len(labels), image="img", fine_label=labels, names=names)


def rows_of(data):
    return [row_of_pixel(data[i][0]) for i in range(len(data))]


def test_cifar_rows_are_the_published_ones(tmp_path):
    published = json.loads(real_data("vtab_trainval_splits", "vtab_trainval_splits.json").read_text())
    lists = {name: [int(key[6:]) for key in keys] for name, keys in published["cifar(num_classes=100)"].items()}
    write_cifar(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactDataWarning)
        data = {split: load_hub("cifar", split, path=tmp_path) for split in SPLITS}
    assert set(rows_of(data["train800"])) == set(lists["train"])
    assert rows_of(data["val200"]) == lists["val"]
    assert rows_of(data["train800val200"]) == rows_of(data["train800"]) + rows_of(data["val200"])
    assert data["val200"].labels == [row % 100 for row in lists["val"]]
    assert data["val200"].class_names[3] == "class 3"
    assert len(data["test"]) == 10000
    record = data["train800"].provenance.to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["exact"]
    assert (record["count"], record["expected_count"]) == (800, 800)


def test_cifar_in_another_order_is_only_vtab_like(tmp_path):
    write_cifar(tmp_path, change=lambda labels: labels[::-1])
    with pytest.warns(InexactDataWarning, match="not exactly.*not in the original order"):
        data = load_hub("cifar", "train800", path=tmp_path)
    assert not data.provenance.exact
    assert rows_of(data) == list(range(800))


def test_wrong_row_counts_are_refused(tmp_path):
    for split in ("train", "validation", "test"):
        write_split(tmp_path, split, 3, label=[0, 1, 2])
    with pytest.raises(DataError, match=r"3 rows in train, expected 1020 \(oxford_flowers102, original split 'train'"):
        load_hub("oxford_flowers102", "train800", path=tmp_path)


def test_wrong_class_counts_are_refused(tmp_path):
    for split, size in TASKS["oxford_flowers102"].sizes.items():
        write_split(tmp_path, split, size, label=[0] * size, names={"label": [f"flower {i}" for i in range(103)]})
    with pytest.raises(DataError, match="'label' has 103 classes, expected 102"):
        load_hub("oxford_flowers102", "train800", path=tmp_path)


def test_wrong_columns_are_refused_with_those_that_are_there(tmp_path):
    for split in ("train", "test"):
        write_split(tmp_path, split, 3, label=[0, 1, 2])
    with pytest.raises(DataError, match=r"no column 'img'. Expected img, fine_label, found image, label"):
        load_hub("cifar", "train800", path=tmp_path)


def test_missing_split_and_missing_folder_are_refused(tmp_path):
    write_split(tmp_path, "train", 3, label=[0, 1, 2], image_id=["Bombay_1", "Bombay_2", "Bombay_3"])
    with pytest.raises(DataError, match="Cannot read split 'test' of"):
        load_hub("oxford_iiit_pet", "train800", path=tmp_path)
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="Cannot read split 'train' of"):
        load_hub("oxford_iiit_pet", "train800", path=tmp_path)
    with pytest.raises(DataError, match=r"not a folder. Expected a local copy of the Hub data set timm/oxford"):
        load_hub("oxford_iiit_pet", "train800", path=tmp_path / "absent")


def test_unknown_task_and_split_are_refused():
    with pytest.raises(DataError, match="'cifar10' is not a VTAB-1k task"):
        load_hub("cifar10", "train800")
    with pytest.raises(DataError, match=r"'train' is not a VTAB-1k split.*train800val200"):
        load_hub("cifar", "train")


def test_kitti_is_found_by_its_file_names(tmp_path):
    names = {}
    first = 0
    for split, size in TASKS["kitti"].sizes.items():
        names[split] = [f"{i:06d}.png" for i in range(first, first + size)]
        columns = {"image/file_name": names[split], "label_distance": [i % 4 for i in range(size)]}
        write_split(tmp_path, split, size, first_row=first, **columns)
        first += size
    expected = split_keys("kitti", names)
    data = load_hub("kitti", "train800val200", path=tmp_path)
    assert data.provenance.exact
    data = pickle.loads(pickle.dumps(data))  # as data loader workers need it
    assert [f"{row:06d}.png" for row in rows_of(data)] == expected["train800"] + expected["val200"]


def write_eurosat(folder, key="{name}_{i}"):
    names = ["AnnualCrop", "Forest", "Highway"]
    ids = [key.format(name=name, i=i) for name in names for i in range(1, 9001)]
    labels = [c for c in range(3) for _ in range(9000)]
    classes = {"label": names + [f"class {i}" for i in range(7)]}
    for split, part in (("train", slice(16200)), ("validation", slice(16200, 21600)), ("test", slice(21600, None))):
        write_split(
            folder,
            split,
            len(ids[part]),
            first_row=part.start or 0,
            names=classes,
            image_id=ids[part],
            label=labels[part],
        )
    return ids


@pytest.mark.parametrize("key", ["{name}_{i}", "{name}/{name}_{i}.jpg"])
def test_eurosat_joins_the_repositorys_own_splits_and_finds_files_by_name(tmp_path, key):
    write_eurosat(tmp_path, key)
    ids = [f"{name}_{i}" for name in ("AnnualCrop", "Forest", "Highway") for i in range(1, 9001)]
    order = tfds_order([f"{each.rsplit('_', 1)[0]}_{each}.jpg" for each in ids], "train")
    data = load_hub("eurosat", "val200", path=tmp_path)
    assert data.provenance.exact
    names = [ids[row] for row in rows_of(data)]
    assert [f"{name.rsplit('_', 1)[0]}_{name}.jpg" for name in names] == order[16200:16400]
    assert data.labels == [row // 9000 for row in rows_of(data)]


def test_keys_of_another_form_are_told_and_only_vtab_like(tmp_path):
    write_eurosat(tmp_path, key="{name}{i}")
    with pytest.warns(InexactDataWarning, match="keys are not the original ones.*AnnualCrop1"):
        data = load_hub("eurosat", "val200", path=tmp_path)
    assert rows_of(data) == list(range(16200, 16400))


def test_dtd_is_found_by_the_file_names_stored_with_the_images(tmp_path):
    names, first = {}, 0
    for split in ("train", "validation", "test"):
        names[split] = [f"polka-dotted_{i:04d}.jpg" for i in range(first, first + 1880)]
        labels = {"names": {"label": [f"class {i}" for i in range(47)]}, "label": [30] * 1880}
        write_split(tmp_path, split, 1880, first_row=first, paths=names[split], **labels)
        first += 1880
    expected = split_keys("dtd", {s: [f"polka-dotted/{name}" for name in names[s]] for s in names})
    data = load_hub("dtd", "test", path=tmp_path)
    assert data.provenance.exact
    assert set(data.labels) == {30}
    assert [f"polka-dotted/polka-dotted_{row:04d}.jpg" for row in rows_of(data)] == expected["test"]


def write_smallnorb(folder, category):
    for split in ("train", "test"):
        rows = range(24300)
        write_split(
            folder,
            split,
            24300,
            image="image_lt",
            category=[category(row) for row in rows],
            azimuth=[row % 18 * 2 for row in rows],
            elevation=[row % 9 for row in rows],
        )


def test_smallnorb_row_order_is_proven_by_the_categories(tmp_path):
    write_smallnorb(tmp_path, lambda row: row % 5)
    expected = split_keys("smallnorb_azi", {"train": range(24300), "test": range(24300)})
    azimuth = load_hub("smallnorb_azi", "val200", path=tmp_path)
    elevation = load_hub("smallnorb_ele", "val200", path=tmp_path)
    assert azimuth.provenance.exact
    assert elevation.provenance.exact
    assert rows_of(azimuth) == rows_of(elevation) == expected["val200"]
    assert azimuth.labels == [row % 18 for row in expected["val200"]]
    assert elevation.labels == [row % 9 for row in expected["val200"]]


def test_smallnorb_sorted_by_category_is_only_vtab_like(tmp_path):
    write_smallnorb(tmp_path, lambda row: row // 4860)
    with pytest.warns(InexactDataWarning, match="not in the original order"):
        assert not load_hub("smallnorb_azi", "test", path=tmp_path).provenance.exact


def test_diabetic_retinopathy_has_no_validation_split_there(tmp_path):
    for split in ("train", "test"):
        size = TASKS["diabetic_retinopathy"].sizes[split]
        write_split(tmp_path, split, size, image="webp", cls=[row % 5 for row in range(size)])
    with pytest.warns(InexactDataWarning):
        data = load_hub("diabetic_retinopathy", "train800val200", path=tmp_path)
    assert rows_of(data) == list(range(1000))  # disjoint, which a slice [:200] of train would not be
    assert not data.provenance.exact
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactDataWarning)
        test = load_hub("diabetic_retinopathy", "test", path=tmp_path)  # the whole test split needs no keys
    assert (len(test), test.provenance.exact) == (42670, True)


def test_clevr_labels_come_from_the_objects(tmp_path):
    objects = [
        {"pixel_coords": [[1.0, 2.0, 8.2 + row % 3], [1.0, 2.0, 12.0], [1.0, 2.0, 11.0]]} for row in range(15000)
    ]
    write_split(tmp_path, "train", 70000, objects=(objects * 5)[:70000])
    write_split(tmp_path, "test", 15000, objects=objects)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InexactDataWarning)
        count, distance = (load_hub(task, "test", path=tmp_path) for task in ("clevr_count", "clevr_dist"))
    assert count.labels == [0] * 15000
    assert distance.labels[:4] == [1, 3, 5, 1]  # 8.2, 9.2, 10.2 against 8, 8.5, 9, 9.5, 10
    source = HUB_SOURCES["clevr_dist"]
    assert source.to_label([{"pixel_coords": [0, 0, 9.7]}, {"pixel_coords": [0, 0, 11]}]) == 4  # the other form


def test_label_of_a_row_out_of_range_names_the_row(tmp_path):
    write_split(tmp_path, "train", 70000, objects=[{"pixel_coords": [[0.0, 0.0, 5.0]]}] * 70000)
    write_split(tmp_path, "test", 15000, objects=[{"pixel_coords": [[0.0, 0.0, 5.0]]}] * 15000)
    with pytest.raises(DataError, match="row 0: A CLEVR scene has 3 to 10 objects, not 1"):
        load_hub("clevr_count", "train800", path=tmp_path)


def test_dsprites_index_comes_from_the_factors_and_pixels_are_scaled(tmp_path):
    source = HUB_SOURCES["dsprites_ori"]
    assert source.to_key(2, 5, 39, 31, 31) == 737279
    from PIL import Image

    black_and_one = Image.new("RGB", (2, 1))
    black_and_one.putpixel((1, 0), (1, 1, 1))
    assert source.finish(black_and_one).getpixel((1, 0)) == (255, 255, 255)
    assert source.finish(source.finish(black_and_one)).getpixel((1, 0)) == (255, 255, 255)


def test_every_task_has_a_source_with_the_splits_it_trains_and_tests_on():
    assert list(HUB_SOURCES) == list(TASKS)
    for task, source in HUB_SOURCES.items():
        assert set(source.splits) <= set(TASKS[task].sizes)
        assert {TASKS[task].train800.split, TASKS[task].test.split} <= set(source.splits)
    without_validation = [t for t, s in HUB_SOURCES.items() if set(s.splits) != set(TASKS[t].sizes)]
    assert without_validation == ["diabetic_retinopathy"]
