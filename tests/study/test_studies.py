"""The engine of the studies: records, the miniature's grid and runner, rows of the real backbone, and the check."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

import miniature_page
import real_page
import study_results
from gated_prompt import GatedPromptError
from study import check, miniature, records, tasks
from study.miniature import Run
from study.run import main
from study.training import accuracy, predict, reader, start_head

DEPTH = 3
SHORT = {**miniature.RECIPE, "epochs": 2, "batch_size": 100, "num_virtual_tokens": 2}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(
        hidden_size=48, num_hidden_layers=DEPTH, num_attention_heads=2, mlp_ratio=2, image_size=98, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def task() -> tasks.Task:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 3
    pixels = torch.randint(0, 120, (12, 3, 98, 98), dtype=torch.uint8, generator=draw)
    pixels += (labels * 60).to(torch.uint8)[:, None, None, None]  # brightness tells the classes apart
    part = tasks.Part(pixels, labels)
    return tasks.Task("made", {"train": part, "val": part, "test": part}, 3)


# Records.


def test_records_survive_a_write_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.jsonl"
    assert records.read(file) == []
    records.append(file, {"x": 1})
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"x": 2, "ta')
    assert records.read(file) == [{"x": 1}]
    records.append(file, {"x": 3})
    assert records.read(file) == [{"x": 1}, {"x": 3}]
    assert file.read_bytes().startswith(whole)
    file.write_text("[1]\n")
    with pytest.raises(GatedPromptError, match=r"b.jsonl, line 1 is not a JSON object"):
        records.read(file)


# Rows of the real backbone.


def row_record(row: str, read_from: int = DEPTH - 1, rate: float = 0.01) -> dict[str, Any]:
    return {"row": row, "epochs": 10, "rate": rate, "gate_rate": None, "head_rate": 0.01, "read_from": read_from}


@pytest.mark.parametrize("row", ["shallow", "full", "zero_start_best", "lora8_start_best", "gated_start_sample_best"])
def test_a_row_trains(backbone: Path, task: tasks.Task, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "START_IMAGES", 12)
    result = check.train_again(row_record(row), 0.1, task, backbone, seed=0)
    assert result["losses"][-1] < result["losses"][0]
    assert len(result["curve"]) == 10 + check.ROWS[row].fitted
    assert 0 <= result["test"] <= 1


def test_the_head_starts_as_the_probe(backbone: Path, task: tasks.Task) -> None:
    model = reader(backbone, [1, 2], 3)
    with torch.no_grad():  # features that vary little beside their mean: large weights, large biases
        model.backbone.layernorm.weight.fill_(0.1)
        model.backbone.layernorm.bias.fill_(2.0)
    train = task.parts["train"]
    before = torch.nn.functional.cross_entropy(predict(model, train), train.labels)
    start_head(model, train, l2=1.0)
    after = torch.nn.functional.cross_entropy(predict(model, train), train.labels)
    assert accuracy(model, train) == 1.0
    assert after < before / 2


# The miniature.


def made(run: Run, val: float, test: float = 0.5) -> dict[str, Any]:
    return {"row": run.row, "rate": run.rate, "seed": run.seed, "val": val, "test": test, "recipe": miniature.RECIPE}


def missing(row: str, found: list[dict[str, Any]]) -> list[Run]:
    return list(miniature.missing("mae", "digits", row, found))


def test_rates_are_chosen_on_validation_images_with_the_first_seed() -> None:
    found: list[dict[str, Any]] = []
    first = missing("shallow", found)
    assert [(run.rate, run.seed) for run in first] == [(0.03, 0), (0.1, 0)]
    found.append(made(first[0], val=0.4, test=0.9))
    assert miniature.chosen_rate("shallow", found) is None
    found.append(made(first[1], val=0.6, test=0.1))
    assert miniature.chosen_rate("shallow", found) == 0.1
    second = missing("shallow", found)
    assert [(run.rate, run.seed) for run in second] == [(0.1, 1), (0.1, 2)]
    assert [run["test"] for run in miniature.final_runs("shallow", found)] == [0.1]
    found += [made(run, 0.0) for run in second]
    assert missing("shallow", found) == []


def test_a_start_takes_the_rate_of_gated() -> None:
    runs = missing("gated_sample", [])
    assert {run.row for run in runs} == {"gated"} and len(runs) == 2
    found = [made(run, val=0.1 * i) for i, run in enumerate(runs)]
    later = missing("gated_sample", found)
    assert [(r.row, r.rate, r.seed) for r in later] == [("gated_sample", 0.1, s) for s in miniature.SEEDS]


def test_records_of_another_recipe_are_refused() -> None:
    record = {**made(Run("mae", "digits", "linear", 0.03, 0), 0.5), "recipe": {**miniature.RECIPE, "epochs": 3}}
    with pytest.raises(GatedPromptError, match="another --output_dir"):
        missing("linear", [record])


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch):
    """Two epochs on 20 images."""
    load = tasks.load

    def few(name: str, data_dir: Path | None) -> tasks.Task:
        whole = load(name, data_dir)
        parts = {part: tasks.Part(p.pixels[:20], p.labels[:20]) for part, p in whole.parts.items()}
        return tasks.Task(name, parts, whole.num_classes)

    monkeypatch.setattr(tasks, "load", few)
    monkeypatch.setattr(miniature, "RECIPE", SHORT)
    miniature.load_task.cache_clear()
    miniature._kept.cache_clear()
    yield
    miniature.load_task.cache_clear()
    miniature._kept.cache_clear()


def test_a_stopped_miniature_continues(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["miniature", "--output_dir", str(tmp_path), "--backbones", "mae", "--tasks", "digits"]
    argv += ["--rows", "linear", "shallow_at_10"]
    execute, calls = miniature.execute, []

    def stop_after_three(*args: Any) -> Any:
        calls.append(args[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return execute(*args)

    monkeypatch.setattr(miniature, "execute", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        main(argv)
    first = (tmp_path / "mae-digits.jsonl").read_text()
    assert len(first.splitlines()) == 3
    assert main(argv) == 0
    whole = (tmp_path / "mae-digits.jsonl").read_text()
    assert whole.startswith(first)
    assert len(whole.splitlines()) == 8  # two rates and two more seeds, for each of two rows
    assert len(calls) == 4 + 5
    main(argv)
    assert len(calls) == 9


def test_a_run_can_be_repeated_and_depends_on_its_seed(short: None) -> None:
    first, again, other = (
        miniature.execute(Run("mae", "digits", "gated_sample", 0.05, seed), None) for seed in (0, 0, 1)
    )
    assert first["losses"] == again["losses"] != other["losses"]
    assert len(first["gates"]) == 11 and len(first["temperatures"]) == 12
    assert first["trained_parameters"] == 2 * 128 + 11 + 12 + 1290


@pytest.mark.parametrize("row", ["linear", "shallow_at_6"])
def test_starting_late_changes_nothing(short: None, row: str) -> None:
    """Training from kept tokens or from pixels results in the same model."""
    task = miniature.load_task("digits", None)
    first = 12 if row == "linear" else 6
    late, whole = (miniature.build(Run("mae", "digits", row, 0.05, 0), task) for _ in range(2))
    kept = miniature._kept("mae", "digits", None, first)["val"]
    assert kept.pixels.shape[1:] == (65, 128)
    miniature.StartAtBlock(late, first).open()
    torch.testing.assert_close(predict(late, kept), predict(whole, task.parts["val"]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["miniature", "--rows", "gatedd"], r"unknown --rows gatedd. Choose from: linear"),
        (["miniature", "--tasks", "cifar10"], r"unknown --tasks cifar10. Choose from: digits"),
        (["race"], r"race needs --data_dir"),
        (["race", "--outputdir", "x"], r"Did you mean --output_dir"),
    ],
)
def test_names_are_checked(argv: list[str], message: str) -> None:
    with pytest.raises(GatedPromptError, match=message):
        main(argv)


# Pages and check.


def test_the_pages_hold_the_committed_results() -> None:
    for page, name in ((real_page, "real"), (miniature_page, "miniature")):
        text = page.PAGE.read_text(encoding="utf-8")
        assert page.new_page(text, study_results.read(name)) == text, f"old; run: python tools/{name}_page.py"


def test_committed_results_are_complete() -> None:
    real_records, small = study_results.read("real"), study_results.read("miniature")
    assert (len(real_records), sum(map(len, real_records.values()))) == (15, 210)
    assert (len(small), sum(map(len, small.values()))) == (9, 496)
    for found in small.values():
        for record in found:
            variant = miniature.VARIANTS[record["row"]]
            assert record["rate"] in miniature.VARIANTS[variant.like or record["row"]].rates
            assert record["seed"] in miniature.SEEDS


def test_tables_of_made_up_records() -> None:
    found: list[dict[str, Any]] = []
    for variant, share in (("shallow", 0.5), ("gated", 0.53)):
        for rate in miniature.RATES:
            for seed in miniature.SEEDS if rate == miniature.RATES[0] else miniature.SEEDS[:1]:
                run = Run("mae", "digits", variant, rate, seed)
                curve = [[3, 0.2], [6, 0.47], [15, 0.52]] if variant == "gated" else [[3, 0.1], [6, 0.3], [15, 0.4]]
                record = {**made(run, 0.5, share + 0.01 * seed), "curve": curve, "gates": [0.1, 0.3, 0.2]}
                found.append(record)
    by_file = {"mae-digits": found}
    assert "| VPT-shallow | 51.00 ± 1.00 |" in miniature_page.methods(by_file)
    assert "| gated (the paper's) - VPT-shallow | +3.0 | +3.0 |" in miniature_page.differences(by_file)
    assert "| mae, digits | 46.8 | never | 6 | not run | not run |" in miniature_page.epochs(by_file)
    assert "| mae, digits | 51.0 | not run" in miniature_page.blocks(by_file)
    assert "| mae, digits | 0.1 | 0.3 | 0.2 | 1 | not run |" in miniature_page.gates(by_file)
    assert "supervised" not in miniature_page.methods(by_file)


def test_check_allows_the_spread_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    """Deviations 3 and 1: their pooled one is sqrt(5) = 2.236; a fourth run deviates by sqrt(4/3) times that."""
    assert check.pooled_deviation([[47.0, 50.0, 53.0], [49.0, 50.0, 51.0], [30.0]]) == pytest.approx(5**0.5)
    assert check.tolerance([49.0, 50.0, 51.0], 5**0.5) == pytest.approx(7.746, abs=1e-3)
    assert check.tolerance([47.0, 50.0, 53.0], 5**0.5) == pytest.approx(10.392, abs=1e-3)
    assert check.tolerance([90.0], pooled=0.5) == pytest.approx(1.5 * 2**0.5)
    assert not check.is_outside("a", 57.7, 50.0, 7.746)
    assert check.is_outside("a", 42.2, 50.0, 7.746)
    assert capsys.readouterr().out.splitlines()[1] == "OUT  a: 42.2, committed 50.0 ± 7.7"


def test_check_runs_a_new_seed_and_compares(short: None, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    for rate, seed, share in ((0.03, 0, 0.9), (0.03, 1, 0.91), (0.03, 2, 0.89), (0.1, 0, 0.1)):
        record = made(Run("mae", "digits", "linear", rate, seed), share, share)
        records.append(tmp_path / "miniature" / "mae-digits.jsonl", json.loads(json.dumps(record)))
    assert main(["check-miniature", "--backbones", "mae", "--tasks", "digits"]) == 1
    assert "OUT  mae digits linear" in capsys.readouterr().out  # two steps cannot reach 90 %


def test_check_of_the_real_backbone(
    backbone: Path, task: tasks.Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Brightness is easy: every probe and the trained row reach 100 %, so one committed 50 % lies outside."""
    monkeypatch.setattr(check, "RESULTS", tmp_path)
    monkeypatch.setattr(tasks, "load", lambda name, data_dir: task)
    file = tmp_path / "real" / "dtd10.jsonl"
    sure = {"strengths": [0.1] * DEPTH, "val": [1.0] * DEPTH, "test": [1.0, 0.5, 1.0]}
    records.append(file, {"kind": "probe", **sure})
    for seed in (0, 1):
        records.append(file, {"kind": "run", **row_record("zero_start_best"), "seed": seed, "test": 1.0})
    argv = ["check-real", "--data_dir", str(tmp_path), "--backbone", str(backbone), "--tasks", "dtd10"]
    assert main(argv) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("OUT")] == [
        "OUT  made, probe of block 1, test: 100.0, committed 50.0 ± 1.1"
    ]
    assert any(line.startswith("ok   dtd10, zero_start_best, seed 3: 100.0") for line in lines)
