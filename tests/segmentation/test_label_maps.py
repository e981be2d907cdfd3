"""Reading label maps: every way to store them gives the same labels, and what is wrong is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, load_dataset  # noqa: F401 - writes what hub_parts reads
from datasets import Image as ImageColumn
from PIL import Image

from gated_prompt.errors import DataError
from gated_prompt.finetune.layout import asks_for_masks
from gated_prompt.finetune.segmentation.arguments import parse
from gated_prompt.finetune.segmentation.sources import MaskParts, read_mask_parts
from helpers.shapes import COLOURS, NAMES, draw, mask_of, save, save_coco


def read(*options: str) -> MaskParts:
    return read_mask_parts(parse([*options])[0], False)


def check_labels(parts: MaskParts) -> None:
    """Images and labels are those that were drawn."""
    assert parts.labelled.names == NAMES
    assert len(parts.labelled) == 10 and len(parts.splits) == 5
    for index in range(10):
        image, labels = draw(index, (48, 64) if index % 3 else (64, 48))
        assert torch.equal(parts.labelled.labels(index), torch.from_numpy(labels))
        assert np.array_equal(np.asarray(parts.labelled.image(index)), np.asarray(image))
        assert parts.labelled.counts[index].tolist() == [int((labels == value).sum()) for value in range(3)]


@pytest.mark.parametrize("masks", ["masks", "annotations"])
@pytest.mark.parametrize("kind", ["bytes", "palette", "sixteen", "grey_rgb"])
def test_every_way_to_store_numbers(kind: str, masks: str, tmp_path: Path) -> None:
    check_labels(read("--train_dir", str(save(tmp_path / "shapes", kind, masks=masks))))


@pytest.mark.parametrize("kind", ["rgb", "palette"])
def test_colours_with_a_table(kind: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes", kind)
    parts = read("--train_dir", str(folder), "--palette", str(folder / "palette.csv"), "--ignore_label", "unknown")
    check_labels(parts)
    assert parts.labelled.table.colours == COLOURS


def test_a_data_set_with_a_column_of_label_maps(tmp_path: Path) -> None:
    pairs = [draw(index, (48, 64) if index % 3 else (64, 48)) for index in range(10)]
    columns = {"image": [image for image, _ in pairs], "label": [mask_of(labels, "bytes") for _, labels in pairs]}
    rows = Dataset.from_dict(columns, features=Features({"image": ImageColumn(), "label": ImageColumn()}))
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    options = ["--dataset", str(tmp_path / "set"), "--classes", str(tmp_path / "names.txt")]
    assert asks_for_masks([*options, "--problem", "segmentation"])
    check_labels(read(*options))


def test_coco_run_lengths(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    file = save_coco(tmp_path / "shapes")
    parts = read("--train_file", str(file))
    assert parts.labelled.names == ("background", "disc", "box")
    for index in range(10):
        _, labels = draw(index, (48, 64) if index % 3 else (64, 48))
        assert torch.equal(parts.labelled.labels(index), torch.from_numpy(labels))


def test_coco_polygons_and_small_objects_on_top() -> None:
    pytest.importorskip("pycocotools")
    from gated_prompt.finetune.segmentation.mask_files import draw as draw_objects

    square = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]
    inner = [[4.0, 4.0, 6.0, 4.0, 6.0, 6.0, 4.0, 6.0]]
    objects = [
        {"id": 1, "category_id": 2, "segmentation": inner},
        {"id": 2, "category_id": 1, "segmentation": square},
    ]
    labels = draw_objects(objects, (10, 10), {1: 1, 2: 2}, 0)
    wanted = np.zeros((10, 10), dtype=int)
    wanted[2:8, 2:8], wanted[4:6, 4:6] = 1, 2
    assert np.array_equal(labels, wanted)


def test_parts_are_found_by_the_names_of_their_folders(tmp_path: Path) -> None:
    """ADE20K's layout, and parts that hold images/ and masks/ themselves."""
    for part, name in (("train", "training"), ("validation", "validation")):
        save(tmp_path / "parts" / part, count=4)
        for kind, to in (("images", "images"), ("masks", "annotations")):
            target = tmp_path / "ade" / to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(tmp_path / "parts" / part / kind)
    for folder in ("parts", "ade"):
        assert asks_for_masks(["--train_dir", str(tmp_path / folder)])
        parts = read("--train_dir", str(tmp_path / folder))
        assert (len(parts.train), len(parts.validation), len(parts.splits)) == (4, 4, 1)
    assert not asks_for_masks(["--train_dir", str(tmp_path)])


def test_what_has_no_partner_is_listed(tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes")
    (folder / "masks" / "03.png").unlink()
    (folder / "images" / "05.png").unlink()
    skipped = read("--train_dir", str(folder)).labelled.skipped
    assert [(Path(name).name, reason.split(" in ")[0]) for name, reason in skipped.items()] == [
        ("03.png", "has no mask"),
        ("05.png", "has no image"),
    ]


def test_values_are_the_classes_where_nobody_names_them(tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes")
    (folder / "classes.txt").unlink()
    assert read("--train_dir", str(folder)).labelled.names == ("0", "1", "2")
    assert read("--train_dir", str(folder), "--ignore_label", "0").labelled.names == ("1", "2")
    for index in range(10):  # black and white
        mask = np.asarray(Image.open(folder / "masks" / f"{index:02d}.png"))
        Image.fromarray(((mask == 1) * 255).astype(np.uint8)).save(folder / "masks" / f"{index:02d}.png")
    assert read("--train_dir", str(folder)).labelled.names == ("0", "255")


def test_a_photo_that_was_stored_sideways(tmp_path: Path) -> None:
    """Its mask may follow the note of the camera, or not."""
    folder = save(tmp_path / "shapes")
    upright, labels = draw(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "images" / "01.png", exif=exif)
    found = read("--train_dir", str(folder)).labelled
    assert np.array_equal(np.asarray(found.image(1)), np.asarray(upright))
    mask_of(np.rot90(labels).copy(), "bytes").save(folder / "masks" / "01.png")
    found = read("--train_dir", str(folder)).labelled
    assert np.array_equal(np.asarray(found.image(1)), np.rot90(np.asarray(upright)))


def put(folder: Path, labels: np.ndarray, name: str = "01.png") -> None:
    mask_of(labels, "bytes").save(folder / "masks" / name)


def test_what_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes")
    _, labels = draw(1)
    put(folder, labels[:, :-2].copy())
    with pytest.raises(DataError, match="image 01 has 64 x 48 pixels and its mask 62 x 48"):
        read("--train_dir", str(folder))
    stranger = labels.copy()
    stranger[20, 20] = 7
    put(folder, stranger)
    with pytest.raises(
        DataError, match=r"mask 01 has 7, which is not a class. The classes are 0 ground, 1 disc, 2 box"
    ):
        read("--train_dir", str(folder))
    assert read("--train_dir", str(folder), "--ignore_label", "7").labelled.labels(1)[20, 20] == 255
    put(folder, labels)
    (folder / "classes.txt").write_text("ground\ndisc\nbox\ncat\n")
    with pytest.raises(DataError, match=r"is labelled as cat. Label some, or leave the class out"):
        read("--train_dir", str(folder))
    assert read("--train_dir", str(folder), "--ignore_label", "cat").labelled.names == NAMES
    (folder / "classes.txt").write_text("\n".join(NAMES))
    with pytest.raises(DataError, match=r"--ignore_label 'dog' is not a class. Choose from: ground, disc, box"):
        read("--train_dir", str(folder), "--ignore_label", "dog")


def test_jpeg_masks_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes")
    (folder / "masks" / "01.png").unlink()
    Image.fromarray(draw(1)[1]).save(folder / "masks" / "01.jpg", quality=80)
    with pytest.raises(DataError, match="saved as JPEG has such values along its edges"):
        read("--train_dir", str(folder))
    (folder / "classes.txt").unlink()
    with pytest.raises(DataError, match="mask 01 is a JPEG, which changes values along edges"):
        read("--train_dir", str(folder))


def test_colours_without_a_table_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "shapes", "rgb")
    with pytest.raises(DataError, match=r"stores colours. Say which colour is which class with --palette"):
        read("--train_dir", str(folder))
    (folder / "bad.csv").write_text("disc,1,2\n")
    with pytest.raises(DataError, match=r"line 'disc,1,2'. Expected 'name,red,green,blue'"):
        read("--train_dir", str(folder), "--palette", str(folder / "bad.csv"))
