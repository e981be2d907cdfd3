"""Whoever names a base, its classes or a data set must not write into the card's code, YAML or Markdown."""

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig, GatedPromptError, model_card
from gated_prompt.sharing.quoting import code_span, line, markdown, plain, python
from helpers.models import vit

HOSTILE = {
    "call": 'vit"); __import__("os").system("id") #',
    "other-call": "vit'); __import__('os').system('id') #",
    "backslashes": 'a\\"; b = 1 # \\',
    "newline": "a\n__import__('os')\n",
    "separators": "a\rb\x0bc\x85d\u2028e\u2029f",
    "fence": "a\n```\n\n```python\n__import__('os')\n```\n",
    "spans": "`a` ``b`` `",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>&lt;",
    "link": "](https://example.com) [x](javascript:alert(1)) ![y](z)",
    "yaml": "a: b\n---\nlicense: mit\n- c # d",
    "yaml-types": "null",
    "yaml-tag": "!!python/object/apply:os.system [id]",
    "surrogate": "a\ud800b\udfffc",
    "controls": "a\x00b\x1b[31mc\x7f",
    "bidi": "a\u202eb\u2066c",
    "format": "{base} %s {0!r}",
    "braces": "'''\"\"\"",
    "unicode": "Hühner 鶏 🐔",
    "table": "a | b |---|",
    "heading": "# a\n## b",
    "long": "x" * 3000 + "'",
}
CALLS = {
    *("ViTForImageClassification.from_pretrained", "PeftModel.from_pretrained", "AutoImageProcessor.from_pretrained"),
    *("PeftModel.from_pretrained(base, 'path/or/hub-id/of/this/adapter').eval", "processor", "model", "print"),
    *("ImageOps.exif_transpose(Image.open('photo.jpg')).convert", "ImageOps.exif_transpose", "Image.open"),
    *("torch.no_grad", "logits.argmax"),
}


def code_of(card: ModelCard) -> str:
    """The first block of Python, as Markdown bounds it."""
    blocks = re.findall(r"^```python\n(.*?)^```$", card.text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    return blocks[0]


def check(card: ModelCard, folder: Path) -> dict:
    """The parts parse, and hold nothing but what a card holds; the metadata."""
    tree = ast.parse(code_of(card))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert calls <= CALLS, calls - CALLS
    assert {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names} <= {
        "gated_prompt",
        "torch",
    }
    metadata = yaml.safe_load(card.content.split("\n---\n")[0].removeprefix("---\n"))
    assert set(metadata) <= {
        *(
            "base_model",
            "datasets",
            "library_name",
            "license",
            "metrics",
            "model-index",
            "model_name",
            "pipeline_tag",
            "tags",
        ),
    }
    assert [row for row in card.text.splitlines() if row.startswith("## ")] == [
        "## What the prompts have learned",
        "## Citation",
    ]
    text = re.sub(r"^```.*?^```$", "", card.text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(?<![\\`])(`+)(?!`).*?(?<!`)\1(?!`)", "", text)  # code spans
    assert not re.search(r"(?<!\\)<\w", text)  # no element of HTML
    for link in re.findall(r"(?<![!\\])\[[^\]]*(?<!\\)\]\((.*?)\)", text):
        assert link.startswith(("https://huggingface.co/", "https://arxiv.org/"))
    assert len(re.findall(r"(?<!\\)!\[", text)) == text.count("![Gates and temperatures by block]")
    path = gated_prompt.write_card(folder, card)
    loaded = ModelCard.load(path)
    assert loaded.content == card.content and loaded.data.to_dict() == card.data.to_dict()
    return metadata


@pytest.mark.parametrize("name", HOSTILE)
def test_each_field_of_a_card(tmp_path: Path, name: str) -> None:
    value = HOSTILE[name]
    model = get_peft_model(vit(num_labels=2), GatedPromptConfig(num_virtual_tokens=2))
    model.peft_config["default"].base_model_name_or_path = value
    check(model_card(model), tmp_path)
    check(model_card(model, base_model=value, repo_id=value), tmp_path)
    card = model_card(model, labels=[value, "dog"])
    check(card, tmp_path)
    names = next(node for node in ast.parse(code_of(card)).body if isinstance(node, ast.Assign))
    values = [node.value for node in ast.parse(code_of(card)).body if isinstance(node, ast.Assign)]
    assert names and [value, "dog"] in [ast.literal_eval(v) for v in values if isinstance(v, ast.List)]
    metrics = {"accuracy": 0.5, value: 0.25}
    card = model_card(model, dataset=value, split=value, metrics=metrics, license=value, task=value)
    metadata = check(card, tmp_path)
    result = metadata["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == result["dataset"]["split"] == metadata["license"] == line(value)
    assert metadata["pipeline_tag"] == line(value) and metadata["metrics"] == ["accuracy", line(value)]
    card = model_card(model, picture=value)
    check(card, tmp_path)
    address = re.search(r"^!\[Gates and temperatures by block\]\((.*)\)$", card.text, re.MULTILINE)[1]
    assert unquote(address) == value.encode(errors="replace").decode() and re.fullmatch(r"[!-'*-~]*", address)


@pytest.mark.filterwarnings("ignore")  # PEFT's repeat the name, and what pytest reports has to be UTF-8
@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_a_loaded_adapter_or_base_brings(tmp_path: Path, name: str) -> None:
    """The whole way: saved with such names, loaded, saved again with a card."""
    base = vit(num_labels=2, id2label={0: HOSTILE[name], 1: "dog"}, label2id={})
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2))
    model.peft_config["default"].base_model_name_or_path = HOSTILE[name]
    gated_prompt.save(model, tmp_path / "a")
    loaded = gated_prompt.load(vit(num_labels=2, id2label={0: HOSTILE[name], 1: "dog"}), tmp_path / "a")
    assert loaded.peft_config["default"].base_model_name_or_path == HOSTILE[name]
    gated_prompt.save(loaded, tmp_path / "b")
    check(ModelCard.load(tmp_path / "b" / "README.md"), tmp_path / "b")


def test_notes_are_markdown_of_the_user_that_can_be_stored(tmp_path: Path) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2))
    card = model_card(model, notes="## Mine\n\n`code` \ud800")
    assert "## Mine\n\n`code` ?" in ModelCard.load(gated_prompt.write_card(tmp_path, card)).text


def test_a_metric_that_is_no_number_is_refused() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2))
    with pytest.raises(GatedPromptError, match=r"finite numbers, not accuracy=0\.5"):
        model_card(model, dataset="birds", split="test", metrics={"accuracy": "0.5"})


@pytest.mark.parametrize("value", HOSTILE.values(), ids=list(HOSTILE))
def test_quoting(value: str) -> None:
    assert ast.literal_eval(python(value)) == value and len(python(value).splitlines()) == 1
    assert line(value).isprintable() and line(value).encode()
    assert plain(markdown(value)) == line(value)
    fence = re.match("`+", code_span(value))[0]
    inside = code_span(value)[len(fence) : -len(fence)]
    assert fence not in re.findall("`+", inside) and inside.strip() == line(value)


PROBLEMS = {
    "regression": ({"num_labels": 1, "id2label": {0: "age"}}, "print(dict(zip(names, logits.tolist())))"),
    "named-regression": ({"problem_type": "regression", "num_labels": 2, "id2label": {0: "x", 1: "y"}}, "tolist()"),
    "unnamed-regression": ({"num_labels": 1}, "print(logits.tolist())"),
    "several": (
        {"problem_type": "multi_label_classification", "num_labels": 2, "id2label": {0: "sea", 1: "sun"}},
        "print([name for name, p in zip(names, logits.sigmoid()) if p > 0.5])",
    ),
    "one": ({"num_labels": 2, "id2label": {0: "cat", 1: "dog"}}, "print(names[logits.argmax()])"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_code_answers_what_the_head_was_trained_for(name: str) -> None:
    settings, answer = PROBLEMS[name]
    card = model_card(get_peft_model(vit(**settings), GatedPromptConfig(num_virtual_tokens=2)), base_model="me/vit")
    ast.parse(code_of(card))
    assert answer in code_of(card) and ("argmax" in code_of(card)) == (name == "one")
