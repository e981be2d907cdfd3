"""transformers' Trainer and a plain accelerate loop train gated prompts as any other model."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel, get_peft_model
from torch.utils.data import DataLoader

from gated_prompt import GatedPromptConfig
from helpers.models import vit
from helpers.trainers import DATA, PIXELS, trainer


@pytest.fixture(autouse=True)
def fresh_accelerate_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision of an earlier run would stay: in accelerate, and in what TrainingArguments tells it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def make(**settings: object) -> PeftModel:
    torch.manual_seed(0)
    config = GatedPromptConfig(**{"num_virtual_tokens": 3, "prompt_dropout": 0.1, "gate_init": 0.0, **settings})
    return get_peft_model(vit(), config)


def trained(model: PeftModel) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(pixel_values=PIXELS).logits


def test_only_adapter_parameters_move_and_all_of_them(tmp_path) -> None:
    model = make()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = trainer(model, tmp_path, max_steps=30, learning_rate=0.02)
    first = run.evaluate()["eval_loss"]
    run.train()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == set(trained(model)) and len(moved) == 5
    assert run.evaluate()["eval_loss"] < first


def test_resuming_equals_an_uninterrupted_run(tmp_path) -> None:
    straight = make()
    trainer(straight, tmp_path / "straight", save_strategy="steps", save_steps=2).train()
    files = {path.name for path in (tmp_path / "straight" / "checkpoint-2").iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    resumed = make()
    checkpoint = str(tmp_path / "straight" / "checkpoint-2")
    trainer(resumed, tmp_path / "resumed").train(resume_from_checkpoint=checkpoint)
    assert_equal(trained(resumed), trained(straight))


def test_the_best_model_is_reloaded(tmp_path) -> None:
    """With a learning rate that ruins the model, the first of the saved states is the best."""
    model = make()
    run = trainer(
        model,
        tmp_path,
        learning_rate=3.0,
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    run.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry}
    best = min(losses, key=losses.get)
    assert len(losses) == 4 and best != 4, losses
    assert run.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-5)
    assert torch.equal(logits(PeftModel.from_pretrained(vit(), tmp_path / f"checkpoint-{best}")), logits(model))


def test_bfloat16(tmp_path) -> None:
    model = make()
    before = trained(model)
    run = trainer(model, tmp_path, bf16=True)
    run.train()
    after = trained(model)
    assert {p.dtype for p in after.values()} == {torch.float32}
    assert all(p.isfinite().all() and not torch.equal(p, before[n]) for n, p in after.items())


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "nonreentrant"])
@pytest.mark.parametrize("settings", [{}, {"insert_at": 2}, {"deep": True}], ids=str)
def test_checkpointing_through_the_trainer_changes_nothing(tmp_path, settings: dict, reentrant: bool) -> None:
    plain, checkpointed = make(**settings), make(**settings)
    trainer(plain, tmp_path / "plain", max_steps=2).train()
    keywords = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": reentrant}}
    trainer(checkpointed, tmp_path / "checkpointed", max_steps=2, **keywords).train()
    found, wanted = trained(checkpointed), trained(plain)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_a_plain_accelerate_loop() -> None:
    losses = []
    for prepared in (False, True):
        model = make(prompt_dropout=0.0).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        loader = DataLoader(DATA, batch_size=2)
        accelerator = Accelerator(cpu=True)
        if prepared:
            model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        for batch in loader:
            loss = model(**batch).loss
            accelerator.backward(loss) if prepared else loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if prepared:
            assert isinstance(accelerator.unwrap_model(model), PeftModel)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
