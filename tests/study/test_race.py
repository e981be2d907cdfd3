"""The race: its draws, the choice of blocks, its experiments, and records on a task made of stripes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import Dinov2Config, Dinov2Model

import race_page
from gated_prompt import GatedPromptError
from study import claims, draws, frozen_rows, methods, race, records, tasks

DEPTH = 12
EXPERIMENTS = methods.experiments()


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=DEPTH, num_attention_heads=2, mlp_ratio=2, image_size=98, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture
def pool(backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> draws.Pool:
    """40 images of two classes, one brighter than the other, 30 of them labelled."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    pixels = torch.randint(0, 120, (40, 3, 98, 98), dtype=torch.uint8, generator=generator)
    pixels += (labels * 60).to(torch.uint8)[:, None, None, None]
    parts = {"train": tasks.Part(pixels[:25], labels[:25]), "test": tasks.Part(pixels[25:], labels[25:])}
    monkeypatch.setattr(tasks, "load", lambda name, data_dir: tasks.Task(name, parts, 2))
    monkeypatch.setattr(draws.Pool, "draw", lambda self, number: draws.draw_images(self.labels, 30, number))
    monkeypatch.setattr(race, "RACED_ON", "made")
    monkeypatch.setattr(race, "START_IMAGES", 20)
    return draws.Pool("made", tmp_path, backbone, tmp_path / "kept")


def test_draws_keep_the_classes() -> None:
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 1, 2, 2, 0, 0, 0])
    first, second, again = (draws.draw_images(labels, 5, number) for number in (0, 1, 1))
    assert first.labelled.tolist() == [0, 1, 2, 3, 4]
    assert second.labelled.tolist() == again.labelled.tolist() != first.labelled.tolist()
    assert sorted([*second.labelled.tolist(), *second.test.tolist()]) == list(range(12))
    assert labels[second.labelled].bincount().tolist() == labels[first.labelled].bincount().tolist()


def test_blocks_are_chosen_out_of_fold() -> None:
    """Block 3 alone tells the classes apart; its accuracy is that of scikit-learn on the same folds."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 90))
    features = torch.from_numpy(rng.normal(size=(90, DEPTH, 6))).float()
    features[:, 3, :3] += 1.5 * torch.nn.functional.one_hot(labels, 3)
    single, chosen = frozen_rows.choose(features, labels, 3, seed=0)
    best = max(single, key=lambda choice: choice.accuracy)
    assert best.blocks == (3,)
    assert chosen.accuracy >= best.accuracy
    x, y = features[:, 3].numpy(), labels.numpy()
    x = (x - x.mean(0)) / x.std(0)
    right = []
    for fit, held in draws.folds(labels, 0):
        model = LogisticRegression(C=1 / best.l2, max_iter=1000, tol=1e-6).fit(x[fit], y[fit])
        right.append(model.predict(x[held]) == y[held])
    assert abs(np.concatenate(right).mean() - best.accuracy) < 0.02


def test_ties_take_fewer_and_lower_blocks() -> None:
    labels = torch.arange(60) % 2
    features = (2.0 * labels - 1)[:, None, None] + 0.01 * torch.randn(60, DEPTH, 4)
    _, chosen = frozen_rows.choose(features, labels, 2, seed=0)
    assert (chosen.blocks, chosen.accuracy, chosen.l2) == ((0,), 1.0, frozen_rows.STRENGTHS[0])


@pytest.mark.parametrize(("blocks", "first"), [((5, 6, 7), 4), ((2, 5, 8, 11), 2), ((0,), 0), ((10,), 5), ((0, 1), 0)])
def test_all_methods_act_on_the_upper_half(blocks: tuple[int, ...], first: int) -> None:
    assert methods.first_trained_block(blocks) == first


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_trains_its_blocks_and_the_head(backbone: Path, name: str) -> None:
    model, _ = methods.build(EXPERIMENTS[name], backbone, (6, 7), 3, seed=0)
    trained = [key for key, p in model.named_parameters() if p.requires_grad]
    assert any("classifier" in key for key in trained)
    others = [key for key in trained if "classifier" not in key]
    assert others and not any(f".{block}." in key for key in others for block in range(4))
    assert not any(key.startswith("backbone.embeddings") for key in others)


@pytest.mark.parametrize("name", ["zero_start/10_prompts", "gated/10_prompts", "lora/rank8"])
def test_a_record_and_the_one_that_takes_its_rate(pool: draws.Pool, tmp_path: Path, name: str) -> None:
    racer = race.Racer(pool, tmp_path / "results")
    first = racer.trained(EXPERIMENTS[name], 0)
    frozen = racer.frozen(0)
    assert set(first["tried"]) == {f"{rate:g}" for rate in EXPERIMENTS[name].training.rates}
    assert first["blocks"] == frozen["block set"]["blocks"]
    second = racer.trained(EXPERIMENTS[name], 1)
    assert list(second["tried"]) == [f"{first['rate']:g}"]
    file = tmp_path / "results" / EXPERIMENTS[name].results
    lines = file.read_text()
    assert json.loads(json.dumps(first)) == records.read(file)[0]
    racer.trained(EXPERIMENTS[name], 1)
    assert file.read_text() == lines  # nothing is run twice
    assert min(first["test"], first["test_one_fold"], first["start"], first["held"]) >= 0
    assert first["file_size"] == 4 * first["num_trainable_params"]


@pytest.mark.parametrize("name", ["zero_start/10_prompts", "gated/10_prompts", "lora/rank8", "full/upper_half"])
@pytest.mark.parametrize("blocks", [(2, 5, 8, 11), (5, 6, 7), (4,)])
def test_kept_tokens_give_the_logits_of_pixels(
    pool: draws.Pool, backbone: Path, name: str, blocks: tuple[int, ...]
) -> None:
    model, start = methods.build(EXPERIMENTS[name], backbone, blocks, 2, seed=0)
    tokens = pool.tokens(methods.first_trained_block(blocks))[:4].float()
    model.eval()
    with torch.no_grad():
        wanted = model(pool.images.batch(torch.arange(4))).logits
        start.open()
        torch.testing.assert_close(model(tokens).logits, wanted, rtol=0.02, atol=0.01)  # kept in half precision


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "experiments" / "lora" / "rank8"
    own.mkdir(parents=True)
    default = (methods.HERE / "default_training_params.json").read_text()
    (tmp_path / "default_training_params.json").write_text(default)
    (own / "training_params.json").write_text('{"epoch": 3}')
    with pytest.raises(GatedPromptError, match=r"rank8/training_params.json: .*epoch"):
        methods.experiments(tmp_path)


def test_the_page_holds_the_committed_results() -> None:
    text = race_page.PAGE.read_text(encoding="utf-8")
    assert race_page.new_page(text, race_page.read()) == text, "old; run: python tools/race_page.py"


def test_tables_of_made_up_records() -> None:
    runs = [
        {"task": task, "draw": draw, "test": 0.6 + 0.01 * draw, "test_one_fold": 0.59, "blocks": [4, 5]}
        for task in tasks.REAL
        for draw in draws.DRAWS
    ]
    assert "| all | 61.0 ± 1.0 | 61.0 ± 1.0 | 61.0 ± 1.0 | 61.0 ± 1.0 | 61.0 |" in race_page.accuracies({"all": runs})
    assert "| part | 60.0 (1) | not run | not run | not run |  |" in race_page.accuracies({"part": runs[:1]})
    assert "| all | +2.0 | +2.0 | +2.0 | +2.0 | +2.0 |" in race_page.refit({"all": runs})


def test_a_small_task_keeps_labelled_and_test_images_apart() -> None:
    labels = torch.arange(400) % 7
    for seed in range(5):
        labelled, test, classes = claims.draw_task(labels, seed)
        assert not set(labelled.tolist()) & set(test.tolist())
        assert sorted(torch.cat((labelled, test)).tolist()) == torch.isin(labels, classes).nonzero()[:, 0].tolist()
        counts = labels[labelled].bincount(minlength=7)[classes]
        assert counts.unique().numel() == 1 and claims.SHOTS[0] <= int(counts[0]) <= claims.SHOTS[1]
        assert claims.CLASS_COUNTS[0] <= len(classes) <= claims.CLASS_COUNTS[1]
