"""Original data sets: generated ones with all rows and names, and the published lists."""

import json
import pickle
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gated_prompt.data import vtab_labels
from gated_prompt.data.vtab import TASKS, load_original, split_keys
from gated_prompt.errors import DataError
from helpers.data_files import real_data
from paper.tasks import load_task

NEVER = ("caltech101", "diabetic_retinopathy", "dmlab")


def touch(folder: Path, names: list[str]) -> None:
    for parent in {(folder / name).parent for name in names}:
        parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def names_of(data) -> list[str]:
    return [path.name for path in data.images.paths]


@pytest.fixture(scope="module")
def published() -> dict[str, dict[str, list[str]]]:
    lists = json.loads(real_data("vtab_trainval_splits", "vtab_trainval_splits.json").read_text())
    return {name.split("(")[0]: splits for name, splits in lists.items()}


@pytest.fixture(scope="module")
def resisc(tmp_path_factory) -> Path:
    """The 45 classes with 700 empty files each; their names are in the published list."""
    splits = json.loads(real_data("vtab_trainval_splits", "vtab_trainval_splits.json").read_text())["resisc45"]
    root = tmp_path_factory.mktemp("resisc")
    classes = sorted({name.rsplit("_", 1)[0] for name in splits["train"]})
    touch(root / "NWPU-RESISC45", [f"{c}/{c}_{i:03d}.jpg" for c in classes for i in range(1, 701)])
    return root


def test_resisc45_is_the_published_list(resisc, published) -> None:
    data = {split: load_original(resisc, "resisc45", split) for split in ("train800", "val200", "test")}
    assert set(names_of(data["train800"])) == set(published["resisc45"]["train"])
    assert names_of(data["val200"]) == published["resisc45"]["val"]
    assert (len(data["test"]), data["test"].num_classes, data["test"].provenance.exact) == (6300, 45, True)
    for each in data.values():
        assert [each.class_names[k] for k in each.labels] == [path.parent.name for path in each.images.paths]


def test_eurosat_is_what_real_files_of_the_benchmark_say(tmp_path) -> None:
    """Labels in the order of VTAB's images agree with those of the real data, which another program generated."""
    counts = {"AnnualCrop": 3000, "Forest": 3000, "HerbaceousVegetation": 3000, "Highway": 2500, "Industrial": 2500}
    counts |= {"Pasture": 2000, "PermanentCrop": 2500, "Residential": 3000, "River": 2500, "SeaLake": 3000}
    touch(tmp_path / "2750", [f"{c}/{c}_{i}.jpg" for c, count in counts.items() for i in range(1, count + 1)])
    for split in ("train800", "val200", "test"):
        lines = real_data("real_vtab", "eurosat", f"{split}.txt").read_text().split("\n")
        assert load_original(tmp_path, "eurosat", split).labels == [int(line.split()[1]) for line in lines if line]
    picture = real_data("real_vtab", "eurosat", "images", "train800", "000000.jpg").read_bytes()
    data = load_original(tmp_path, "eurosat", "train800")
    data.images.paths[0].write_bytes(picture)
    assert data[0][0].size == (64, 64)
    task = load_task("eurosat", str(tmp_path))  # as --data_dir
    assert (len(task.train), len(task.eval), task.class_names) == (1000, 5400, list(counts))
    assert task.train.provenance.exact
    data.images.paths[0].unlink()
    with pytest.raises(DataError, match=r"authors ship eurosat: .*26999 keys, expected all 27000"):
        load_task("eurosat", str(tmp_path))


def test_oxford_flowers102_by_its_lists(tmp_path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    numbers = np.random.default_rng(0).permutation(np.arange(1, 8190))
    labels = np.random.default_rng(1).integers(1, 103, 8189)
    scipy_io.savemat(tmp_path / "imagelabels.mat", {"labels": labels})
    parts = {"trnid": numbers[:1020], "valid": numbers[1020:2040], "tstid": numbers[2040:]}
    scipy_io.savemat(tmp_path / "setid.mat", parts)
    touch(tmp_path / "jpg", [f"image_{i:05d}.jpg" for i in numbers])
    keys = {"train": parts["trnid"], "validation": parts["valid"], "test": parts["tstid"]}
    wanted = split_keys("oxford_flowers102", {k: [f"image_{i:05d}.jpg" for i in v] for k, v in keys.items()})
    for split, expected in wanted.items():
        data = load_original(tmp_path, "oxford_flowers102", split)
        assert names_of(data) == expected
        assert data.labels == [labels[int(name[6:11]) - 1] - 1 for name in expected]


def test_oxford_iiit_pet_by_its_lists(tmp_path) -> None:
    breeds = [f"{'Cat' if i % 2 else 'dog'}_{i:02d}" for i in range(37)]
    names = [(f"{breeds[i % 37]}_{i}", i % 37 + 1) for i in range(7349)]
    (tmp_path / "annotations").mkdir()
    for file, part in (("trainval.txt", names[:3680]), ("test.txt", names[3680:])):
        (tmp_path / "annotations" / file).write_text("".join(f"{name} {label} 1 1\n" for name, label in part))
    touch(tmp_path / "images", [f"{name}.jpg" for name, _ in names])
    data = load_original(tmp_path, "oxford_iiit_pet", "train800val200")
    parts = {"train": names[:3680], "test": names[3680:]}
    wanted = split_keys("oxford_iiit_pet", {part: [f"{name}.jpg" for name, _ in rows] for part, rows in parts.items()})
    assert names_of(data) == wanted["train800"] + wanted["val200"]
    assert [data.class_names[k] for k in data.labels] == [name.rsplit("_", 1)[0] for name in names_of(data)]


def test_clevr_by_its_scenes(tmp_path, published) -> None:
    draw = np.random.default_rng(0)
    depths = {}
    used = published["clevr"]["train"] + published["clevr"]["val"]
    few = set(used)  # the scenes of all others, most of 85000, hold one object: to write and read more takes long
    (tmp_path / "scenes").mkdir()
    for part, count in (("train", 70000), ("val", 15000)):
        sizes, values = draw.integers(3, 11, count), draw.uniform(7, 14, (count, 10)).round(2)
        names = [f"CLEVR_{part}_{i:06d}.png" for i in range(count)]
        scenes = [
            {"image_filename": one, "objects": [{"pixel_coords": [1, 2, z]} for z in row[: n if one in few else 1]]}
            for one, n, row in zip(names, sizes.tolist(), values.tolist(), strict=True)
        ]
        depths |= {s["image_filename"]: [o["pixel_coords"][2] for o in s["objects"]] for s in scenes}
        (tmp_path / "scenes" / f"CLEVR_{part}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    touch(tmp_path / "images" / "train", used)
    counts = load_original(tmp_path, "clevr_count", "train800val200")
    assert set(names_of(counts)) == set(used)
    assert names_of(counts)[800:] == published["clevr"]["val"]
    assert counts.labels == [len(depths[name]) - 3 for name in names_of(counts)]
    near = load_original(tmp_path, "clevr_dist", "val200")
    assert near.labels == [vtab_labels.clevr_distance(depths[name]) for name in published["clevr"]["val"]]


def test_sun397_needs_the_lists_of_tfds(tmp_path) -> None:
    classes = [f"/{chr(97 + i % 26)}/place_{i:03d}" for i in range(397)]
    (tmp_path / "ClassName.txt").write_text("\n".join(classes) + "\n")
    with pytest.raises(DataError, match=r"sun397_tfds_tr.txt is missing. VTAB's split of sun397 is in the package"):
        load_original(tmp_path, "sun397", "train800")
    keys = [f"{classes[i % 397]}/sun_{i:06d}.jpg" for i in range(76128 + 10875 + 21750)]
    parts = {"tr": keys[:76128], "va": keys[76128 : 76128 + 10875], "te": keys[76128 + 10875 :]}
    for name, part in parts.items():
        (tmp_path / f"sun397_tfds_{name}.txt").write_text("\n".join(part) + "\n")
    wanted = split_keys("sun397", {"train": parts["tr"], "validation": parts["va"], "test": parts["te"]})["val200"]
    touch(tmp_path, [key[1:] for key in wanted])
    data = load_original(tmp_path, "sun397", "val200")
    assert [f"/{path.relative_to(tmp_path).as_posix()}" for path in data.images.paths] == wanted
    assert [f"/{data.class_names[k]}" for k in data.labels] == [key.rsplit("/", 1)[0] for key in wanted]


# Arrays. The first pixels of a generated image hold its row number.


def numbered(count: int, *shape: int) -> np.ndarray:
    """Images (count, *shape) whose first three values are their row number in base 256."""
    images = np.zeros((count, *shape), dtype=np.uint8)
    flat, rows = images.reshape(count, -1), np.arange(count)
    for digit in range(3):
        flat[:, digit] = rows >> (8 * digit)
    return images


def rows_of(data) -> list[int]:
    """The row numbers that the pixels encode."""
    return [int(v[0]) + (int(v[1]) << 8) + (int(v[2]) << 16) for v in data.images.pixels.reshape(len(data), -1)]


def expected(task: str, split: str) -> list[int]:
    return [int(key.rpartition("_")[2]) for key in row_splits(task)[split]]


@cache
def row_splits(task: str) -> dict[str, list[str]]:
    spec = TASKS[task]
    keys = {name: [spec.key_of_row[name].format(i) for i in range(size)] for name, size in spec.sizes.items()}
    return split_keys(task, keys)


@pytest.mark.parametrize("form", ["binary", "python"])
def test_cifar(tmp_path, form: str) -> None:
    fine = {"train": np.arange(50000) % 100, "test": np.arange(10000) % 97}
    folder = tmp_path / f"cifar-100-{form}"
    folder.mkdir()
    for split, labels in fine.items():
        planes = numbered(len(labels), 32, 32, 3).transpose(0, 3, 1, 2).reshape(len(labels), 3072)
        if form == "binary":
            coarse = np.zeros_like(labels)
            np.column_stack((coarse.astype(np.uint8), labels.astype(np.uint8), planes)).tofile(folder / f"{split}.bin")
        else:
            stored = {b"data": planes, b"fine_labels": labels.tolist(), b"coarse_labels": []}
            (folder / split).write_bytes(pickle.dumps(stored, protocol=2))
    for split, origin in (("train800", "train"), ("val200", "train"), ("test", "test")):
        data = load_original(tmp_path, "cifar", split)
        assert rows_of(data) == expected("cifar", split)
        assert data.labels == fine[origin][expected("cifar", split)].tolist()
        assert data[0][0].size == (32, 32)
    assert data.provenance.exact
    assert len(load_task("cifar", str(tmp_path)).train) == 1000


def test_a_pickle_that_could_run_code_is_refused(tmp_path) -> None:
    class Harm:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "harm",)

    (tmp_path / "train").write_bytes(pickle.dumps({b"data": Harm()}))
    with pytest.raises(DataError, match=r"not CIFAR-100's Python file: it refers to pathlib"):
        load_original(tmp_path, "cifar", "train800")
    assert not (tmp_path / "harm").exists()


def test_svhn(tmp_path) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    for split, count in (("train", 73257), ("test", 26032)):
        images = numbered(count, 2, 2, 3).transpose(1, 2, 3, 0)
        digits = (np.arange(count) % 10 + 1)[:, None]
        scipy_io.savemat(tmp_path / f"{split}_32x32.mat", {"X": images, "y": digits})
    for split in ("train800", "val200", "test"):
        data = load_original(tmp_path, "svhn", split)
        assert rows_of(data) == expected("svhn", split)
        assert data.labels == [(row % 10 + 1) % 10 for row in expected("svhn", split)]


def test_patch_camelyon(tmp_path, published) -> None:
    h5py = pytest.importorskip("h5py")
    for name, count in (("train", 262144), ("valid", 32768)):
        for kind, array in (("x", numbered(count, 1, 1, 3)), ("y", (np.arange(count) % 2).reshape(-1, 1, 1, 1))):
            with h5py.File(tmp_path / f"camelyonpatch_level_2_split_{name}_{kind}.h5", "w") as file:
                file[kind] = array
    data = load_original(tmp_path, "patch_camelyon", "train800val200")
    names = [f"train_{r}" for r in rows_of(data)[:800]] + [f"valid_{r}" for r in rows_of(data)[800:]]
    assert set(names[:800]) == set(published["patch_camelyon"]["train"])
    assert names[800:] == published["patch_camelyon"]["val"]
    assert data.labels == [row % 2 for row in rows_of(data)]
    (tmp_path / "camelyonpatch_level_2_split_valid_x.h5").write_bytes(b"an error page")
    with pytest.raises(DataError, match=r"split_valid_x.h5 is missing or not PatchCamelyon's"):
        load_original(tmp_path, "patch_camelyon", "val200")


def test_dsprites(tmp_path) -> None:
    file = tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    rows = np.arange(737280)
    classes = np.column_stack(
        (rows * 0, rows // 245760, rows // 40960 % 6, rows // 1024 % 40, rows // 32 % 32, rows % 32)
    )
    bits = ((rows[:, None] >> np.arange(20)) & 1).astype(np.uint8).reshape(-1, 4, 5)
    np.savez(file, imgs=bits, latents_classes=classes)
    for task, rule in (("dsprites_loc", lambda c: c[4] // 2), ("dsprites_ori", lambda c: int(c[3] / 2.5))):
        data = load_original(tmp_path, task, "train800val200")
        wanted = expected("dsprites_ori", "train800") + expected("dsprites_ori", "val200")
        assert (data.images.pixels.reshape(1000, 20) // 255 @ (1 << np.arange(20))).tolist() == wanted
        assert data.labels == [rule(classes[row]) for row in wanted]
    assert len(load_original(tmp_path, "dsprites_loc", "test")) == 73728
    np.savez(file, imgs=bits, latents_classes=classes[::-1])
    with pytest.raises(DataError, match="not hold the images in dSprites' own order"):
        load_original(tmp_path, "dsprites_ori", "val200")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("imgs.npy", b"")
    with pytest.raises(DataError, match="missing or not dSprites' file"):
        load_original(tmp_path, "dsprites_ori", "val200")


def write_norb(file: Path, array: np.ndarray, magic: int) -> None:
    sizes = [*array.shape, *[1] * (3 - array.ndim)]
    file.write_bytes(np.array([magic, array.ndim, *sizes], "<i4").tobytes() + array.tobytes())


def test_smallnorb(tmp_path) -> None:
    rows = np.arange(24300)
    info = np.column_stack((rows % 10, rows % 9, 2 * (rows % 18), rows % 6)).astype("<i4")
    for name in ("5x46789x9x18x6x2x96x96-training", "5x01235x9x18x6x2x96x96-testing"):
        left = numbered(24300, 4, 4)
        write_norb(tmp_path / f"smallnorb-{name}-dat.mat", np.stack((left, 255 - left), 1), 0x1E3D4C55)
        write_norb(tmp_path / f"smallnorb-{name}-info.mat", info, 0x1E3D4C54)
    for split in ("train800", "val200", "test"):
        azimuth, elevation = (load_original(tmp_path, f"smallnorb_{k}", split) for k in ("azi", "ele"))
        wanted = expected("smallnorb_azi", split)
        assert rows_of(azimuth) == rows_of(elevation) == wanted
        assert azimuth.labels == [row % 18 for row in wanted]
        assert elevation.labels == [row % 9 for row in wanted]
    assert isinstance(azimuth[0][0], Image.Image) and azimuth[0][0].mode == "RGB"
    assert azimuth.images.name(0) == f"test row {wanted[0]} of {tmp_path}"


@pytest.mark.parametrize("task", NEVER)
def test_what_cannot_be_rebuilt_is_said(tmp_path, task: str) -> None:
    with pytest.raises(DataError, match=f"'{task}' cannot be read from its original files: .* Use the 'vtab-1k"):
        load_original(tmp_path, task, "test")


@pytest.mark.parametrize("task", [name for name in TASKS if name not in (*NEVER, "dsprites_loc")])
def test_an_empty_folder_names_what_is_missing(tmp_path, task: str) -> None:
    if task == "patch_camelyon":
        pytest.importorskip("h5py")
    with pytest.raises(DataError, match=r"missing|has 0 class folders|is in"):
        load_original(tmp_path, task, "val200")
