"""Tables of the paper: their grids, the published numbers, both averages, choosing learning rates, finding records."""

import dataclasses
import json
from pathlib import Path

import pytest

import reproduce_tables
from gated_prompt import GatedPromptError
from gated_prompt.data.vtab import TASKS
from paper import grids, presets, summary
from paper import jobs as training_runs
from paper.grids import Common, final_run, search_runs
from paper.jobs import Run
from paper.markdown import to_markdown
from paper.presets import PAPER, Row, Search, Searched, at_edge, best_of
from paper.records import RECIPE, read_records
from paper.summary import Cell, judge

MAE = Common("backbones/mae-vit-b", "mae", vtab_dir="$DATA/vtab-1k", fgvc_dir="data/fgvc")
GATED = Row("gated", "gated")
RATE = {"learning_rate": 0.5, "weight_decay": 0.0}


def test_averages_of_published_rows_are_those_printed() -> None:
    for table in ("fgvc", "fgvc_prompts", "vtab"):
        for row in grids.published()["tables"][table]:
            values = row["values"]
            columns = [name for name in values if not name.startswith("mean")]
            weights = [len(summary.GROUPS[name]) if table == "vtab" else 1 for name in columns]
            mean = sum(w * values[name] for w, name in zip(weights, columns, strict=True)) / sum(weights)
            if "mean_of_tasks" in values:
                assert mean == pytest.approx(values["mean_of_tasks"], abs=0.011), row


def test_published_numbers_stand_beside_the_rows_of_each_table() -> None:
    for name, table in grids.TABLES.items():
        columns = {grids.column(task, metric) for task in table.tasks for metric in table.metrics}
        for entry in grids.published()["tables"][name]:
            if not table.any_method:
                assert entry["row"] in [row.name for row in table.rows[entry["backbone"]]]
            assert set(entry["values"]) <= columns | set(summary.GROUPS) | {"mean_of_tasks"}
    assert grids.published_row("fgvc", "mae", "gated")[0]["cub"] == 70.56
    assert grids.published_row("backbones", "moco", "deep, 48 prompts in all")[0] == {"cub": 73.18, "flowers": 89.53}
    assert grids.published_row("ade20k", "mae", "gated, 24 prompts")[0]["ade20k multi_scale"] == 39.23
    assert grids.published_row("vtab", "mae", "lora") == ({}, None)


def test_rows_with_the_same_number_of_prompts_in_all() -> None:
    def prompts(table: str, kind: str) -> dict[str, object]:
        return {row.name: row.settings["num_virtual_tokens"] for row in grids.TABLES[table].rows[kind]}

    assert list(prompts("fgvc_prompts", "mae").values()) == [2, 24, 4, 48, 8, 96]
    assert prompts("backbones", "mae")["deep, 48 prompts in all"] == 2  # ViT-L has 24 blocks
    assert prompts("backbones", "moco")["deep, 48 prompts in all"] == 4
    assert list(prompts("ade20k", "moco").values()) == [100, 10, 100, 24, 2, 24]


def test_runs_of_a_vtab_task() -> None:
    search = search_runs(MAE, GATED, "dtd", PAPER)
    assert [run.arguments["learning_rate"] for run in search] == [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0]
    assert {(run.arguments["train_split"], run.arguments["eval_split"]) for run in search} == {("train800", "val200")}
    final = final_run(MAE, GATED, "dtd", 44, RATE)
    assert final.script == "train_vtab.py"
    assert final.arguments == {
        **{"task": "dtd", "method": "gated", "backbone": "backbones/mae-vit-b", "backbone_kind": "mae"},
        **{"preset": "paper", "linear_probe": "false", "data_dir": "$DATA/vtab-1k", "seed": 44, "learning_rate": 0.5},
        **{"train_split": "train800val200", "eval_split": "test", "weight_decay": 0.0},
    }


def test_runs_of_other_tables() -> None:
    run = search_runs(MAE, GATED, "cub", Search("given", (0.1,)))[0]
    assert (run.script, run.arguments["data_dir"], run.arguments["eval_split"]) == (
        *("train_fgvc.py", "data/fgvc/cub", "val"),
    )
    assert "train_split" not in run.arguments
    figure = grids.TABLES["first_figure"].rows["moco"][3]
    moco = dataclasses.replace(MAE, kind="moco")
    assert final_run(moco, figure, "kitti", 42, None).arguments["learning_rate"] == 0.1
    assert final_run(moco, figure, "cub", 42, None).arguments["learning_rate"] == 1.0
    assert final_run(moco, figure, "cub", 42, None).arguments["insert_at"] == 3
    ade = final_run(dataclasses.replace(MAE, processes=4), grids.TABLES["ade20k"].rows["mae"][2], "ade20k", 42, None)
    assert ade.script == "train_ade20k.py"
    assert ade.arguments == {
        **{"task": "ade20k", "method": "gated", "backbone": "backbones/mae-vit-b", "seed": 42, "gate_init": -10},
        **{"per_device_train_batch_size": 4, "learning_rate": 0.001, "num_virtual_tokens": 100, "weight_decay": 0.0},
    }


def test_the_command_of_a_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DATA", "/somewhere")
    run = dataclasses.replace(final_run(MAE, GATED, "dtd", 42, RATE), extra=("--num_train_epochs", "3"), processes=2)
    command = run.command(tmp_path, threads=3)
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert "--multi_gpu" in command and command[command.index("--num_processes") + 1] == "2"
    assert command[command.index("--data_dir") + 1] == "/somewhere/vtab-1k"
    assert command[-4:] == ["--num_train_epochs", "3", "--output_dir", str(tmp_path)]
    (tmp_path / "checkpoints" / "step_00000008.partial").mkdir(parents=True)
    assert "--resume_from_checkpoint" not in run.command(tmp_path, threads=1)
    (tmp_path / "checkpoints" / "step_00000004").mkdir()
    assert run.command(tmp_path, threads=1)[-2:] == ["--resume_from_checkpoint", "latest"]


def test_every_setting_makes_another_run() -> None:
    run = final_run(MAE, GATED, "dtd", 42, RATE)
    others = [
        dataclasses.replace(run, extra=("--num_train_epochs", "3")),
        dataclasses.replace(run, processes=2),
        dataclasses.replace(run, mixed_precision="bf16"),
        *(final_run(MAE, GATED, task, seed, RATE) for task, seed in (("kitti", 42), ("dtd", 1))),
        *(final_run(MAE, GATED, "dtd", 42, choice) for choice in (None, {**RATE, "weight_decay": 0.01})),
        final_run(dataclasses.replace(MAE, backbone="other/mae"), GATED, "dtd", 42, RATE),
        search_runs(MAE, GATED, "dtd", Search("given", (0.5,)))[0],
    ]
    assert len({each.key for each in (run, *others)}) == len({each.name for each in (run, *others)}) == 10
    turned = dataclasses.replace(run, arguments=dict(reversed(run.arguments.items())))
    assert (turned.key, turned.name) == (run.key, run.name)


def record(folder: Path, run: Run, name: str | None = None, **results: object) -> Path:
    file = folder / "results" / f"{name or run.name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"key": json.loads(run.key), "settings": run.settings, "results": results}))
    return file


def test_a_record_is_known_by_its_settings_not_by_its_name(tmp_path) -> None:
    one, two = final_run(MAE, GATED, "dtd", 1, RATE), final_run(MAE, GATED, "dtd", 2, RATE)
    record(tmp_path, one, name="renamed", accuracy=0.1)
    record(tmp_path, one, name=two.name, accuracy=0.1)  # the name of another run
    assert read_records(tmp_path) == {one.key: {"accuracy": 0.1}}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"key": {}, "results": 3}', '{"settings": {}, "results": {}}', "\x00"]
)
def test_damaged_records_are_left_out_and_named(tmp_path, capsys, content) -> None:
    good, bad = final_run(MAE, GATED, "dtd", 1, RATE), final_run(MAE, GATED, "dtd", 2, RATE)
    record(tmp_path, good, accuracy=0.1)
    file = record(tmp_path, bad)
    file.write_text(content)
    assert list(read_records(tmp_path)) == [good.key]
    assert f"{file} is not a record of a run" in capsys.readouterr().out


def searched(*found: tuple[float, float | None]) -> list[Searched]:
    return [Searched({"learning_rate": rate, "weight_decay": 0.0}, score, score is None) for rate, score in found]


def test_the_best_rate_is_chosen_of_equals_the_smaller() -> None:
    tied = searched((0.05, 30), (0.1, 50), (0.25, 50))
    assert best_of(tied) == {"learning_rate": 0.1, "weight_decay": 0.0}
    assert not at_edge(tied, tied[1].choice) and at_edge(tied, tied[0].choice) and at_edge(tied, tied[2].choice)
    assert best_of(searched((0.05, None), (0.1, 20))) == {"learning_rate": 0.1, "weight_decay": 0.0}
    assert best_of(searched((0.05, None))) is None  # all diverged
    assert best_of([*tied, Searched({"learning_rate": 9.0, "weight_decay": 0.0}, None)]) is None  # not all were run


def test_each_row_is_searched_as_its_own_publication_did() -> None:
    def tried(method: str, kind: str, task: str = "dtd") -> list[tuple[float, float]]:
        row = grids.row_of(method, kind, "vtab")
        runs = search_runs(dataclasses.replace(MAE, kind=kind), row, task, row.search)
        return [(run.arguments["learning_rate"], run.arguments["weight_decay"]) for run in runs]

    assert [rate for rate, _ in tried("gated", "mae")] == list(presets.LEARNING_RATES)
    full = tried("full", "mae")  # batches of 128, so half of VPT's base rates
    assert len(full) == 16 and {rate for rate, _ in full} == {0.00005, 0.00025, 0.0005, 0.0025}
    assert {decay for _, decay in full} == {0.0, 0.0001, 0.001, 0.01}
    assert grids.row_of("full", "mae", "vtab").settings["optimizer"] == "adamw"
    assert (len(tried("linear", "mae")), len(tried("linear", "moco"))) == (13 * 4, 10 * 4)
    assert (min(tried("linear", "mae"))[0], max(tried("linear", "mae"))[0]) == (0.0025 / 2, 25.0)
    assert max(tried("linear", "moco", "resisc45"))[0] == 12.5  # batches of 64
    assert [grids.row_of(m, "mae", "vtab").unlike is None for m in ("shallow", "deep", "gated")] == [
        False,
        False,
        True,
    ]
    kept = [row for row in grids.TABLES["fgvc_prompts"].rows["mae"] if row.unlike]
    assert [row.method for row in kept] == ["deep"] * 3


def test_the_papers_own_settings_are_95_runs() -> None:
    row = grids.row_of("gated", "mae", "vtab")
    runs = [final_run(MAE, row, task, seed, None) for task in TASKS for seed in grids.SEEDS]
    assert len({run.key for run in runs}) == 95
    assert {run.arguments["learning_rate"] for run in runs} == {
        rows[0][2] for t, rows in presets.TABLE_5.items() if t in TASKS
    }


def test_what_a_run_is_known_by() -> None:
    """Content instead of paths where it is known; not what leaves the result as it is."""
    known = dataclasses.replace(
        MAE, weights={"weights": "a", "backbone_settings": "b"}, data={"dtd": {"train800val200": "c", "test": "d"}}
    )
    run = final_run(known, GATED, "dtd", 42, RATE)
    identity = json.loads(run.key)["identity"]
    assert (identity["weights"], identity["data"], identity["recipe"]) == ("a", ["c", "d"], RECIPE)
    moved = final_run(dataclasses.replace(known, backbone="x", vtab_dir="y"), GATED, "dtd", 42, RATE)
    assert moved.key == run.key and moved.settings != run.settings
    for change in (
        {"weights": {"weights": "z", "backbone_settings": "b"}},
        {"data": {"dtd": {"train800val200": "c", "test": "z"}}},
    ):
        assert final_run(dataclasses.replace(known, **change), GATED, "dtd", 42, RATE).key != run.key
    neutral = ("--dataloader_num_workers", "8", "--report_to=wandb", "--num_train_epochs", "3")
    assert dataclasses.replace(run, extra=neutral).key == dataclasses.replace(run, extra=neutral[3:]).key != run.key


def test_verdicts() -> None:
    def verdict(values: dict[int, float], published: float, doubts: tuple[str, ...] = (), seeds: int = 2) -> list[str]:
        return judge(Cell(values, seeds), published, doubts)["text"]

    assert verdict({1: 70.0, 2: 70.2}, 70.9) == ["70.90", "70.10", "-0.80", "1.00", "agrees"]
    assert verdict({1: 70.0, 2: 70.2}, 72) == ["72.00", "70.10", "-1.90", "1.00", "differs"]
    assert verdict({1: 68.0, 2: 72.0}, 75)[3:] == ["6.93", "agrees"]  # twice 2.83 times the root of 1.5
    assert verdict({1: 70.0}, 70)[4] == verdict({}, 70)[4] == "incomplete"
    assert (
        verdict({1: 70.0, 2: 70.2}, 70, ("images encoded with loss",))[4] == "not comparable: images encoded with loss"
    )


def every_task(**values: float) -> dict[str, dict[int, float]]:
    groups = {name: task.group for name, task in TASKS.items()}
    return {name: {1: values[groups[name]], 2: values[groups[name]] + 1} for name in TASKS}


def test_both_averages_of_vtab() -> None:
    cells = summary.vtab_averages(every_task(natural=10, specialized=40, structured=70), (1, 2))
    assert cells["natural"].values == {1: 10, 2: 11}
    assert cells["mean_of_groups"].values == {1: 40, 2: 41}
    assert cells["mean_of_tasks"].values[1] == pytest.approx((7 * 10 + 4 * 40 + 8 * 70) / 19)
    assert cells["mean_of_groups"].text() == "40.50 ± 0.71"  # sample deviation of 40 and 41
    paper = summary.with_mean_of_groups(grids.published_row("vtab", "mae", "gated")[0])
    assert paper["mean_of_groups"] == pytest.approx((47.61 + 76.86 + 36.80) / 3)


def test_averages_say_what_is_missing() -> None:
    scores = every_task(natural=10, specialized=40, structured=70)
    scores["dtd"] = {}
    del scores["kitti"][2]
    cells = summary.vtab_averages(scores, (1, 2))
    assert cells["natural"].text() == "incomplete (6 of 7 tasks)"
    assert cells["specialized"].text() == "40.50 ± 0.71"
    assert cells["structured"].text() == "70.00 (1 of 2 seeds)"
    assert cells["mean_of_tasks"].text() == cells["mean_of_groups"].text() == "incomplete (18 of 19 tasks)"
    assert summary.plain(scores, "dtd", (1, 2)).text() == "not run"
    assert summary.plain(scores, "kitti", (1, 2)).text() == "70.00 (1 of 2 seeds)"
    assert summary.plain(scores, "cifar", (1,)).text() == "10.00"


def result(accuracy: float, exact: bool = True) -> dict[str, object]:
    data = {"dataset": "cub", "split": "test", "exact": exact, "note": "Drawn anew."}
    rest = {"settings": {"learning_rate": 0.1}, "trained_parameters": 5, "versions": {}, "device": "CPU"}
    return {"accuracy": accuracy, "data": [data], **rest}


def fgvc(seeds, records, tasks=None, name="fgvc", kind="mae") -> dict[str, object]:
    table = grids.TABLES[name]
    rows, tasks = grids.choose_rows(name, kind, ["gated"]), tasks or table.tasks
    finals = {
        (r.name, t, s): final_run(MAE, r, t, s, {"learning_rate": 0.1}) for r in rows for t in tasks for s in seeds
    }
    found = {finals[key].key: value for key, value in records.items()}
    made = summary.summarize(name, table, kind, rows, tasks, seeds, finals, found)
    return made | {"settings": {"backbone": "b", "command": "c"}}


def test_the_text_of_a_table() -> None:
    tasks = grids.TABLES["fgvc"].tasks
    records = {("gated", task, seed): result(0.5 + seed / 100) for task in tasks for seed in (1, 2)}
    made = fgvc((1, 2), records)
    text = to_markdown(made)
    assert made["complete"] is True and "incomplete" not in text
    assert "| cub | 51.50 ± 0.71 [70.56] |" in text
    assert "| mean of tasks | 51.50 ± 0.71 [73.39] |" in text
    assert "Learning rates of gated: cub 0.1, flowers 0.1" in text
    assert "Table 1" in text and "no number of runs" in text
    assert made["rows"]["gated"]["scores"]["cub"]["by_seed"] == {"1": 51.0, "2": 52.0}


def test_the_text_of_an_incomplete_table_says_so() -> None:
    made = fgvc((1, 2), {("gated", "cub", 1): result(0.5, exact=False)}, tasks=["cub"])
    text = to_markdown(made)
    assert made["complete"] is False and "**This table is incomplete" in text
    assert "| cub | 50.00 (1 of 2 seeds) [70.56] |" in text
    assert "| mean of tasks | incomplete (1 of 5 tasks) [73.39] |" in text
    assert "Not the benchmark's own images (inexact): cub test: Drawn anew." in text
    assert made["rows"]["gated"]["missing"] == ["flowers", "cars", "dogs", "nabirds"]
    assert "Missing in gated: flowers, cars, dogs, nabirds. The mean of the others is 50.00" in text


def test_tables_with_more_methods_than_tasks_are_turned() -> None:
    text = to_markdown(fgvc((1,), {}, tasks=["cub"], name="fgvc_prompts"))
    assert "|  | cub | mean of tasks |\n| --- | --- | --- |\n| gated, 24 prompts | not run [65.26] |" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--table", "cifar"],
            "--table: invalid choice: 'cifar' .*vtab.*, .*fgvc.*, .*fgvc_prompts.*, .*backbones.*, .*ade20k",
        ),
        (["--tasks", "dtd", "cub"], "unknown task 'cub'. Choose from: caltech101, cifar, dtd"),
        (["--methods", "vpt"], "unknown method 'vpt'. Choose from: gated, gate_only, .*lora"),
        (["--table", "ade20k", "--methods", "lora"], "unknown method 'lora'. Choose from: shallow, deep, gated"),
        (["--backbone", "some/vit"], "Choose with --backbone_kind mae or moco"),
        (["--scheduler", "slurm"], "--scheduler: invalid choice: 'slurm' .*ray.*, .*serial.*, .*none"),
        (["--", "--seed", "3"], "--seed after -- is set by the table"),
        (["--", "--learning_rate=3"], "--learning_rate=3 after -- is set by the table"),
        (["--", "--learning-rate", "3"], "--learning-rate after -- is set by the table"),
        (["--methods", "shallow", "--", "--gates", "true"], "--gates True contradicts --method shallow"),
    ],
)
def test_faults_are_found_before_anything_runs(tmp_path, argv, words) -> None:
    with pytest.raises(GatedPromptError, match=words):
        reproduce_tables.main(["--output_dir", str(tmp_path), "--scheduler", "none", *argv])
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--vtab_dir", "no/such/folder"], "--vtab_dir 'no/such/folder' is not a folder"),
        (["--backbone", "no/such-mae"], "cannot load --backbone 'no/such-mae'. Give a folder"),
    ],
)
def test_places_are_looked_for_before_anything_runs(tmp_path, monkeypatch, argv, words) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(GatedPromptError, match=words):
        reproduce_tables.main(["--output_dir", str(tmp_path), "--scheduler", "serial", *argv])


def test_an_unknown_argument_after_the_dashes_is_found_too(tmp_path) -> None:
    with pytest.raises(GatedPromptError, match="unknown option '--epochs'"):
        reproduce_tables.main(["--output_dir", str(tmp_path), "--scheduler", "none", "--", "--epochs", "3"])


def test_nothing_run_gives_a_table_that_says_so(tmp_path, capsys) -> None:
    assert (
        reproduce_tables.main(["--output_dir", str(tmp_path), "--scheduler", "none", "--table", "first_figure"]) == 1
    )
    made = json.loads((tmp_path / "first_figure-mae.json").read_text())
    assert made["complete"] is False
    assert (tmp_path / "first_figure-mae.md").read_text() in capsys.readouterr().out


def test_a_run_that_fails_shows_the_end_of_its_log(tmp_path) -> None:
    (tmp_path / "fails.py").write_text("raise SystemExit('no such bird')")
    with pytest.raises(GatedPromptError, match=r"ended with status 1. .*log.txt:\n.*no such bird"):
        training_runs.execute(Run(str(tmp_path / "fails.py"), {"task": "a"}), tmp_path / "out")
    assert not list((tmp_path / "out" / "results").iterdir())
