"""Settings are checked together, and survive JSON, copies and pickling."""

import copy
import json
import pickle
from dataclasses import dataclass

import pytest
from peft import PeftConfig, TaskType, get_peft_model

import gated_prompt
from gated_prompt import (
    AdapterNameError,
    ConfigError,
    GatedPromptConfig,
    GatedPromptError,
    UnsupportedOperationError,
)
from helpers.models import dinov2, vit


def test_defaults_are_the_contract() -> None:
    config = GatedPromptConfig()
    found = {k: v for k, v in config.to_dict().items() if k not in PeftConfig().to_dict()}
    assert found == {
        "num_virtual_tokens": 50,
        "insert_at": 0,
        "read_from": None,
        "deep": False,
        "zero_start": False,
        "gates": True,
        "gate_init": -5.0,
        "gated_blocks": None,
        "hard_gates": False,
        "temperature": True,
        "temperature_init": 1.0,
        "temperature_range": (0.01, 10.0),
        "prompt_dropout": 0.1,
        "prompt_rank": None,
        "pooling": None,
        "eval_backbone": True,
        "modules_to_save": None,
        "target_modules": None,
        "num_prefix_tokens": None,
        "num_layers": None,
        "hidden_size": None,
        "num_heads": None,
        "detected_prefix_tokens": None,
        "weights_sha256": None,
    }
    assert config.peft_type == "GATED_PROMPT"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0. Expected at least 1"),
        ({"num_virtual_tokens": "8"}, "num_virtual_tokens is '8'. Expected an integer"),
        ({"num_virtual_tokens": True}, "num_virtual_tokens is True. Expected an integer"),
        ({"prompt_rank": 0}, "prompt_rank is 0. Expected 1 to num_virtual_tokens, 50"),
        ({"prompt_rank": 51}, "prompt_rank is 51. Expected 1 to num_virtual_tokens, 50"),
        ({"prompt_rank": True}, "prompt_rank is True. Expected None or an integer"),
        ({"hard_gates": 1}, "hard_gates is 1. Expected True or False"),
        ({"hard_gates": True, "deep": True}, "hard_gates=True needs gates"),
        ({"hard_gates": True, "gates": False}, "hard_gates=True needs gates"),
        ({"insert_at": -1}, "insert_at is -1"),
        ({"read_from": -1}, "read_from is -1. Expected at least insert_at=0"),
        ({"read_from": 2, "insert_at": 3}, "read_from is 2. Expected at least insert_at=3"),
        ({"read_from": True}, "read_from is True. Expected None or an integer"),
        ({"read_from": 2, "gated_blocks": [1, 3]}, "gated_blocks [3] lie above read_from=2"),
        ({"deep": 1}, "deep is 1. Expected True or False"),
        ({"deep": True, "gated_blocks": [1]}, "deep=True has no gates"),
        ({"gates": False, "gated_blocks": [1]}, "gates=False contradicts gated_blocks"),
        ({"gated_blocks": []}, "gated_blocks is empty"),
        ({"gated_blocks": [2, 1]}, "ascending order"),
        ({"gated_blocks": [1, 1]}, "each block once"),
        ({"gated_blocks": [0, 1, 3], "insert_at": 2}, "gated_blocks [0, 1] lie below insert_at=2"),
        ({"gated_blocks": [0.5]}, "a list of at most 1000 integers below"),
        ({"gate_init": float("nan")}, "gate_init is nan"),
        ({"gate_init": "-5"}, "gate_init is '-5'. Expected a number"),
        ({"temperature_init": 0.0, "temperature": False}, "temperature_init is 0.0"),
        ({"temperature_init": 20.0}, "outside temperature_range (0.01, 10.0)"),
        ({"temperature_range": (10.0, 0.01)}, "0 < low < high"),
        ({"temperature_range": (0.0, 1.0)}, "0 < low < high"),
        ({"temperature_range": 3}, "a pair of numbers"),
        ({"temperature_range": (0.1, 1, 2)}, "a pair of numbers"),
        ({"prompt_dropout": 1.0}, "Expected a number in [0, 1)"),
        ({"prompt_dropout": -0.1}, "Expected a number in [0, 1)"),
        ({"pooling": "cls"}, "pooling is 'cls'. Expected None or one of 'prompts', 'patches', 'prompts_and_patches'"),
        ({"modules_to_save": "classifier"}, "None or a list of at most 1000 strings"),
        ({"target_modules": ["layers"]}, "None or a string"),
        ({"num_prefix_tokens": -2}, "num_prefix_tokens is -2"),
    ],
)
def test_each_fault_is_named(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        GatedPromptConfig(**settings)
    assert words in str(caught.value)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        GatedPromptConfig(num_virtual_tokens=0, pooling="max", temperature_range=(2.0, 1.0), prompt_dropout=2.0)
    assert len(caught.value.faults) == 4
    assert isinstance(caught.value, GatedPromptError)
    assert isinstance(caught.value, ValueError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"insert_at": 4}, "insert_at is 4. The last block of this ViTForImageClassification is 3"),
        ({"read_from": 4}, "read_from is 4. The last block of this ViTForImageClassification is 3"),
        ({"read_from": 1, "modules_to_save": ["2.layernorm_before"]}, "in a block that read_from=1 skips"),
        ({"gated_blocks": [0, 4]}, "gated_blocks [4] exceed the last block, 3"),
        ({"prompt_rank": 33}, "prompt_rank is 33. Expected at most 32, the width of this ViTForImageClassification"),
        ({"modules_to_save": ["pooler"]}, "modules_to_save names 'pooler'"),
    ],
)
def test_faults_that_depend_on_the_base_leave_it_alone(settings: dict, words: str) -> None:
    base = vit()
    before = set(base.state_dict())
    with pytest.raises(ConfigError) as caught:
        get_peft_model(base, GatedPromptConfig(**settings))
    assert words in str(caught.value)
    assert set(base.state_dict()) == before
    get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2))  # still usable


def test_last_block_can_be_first() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2, insert_at=3))
    names = {n.split("gated_prompt.")[1] for n, _ in model.named_parameters() if "gated_prompt." in n}
    assert names == {"gated_prompt_tokens.default", "gated_prompt_temperatures.default"}


def test_json_round_trip(tmp_path) -> None:
    config = GatedPromptConfig(num_virtual_tokens=7, gated_blocks=[1, 3], temperature_range=(0.5, 2.0), insert_at=1)
    config.save_pretrained(tmp_path)
    assert GatedPromptConfig.from_pretrained(tmp_path) == config
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_unknown_fields_of_a_later_version_are_ignored_with_a_warning(tmp_path) -> None:
    GatedPromptConfig(num_virtual_tokens=7).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "invented_later": 1}))
    with pytest.warns(UserWarning, match="invented_later"):
        assert GatedPromptConfig.from_pretrained(tmp_path).num_virtual_tokens == 7


def test_one_config_serves_several_bases() -> None:
    config = GatedPromptConfig(num_virtual_tokens=3)
    first = get_peft_model(vit(), config).peft_config["default"]
    second = get_peft_model(dinov2(num_hidden_layers=3, num_labels=3), config).peft_config["default"]
    assert first is config, "PEFT keeps the object"
    assert second is not config, "values recorded in it belong to the first base"
    assert (first.num_layers, second.num_layers) == (4, 3)
    assert first.modules_to_save == second.modules_to_save == ["classifier"]


def test_a_config_is_as_before_if_the_adapter_is_refused() -> None:
    config = GatedPromptConfig(insert_at=7)
    before = copy.deepcopy(vars(config))
    with pytest.raises(ConfigError, match=r"insert_at is 7. The last block"):
        get_peft_model(vit(), config)
    assert vars(config) == before


def test_a_new_field_is_one_edit(tmp_path) -> None:
    """Its annotation alone makes a new field type-checked and saved as JSON."""

    @dataclass
    class Later(GatedPromptConfig):
        width: int | None = None
        pair: tuple[int, float] = (1, 2.0)
        names: list[str] | None = None

    config = Later(pair=[1, 2], names={"b", "a"})
    assert (config.pair, config.names) == ((1, 2), ["a", "b"])
    with pytest.raises(ConfigError) as caught:
        Later(width="x", pair=(1, "2"), names=["a", 3], deep=None)
    assert len(caught.value.faults) == 4
    config = Later(width=3, names=["a"])
    assert Later(**json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS", TaskType.FEATURE_EXTRACTION])
def test_task_types_are_refused_and_leave_the_base_alone(task) -> None:
    base = vit()
    keys, hooks = set(base.state_dict()), sum(len(m._forward_hooks) for m in base.modules())
    with pytest.raises(ConfigError, match=r"task_type is .*. Use None"):
        get_peft_model(base, GatedPromptConfig(task_type=task))
    config = GatedPromptConfig()
    config.task_type = task  # after it was checked
    with pytest.raises(ConfigError, match=r"task_type is .*. Use None"):
        get_peft_model(base, config)
    assert set(base.state_dict()) == keys and sum(len(m._forward_hooks) for m in base.modules()) == hooks
    get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2))


NO_FOLDERS = ["a/b", "/tmp/a", "a\\b", "C:\\a", "..", ".", "../a", "a:b", "a*", 'a"b', "a|b", "a?", "a<b", " a", "a "]
NO_FOLDERS += ["a\0b", "a\nb", "\x7f", "\ud800", "x" * 201, "é" * 101]


@pytest.mark.parametrize("name", NO_FOLDERS)
def test_names_that_cannot_be_a_folder_are_refused(tmp_path, monkeypatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    base = vit()
    keys = set(base.state_dict())
    with pytest.raises(AdapterNameError, match="cannot be used"):
        get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2), adapter_name=name)
    assert set(base.state_dict()) == keys
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=2))
    with pytest.raises(AdapterNameError, match="cannot be used"):
        model.add_adapter(name, GatedPromptConfig(num_virtual_tokens=2))
    assert list(model.peft_config) == ["default"] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pets", "My pets (2)", "Hühner", "鶏", "a-b_c+d=e", "x" * 200])
def test_names_that_are_a_folder(tmp_path, name: str) -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2), adapter_name=name)
    gated_prompt.save(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert gated_prompt.load(vit(), tmp_path / name).peft_config["default"].num_virtual_tokens == 2


def test_weighted_adapters_are_refused() -> None:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=2))
    with pytest.raises(UnsupportedOperationError, match="add_weighted_adapter is not defined"):
        model.add_weighted_adapter(["default"], [1.0], "mean")
