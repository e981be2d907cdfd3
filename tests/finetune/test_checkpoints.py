"""Checkpoints of the scripts: what is kept, what is never touched, what damage and other options lead to."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from peft import get_peft_model

from gated_prompt import GatedPromptConfig, GatedPromptError
from gated_prompt.training.checkpoints import (
    checkpoints,
    drop_checkpoints,
    keep_only_trainable,
    resume,
    save_checkpoint,
)
from helpers.accelerate_state import fresh
from helpers.interrupted import stopped_after_steps
from helpers.models import bank_of, images, vit
from train_vtab import main

pytestmark = pytest.mark.usefixtures("fresh_accelerate")

FILES = ("trainable.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl")
QUICK = ["--max_train_samples", "20", "--num_train_epochs", "2", "--warmup_epochs", "0", "--linear_probe", "false"]
QUICK += ["--per_device_train_batch_size", "5", "--num_virtual_tokens", "2"]


class Run:
    """A model after one step, ready to be saved or to be resumed."""

    def __init__(self, **settings: object) -> None:
        self.accelerator = Accelerator(cpu=True)
        model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, **settings))
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
        self.schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
        self.accelerator.register_for_checkpointing(self.schedule)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        keep_only_trainable(self.accelerator)

    def step(self) -> None:
        self.model(images(), labels=torch.tensor([0, 1])).loss.backward()
        self.optimizer.step()

    def prompts(self) -> torch.Tensor:
        return bank_of(self.model).gated_prompt_tokens["default"].detach().clone()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, list[torch.Tensor]]:
    """A folder with the checkpoints of steps 2 and 4, and the prompts in each."""
    run, prompts = Run(), []
    for name in ("step_00000001", "step_00000002", "step_00000004"):
        run.step()
        save_checkpoint(run.accelerator, tmp_path / "run", name)
        prompts.append(run.prompts())
    return tmp_path / "run", prompts[1:]


def test_the_two_newest_are_kept(saved) -> None:
    folder, _ = saved
    assert [path.name for path in checkpoints(folder)] == ["step_00000002", "step_00000004"]
    assert len(list(folder.iterdir())) == 2


def test_what_somebody_else_put_there_stays(tmp_path) -> None:
    folder = tmp_path / "checkpoints"
    foreign = ["mine/notes.txt", "plan.txt", "step_mine/notes.txt", "step_00000001.bak/a", "step_2/a", "step_00000003"]
    for name in foreign:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("keep me")
    run = Run()
    for step in (2, 4, 6):
        save_checkpoint(run.accelerator, folder, f"step_{step:08d}")
    assert [(folder / name).read_text() for name in foreign] == ["keep me"] * len(foreign)
    assert [path.name for path in checkpoints(folder)] == ["step_00000004", "step_00000006"]
    assert resume(run.accelerator, "latest", folder) == 6
    drop_checkpoints(folder)
    assert [(folder / name).read_text() for name in foreign] == ["keep me"] * len(foreign)
    assert checkpoints(folder) == []


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_taken(saved, capsys, file: str, harm) -> None:
    folder, (before, _) = saved
    harm(folder / "step_00000004" / file)
    run = Run()
    assert resume(run.accelerator, "latest", folder) == 2
    assert torch.equal(run.prompts(), before)
    said = capsys.readouterr().out
    assert f"step_00000004 is damaged: {file} is" in said and "Resuming from" in said
    with pytest.raises(GatedPromptError, match=f"step_00000004 is damaged: {file} is"):
        resume(Run().accelerator, str(folder / "step_00000004"), folder)


def test_where_all_are_damaged_each_is_named(saved) -> None:
    folder, _ = saved
    cut(folder / "step_00000004" / "optimizer.bin")
    (folder / "step_00000002" / "whole.json").write_text("{}")
    with pytest.raises(GatedPromptError, match=r"0004 is damaged: optimizer.*. .*0002 is damaged: whole.json is "):
        resume(Run().accelerator, "latest", folder)


def test_a_damaged_newest_one_goes_with_the_next_save(saved) -> None:
    folder, _ = saved
    cut(folder / "step_00000004" / "optimizer.bin")
    run = Run()
    resume(run.accelerator, "latest", folder)
    save_checkpoint(run.accelerator, folder, "step_00000003")
    assert [path.name for path in checkpoints(folder)] == ["step_00000002", "step_00000003"]


def test_a_run_that_starts_anew_is_not_mixed_up_with_the_earlier_one(saved) -> None:
    """Its own steps are fewer, so by number the old ones would be the newest."""
    folder, _ = saved
    run = Run()
    assert resume(run.accelerator, None, folder) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002.old", "step_00000004.old"]
    assert resume(run.accelerator, "latest", folder) == 0
    save_checkpoint(run.accelerator, folder, "step_00000001")
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize(
    ("settings", "made_with", "words"),
    [
        ({"temperature": False}, {}, r"temperatures.default has the shape \[4\] there and None here"),
        ({"insert_at": 2}, {}, r"gate_logits.default has the shape \[3\] there and \[1\] here"),
        ({}, {"batches per epoch": 3}, "another run: batches per epoch is None there and 3 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(saved, settings, made_with, words) -> None:
    with pytest.raises(GatedPromptError, match=words):
        resume(Run(**settings).accelerator, "latest", saved[0], made_with)


def test_another_number_of_processes_is_refused(saved) -> None:
    """Each has random states of its own, and steps count the batches of one."""
    file = saved[0] / "step_00000004" / "whole.json"
    content = json.loads(file.read_text())
    assert content["made_with"] == {"processes": 1}
    file.write_text(json.dumps({**content, "made_with": {"processes": 2}}))
    with pytest.raises(GatedPromptError, match="processes is 2 there and 1 here"):
        resume(Run().accelerator, "latest", saved[0])


def test_random_states_that_are_left_out_are_said(saved, monkeypatch) -> None:
    """accelerate leaves out what it cannot restore, in silence."""

    def refuse(state: object) -> None:
        raise ValueError("no such generator")

    monkeypatch.setattr("numpy.random.set_state", refuse)  # restored before torch's
    torch.manual_seed(17)
    with pytest.warns(UserWarning, match=r"random_states_0.pkl could not be restored"):
        assert resume(Run().accelerator, "latest", saved[0]) == 4


@pytest.mark.parametrize("asked", ["no/such/folder", "{saved}", "{saved}/step_00000099"])
def test_paths_that_are_no_checkpoint(saved, asked: str) -> None:
    with pytest.raises(GatedPromptError, match=r"no checkpoint to resume from: .*step_00000120"):
        resume(Run().accelerator, asked.format(saved=saved[0]), saved[0])


def test_a_kill_between_two_checkpoints_leaves_both(saved) -> None:
    """What is half written has a name of its own; the next save takes it away."""
    folder, (_, newest) = saved
    (folder / "step_00000006.partial").mkdir()
    run = Run()
    assert resume(run.accelerator, "latest", folder) == 4
    assert torch.equal(run.prompts(), newest)
    save_checkpoint(run.accelerator, folder, "step_00000006")
    assert len(list(folder.iterdir())) == 2


# Through a script.


def test_latest_starts_a_run_that_has_no_checkpoint(backbone, tmp_path, capsys) -> None:
    command = [*QUICK, "--backbone", str(backbone), "--output_dir", str(tmp_path)]
    assert main([*command, "--resume_from_checkpoint", "latest"])["steps"] == 8
    assert "no checkpoint in" in capsys.readouterr().out


def test_after_damage_it_ends_with_the_same_bytes(backbone, tmp_path) -> None:
    command = [*QUICK, "--backbone", str(backbone), "--checkpointing_steps", "2", "--output_dir"]
    main([*command, str(tmp_path / "straight")])
    fresh()
    stopped_after_steps(5, lambda: main([*command, str(tmp_path / "again")]))
    cut(tmp_path / "again" / "checkpoints" / "step_00000004" / "trainable.safetensors")
    results = main([*command, str(tmp_path / "again"), "--resume_from_checkpoint", "latest"])
    assert results["steps"] == 6
    weights = [
        (tmp_path / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("straight", "again")
    ]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--per_device_train_batch_size", "4"], "batches per epoch is 4 there and 5 here"),
        (["--head_learning_rate", "0.5"], "initial_lr of head is 0.03 there and 0.5 here"),
        (["--momentum", "0.5"], "momentum of prompts is 0.9 there and 0.5 here"),
        (["--optimizer", "adamw"], "of prompts is "),
    ],
)
def test_other_options_are_refused(backbone, trained, tmp_path, options, words) -> None:
    shutil.copytree(trained, tmp_path / "run")
    command = [*QUICK, "--backbone", str(backbone), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(GatedPromptError, match=words):
        main([*command, *options, "--resume_from_checkpoint", "latest"])


@pytest.fixture(scope="module")
def trained(backbone, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    main([*QUICK, "--backbone", str(backbone), "--output_dir", str(folder)])
    fresh()
    return folder
