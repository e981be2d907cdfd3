"""Tables as spreadsheets, scripts and hands write them: read line by line, and refused with the line."""

import csv
import json
import unicodedata
from pathlib import Path

import pytest

from gated_prompt.errors import DataError
from gated_prompt.finetune.image_set import LABEL_NOUNS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, ImageSet
from gated_prompt.finetune.labels import Reading
from gated_prompt.finetune.sources import _summary
from gated_prompt.finetune.table import read_table
from gated_prompt.finetune.table_file import read_rows


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    (folder / name).write_bytes(text.encode())
    return folder / name


def column(folder: Path, labels: list[str], **reading: object) -> ImageSet:
    """What is read of a CSV file with these labels."""
    with open(folder / "list.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "label"], *([f"{i}.png", label] for i, label in enumerate(labels))])
    return read_table(folder / "list.csv", "image", ["label"], Reading(**reading))


@pytest.mark.parametrize("sign", ["\u2028", "\u0085", "\x0c", "\x1e", "\x0b"])
@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_lines_end_at_line_ends_alone(tmp_path: Path, sign: str, name: str) -> None:
    labels = [f"a{sign}b", "c"]
    rows = [{"image": f"{i}.png", "label": label} for i, label in enumerate(labels * 2)]
    if name.endswith("csv"):
        text = "image,label\r\n" + "".join(f"{row['image']},{row['label']}\r\n" for row in rows)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    found = read_table(table(tmp_path, text, name), "image", ["label"])
    assert found.names == tuple(labels) and len(found) == 4


def test_a_quoted_line_end_is_kept_and_lines_are_counted(tmp_path: Path) -> None:
    file = table(tmp_path, 'image,label\n1.png,"red\nbig"\n2.png,blue\n3.png\n')
    with pytest.raises(DataError, match=r"list\.csv, line 5, has 1 cells where the header has 2"):
        read_rows(file)
    rows = read_rows(table(tmp_path, 'image,label\n1.png,"red\nbig"\n2.png,blue\n\n,\n'))
    assert [(row.line, row.values["label"]) for row in rows] == [(2, "red\nbig"), (4, "blue")]


@pytest.mark.parametrize("sign", [";", "\t", ","])
def test_whatever_a_spreadsheet_puts_between_cells(tmp_path: Path, sign: str) -> None:
    text = "\ufeff" + f"image{sign}label \r\n1.png{sign}a\r\n2.png{sign}b\r\n{sign}\r\n"
    found = read_table(table(tmp_path, text), "image", ["label"])
    assert (found.names, found.targets.tolist()) == (("a", "b"), [0, 1])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,label\n1.png,red, big\n2.png,blue\n", r"line 2, has 3 cells where the header has 2. Put a cell with"),
        ('image,label\n1.png,"red\n2.png,blue\n', "is not valid CSV: unexpected end of data. Perhaps a quote"),
        ('image,label\n1.png,"' + "x" * 140_000 + '"\n2.png,b\n', "field larger than field limit.*never closed"),
        ("image,label,label\n1.png,a,b\n", "has 2 columns named 'label'"),
        ("image,label\n1.png,a\n,b\n", "line 3, column 'image', is empty"),
        ("image,label\n1.png,a\n2.png,\n", r"1 of 2 labels of .* line 3, column 'label', is empty. Give --missing"),
        ("image,label\n1.png,a\n2.png," + "9" * 5000 + "\n", r"line 3, column 'label', has '9+\.\.\. with 5000 char"),
        ("image,label\n\n", "lists no images"),
        ("", "lists no images"),
    ],
)
def test_faults_name_their_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_table(table(tmp_path, text), "image", ["label"])


def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"image,label\n1.png,a\n2.png,caf\xe9\n")
    with pytest.raises(DataError, match=r"line 3, is not UTF-8: it has the byte 0xe9. Save the table as CSV in UTF-8"):
        read_rows(tmp_path / "list.csv")
    with pytest.raises(DataError, match=r"list\.xlsx does not end in \.csv, \.tsv or \.jsonl. Export"):
        read_rows(table(tmp_path, "", "list.xlsx"))


def test_one_spelling_of_each_class(tmp_path: Path) -> None:
    cafe = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    found = column(tmp_path, [*cafe, "cat", "cat ", " cat"])
    assert found.names == ("café" if cafe[0] == "café" else cafe[0], "cat") == (cafe[0], "cat")
    assert found.targets.tolist() == [1, 1, 0, 0, 0] or found.targets.tolist() == [0, 0, 1, 1, 1]


def test_what_cannot_be_seen_is_no_edge_of_a_name(tmp_path: Path) -> None:
    assert column(tmp_path, ["cat", "cat\u200b", "\ufeffcat", "\u2060cat\u00a0", "dog"]).names == ("cat", "dog")


@pytest.mark.parametrize("twin", ["Cat", "c\u200bat", "\uff43at"])
def test_names_that_look_alike_are_pointed_out(tmp_path: Path, twin: str) -> None:
    found = column(tmp_path, ["cat", twin] * 3)
    first, second = map(ascii, found.names)
    assert f"{first} and {second} look alike and are two classes" in _summary(found)
    assert "look alike" not in _summary(column(tmp_path, ["cat", "cut"] * 3))


def test_a_decimal_comma(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has '1,5', which .* or write numbers with a point, as in 1\.5\.$"):
        column(tmp_path, ["1,5", "2,25", "3,5", "2,5"])
    with pytest.raises(DataError, match=r"if it is the name of a class\.$"):
        column(tmp_path, ["red,green", "green", "red", "green,red"])


def test_the_order_of_classes_is_total(tmp_path: Path) -> None:
    wanted = ("007", "07", "7", "08", "8", "10", "-3", "1.5", "B", "a", "ä", "٣")
    assert column(tmp_path, list(wanted) * 2, problem=SINGLE_LABEL).names == wanted
    assert column(tmp_path, list(wanted[::-1]) * 2, problem=SINGLE_LABEL).names == wanted


@pytest.mark.parametrize("value", ["", "nan", "NaN", "None", "null", "NA", "<NA>", "-1"])
def test_missing_labels(tmp_path: Path, value: str) -> None:
    labels = ["0", "1", "2", value] * 3 if value == "-1" else ["a", "b", value] * 3
    with pytest.raises(DataError, match=r"3 of \d+ labels of .* are missing: line \d, column 'label'.*_labels skip"):
        column(tmp_path, labels)
    found = column(tmp_path, labels, missing="skip")
    assert (len(found), value in found.names, len(found.skipped)) == (len(labels) - 3, False, 3)
    if value:
        assert value in column(tmp_path, labels, missing="keep").names
    else:
        with pytest.raises(DataError, match="3 of 9 labels"):
            column(tmp_path, labels, missing="keep")


def test_minus_one_can_be_a_class_and_a_number(tmp_path: Path) -> None:
    assert column(tmp_path, ["-1", "1"] * 3).names == ("1", "-1")
    assert column(tmp_path, ["-1", "0", "1", "2"], problem=REGRESSION).targets[0] == -1


def test_a_hidden_test_part_has_no_score(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 2 images of .* has a label \(line 2, .* leave out a part whose"):
        column(tmp_path, ["-1", "-1"], problem=SINGLE_LABEL, names=("0", "1"))


@pytest.mark.parametrize("value", ["inf", "-inf", "Infinity", "n.a.", "3,5", "1e39", "1_000", "9" * 5000, "٣"])
def test_what_is_no_number_is_refused_with_its_cell(tmp_path: Path, value: str) -> None:
    for labels in ([value, "1.5", "2", "2.5"], ["1.5", "2", "2.5", value]):
        line = 2 + labels.index(value)
        with pytest.raises(DataError, match=f"line {line}, column 'label', has "):
            column(tmp_path, labels)
        with pytest.raises(DataError, match=f"line {line}, column 'label', has .* a number up to 3.4e38"):
            column(tmp_path, labels, problem=REGRESSION)


def test_numbers_of_json_stay_as_they_are_written(tmp_path: Path) -> None:
    lines = ['{"image": "1.png", "label": 1.50}', '{"image": "2.png", "label": ' + "9" * 5000 + "}"]
    rows = read_rows(table(tmp_path, "\n".join(lines), "list.jsonl"))
    assert [row.values["label"] for row in rows] == ["1.50", "9" * 5000]


AGES = [str(20 + i) for i in range(26)] + ["20", "27", "33", "41"]


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        (["0", "1", "2"] * 4, SINGLE_LABEL),
        ([str(i) for i in range(100)] * 4, SINGLE_LABEL),
        (["001", "002", "015", "033", "034", "035", "036", "041", "042", "051", "061"], SINGLE_LABEL),
        (["1.5", "2.0", "3.25"], REGRESSION),
        (["a", "b"] * 3, SINGLE_LABEL),
        (["red, big", "blue"] * 3, SINGLE_LABEL),
        (["1.5", "other", "beta"] * 3, SINGLE_LABEL),
    ],
)
def test_what_is_clear_is_recognized(tmp_path: Path, labels: list[str], problem: str) -> None:
    found = column(tmp_path, labels)
    assert found.problem == problem and f"holds {LABEL_NOUNS[problem]}: " in found.read_as


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (AGES, r"26 different whole numbers for 30 images. Give --problem \w+ to predict them as values"),
        ([str(3 * i) for i in range(20)] * 30, "20 different whole numbers for 600 images"),
        (
            [*AGES, "unknown"],
            "most values of column 'label' .* are numbers, but line 32, column 'label', has 'unknown'",
        ),
        (["farm;green", "farm", "green"] * 3, r"line 2.*'farm;green', which can be one class or several labels. Give"),
        (['["farm", "green"]', '["farm"]'] * 3, r"line 2.*which looks like a list. Write several labels with ';'"),
        (["farm,green", "farm", "green"] * 3, r"'farm,green', which can be one class or several"),
        (["a|b", "b|c", "d"] * 3, r"'a|b', which can be"),
        ([f"a photo of {i} cats" for i in range(30)], "30 different texts for 30 images, such as line 2"),
    ],
)
def test_what_is_not_clear_is_asked(tmp_path: Path, labels: list[str], words: str) -> None:
    with pytest.raises(DataError, match=words):
        column(tmp_path, labels)
    assert len(column(tmp_path, labels, problem=SINGLE_LABEL).names) == len(set(labels))


@pytest.mark.parametrize("sign", [";", ",", "|"])
def test_several_labels_in_a_cell(tmp_path: Path, sign: str) -> None:
    found = column(
        tmp_path, [f"farm{sign} green{sign}", "green", "", f"water{sign}farm{sign}water"], problem=MULTI_LABEL
    )
    assert found.names == ("farm", "green", "water") and found.separator == sign
    assert found.targets.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_separators_that_are_not_clear_are_asked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"have ';' and ',' in them. Say what separates labels, such as --label_separ"):
        column(tmp_path, ["a;b", "a,c", "b"], problem=MULTI_LABEL)
    with pytest.raises(DataError, match="have ' ' in them"):
        column(tmp_path, ["haze primary", "clear primary"], problem=MULTI_LABEL)
    assert column(tmp_path, ["haze primary", "clear primary"], problem=MULTI_LABEL, separator=" ").targets.sum() == 4
    assert column(tmp_path, ["golden retriever", "pug"], problem=MULTI_LABEL).names == ("golden retriever", "pug")


def columns(folder: Path, rows: list[str], names: str = "rust;scab;fine", **reading: object) -> ImageSet:
    lines = [f"image;{names}", *(f"{i}.png;{row}" for i, row in enumerate(rows))]
    return read_table(table(folder, "\n".join(lines)), "image", names.split(";"), Reading(**reading))


def test_columns_of_zeros_and_ones(tmp_path: Path) -> None:
    found = columns(tmp_path, ["1;0;0", "0;1.0;0", "0;0;True"])
    assert (found.problem, found.names, found.targets.tolist()) == (SINGLE_LABEL, ("rust", "scab", "fine"), [0, 1, 2])
    found = columns(tmp_path, ["1;0;0", "0;1;1", "0;0;0"])
    assert (found.problem, found.targets.tolist()) == (MULTI_LABEL, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    assert columns(tmp_path, ["1;0;0", "0;1;0"], problem=MULTI_LABEL).problem == MULTI_LABEL
    found = columns(tmp_path, ["1.5;2;3", "0;1;-2"], problem=REGRESSION)
    assert found.targets.tolist() == [[1.5, 2, 3], [0, 1, -2]]


@pytest.mark.parametrize(
    ("rows", "problem", "words"),
    [
        (["1;0;0", "0;;1"], "auto", "line 3, column 'scab', is empty"),
        (
            ["1;0;0", "0;0.5;1"],
            "auto",
            "line 3, column 'scab', has '0.5'. With several --label_column each cell must be 0",
        ),
        (["1;0;0"] * 30 + ["0;1;1"], "auto", "line 32, has 2 columns with 1, but nearly all others have one"),
        (["1;0;0", "0;0;0"], SINGLE_LABEL, "line 3, has 0 columns with 1. Expected exactly one"),
    ],
)
def test_faults_of_columns(tmp_path: Path, rows: list[str], problem: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        columns(tmp_path, rows, problem=problem)


@pytest.mark.parametrize("value", [[0, 1], [1, 0], [0.2, 0.8]])
def test_vectors_are_no_lists_of_names(tmp_path: Path, value: list[float]) -> None:
    lines = [json.dumps({"image": "1.png", "label": value}), json.dumps({"image": "2.png", "label": value[::-1]})]
    with pytest.raises(DataError, match=r"a vector. A list holds the names of an image's labels"):
        read_table(table(tmp_path, "\n".join(lines), "list.jsonl"), "image", ["label"])


def test_names_of_files_in_any_form_of_unicode(tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize("NFD", "café.png")).write_bytes(b"here")
    text = unicodedata.normalize("NFC", "image,label\ncafé.png,a\nother.png,b\n")
    assert read_table(table(tmp_path, text), "image", ["label"]).pictures[0].read().read_bytes() == b"here"


def test_ids_without_the_ending_of_their_file(tmp_path: Path) -> None:
    """As in tables of competitions. An id with two files is not guessed."""
    for name in ("0.jpg", "1.5.png", "2.jpg", "2.png"):
        (tmp_path / name).write_bytes(name.encode())
    pictures = read_table(table(tmp_path, "image,label\n0,a\n1.5,b\n2,a\n"), "image", ["label"]).pictures
    assert [picture.read().read_bytes() for picture in pictures[:2]] == [b"0.jpg", b"1.5.png"]
    assert pictures[2].read() == tmp_path / "2"
