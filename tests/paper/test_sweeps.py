"""Sweeps that are killed: no run is lost or repeated."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

import reproduce_tables
from gated_prompt import GatedPromptError
from gated_prompt.serving.ray_cluster import connect
from helpers.interrupted import train_here
from paper import jobs
from paper.jobs import Run, execute
from paper.records import read_records
from paper.schedulers import Resources, Sweep, run_all, run_ray

EXAMPLES = Path(__file__).parents[2] / "examples"
STUB = """
import json, os, sys, time
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
output = arguments["--output_dir"]
with open(os.path.join(output, "starts"), "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(float(arguments["--seconds"]))
while "--until" in arguments and not os.path.exists(arguments["--until"]):
    time.sleep(0.05)
starts = len(open(os.path.join(output, "starts")).readlines())
if starts < int(arguments.get("--fails_below", 0)):
    sys.exit("not yet")
with open(os.path.join(output, "results.json"), "w") as file:
    json.dump({"accuracy": 0.5}, file)
"""


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """A script that notes its process, sleeps and leaves results."""
    (tmp_path / "stub.py").write_text(STUB)
    return str(tmp_path / "stub.py")


def starts(folder: Path, run: Run) -> list[int]:
    file = folder / "runs" / run.name / "starts"
    return [int(line) for line in file.read_text().split()] if file.is_file() else []


def is_unlocked(file: Path) -> bool:
    with open(file, "ab") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail("it took too long")
        time.sleep(0.05)


def started(*command: str) -> subprocess.Popen[bytes]:
    """A Python process with a session of its own. Not a fork: this process has threads, whose locks a fork keeps."""
    return subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_serial_tries_again_and_goes_on_without_a_run_that_keeps_failing(stub, tmp_path, capsys) -> None:
    folder = tmp_path / "out"
    second_time, never = (Run(stub, {"seconds": 0, "fails_below": n}) for n in (2, 9))
    run_all([second_time, never], folder, "serial", Resources(retries=1))
    assert [len(starts(folder, run)) for run in (second_time, never)] == [2, 2]
    assert set(read_records(folder)) == {second_time.key}
    assert "attempt 2 of 2" in capsys.readouterr().out
    run_all([second_time, never], folder, "none", Resources())
    assert len(starts(folder, never)) == 2


def test_what_has_a_record_is_not_run(stub, tmp_path) -> None:
    folder, run = tmp_path / "out", Run(stub, {"seconds": 0})
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "any.json").write_text(json.dumps({"key": json.loads(run.key), "results": {"accuracy": 1}}))
    run_all([run], folder, "serial", Resources())
    assert starts(folder, run) == []
    other = Run(stub, {"seconds": 0.0})  # other settings under the name of the expected record
    (folder / "results" / f"{other.name}.json").write_text(json.dumps({"key": {}, "results": {"accuracy": 1}}))
    run_all([other], folder, "serial", Resources())
    assert len(starts(folder, other)) == 1
    assert read_records(folder)[other.key]["accuracy"] == 0.5


def test_a_script_that_outlives_its_scheduler_is_waited_for(stub, tmp_path) -> None:
    folder, run = tmp_path / "out", Run(stub, {"seconds": 4})
    code = f"from paper.jobs import *; execute(Run({stub!r}, {{'seconds': 4}}), Path({str(folder)!r}))"
    scheduler = started("-c", code)
    wait_for(lambda: starts(folder, run))
    scheduler.kill()
    scheduler.wait()
    assert not read_records(folder)
    execute(run, folder)
    assert len(starts(folder, run)) == 1
    assert read_records(folder)[run.key]["accuracy"] == 0.5


def test_a_run_of_another_sweep_is_left_to_it(stub, tmp_path, capsys) -> None:
    """Independent processes over one folder do not wait for each other, and repeat nothing."""
    folder, go = tmp_path / "out", tmp_path / "go"
    long, short = Run(stub, {"seconds": 0, "until": str(go)}), Run(stub, {"seconds": 0})
    other = threading.Thread(target=run_all, args=([long], folder, "serial", Resources()))
    other.start()
    wait_for(lambda: starts(folder, long))
    run_all([long, short], folder, "serial", Resources())
    assert set(read_records(folder)) == {short.key}
    assert "is left to another process" in capsys.readouterr().out
    go.touch()
    other.join()
    assert set(read_records(folder)) == {short.key, long.key}
    assert len(starts(folder, long)) == 1


def test_a_failure_of_data_stops_the_other_runs_of_the_cell(stub, tmp_path, capsys) -> None:
    (tmp_path / "data.py").write_text(
        "import json, os\nfrom pathlib import Path\n"
        "Path(os.environ['GATED_PROMPT_FAILURE_FILE']).write_text(json.dumps({'kind': 'DataError', 'message': ''}))\n"
        "raise SystemExit('error: The image 7.jpg is missing.')\n"
    )
    folder, script = tmp_path / "out", str(tmp_path / "data.py")
    runs = [Run(script, {"task": "dtd", "seconds": seconds}) for seconds in (1, 2, 3)]
    run_all([*runs, Run(stub, {"task": "kitti", "seconds": 0})], folder, "serial", Resources(retries=2))
    assert len(list(folder.glob("runs/dtd*/log.txt"))) == 1  # tried once, and not again
    assert len(read_records(folder)) == 1  # kitti's
    assert "the other runs of dtd are left out, for its data failed" in capsys.readouterr().out


def test_ray_is_asked_for_by_name_where_it_is_missing(stub, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(GatedPromptError, match=r"pip install 'gated-prompt\[sweep\]', or use --scheduler serial"):
        run_all([Run(stub, {"seconds": 0})], tmp_path, "ray", Resources())


def listening() -> set[str]:
    """Addresses on which this process and those that it has started wait for connections."""
    me = psutil.Process()
    own = {process.pid for process in (me, *me.children(recursive=True))}
    found = psutil.net_connections("tcp")
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN and each.pid in own}


@pytest.mark.slow
def test_ray_on_this_machine_cannot_be_reached_from_another(monkeypatch) -> None:
    ray = pytest.importorskip("ray")
    before = listening()
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")  # of a cluster that was not requested
    connect(ray, None)
    try:
        assert ray.get(ray.remote(lambda: 41).remote()) == 41
        assert listening() - before <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
        assert listening() - before
    finally:
        ray.shutdown()
    monkeypatch.setattr(ray, "nodes", lambda: [{"NodeManagerAddress": "192.0.2.2"}])  # as before it was pinned
    with pytest.raises(GatedPromptError, match=r"listens on 192.0.2.2 and cannot be kept to this machine"):
        connect(ray, None)
    assert not ray.is_initialized()


@pytest.mark.slow
def test_ray_survives_workers_that_are_killed(stub, tmp_path, monkeypatch) -> None:
    """SIGKILL while both run: of one the worker alone, of the other its script too, as when a machine is lost."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join((str(EXAMPLES), os.environ.get("PYTHONPATH", "")))
    )  # no script here
    init = ray.init
    monkeypatch.setattr(ray, "init", lambda *args, **kwargs: init(*args, num_cpus=2, **kwargs))
    folder = tmp_path / "out"
    go = tmp_path / "go"
    alone, whole = (Run(stub, {"seconds": seconds, "until": str(go)}) for seconds in (0, 0.1))
    later, killed = Run(stub, {"seconds": 0}), []

    def kill() -> None:
        try:
            wait_for(lambda: starts(folder, alone) and starts(folder, whole), 300)
            for run, scripts_too in ((alone, False), (whole, True)):
                script = psutil.Process(starts(folder, run)[0])
                launcher = script.parent()
                worker = launcher.parent()
                killed.append(worker.name())
                for process in (worker, launcher, script) if scripts_too else (worker,):
                    process.kill()
            time.sleep(2)  # a script that lives on does so until the next attempt waits for it
        finally:
            go.touch()

    thread = threading.Thread(target=kill)
    thread.start()
    run_ray(Sweep([alone, whole, later], folder, Resources(retries=2)))
    thread.join()
    assert len(killed) == 2 and all("ray" in name for name in killed)
    assert set(read_records(folder)) == {run.key for run in (alone, whole, later)}
    assert [len(starts(folder, run)) for run in (whole, later)] == [2, 1]
    assert len(starts(folder, alone)) in (1, 2)  # some versions of Ray kill what a dead worker has started
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vtab-1k layout of dtd with generated images."""
    root = tmp_path_factory.mktemp("vtab") / "vtab-1k"
    draw = np.random.default_rng(0)
    for split, count in {"train800": 24, "val200": 6, "train800val200": 30, "test": 9}.items():
        folder = root / "dtd" / "images" / split
        folder.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i:06d}.jpg")
        lines = [f"images/{split}/{i:06d}.jpg {i % 3}\n" for i in range(count)]
        (root / "dtd" / f"{split}.txt").write_text("".join(lines))
    return root


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.filterwarnings("ignore::gated_prompt.images.InexactDataWarning")
def test_a_table_that_is_killed_goes_on_where_it_was(backbone, layout, tmp_path, monkeypatch, capsys) -> None:
    """The whole sweep is killed in its last run; the same command then writes the table without repeating a run.

    The search is done before, in this process, and so is all of the repeated command but its run.
    """
    argv = ["--scheduler", "serial", "--tasks", "dtd", "--backbone", str(backbone), "--backbone_kind", "mae"]
    argv += ["--methods", "gated", "--seeds", "42", "--learning_rates", "0.05", "0.5", "--vtab_dir", "$LAYOUT"]
    argv += ["--output_dir", str(tmp_path), "--", "--num_train_epochs", "20", "--warmup_epochs", "1"]
    argv += ["--per_device_train_batch_size", "8", "--dataloader_num_workers", "0"]
    monkeypatch.setenv("LAYOUT", str(layout))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "_train", train_here)
        assert reproduce_tables.main(["--stage", "search", *argv]) == 0
    first = started(str(EXAMPLES / "reproduce_tables.py"), *argv)
    wait_for(lambda: list(tmp_path.glob("runs/*test-lr*/checkpoints/step_????????")), 300)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: is_unlocked(next(tmp_path.glob("runs/*test-lr*/log.txt"))))  # its script is gone as well
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "results").iterdir()}
    assert len(before) == 2  # the search is done, the final run is not
    capsys.readouterr()
    assert reproduce_tables.main(argv) == 0
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "results").iterdir()}
    assert len(after) == 3 and before.items() < after.items()
    log = next(tmp_path.glob("runs/*test-lr*/log.txt")).read_text(errors="replace")
    assert "resumed after step" in log
    made = json.loads((tmp_path / "vtab-mae.json").read_text())
    searched = [r for r in read_records(tmp_path).values() if r["settings"]["eval_split"] == "val200"]
    best = min(searched, key=lambda r: (-r["accuracy"], r["settings"]["learning_rate"]))
    assert made["rows"]["gated"]["learning_rates"] == {"dtd": best["settings"]["learning_rate"]}
    assert [(r["num_train"], r["num_eval"]) for r in searched] == [(24, 6), (24, 6)]
    assert made["complete"] is True and "| dtd | " in capsys.readouterr().out
    assert not list(tmp_path.glob("runs/*/checkpoints"))
