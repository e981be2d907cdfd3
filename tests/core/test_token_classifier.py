# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""`heads.TokenClassifier`: the whole path of a backbone for which transformers has no class with a head."""

from pathlib import Path

import pytest
import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

import gated_prompt
from gated_prompt import ArchitectureError, ConfigError, GatedPromptConfig
from gated_prompt.heads import TokenClassifier
from helpers.families import CASES, Case, images, packed

transformers.logging.set_verbosity_error()
BACKBONES = {
    name: next(case for case in CASES if case.name == name)
    for name in ("DINOv3ViTModel", "Dinov2Model", "SiglipVisionModel")
}
PAIRS = [
    (case, reads) for case in BACKBONES.values() for reads in ("cls", "mean", "both") if case.prefix or reads == "mean"
]
both = pytest.mark.parametrize(("case", "reads"), PAIRS, ids=[f"{case.name}-{reads}" for case, reads in PAIRS])


def build(case: Case, reads: str, labels: int | list[str] = 3) -> TokenClassifier:
    backbone = case.build()
    torch.manual_seed(5)
    return TokenClassifier(backbone, labels, reads=reads).eval()


@torch.no_grad()
@both
def test_the_scores_are_a_linear_map_of_the_tokens(case: Case, reads: str) -> None:
    model = build(case, reads)
    tokens = model.backbone(**images()).last_hidden_state
    parts = {"cls": tokens[:, 0], "mean": tokens[:, case.prefix :].mean(dim=1)}
    read = torch.cat(list(parts.values()), dim=1) if reads == "both" else parts[reads]
    wanted = read @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(model(**images()).logits, wanted, atol=1e-5)


@both
def test_it_is_trained_saved_loaded_and_taken_off(case: Case, reads: str, tmp_path: Path) -> None:
    base = build(case, reads)
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=3, gate_init=0.0))
    assert model.peft_config["default"].modules_to_save == ["classifier"]
    pixels, labels = images()["pixel_values"], torch.tensor([0, 2])
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path / "run"),
            max_steps=12,
            per_device_train_batch_size=2,
            learning_rate=0.05,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            label_names=["labels"],
            disable_tqdm=True,
            gradient_checkpointing=True,
        ),
        train_dataset=[{"pixel_values": p, "labels": y} for p, y in zip(pixels, labels, strict=True)],
    )
    with torch.no_grad():
        before = model.eval()(pixel_values=pixels, labels=labels).loss
    trainer.train()
    with torch.no_grad():
        output = model.eval()(pixel_values=pixels, labels=labels)
        assert output.loss < 0.5 * before
        gated_prompt.save(model, tmp_path / "adapter")
        loaded = gated_prompt.load(build(case, reads), tmp_path / "adapter").eval()
        assert torch.equal(loaded(pixel_values=pixels).logits, output.logits)
        restored = model.unload().state_dict()
    assert restored.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in restored.items())


@torch.no_grad()
def test_losses_follow_the_labels() -> None:
    case = BACKBONES["Dinov2Model"]
    logits = build(case, "cls")(**images()).logits
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    found = build(case, "cls")(**images(), labels=several).loss
    assert torch.allclose(found, nn.functional.binary_cross_entropy_with_logits(logits, several))
    one = build(case, "cls", labels=["age"])
    value = torch.tensor([0.5, 2.0])
    assert torch.allclose(one(**images(), labels=value).loss, (one(**images()).logits[:, 0] - value).square().mean())
    index = torch.tensor([2, 0])
    found = build(case, "cls", labels=["a", "b", "c"])(**images(), labels=index).loss
    assert torch.allclose(found, nn.functional.cross_entropy(logits, index))


@torch.no_grad()
@pytest.mark.parametrize("problem", ["classes", "labels", "numbers"])
def test_batches_of_a_step_add_up_to_the_whole(problem: str) -> None:
    """Trainer passes the number of labels in all batches of an accumulated step, and adds the losses up."""
    model = build(BACKBONES["Dinov2Model"], "cls", 1 if problem == "numbers" else 3)
    pixels = torch.randn(4, *images()["pixel_values"].shape[1:], generator=torch.Generator().manual_seed(3))
    targets = {"classes": torch.tensor([0, 2, 1, 1]), "labels": torch.eye(4)[:, :3], "numbers": torch.arange(4.0)}
    labels = targets[problem]
    whole = model(pixels, labels=labels).loss
    parts = [
        model(pixels[part], labels=labels[part], num_items_in_batch=labels.numel()).loss
        for part in (slice(3), slice(3, 4))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_padding_is_not_part_of_the_mean() -> None:
    case = next(case for case in CASES if case.name == "Siglip2VisionModel")
    model, inputs = build(case, "mean"), packed()
    tokens = model.backbone(**inputs).last_hidden_state
    found = model(**inputs).logits[1]
    assert torch.allclose(found, model.classifier(tokens[1, :9].mean(dim=0)), atol=1e-5)
    assert not torch.allclose(found, model.classifier(tokens[1].mean(dim=0)), atol=1e-3)


def test_pooling_of_the_config_is_measured_on_the_head() -> None:
    """The mean that `pooling` writes into token 0 is read by "cls" and not by "mean"."""
    config = GatedPromptConfig(num_virtual_tokens=3, pooling="prompts")
    get_peft_model(build(BACKBONES["Dinov2Model"], "cls"), config)
    with pytest.raises(ArchitectureError, match="reads the mean of the patch tokens, not token 0"):
        get_peft_model(build(BACKBONES["Dinov2Model"], "mean"), config)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"SiglipVisionModel has no CLS token to read. Use reads='mean'"):
        build(BACKBONES["SiglipVisionModel"], "both")
    with pytest.raises(ConfigError, match=r"reads is 'max'. Expected one of cls, mean, both"):
        build(BACKBONES["Dinov2Model"], "max")
