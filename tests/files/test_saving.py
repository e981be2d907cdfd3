"""Killed while it saves, a process leaves the old adapter or the new one, never a mixture that is taken as whole."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import gated_prompt
from gated_prompt import DamagedAdapterError, GatedPromptConfig, GatedPromptError, UnsupportedOperationError
from helpers.models import bank_of, images, vit

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENS = "base_model.model.gated_prompt.gated_prompt_tokens"
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}  # Python's names; os.replace is a rename too

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process. This system has no fork")


def make(value: float, **settings: object) -> PeftModel:
    """An adapter with equal shapes for all settings given here: only the fingerprint tells their files apart."""
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, **settings)).eval()
    bank_of(model).gated_prompt_tokens["default"].data.fill_(value)
    return model


@pytest.fixture(scope="module")
def old() -> PeftModel:
    return make(1.0)


@pytest.fixture(scope="module")
def new() -> PeftModel:
    return make(2.0, pooling="patches")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def killed_at(step: int, save, model: PeftModel, folder: Path) -> bool:
    """Save in a child that is killed before its `step`-th operation on files; False when it came to its end."""
    child = os.fork()
    if child == 0:
        left = [step]

        def watch(event: str, arguments: tuple) -> None:
            if event in OPERATIONS and any(isinstance(a, (str, Path)) and str(folder) in str(a) for a in arguments):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            save(model, folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def state(folder: Path) -> str:
    """What a reader gets: old, new, a refusal; anything else fails."""
    try:
        config = GatedPromptConfig.from_pretrained(folder)
    except (GatedPromptError, ValueError) as error:
        return f"refused: {error}"
    if config.weights_file.path is None:
        return "refused: no weights"
    pair = float(load_file(folder / WEIGHTS)[TOKENS].mean()), config.pooling
    return {(1.0, None): "old", (2.0, "patches"): "new"}[pair]


def states_of_all_kills(save, old: PeftModel | None, new: PeftModel, root: Path) -> list[str]:
    states = []
    for step in range(200):
        folder = root / str(step)
        folder.mkdir()
        if old is not None:
            save(old, folder)
        killed = killed_at(step, save, new, folder)
        states.append(state(folder))
        if not killed:
            return states
        save(new, folder)  # after a kill, saving again puts everything right and leaves nothing behind
        assert state(folder) == "new" and sorted(files(folder)) == ["README.md", CONFIG, WEIGHTS]
    raise AssertionError("the child never came to its end")


@needs_fork
def test_save_killed_anywhere_leaves_old_or_new(tmp_path, monkeypatch, old, new) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("gated_prompt.files.adapter_file.SETTLING", 0.0)
    states = states_of_all_kills(gated_prompt.save, old, new, tmp_path)
    first = states.index("new")
    assert len(states) > 10 and first > 0
    assert set(states[:first]) == {"old"} and set(states[first:]) == {"new"}
    # The kill between the weights and the config is among them: the pending config is taken.
    pending = [i for i in range(len(states)) if (tmp_path / str(i) / CONFIG).exists()]
    assert len(pending) == len(states)


@needs_fork
def test_first_save_killed_anywhere_leaves_nothing_or_new(tmp_path, monkeypatch, new) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("gated_prompt.files.adapter_file.SETTLING", 0.0)
    states = states_of_all_kills(gated_prompt.save, None, new, tmp_path)
    first = states.index("new")
    assert first > 0 and all(s.startswith("refused") for s in states[:first]) and set(states[first:]) == {"new"}


@needs_fork
def test_plain_save_killed_anywhere_leaves_old_or_new_or_a_pair_that_is_refused(
    tmp_path, monkeypatch, old, new
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("gated_prompt.files.adapter_file.SETTLING", 0.0)
    states = states_of_all_kills(PeftModel.save_pretrained, old, new, tmp_path)
    refused = [s for s in states if s not in ("old", "new")]
    assert states[0] == "old" and states[-1] == "new"
    assert refused and all("was not saved with its" in s or "not a readable" in s for s in refused)


def test_between_weights_and_config(tmp_path, old, new) -> None:
    """The state after the second of three renames, written by hand, through both loaders."""
    gated_prompt.save(old, tmp_path / "a")
    gated_prompt.save(new, tmp_path / "b")
    (tmp_path / "b" / WEIGHTS).replace(tmp_path / "a" / WEIGHTS)
    with pytest.raises(DamagedAdapterError, match="A save was interrupted or files were mixed"):
        PeftModel.from_pretrained(vit(), tmp_path / "a")
    (tmp_path / "b" / CONFIG).replace(tmp_path / "a" / "adapter_config.pending.json")
    with torch.no_grad():
        wanted = new(images()).logits
        for load in (gated_prompt.load, PeftModel.from_pretrained):
            assert torch.equal(load(vit(), tmp_path / "a").eval()(images()).logits, wanted)
    old.save_pretrained(tmp_path / "a")  # a plain save takes the pending config away
    assert state(tmp_path / "a") == "old" and not (tmp_path / "a" / "adapter_config.pending.json").exists()


def test_a_pending_config_that_does_not_fit_is_ignored(tmp_path, old, new) -> None:
    gated_prompt.save(old, tmp_path / "a")
    gated_prompt.save(new, tmp_path / "b")
    (tmp_path / "b" / CONFIG).replace(tmp_path / "a" / "adapter_config.pending.json")
    assert state(tmp_path / "a") == "old"


def test_save_load_save_gives_the_same_bytes(tmp_path, new) -> None:
    gated_prompt.save(new, tmp_path / "a")
    new.save_pretrained(tmp_path / "b")
    loaded = gated_prompt.load(vit(), tmp_path / "a")
    gated_prompt.save(loaded, tmp_path / "c")
    loaded.save_pretrained(tmp_path / "d")
    assert files(tmp_path / "a") == files(tmp_path / "c")
    adapter = [{name: found[name] for name in (CONFIG, WEIGHTS)} for found in map(files, sorted(tmp_path.iterdir()))]
    assert adapter == adapter[:1] * 4
    assert set(files(tmp_path / "a")) == {"README.md", CONFIG, WEIGHTS}
    assert (tmp_path / "a" / "README.md").read_text() == str(gated_prompt.model_card(new))  # no template


def test_several_adapters_and_a_card_that_was_edited(tmp_path, new) -> None:
    model = make(1.0)
    model.add_adapter("pets", GatedPromptConfig(num_virtual_tokens=2))
    gated_prompt.save(model, tmp_path)
    card = tmp_path / "README.md"
    card.write_text(card.read_text() + "\nTrained on my own cats.\n")
    gated_prompt.save(model, tmp_path)
    assert "my own cats" in card.read_text()
    wanted = {"README.md", CONFIG, WEIGHTS}
    assert set(files(tmp_path)) == wanted | {f"pets/{name}" for name in wanted}
    assert "2 tokens" in (tmp_path / "pets" / "README.md").read_text()
    assert gated_prompt.load(vit(), tmp_path / "pets").peft_config["default"].num_virtual_tokens == 2


def test_transformers_own_save_twice_into_one_folder(tmp_path) -> None:
    """It writes the config first, beside the weights of the save before: they must not count as the config's own."""
    model = vit()
    model.add_adapter(GatedPromptConfig(num_virtual_tokens=3))
    for value in (1.0, 2.0):
        model.gated_prompt.gated_prompt_tokens["default"].data.fill_(value)
        model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["weights_sha256"] is None
    loaded = gated_prompt.load(vit(), tmp_path)
    assert float(bank_of(loaded).gated_prompt_tokens["default"].mean()) == 2.0


def test_a_failed_save_leaves_the_old_adapter(tmp_path, monkeypatch, old, new) -> None:
    gated_prompt.save(old, tmp_path)
    before = files(tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(GatedPromptConfig, "to_dict", full)
    with pytest.raises(OSError, match="no space"):
        gated_prompt.save(new, tmp_path)
    with pytest.raises(OSError, match="no space"):
        new.peft_config["default"].save_pretrained(tmp_path)
    assert files(tmp_path) == before


def test_refusals(tmp_path, old) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UnsupportedOperationError, match="is a file, expected a folder"):
        gated_prompt.save(old, tmp_path / "file")
    with pytest.raises(UnsupportedOperationError, match="got a ViTForImageClassification, expected a PeftModel"):
        gated_prompt.save(vit(), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]
