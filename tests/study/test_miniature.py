"""The miniature: its images, its grid, its records, its runner on a tiny recipe, its page and its check."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gated_prompt import GatedPromptError
from helpers.data_files import real_data
from miniature import data as miniature_data
from miniature import grid, records, sprites
from miniature import pages as table
from miniature import rerun as check
from miniature import runs as miniature
from miniature.grid import MiniRun

SHORT = {**miniature.RECIPE, "epochs": 2, "batch_size": 100, "num_virtual_tokens": 2}


# Images.


@pytest.mark.parametrize(
    ("index", "position", "orientation"), [(0, 0, 0), (2, 0, 2), (9, 1, 1), (63, 7, 7), (64, 0, 0), (70, 0, 6)]
)
def test_labels_by_hand(index: int, position: int, orientation: int) -> None:
    assert sprites.label(index, "position") == position
    assert sprites.label(index, "orientation") == orientation


def ink(index: int) -> np.ndarray:
    """How much of each pixel the sprite covers, (32, 32), measured in the image alone."""
    picture = sprites.draw(index).astype(float)
    ground = np.median(picture, (0, 1))
    off = np.abs(picture - ground).sum(2)
    return off / off.max()


def test_pictures_show_their_position() -> None:
    """The mean column of the ink rises with the label (a triangle's centroid lies within 1 pixel of its centre)."""
    columns = np.arange(32) + 0.5
    for index in range(128):
        seen = (ink(index).sum(0) * columns).sum() / ink(index).sum()
        low = 7 + 18 / 8 * sprites.label(index, "position")
        assert low - 1.5 < seen < low + 18 / 8 + 1.5, index


def test_pictures_show_their_orientation() -> None:
    """The tip is the farthest ink from the centroid, and lies in the direction of the label."""
    down, across = np.mgrid[:32, :32] + 0.5
    for index in range(128):
        cover = ink(index)
        x, y = ((cover * axis).sum() / cover.sum() for axis in (across, down))
        arm = np.where(cover > 0.15, (across - x) + 1j * (y - down), 0)
        tip = arm.flat[np.abs(arm).argmax()]
        off = np.abs(np.angle(tip * np.exp(-0.25j * np.pi * sprites.label(index, "orientation"))))
        assert off < np.deg2rad(22.5), index


def test_pictures_are_the_same_everywhere() -> None:
    np.testing.assert_array_equal(sprites.draw(5), sprites.draw(5))
    assert not np.array_equal(sprites.draw(5), sprites.draw(69))  # same labels, another image
    assert sprites.draw(0).shape == (32, 32, 3)
    assert [int(sprites.draw(i).astype(int).sum()) for i in (0, 1, 63)] == SUMS


SUMS = [157177, 205340, 249681]


# Tasks.


@pytest.mark.parametrize("name", miniature_data.FREE)
def test_tasks_have_their_sizes(name: str) -> None:
    task = miniature_data.load(name, None)
    for part, size in miniature_data.SIZES.items():
        pixels, labels = task.parts[part]
        assert pixels.shape == (size, 3, 32, 32)
        assert set(labels.tolist()) == set(range(len(task.class_names)))


@pytest.mark.parametrize("name", ["cifar10", "dtd10"])
def test_tasks_from_files_have_distinct_images(name: str) -> None:
    task = miniature_data.load(name, real_data())
    every = torch.cat([pixels for pixels, _ in task.parts.values()]).flatten(1)
    assert len(every) == 900
    assert len(torch.unique(every, dim=0)) > 890  # none shared by the parts, but for twins in the data themselves


def test_a_task_without_its_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match="dtd10/images is missing"):
        miniature_data.load("dtd10", tmp_path)


# Grid and records.


def made(run: MiniRun, val: float, test: float = 0.5) -> dict:
    return {**dict(zip(records.KEY, run.key, strict=True)), "val_accuracy": val, "test_accuracy": test}


def test_rates_are_chosen_on_validation_images_with_the_first_seed() -> None:
    found: dict = {}
    first = grid.missing_runs(["mae"], ["digits"], ["shallow"], found)
    assert [(r.learning_rate, r.seed) for r in first] == [(0.03, 0), (0.1, 0)]
    found[first[0].key] = made(first[0], val=0.4, test=0.9)
    assert grid.chosen_rate("mae", "digits", "shallow", found) is None
    found[first[1].key] = made(first[1], val=0.6, test=0.1)
    assert grid.chosen_rate("mae", "digits", "shallow", found) == 0.1
    second = grid.missing_runs(["mae"], ["digits"], ["shallow"], found)
    assert [(r.learning_rate, r.seed) for r in second] == [(0.1, 1), (0.1, 2)]
    assert grid.scores("mae", "digits", "shallow", found) == [10.0]
    found |= {r.key: made(r, 0.0) for r in second}
    assert grid.missing_runs(["mae"], ["digits"], ["shallow"], found) == []


def test_a_start_takes_the_rate_of_gated() -> None:
    runs = grid.missing_runs(["mae"], ["digits"], ["gated_sample", "gated"], {})
    assert {run.variant for run in runs} == {"gated"} and len(runs) == 2
    found = {run.key: made(run, val=0.1 * i) for i, run in enumerate(runs)}
    later = grid.missing_runs(["mae"], ["digits"], ["gated_sample"], found)
    assert [(r.variant, r.learning_rate, r.seed) for r in later] == [("gated_sample", 0.1, s) for s in grid.SEEDS]


RUN = MiniRun("mae", "digits", "linear", 0.05, 0)


def test_records_survive_a_write_that_was_cut_off(tmp_path: Path) -> None:
    records.append(tmp_path, RUN, SHORT, {"val_accuracy": 0.5})
    file = tmp_path / "mae-digits.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"backbone": "mae", "ta')
    assert list(records.read(tmp_path, SHORT)) == [RUN.key]
    other = MiniRun("mae", "digits", "linear", 0.05, 1)
    records.append(tmp_path, other, SHORT, {"val_accuracy": 0.6})
    assert list(records.read(tmp_path, SHORT)) == [RUN.key, other.key]
    assert file.read_bytes().startswith(whole)


def test_records_of_another_recipe_are_refused(tmp_path: Path) -> None:
    records.append(tmp_path, RUN, SHORT, {})
    with pytest.raises(GatedPromptError, match="another --output_dir"):
        records.read(tmp_path, {**SHORT, "epochs": 3})


# Runner.


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs on 20 images."""
    load = miniature_data.load

    def few(name: str, data_dir: Path | None) -> miniature_data.MiniTask:
        task = load(name, data_dir)
        return miniature_data.MiniTask({k: (x[:20], y[:20]) for k, (x, y) in task.parts.items()}, task.class_names)

    monkeypatch.setattr(miniature_data, "load", few)
    miniature._task.cache_clear()
    miniature._cached_tokens.clear()
    monkeypatch.setattr(miniature, "RECIPE", SHORT)
    monkeypatch.setattr(miniature.execute, "__defaults__", (SHORT,))
    yield
    miniature._task.cache_clear()
    miniature._cached_tokens.clear()


def test_a_stopped_miniature_goes_on(short, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--output_dir", str(tmp_path), "--backbones", "mae", "--tasks", "digits"]
    command += ["--variants", "linear", "shallow_at_10", "--workers", "1"]
    execute, calls = miniature.execute, []

    def stop_after_three(*args):
        calls.append(args[0])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return execute(*args)

    monkeypatch.setattr(miniature, "execute", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        miniature.main(command)
    first = (tmp_path / "mae-digits.jsonl").read_text()
    assert len(first.splitlines()) == 3
    miniature.main(command)
    whole = (tmp_path / "mae-digits.jsonl").read_text()
    assert whole.startswith(first)
    assert len(whole.splitlines()) == 8  # two rates and two more seeds, for each of two variants
    assert len(calls) == 4 + 5
    miniature.main(command)
    assert len(calls) == 9


def test_a_run_can_be_repeated_and_depends_on_its_seed(short) -> None:
    run = MiniRun("mae", "digits", "gated_sample", 0.05, 0)
    first, again = (miniature.execute(run, None) for _ in range(2))
    other = miniature.execute(MiniRun("mae", "digits", "gated_sample", 0.05, 1), None)
    assert first["losses"] == again["losses"] != other["losses"]
    assert len(first["gates"]) == 11 and len(first["temperatures"]) == 12
    assert first["trained_parameters"] == 2 * 128 + 11 + 12 + 1290


@pytest.mark.parametrize("variant", ["linear", "shallow_at_6"])
def test_starting_late_changes_nothing(short, variant: str) -> None:
    """Training from precomputed tokens or from pixels results in the same model."""
    run = MiniRun("mae", "digits", variant, 0.05, 0)
    task = miniature._task("digits", None)
    late, whole = (miniature.build(run, task, SHORT) for _ in range(2))
    parts = miniature.start_at_block(late, 12 if variant == "linear" else 6, run, task.parts)
    assert parts["val"][0].shape[1:] == (65, 128)
    for model in (late, whole):
        model.eval()
    with torch.no_grad():
        torch.testing.assert_close(late(parts["val"][0]).logits, whole(task.parts["val"][0]).logits)


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(GatedPromptError, match=r"unknown --variants gatedd; known: linear"):
        miniature.main(["--output_dir", str(tmp_path), "--variants", "gatedd"])


# Page and check.


def test_the_page_holds_the_committed_results() -> None:
    found = records.read(miniature.HERE / "results", miniature.RECIPE)
    page = table.PAGE.read_text()
    assert table.new_page(page, found) == page, "docs/miniature.md is old; run: python examples/miniature/table.py"


def test_committed_results_are_those_of_the_grid() -> None:
    for file in (miniature.HERE / "results").glob("*.jsonl"):
        for line in file.read_text().splitlines():
            record = json.loads(line)
            tried = grid.VARIANTS[grid.VARIANTS[record["variant"]].like or record["variant"]].rates
            assert record["learning_rate"] in tried
            assert record["seed"] in grid.SEEDS
            assert file.stem == f"{record['backbone']}-{record['task']}"


def test_tables_of_made_up_records() -> None:
    found: dict = {}
    for variant, accuracy in (("shallow", 0.5), ("gated", 0.53)):
        for rate in grid.RATES:
            for seed in grid.SEEDS if rate == grid.RATES[0] else grid.SEEDS[:1]:
                run = MiniRun("mae", "digits", variant, rate, seed)
                curve = [[3, 0.2], [6, 0.47], [15, 0.52]] if variant == "gated" else [[3, 0.1], [6, 0.3], [15, 0.4]]
                found[run.key] = {**made(run, 0.5, accuracy + 0.01 * seed), "curve": curve, "gates": [0.1, 0.3, 0.2]}
    assert "| VPT-shallow | 51.00 ± 1.00 |" in table.methods(found)
    assert "| gated (the paper's) - VPT-shallow | +3.0 | +3.0 |" in table.differences(found)
    assert "| mae, digits | 46.8 | never | 6 | not run | not run |" in table.epochs(found)
    assert "| mae, digits | 51.0 | not run" in table.blocks(found)
    assert "| mae, digits | 0.1 | 0.3 | 0.2 | 1 | not run |" in table.gates(found)
    assert "supervised" not in table.methods(found)


def test_check_allows_the_spread_and_no_more() -> None:
    """Deviations 3 and 1: their pooled one is sqrt(5) = 2.236; a fourth run deviates by sqrt(4/3) times that."""
    assert check.pooled_deviation([[47.0, 50.0, 53.0], [49.0, 50.0, 51.0], [30.0]]) == pytest.approx(5**0.5)
    assert check.tolerance([49.0, 50.0, 51.0], 5**0.5) == pytest.approx(7.746, abs=1e-3)
    assert check.tolerance([47.0, 50.0, 53.0], 5**0.5) == pytest.approx(10.392, abs=1e-3)
    assert check.verdict("a", 57.7, [49.0, 50.0, 51.0], 5**0.5)[0]
    assert check.verdict("a", 42.2, [49.0, 50.0, 51.0], 5**0.5) == (False, "OUT  a: 42.2, committed 50.0 ± 7.7")


def test_check_runs_a_new_seed_and_compares(short, tmp_path: Path, monkeypatch, capsys) -> None:
    committed, new = tmp_path / "committed", ["--output_dir", str(tmp_path / "new"), "--workers", "1"]
    monkeypatch.setattr(check, "COMMITTED", committed)
    monkeypatch.setattr(check, "RECIPE", SHORT)
    for rate, seed, accuracy in ((0.03, 0, 0.9), (0.03, 1, 0.91), (0.03, 2, 0.89), (0.1, 0, 0.1)):
        run = MiniRun("mae", "digits", "linear", rate, seed)
        records.append(committed, run, SHORT, {"val_accuracy": accuracy, "test_accuracy": accuracy})
    assert check.main(new) == 1  # two steps cannot reach 90 %
    assert "OUT  mae digits linear" in capsys.readouterr().out
    (line,) = (tmp_path / "new" / "mae-digits.jsonl").read_text().splitlines()
    assert (json.loads(line)["seed"], json.loads(line)["learning_rate"]) == (3, 0.03)
