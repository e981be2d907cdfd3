"""The file of predictions: what it keeps, what is asked again, and names that are odd."""

import csv
import json
from pathlib import Path

import pytest

from gated_prompt import GatedPromptError
from gated_prompt.finetune.predictions import PredictionFile, content_of

WEIGHTS = {"a": "0" * 12}
ODD = ["one\u2028two.png", "form\x0cfeed.png", "line\nend.png", "a\rb.png", "caf\\xe9.png", 'quo"te,.png', "\x85.png"]
both = pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])


def answer(image: str, content: str = "1", **more: object) -> dict[str, object]:
    return {"image": image, "content": content, "adapter": "a", "classes": ["x\ny"], "scores": [0.5], **more}


def failure(image: str, why: str = "is cut", content: str = "1") -> dict[str, object]:
    return {"image": image, "content": content, "adapter": "a", "error": why}


@both
def test_odd_names_are_found_again(tmp_path: Path, name: str) -> None:
    PredictionFile(tmp_path / name, 1, WEIGHTS).add(map(answer, ODD))
    before = (tmp_path / name).read_bytes()
    again = PredictionFile(tmp_path / name, 1, WEIGHTS)
    assert again.images == set(ODD) and all(again.has(image, "a", "1") for image in ODD)
    assert (tmp_path / name).read_bytes() == before


@both
def test_a_file_that_was_cut_anywhere_keeps_its_whole_rows(tmp_path: Path, name: str) -> None:
    PredictionFile(tmp_path / name, 1, WEIGHTS).add(map(answer, ODD))
    content = (tmp_path / name).read_bytes()
    header = content.index(b"\n") + 1
    for end in range(header, len(content), 3):
        (tmp_path / name).write_bytes(content[:end])
        output = PredictionFile(tmp_path / name, 1, WEIGHTS)
        kept = [image for image in ODD if output.has(image, "a", "1")]
        assert kept == ODD[: len(kept)] and len(kept) >= len(ODD) * (end - header) // len(content) - 2
        output.add(map(answer, ODD[len(kept) :]))
        assert (tmp_path / name).read_bytes() == content


@both
def test_other_content_other_weights_and_errors_are_asked_again(tmp_path: Path, name: str) -> None:
    output = PredictionFile(tmp_path / name, 1, WEIGHTS)
    output.add([answer("good"), answer("replaced", "1"), failure("repaired"), failure("broken")])
    again = PredictionFile(tmp_path / name, 1, WEIGHTS)
    assert again.has("good", "a", "1") and not again.has("replaced", "a", "2") and not again.has("broken", "a", "1")
    assert not PredictionFile(tmp_path / name, 1, {"a": "f" * 12}).has("good", "a", "1")
    before = (tmp_path / name).read_bytes()
    again.add([failure("broken")])  # the same error is not repeated, another one is
    assert (tmp_path / name).read_bytes() == before
    again.add([answer("replaced", "2"), answer("repaired", "2"), failure("broken", "is missing")])
    text = (tmp_path / name).read_text()
    rows = list(csv.DictReader(text.splitlines())) if name.endswith("csv") else [*map(json.loads, text.splitlines())]
    last = {row["image"]: row.get("error") or row["content"] for row in rows if row["image"]}
    assert {k: last[k] for k in ("replaced", "repaired", "broken")} == {
        "replaced": "2",
        "repaired": "2",
        "broken": "is missing",
    }


@both
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    for text in ("a,b\n1,2\n", '{"image": 3}\n', "no line end"):
        (tmp_path / name).write_text(text)
        with pytest.raises(GatedPromptError, match="holds something other than predictions"):
            PredictionFile(tmp_path / name, 1, WEIGHTS)
        assert (tmp_path / name).read_text() == text


def test_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert len(content_of(tmp_path / "a")) == 12 and content_of(tmp_path / "a") != content_of(tmp_path / "b")
    assert content_of(tmp_path / "missing") == ""
