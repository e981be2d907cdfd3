# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The comparison on a real backbone: its grid, its new heads and prompts, and its page against the committed cells."""

import numpy as np
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import gated_prompt
from gated_prompt import find_vision_transformer
from gated_prompt.tuner.bank import find_bank
from real import check, grid, images, probes, records, run, tables, training
from real.reader import AttentiveHead, Reader
from real.training import Bench, build

DEPTH = 3


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=DEPTH, num_attention_heads=2, mlp_ratio=2, image_size=98, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task():
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    pixels = torch.randint(0, 120, (12, 3, 98, 98), dtype=torch.uint8, generator=draw)
    pixels += (labels * 60).to(torch.uint8)[:, None, None, None]  # brightness tells the classes apart
    part = images.Part(pixels, labels)
    return images.Task("made", {"train": part, "val": part, "test": part}, 3)


def made(rates: dict[float, tuple[float, float]]) -> dict[tuple[str, str], dict[str, float]]:
    """Race cells of eurosat's gated row, with these validation accuracies."""
    return {
        ("eurosat", grid.Cell("eurosat", "gated", 0, float(rate), None, grid.RACE_EPOCHS).name): {
            "val": v,
            "val_loss": loss,
        }
        for rate, (v, loss) in rates.items()
    }


def test_a_race_is_won_by_accuracy_and_then_by_loss():
    found = made({0.01: (0.8, 0.5), 0.03: (0.9, 0.7)})
    assert grid.winner("gated", found) is None
    assert [cell.rate for cell in grid.steps_to("eurosat", "gated", 1, found)] == [0.1]
    found |= made({0.1: (0.9, 0.6)})
    assert grid.winner("gated", found).rate == 0.1
    cell = grid.final("eurosat", "gated", 1, found)
    assert (cell.rate, cell.seed, cell.epochs) == (0.1, 1, grid.EPOCHS)


def test_a_row_that_follows_waits_for_the_other_ones_race():
    first = next(grid.steps_to("eurosat", "gated_rate", 2, {}))
    assert (first.row, first.epochs) == ("gated", grid.RACE_EPOCHS)
    found = made({0.01: (0.8, 0.5), 0.03: (0.9, 0.7), 0.1: (0.7, 0.6)})
    assert [(c.rate, c.gate_rate) for c in grid.steps_to("eurosat", "gated_rate", 2, found)] == [
        (0.03, 0.1),
        (0.03, 0.3),
    ]
    assert [c.rate for c in grid.steps_to("eurosat", "gate_only", 2, found)] == [0.03]


def test_zero_start_begins_as_the_base(backbone, task):
    bench = Bench(task, backbone, DEPTH, 0.1, 1.0, in_bfloat16=False)
    adapted = build(grid.ROWS["zero"], bench, seed=0).eval()
    torch.manual_seed(0)
    model = Reader(backbone, DEPTH, task.num_classes, in_bfloat16=False).eval()
    pixels = task.parts["train"].batch(torch.arange(4))
    with torch.no_grad():
        assert torch.equal(adapted(pixels), model(pixels))
    gated_prompt.check(adapted, pixels)


def test_a_propagated_start_is_the_same_tokens_in_every_block(backbone, task, monkeypatch):
    monkeypatch.setattr(training, "START_IMAGES", 12)
    bench = Bench(task, backbone, DEPTH, 0.1, 1.0, in_bfloat16=False)
    adapted = build(grid.ROWS["deep_start_propagated"], bench, seed=2)
    bank = find_bank(adapted)
    tokens = bank.gated_prompt_tokens["default"]
    assert tokens.shape == (DEPTH, 10, 48)
    blocks, seen = find_vision_transformer(adapted.get_base_model()).blocks, []
    for block in blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 1:].flatten(0, 1)))
    train = task.parts["train"]
    with torch.no_grad(), adapted.disable_adapter():
        adapted.eval()(train.batch(torch.arange(len(train.labels))))
    places = [(seen[0] == prompt).all(1).nonzero().item() for prompt in tokens[0]]
    for prompts, entered in zip(tokens, seen, strict=True):
        torch.testing.assert_close(prompts, entered[places], rtol=1e-4, atol=1e-5)
    found = adapted(train.batch(torch.arange(2)))
    assert found.isfinite().all()


def test_attentive_head_against_numpy():
    torch.manual_seed(0)
    head, tokens = AttentiveHead(12, 3, 4), torch.randn(2, 5, 12)
    torch.nn.init.normal_(head.queries)
    with torch.no_grad():
        found = head(tokens).numpy()
        x, q = tokens.numpy(), head.queries.numpy()
        values = x @ head.value.weight.numpy().T
        rows = []
        for image in range(2):
            pooled = []
            for m in range(4):
                weights = np.exp(x[image] @ q[m] / 12**0.5)
                pooled.append(weights / weights.sum() @ values[image][:, 3 * m : 3 * m + 3])
            rows.append(np.concatenate(pooled) @ head.classifier.weight.numpy().T + head.classifier.bias.numpy())
    np.testing.assert_allclose(found, rows, atol=1e-6)


@pytest.mark.parametrize(
    "row", ["gated_rate", "deep_start", "zero", "lora4_start", "gated_attentive", "shallow_at_2", "gated_start_sample"]
)
def test_a_cell_trains_what_it_says(backbone, task, row, monkeypatch):
    monkeypatch.setattr(training, "START_IMAGES", 12)
    gate_rate = 0.1 if row == "gated_rate" else None
    bench = training.Bench(task, backbone, DEPTH, head_rate=0.01, strength=0.1)
    cell = grid.Cell("made", row, 0, 0.01, gate_rate, grid.EPOCHS)
    result = training.execute(cell, bench)
    assert result["losses"][-1] < result["losses"][0]
    assert len(result["curve"]) == grid.EPOCHS + grid.ROWS[row].head_start
    assert 0 <= result["test"] <= 1
    if row == "gated_rate":
        start = 1 / (1 + np.exp(-training.GATE_INIT))
        assert max(abs(gate - start) for gate in result["gates"]) > 0.01


@pytest.mark.parametrize("in_bfloat16", [True, False])
def test_the_head_starts_as_the_probe(backbone, task, in_bfloat16):
    bench = training.Bench(task, backbone, DEPTH, head_rate=0.01, strength=10.0, in_bfloat16=in_bfloat16)
    model = training.build(grid.ROWS["gated_start"], bench, seed=0)
    norm = model.base_model.model.backbone.layernorm
    with torch.no_grad():  # features that vary little beside their mean: large weights, large biases
        norm.weight.fill_(0.1)
        norm.bias.fill_(2.0)
    train = task.parts["train"]
    loss_before = training.scores(training.predict(model, train), train.labels)[1]
    training.start_head(model, bench)
    accuracy, loss = training.scores(training.predict(model, train), train.labels)
    assert accuracy == 1.0
    assert loss < loss_before / 2


def test_probe_folds_the_standardisation_in():
    draw = np.random.default_rng(0)
    x, y = draw.normal(size=(60, 4)) * [1, 10, 0.1, 3] + 5, np.arange(60) % 3
    x[:, 1] += 80 * y
    weights, biases = probes.fit_probe((x, y), 1.0)
    assert (weights.shape, biases.shape) == ((3, 4), (3,))
    assert probes.correct((weights, biases), (x, y)) > 0.9
    assert probes.nearest((x, y), (x, y), 1) == 1.0


def test_tolerance_of_a_rerun():
    assert check.tolerance([90.0, 92.0], pooled=0.5) == pytest.approx(3 * 2**0.5 * 1.5**0.5)
    assert check.tolerance([90.0], pooled=0.5) == pytest.approx(1.5 * 2**0.5)


def test_records_are_written_whole(tmp_path):
    records.write(records.path_of(tmp_path, "eurosat", "nearest"), {"test": 0.5})
    (tmp_path / "eurosat" / "cut.partial").write_text("{")
    assert records.read(tmp_path) == {("eurosat", "nearest"): {"test": 0.5}}


def test_the_page_is_that_of_the_committed_cells():
    page = tables.PAGE.read_text(encoding="utf-8")
    assert tables.filled(page, records.read(run.RESULTS)) == page
