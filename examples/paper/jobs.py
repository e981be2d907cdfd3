# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One training run of a table: its settings, the process that trains, and its record on disk.

    <folder>/runs/<name>/        what the script leaves behind, and log.txt with all it printed
    <folder>/results/<name>.json the settings and the results of a run that has ended well

A run is found again by the settings in its record. The name is for people, though it holds a hash of the settings.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gated_prompt import GatedPromptError
from gated_prompt.finetune.reporting import write_json
from gated_prompt.training.checkpoints import checkpoints, drop_checkpoints

EXAMPLES = Path(__file__).parents[1]
PLACES = ("data_dir", "backbone")  # arguments in which environment variables are expanded when the run starts


@dataclass(frozen=True)
class Run:
    """A call of a training script.

    `arguments` are those of the script that the table sets, `extra` more of them as given by the user, `processes`
    and `mixed_precision` are for `accelerate launch`.
    """

    script: str
    arguments: Mapping[str, str | int | float]
    extra: tuple[str, ...] = ()
    processes: int = 1
    mixed_precision: str = "no"

    @property
    def settings(self) -> dict[str, Any]:
        """All that can change the result, ready for JSON."""
        return {
            "script": self.script,
            "arguments": dict(sorted(self.arguments.items())),
            "extra": list(self.extra),
            "processes": self.processes,
            "mixed_precision": self.mixed_precision,
        }

    @property
    def key(self) -> str:
        """The settings as text, the same for equal settings."""
        return json.dumps(self.settings, sort_keys=True)

    @property
    def name(self) -> str:
        """Name of its folder and record: what people look for, then a hash of all settings."""
        shown = [self.arguments.get(name) for name in ("task", "method", "eval_split")]
        shown += [f"lr{self.arguments['learning_rate']:g}"] if "learning_rate" in self.arguments else []
        shown += [f"seed{self.arguments['seed']}"] if "seed" in self.arguments else []
        digest = hashlib.sha256(self.key.encode()).hexdigest()[:10]
        return "-".join([str(part) for part in shown if part is not None] + [digest])

    def argv(self) -> list[str]:
        """The script's arguments as they are given on the command line, paths expanded."""
        argv = []
        for name, value in self.arguments.items():
            argv += [f"--{name}", os.path.expandvars(str(value)) if name in PLACES else str(value)]
        return [*argv, *self.extra]

    def command(self, output: Path, threads: int) -> list[str]:
        """The whole command; resumes from a checkpoint in `output` where there is one."""
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_machines", "1"]
        launch += ["--num_processes", str(self.processes), "--mixed_precision", self.mixed_precision]
        launch += ["--dynamo_backend", "no"]
        launch += ["--num_cpu_threads_per_process", str(threads)]
        if self.processes > 1:
            launch += ["--multi_gpu", "--main_process_port", "0"]  # a free one: several runs share a machine
        script = EXAMPLES / self.script
        resume = []
        if checkpoints(output / "checkpoints"):
            resume = ["--resume_from_checkpoint", "latest"]
        return [*launch, str(script), *self.argv(), "--output_dir", str(output), *resume]


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Results by the settings they belong to (`Run.key`), from all records in `folder`; damaged ones are left out."""
    found = {}
    for file in sorted((folder / "results").glob("*.json")):
        try:
            record = json.loads(file.read_text())
            found[json.dumps(record["settings"], sort_keys=True)] = dict(record["results"])
        except (ValueError, KeyError, TypeError) as error:
            tqdm.write(f"{file} is no record of a run ({error}); its run is done again")
    return found


def execute(run: Run, folder: Path, *, threads: int = 1, cwd: str | None = None) -> None:
    """Train and write the record; does nothing where the record is there.

    The script and all its children hold a lock on log.txt. So where a scheduler was killed and its script lives on,
    the next attempt waits for that script and takes its result, and two sweeps over one folder share their runs.

    Raises:
        GatedPromptError: the script failed; the message has the end of its log.
    """
    output, record = folder / "runs" / run.name, folder / "results" / f"{run.name}.json"
    output.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    with open(output / "log.txt", "ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        if record.is_file() and run.key in read_records(folder):
            return
        if not (output / "results.json").is_file():  # written last, atomically
            # Ray hides the GPUs from this process that it has not lent to it, and so from the script.
            done = subprocess.run(
                run.command(output, threads), stdout=log, stderr=subprocess.STDOUT, cwd=cwd, check=False
            )
            if done.returncode:
                end = "\n".join((output / "log.txt").read_text(errors="replace").splitlines()[-8:])
                raise GatedPromptError(f"{run.name} ended with status {done.returncode}; {output / 'log.txt'}:\n{end}")
        results = json.loads((output / "results.json").read_text())
        write_json(record, {"settings": run.settings, "results": results})
        drop_checkpoints(output / "checkpoints")
        with suppress(OSError):  # where somebody else has put something into it
            (output / "checkpoints").rmdir()
        shutil.rmtree(output / "model", ignore_errors=True)  # adapters are small and stay
