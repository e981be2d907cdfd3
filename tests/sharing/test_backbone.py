"""A backbone that cannot be had is refused at once, with what was looked for."""

import time
from collections.abc import Iterator

import huggingface_hub
import pytest
import torch
from transformers import ViTConfig, ViTModel

from gated_prompt import GatedPromptError
from gated_prompt.finetune.methods import build_model
from gated_prompt.finetune.shared_arguments import PromptArguments
from gated_prompt.sharing.backbone import check_backbone, image_settings, load_backbone
from helpers.hub_stand_in import HubStandIn


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """The Hub's address leads to a port where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    "load",
    [
        check_backbone,
        image_settings,
        load_backbone,
        lambda name: build_model(name, "gated", PromptArguments(), ["a", "b"]),
    ],
)
def test_without_a_network_it_fails_within_seconds(no_network, load) -> None:
    begin = time.perf_counter()
    with pytest.raises(GatedPromptError, match=r"cannot load --backbone 'no/such-model'. .*no such folder.*the Hub: "):
        load("no/such-model")
    assert time.perf_counter() - begin < 5  # transformers alone: 23 to 46


@pytest.mark.parametrize(
    ("name", "words"),
    [("data/backbones/mae", "no Hub id looks like that"), ("a name", "no Hub id looks like that")],
)
def test_names_that_are_none(no_network, name: str, words: str) -> None:
    with pytest.raises(GatedPromptError, match=words):
        check_backbone(name)


@pytest.fixture
def new_sessions() -> Iterator[None]:
    """huggingface_hub before 1.0 keeps sessions, with the setting that they were made under."""
    reset = getattr(huggingface_hub.utils, "reset_sessions", lambda: None)
    reset()
    yield
    reset()


def test_offline_by_setting(monkeypatch, new_sessions) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(GatedPromptError, match="offline mode is enabled"):
        check_backbone("no/such-model")


def test_folders_and_what_the_hub_has_are_fine(no_network, monkeypatch, tmp_path) -> None:
    folder = tmp_path / "vit"
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ViTModel(config).save_pretrained(folder)
    check_backbone(str(folder))
    with HubStandIn() as hub:
        hub.add("someone/tiny-vit", folder)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        check_backbone("someone/tiny-vit")
        with pytest.raises(GatedPromptError, match="no such model on the Hub for you"):
            check_backbone("someone/other-vit")
