"""The hash rule against the published lists of the 1000 images, and what `split_keys` refuses."""

import hashlib
import json

import pytest

from gated_prompt.data.vtab import SPLITS, TASKS, split_keys, tfds_order
from gated_prompt.errors import DataError
from helpers.data_files import real_data


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, list[str]]]:
    """Task (its name up to any parenthesis) -> the authors' lists; `train` is shuffled, `val` is in TFDS order."""
    lists = json.loads(real_data("vtab_trainval_splits", "vtab_trainval_splits.json").read_text())
    return {name.split("(")[0]: splits for name, splits in lists.items()}


def position(key: str, split: str) -> float:
    """Where the hash puts a key in its split: 0 is first, 1 is last."""
    return int(hashlib.md5((split + key).encode()).hexdigest(), 16) / 2**128


def complete_keys(task: str) -> dict[str, list[str]]:
    return {
        split: [TASKS[task].key_of_row[split].format(i) for i in range(size)]
        for split, size in TASKS[task].sizes.items()
    }


def assert_published(published, task, train, val):
    assert set(train) == set(published[task]["train"])
    assert len(train) == 800
    assert val == published[task]["val"]


def test_cifar_is_the_published_list(published):
    splits = split_keys("cifar", complete_keys("cifar"))
    ids = {name: [f"train_{int(key):05d}" for key in splits[name]] for name in ("train800", "val200")}
    assert_published(published, "cifar", ids["train800"], ids["val200"])


def test_cifar_row_numbers_may_be_integers():
    as_text = split_keys("cifar", complete_keys("cifar"))
    as_int = split_keys("cifar", {"train": range(50000), "test": range(10000)})
    assert {name: [str(key) for key in keys] for name, keys in as_int.items()} == as_text
    assert isinstance(as_int["train800"][0], int)


def test_patch_camelyon_is_the_published_list(published):
    splits = split_keys("patch_camelyon", complete_keys("patch_camelyon"))
    assert_published(published, "patch_camelyon", splits["train800"], splits["val200"])


@pytest.mark.parametrize("task", ["clevr_dist", "clevr_count"])
def test_clevr_is_the_published_list(published, task):
    splits = split_keys(task, complete_keys(task))
    assert_published(published, "clevr", splits["train800"], splits["val200"])
    assert len(splits["test"]) == 15000
    assert splits["test"][0].startswith("CLEVR_val_")


def test_resisc45_is_the_published_list(published):
    classes = sorted({name.rsplit("_", 1)[0] for name in published["resisc45"]["train"]})
    assert len(classes) == 45
    keys = [f"{c}_{c}_{i:03d}.jpg" for c in classes for i in range(1, 701)]
    splits = split_keys("resisc45", {"train": reversed(keys)})  # the order of the input must not matter
    plain = {name: [key[(len(key) - 8) // 2 + 1 :] for key in keys] for name, keys in splits.items()}
    assert_published(published, "resisc45", plain["train800"], plain["val200"])


@pytest.mark.parametrize("task", ["dtd", "oxford_flowers102", "diabetic_retinopathy"])
def test_validation_is_the_head_of_the_hash_order(published, task):
    val = published[task]["val"]
    assert tfds_order(val, "validation") == val
    # The last of the 200 has the position of the 200th of all examples, and likewise for the 800.
    expected = 200 / TASKS[task].sizes["validation"]
    assert max(position(key, "validation") for key in val) == pytest.approx(expected, rel=0.25)
    expected = 800 / TASKS[task].sizes["train"]
    assert max(position(key, "train") for key in published[task]["train"]) == pytest.approx(expected, rel=0.1)


def test_kitti_train_is_the_head_of_the_hash_order_and_validation_the_head_of_its_own(published):
    last = max(position(key, "train") for key in published["kitti"]["train"])
    assert last == pytest.approx(800 / 6347, rel=0.1)
    last = max(position(key, "validation") for key in published["kitti"]["val"])
    assert last == pytest.approx(200 / 423, rel=0.1)


def test_dsprites_slices_cover_the_single_original_split():
    splits = split_keys("dsprites_loc", {"train": range(737280)})
    assert [len(splits[name]) for name in ("train800", "val200", "test")] == [800, 200, 73728]
    assert not set(splits["train800"]) & (set(splits["val200"]) | set(splits["test"]))
    heads = [position(str(splits[name][0]), "train") for name in ("train800", "val200", "test")]
    assert heads == pytest.approx([0, 0.8, 0.9], abs=0.002)


def test_smallnorb_validates_on_the_head_of_test_and_tests_on_its_second_half():
    splits = split_keys("smallnorb_azi", {"train": range(24300), "test": range(24300)})
    order = tfds_order(range(24300), "test")
    assert splits["val200"] == order[:200]
    assert splits["test"] == order[12150:]
    assert splits["train800"] == tfds_order(range(24300), "train")[:800]


@pytest.mark.parametrize(
    ("task", "sizes"),
    {
        "caltech101": (102, 6085),
        "cifar": (100, 10000),
        "dtd": (47, 1880),
        "oxford_flowers102": (102, 6149),
        "oxford_iiit_pet": (37, 3669),
        "svhn": (10, 26032),
        "sun397": (397, 21750),
        "patch_camelyon": (2, 32768),
        "eurosat": (10, 5400),
        "resisc45": (45, 6300),
        "diabetic_retinopathy": (5, 42670),
        "clevr_count": (8, 15000),
        "clevr_dist": (6, 15000),
        "dmlab": (6, 22735),
        "kitti": (4, 711),
        "dsprites_loc": (16, 73728),
        "dsprites_ori": (16, 73728),
        "smallnorb_azi": (18, 12150),
        "smallnorb_ele": (9, 12150),
    }.items(),
)
def test_class_and_test_counts(task, sizes):
    assert (TASKS[task].num_classes, TASKS[task].test_size) == sizes
    assert [TASKS[task].size_of(split) for split in SPLITS] == [800, 200, 1000, sizes[1]]


def test_there_are_19_tasks_in_three_groups():
    groups = [task.group for task in TASKS.values()]
    assert [groups.count(g) for g in ("natural", "specialized", "structured")] == [7, 4, 8]


def caltech(folders: int = 102, per_class: int = 30, missing: int = 1) -> dict[str, list[str]]:
    train = [f"class{c:03d}/image_{i:04d}.jpg" for c in range(folders) for i in range(per_class)]
    test = [f"class{i % 102:03d}/image_{1000 + i:04d}.jpg" for i in range(6085)]
    return {"train": train[: len(train) - missing], "test": test}


def test_caltech101_takes_the_exact_lists_of_an_export():
    splits = split_keys("caltech101", caltech())
    assert [len(splits[name]) for name in ("train800", "val200", "test")] == [800, 200, 6085]
    order = tfds_order(caltech()["train"], "train")
    assert splits["train800"] == order[:800]
    assert splits["val200"] == order[2753:2953]


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"train": [f"c/image_{i:04d}.jpg" for i in range(9144)]}, "split 'test' is missing"),
        ({**caltech(), "train": caltech()["train"][:-1]}, "has 3058 keys, expected all 3059"),
        (caltech(folders=77, per_class=40, missing=21), "has 40 images of 'class000'"),
    ],
)
def test_caltech101_is_refused_otherwise_with_what_to_use_instead(keys, fault):
    with pytest.raises(DataError, match=fault) as caught:
        split_keys("caltech101", keys)
    assert "'vtab-1k' folder layout" in str(caught.value)
    assert "'train' with 3059 and 'test' with 6085 keys" in str(caught.value)


def dtd(**changes: list[str]) -> dict[str, list[str]]:
    names = [f"banded/banded_{i:04d}.jpg" for i in range(5640)]
    return {"train": names[:1880], "validation": names[1880:3760], "test": names[3760:], **changes}


@pytest.mark.parametrize(
    ("task", "keys", "fault"),
    [
        ("imagenet", {}, "'imagenet' is not a VTAB-1k task.*caltech101, cifar"),
        ("dtd", {"train": [], "test": []}, r"'validation' is missing. Expected 'train' \(1880 keys\)"),
        ("dtd", dtd(valid=[]), "unknown split 'valid'. Expected .*'validation'"),
        ("dtd", dtd(test=dtd()["test"][1:]), "'test' has 1879 keys, expected all 1880"),
        ("dtd", dtd(test=[*dtd()["test"][1:], "banded/banded_5000.jpg"]), "'banded/banded_5000.jpg' twice"),
        ("dtd", dtd(test=[*dtd()["test"][1:], "banded_0000.jpg"]), "'banded_0000.jpg', expected the form"),
        ("dtd", dtd(test=[*dtd()["test"][1:], "banded/banded_0000.jpg"]), "is in 'train' and 'test'"),
        ("cifar", {"train": range(1, 50001), "test": range(10000)}, "'50000', expected '0' to '49999'"),
        ("eurosat", {"train": [f"Forest_{i}.jpg" for i in range(27000)]}, "expected the form of 'AnnualCrop_Annual"),
    ],
)
def test_wrong_keys_are_refused_with_what_was_expected(task, keys, fault):
    with pytest.raises(DataError, match=fault):
        split_keys(task, keys)


def test_cifar_ids_are_not_keys():
    with pytest.raises(DataError, match=r"'train_.*expected '0' to '49999'"):
        split_keys("cifar", {"train": [f"train_{i:05d}" for i in range(50000)], "test": range(10000)})


def test_splits_that_vtab_does_not_use_are_ignored():
    keys = complete_keys("clevr_dist")
    assert split_keys("clevr_dist", {**keys, "test": ["anything"]}) == split_keys("clevr_dist", keys)
