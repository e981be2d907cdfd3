"""The recorder in transformers' Trainer, in an accelerate loop, after resuming, and as a file."""

import json

import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model
from torch.utils.data import DataLoader

from gated_prompt import (
    GatedPromptConfig,
    GatedPromptError,
    GateRecorder,
    gates,
    selection_ratios,
    temperatures,
)
from helpers.models import bank_of, vit
from helpers.trainers import DATA, trainer


def make(**settings: object) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(vit(), GatedPromptConfig(**{"num_virtual_tokens": 3, "gate_init": 0.0, **settings}))


def test_in_the_trainer(tmp_path) -> None:
    model, recorder = make(insert_at=1, gated_blocks=[1, 3], pooling="prompts"), GateRecorder(every=2)
    first = gates(model).tolist()
    run = trainer(model, tmp_path, max_steps=5, learning_rate=0.1)
    run.add_callback(recorder)
    run.train()
    assert recorder.steps == [0, 2, 4]
    assert recorder.gated_blocks == [1, 3] and recorder.blocks == [1, 2, 3]
    assert recorder.gates[0] == first == [0.5, 0.5]
    assert len({tuple(row) for row in recorder.gates}) == 3
    assert [len(row) for row in recorder.temperatures] == [3] * 3
    assert all(sum(row) == pytest.approx(1) for row in recorder.selection_ratios)


def test_in_a_loop_of_ones_own() -> None:
    model, recorder, accelerator = make(), GateRecorder(), Accelerator(cpu=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    wrapped, optimizer, loader = accelerator.prepare(model.train(), optimizer, DataLoader(DATA, batch_size=4))
    wanted = []
    for step, batch in enumerate(loader, start=1):
        accelerator.backward(wrapped(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
        recorder.record(wrapped, step)
        wanted.append([read(model).tolist() for read in (gates, temperatures, selection_ratios)])
    assert recorder.steps == [1, 2]
    assert [
        list(row) for row in zip(recorder.gates, recorder.temperatures, recorder.selection_ratios, strict=True)
    ] == wanted
    assert recorder.gates[0] != recorder.gates[1]


def test_a_resumed_run_replaces_what_it_does_again(tmp_path) -> None:
    straight, resumed = GateRecorder(every=1), GateRecorder(every=1)
    run = trainer(make(), tmp_path, save_strategy="steps", save_steps=2)
    run.add_callback(straight)
    run.train()
    assert straight.steps == [0, 1, 2, 3, 4]
    for model_step in (0, 1, 2, 3):  # as left by a run that was killed after its third step
        for name in ("steps", "gates", "temperatures", "selection_ratios"):
            getattr(resumed, name).append(getattr(straight, name)[model_step])
    resumed.gated_blocks, resumed.blocks = straight.gated_blocks, straight.blocks
    again = trainer(make(), tmp_path)
    again.add_callback(resumed)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.to_dict() == straight.to_dict()


def test_without_gates_and_with_fixed_temperatures() -> None:
    recorder = GateRecorder()
    recorder.record(make(deep=True, temperature=False, temperature_init=2.0), 3)
    assert recorder.to_dict() == {
        "every": 10,
        "gated_blocks": [],
        "blocks": [0, 1, 2, 3],
        "steps": [3],
        "gates": [[]],
        "temperatures": [[2.0] * 4],
        "selection_ratios": [[]],
    }


def test_save_and_load(tmp_path) -> None:
    recorder, model = GateRecorder(every=5), make()
    for step in (0, 5):
        recorder.record(model, step)
        bank_of(model).gated_prompt_gate_logits["default"].data.add_(0.1)
    path = tmp_path / "gates.json"
    recorder.save(path)
    assert json.loads(path.read_text()) == recorder.to_dict()
    again = GateRecorder.load(path)
    assert again.to_dict() == recorder.to_dict()
    again.record(model, 10)
    assert again.steps == [0, 5, 10] and recorder.steps == [0, 5]
    again.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["gates.json"]


def test_a_failed_save_keeps_the_old_file(tmp_path) -> None:
    recorder, path = GateRecorder(), tmp_path / "gates.json"
    recorder.record(make(), 0)
    recorder.save(path)
    before = path.read_bytes()
    recorder.gates.append([object()])
    with pytest.raises(TypeError):
        recorder.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("gates"), "gates"),
        (lambda v: v["gates"][0].pop(), "gates must have one row of 3 values per step"),
        (lambda v: v["steps"].append(9), "must have one row of 3 values per step"),
        (lambda v: v.update(every=0), "every is 0"),
        (lambda v: v.update(temperatures=3), "is not a recording of gates"),
    ],
)
def test_other_files_are_refused(tmp_path, change, words: str) -> None:
    recorder, path = GateRecorder(), tmp_path / "gates.json"
    recorder.record(make(), 0)
    values = json.loads(json.dumps(recorder.to_dict()))
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(GatedPromptError, match=words):
        GateRecorder.load(path)
    with pytest.raises(GatedPromptError, match=r"nowhere\.json is not a recording"):
        GateRecorder.load(tmp_path / "nowhere.json")


def test_two_adapters_do_not_mix() -> None:
    recorder = GateRecorder()
    recorder.record(make(), 0)
    with pytest.raises(GatedPromptError, match=r"gates at blocks \[1\] .* recorded so far at \[0, 1, 2\]"):
        recorder.record(make(gated_blocks=[1]), 1)
    assert recorder.steps == [0] and recorder.gated_blocks == [0, 1, 2]
    with pytest.raises(GatedPromptError, match="carries no gated prompts"):
        recorder.record(vit(), 1)
    with pytest.raises(GatedPromptError, match="every is 0"):
        GateRecorder(every=0)
