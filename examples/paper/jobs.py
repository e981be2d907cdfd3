# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One training run of a table: its settings, the process that trains, and its record on disk.

    <folder>/runs/<name>/        what the script leaves behind, and log.txt with all it printed
    <folder>/results/<name>.json key, settings and results of a run that has ended, also of one that diverged

A run is found again by the key in its record. The name is for people, though it holds a hash of the key.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gated_prompt import GatedPromptError
from gated_prompt.errors import DataError
from gated_prompt.finetune.report import write_json
from gated_prompt.training.checkpoints import checkpoints, drop_checkpoints

from .records import FAILURE, read_records

EXAMPLES = Path(__file__).parents[1]
PLACES = ("data_dir", "backbone")  # arguments in which environment variables are expanded when the run starts
NEUTRAL = {  # arguments that do not change a result
    *("dataloader_num_workers", "per_device_eval_batch_size", "checkpointing_steps", "report_to"),
    *("push_to_hub", "hub_model_id", "linear_probe"),
}


@dataclass(frozen=True)
class Run:
    """A call of a training script.

    Attributes:
        arguments: Those of the script that the table sets.
        extra: More of them, as given by the user.
        processes, mixed_precision: For `accelerate launch`.
        identity: What else the result depends on: weights, data, preset and recipe.
    """

    script: str
    arguments: Mapping[str, str | int | float]
    extra: tuple[str, ...] = ()
    processes: int = 1
    mixed_precision: str = "no"
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """How the run is started, ready for JSON."""
        return {
            "script": self.script,
            "arguments": dict(sorted(self.arguments.items())),
            "extra": list(self.extra),
            "processes": self.processes,
            "mixed_precision": self.mixed_precision,
        }

    @property
    def key(self) -> str:
        """All that can change the result as text: settings but for neutral ones, and content in place of paths."""
        known = {"data": "data_dir", "weights": "backbone"}
        left_out = NEUTRAL | {path for name, path in known.items() if name in self.identity}
        arguments = {name: value for name, value in self.settings["arguments"].items() if name not in left_out}
        content = {"arguments": arguments, "extra": without(self.extra, NEUTRAL), "identity": dict(self.identity)}
        return json.dumps({**self.settings, **content}, sort_keys=True)

    @property
    def name(self) -> str:
        """Name of its folder and record: what people look for, then a hash of the key."""
        shown = [self.arguments.get(name) for name in ("task", "method", "eval_split")]
        shown += [f"lr{self.arguments['learning_rate']:g}"] if "learning_rate" in self.arguments else []
        shown += [f"wd{self.arguments['weight_decay']:g}"] if self.arguments.get("weight_decay") else []
        shown += [f"seed{self.arguments['seed']}"] if "seed" in self.arguments else []
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:10]
        return "-".join([str(part) for part in shown if part is not None] + [digest])

    @property
    def cell(self) -> str:
        """Name of what it shares its data with: the task and its splits."""
        shown = [self.arguments.get(name) for name in ("task", "train_split", "eval_split")]
        return "-".join(str(part) for part in shown if part is not None)

    def argv(self) -> list[str]:
        """The script's arguments as they are given on the command line, paths expanded."""
        argv = []
        for name, value in self.arguments.items():
            argv += [f"--{name}", os.path.expandvars(str(value)) if name in PLACES else str(value)]
        return [*argv, *self.extra]

    def command(self, output: Path, threads: int) -> list[str]:
        """The whole command. Resumes from a checkpoint in `output` if there is one."""
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_machines", "1"]
        launch += ["--num_processes", str(self.processes), "--mixed_precision", self.mixed_precision]
        launch += ["--dynamo_backend", "no"]
        launch += ["--num_cpu_threads_per_process", str(threads)]
        if self.processes > 1:
            launch += ["--multi_gpu", "--main_process_port", "0"]  # a free one: several runs share a machine
        resume = ["--resume_from_checkpoint", "latest"] if checkpoints(output / "checkpoints") else []
        return [*launch, str(EXAMPLES / self.script), *self.argv(), "--output_dir", str(output), *resume]


def without(extra: Sequence[str], names: set[str]) -> list[str]:
    """A command line without these options and their values."""
    left, skipped = [], False
    for word in extra:
        if word.startswith("--"):
            skipped = word[2:].split("=")[0].replace("-", "_") in names
        if not skipped:
            left.append(word)
    return left


def execute(
    run: Run, folder: Path, *, sweep: str = "", wait: bool = True, threads: int = 1, cwd: str | None = None
) -> bool:
    """Train and write the record. Does nothing if the record is there.

    The script and all its children hold a lock on log.txt. So where a worker was killed and its script lives on, the
    next attempt of the same `sweep` waits for that script and takes its result.

    Returns:
        False if another sweep is at this run and `wait` is False: it is left to the other.

    Raises:
        DataError: the script failed over its data. The message has the end of its log.
        GatedPromptError: the script failed otherwise.
    """
    output, record = folder / "runs" / run.name, folder / "results" / f"{run.name}.json"
    output.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    owner = output / "sweep.txt"
    with open(output / "log.txt", "ab") as log:
        ours = owner.is_file() and owner.read_text() == sweep
        if not _locked(log, wait=wait or ours):
            return False
        if record.is_file() and run.key in read_records(folder, record.name):
            return True
        owner.write_text(sweep)
        began = time.time()
        if not (output / "results.json").is_file():  # written last, atomically
            _train(run, output, log, threads, cwd)
        results = json.loads((output / "results.json").read_text())
        _check(run, results, output / "results.json")
        stamp = {"seconds": round(time.time() - began, 1), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        write_json(record, {"key": json.loads(run.key), "settings": run.settings, **stamp, "results": results})
        drop_checkpoints(output / "checkpoints")
        with suppress(OSError):  # where somebody else has put something into it
            (output / "checkpoints").rmdir()
        shutil.rmtree(output / "model", ignore_errors=True)  # adapters are small and stay
    return True


def _locked(log: IO[bytes], *, wait: bool) -> bool:
    try:
        fcntl.flock(log, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _train(run: Run, output: Path, log: IO[bytes], threads: int, cwd: str | None) -> None:
    """Run the script. A run that diverged has left its results and a status of 1."""
    failure = output / "failure.json"
    failure.unlink(missing_ok=True)
    # Ray hides the GPUs from this process that it has not lent to it, and so from the script.
    environment = {**os.environ, FAILURE: str(failure)}
    command = run.command(output, threads)
    done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=cwd, env=environment, check=False)
    if done.returncode == 0 or (output / "results.json").is_file():
        return
    end = "\n".join((output / "log.txt").read_text(errors="replace").splitlines()[-8:])
    kind = json.loads(failure.read_text())["kind"] if failure.is_file() else ""
    error = DataError if kind == DataError.__name__ else GatedPromptError
    raise error(f"{run.name} ended with status {done.returncode}. See {output / 'log.txt'}:\n{end}")


def _check(run: Run, results: Mapping[str, Any], file: Path) -> None:
    """Weights and data may have been exchanged after the table was begun."""
    used = {"data": [part.get("fingerprint") for part in results.get("data", [])], **results.get("backbone", {})}
    for what in ("weights", "data"):
        if what in run.identity and what in used and used[what] != run.identity[what]:
            file.unlink()
            raise GatedPromptError(
                f"the {what} of {run.name} changed after the table was begun. Start the command again."
            )
