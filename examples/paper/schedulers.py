# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Do many runs: one after the other, or by Ray Tune on all processors of a machine or a cluster.

Both leave out what has a record, try a run again when it fails, and continue with the others when it keeps failing.
Where a task's data are at fault, all its runs would fail, and the others of the task are left out. A run that another
sweep over the same folder is at is left to the other, so that any number of them work side by side.
"""

import os
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gated_prompt import GatedPromptError
from gated_prompt.errors import DataError
from gated_prompt.serving.ray_cluster import connect

from .jobs import Run, execute
from .records import read_records

SCHEDULERS = ("ray", "serial", "none")


@dataclass(frozen=True)
class Resources:
    """The resources of one run. A fraction of a GPU makes runs share one. `address`: of a Ray cluster."""

    cpus: float = 1
    gpus: float = 0
    retries: int = 2
    address: str | None = None


@dataclass(frozen=True)
class Sweep:
    """One call of `run_all`: its runs, where they are written, and which of their data have failed.

    What failed is noted in files, for the workers of a cluster have nothing else in common.
    """

    runs: Sequence[Run]
    folder: Path
    resources: Resources
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def do(self, index: int, cwd: str | None = None) -> None:
        """Do one of the runs, unless its data have failed or another sweep is at it.

        Raises:
            GatedPromptError: it failed, and not over its data.
        """
        run, threads = self.runs[index], max(1, int(self.resources.cpus))
        failed = self.folder / "failed" / self.name / run.cell
        if failed.is_file():
            return
        try:
            if not execute(run, self.folder, sweep=self.name, wait=False, threads=threads, cwd=cwd):
                tqdm.write(f"{run.name} is left to another process that is at it")
        except DataError as error:
            failed.parent.mkdir(parents=True, exist_ok=True)
            failed.write_text(str(error))
            tqdm.write(f"the other runs of {run.cell} are left out, for its data failed: {error}")


def run_all(runs: Sequence[Run], folder: Path, scheduler: str, resources: Resources) -> None:
    """Do the runs that have no record yet. A run that keeps failing is reported, and missing afterwards.

    Raises:
        GatedPromptError: Ray is not installed or cannot be reached.
    """
    done = read_records(folder)
    missing = list({run.key: run for run in runs if run.key not in done}.values())
    if missing and scheduler == "serial":
        run_serial(Sweep(missing, folder, resources))
    if missing and scheduler == "ray":
        run_ray(Sweep(missing, folder, resources))


def run_serial(sweep: Sweep) -> None:
    """One run after the other, in this process."""
    for index in tqdm(range(len(sweep.runs)), desc="runs"):
        for attempt in range(sweep.resources.retries + 1):
            try:
                sweep.do(index)
                break
            except GatedPromptError as error:
                tqdm.write(f"attempt {attempt + 1} of {sweep.resources.retries + 1}: {error}")


def run_ray(sweep: Sweep) -> None:
    """One Ray Tune trial for each run. A trial whose worker dies is started again, perhaps on another machine.

    Raises:
        GatedPromptError: Ray is not installed or cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # results lie in our own records
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # paths that users give start where they started the sweep
    try:
        import ray
        from ray import tune
    except ImportError as error:
        raise GatedPromptError(
            "--scheduler ray needs Ray Tune: pip install 'gated-prompt[sweep]', or use --scheduler serial"
        ) from error
    runs, resources = sweep.runs, sweep.resources

    class Progress(tune.Callback):
        """One bar over all runs. Made when Tune starts, as Tune pickles its callbacks before."""

        def setup(self, *args: Any, **info: Any) -> None:
            self.bar = tqdm(total=len(runs), desc="runs")

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.bar.update()

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.bar.update()
            tqdm.write(f"gave up {runs[trial.config['run']].name} after {resources.retries + 1} attempts")

        def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
            self.bar.close()

    here = os.getcwd()

    def trial(config: dict[str, int]) -> dict[str, int]:
        sweep.do(config["run"], cwd=here)
        return {"done": 1}

    connect(ray, resources.address)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            tune.Tuner(
                tune.with_resources(trial, {"cpu": resources.cpus, "gpu": resources.gpus}),
                param_space={"run": tune.grid_search(list(range(len(runs))))},
                tune_config=tune.TuneConfig(reuse_actors=True),  # a worker takes seconds to load this module
                run_config=tune.RunConfig(
                    name=f"sweep-{os.getpid()}",
                    failure_config=tune.FailureConfig(max_failures=resources.retries),
                    callbacks=[Progress()],
                    verbose=0,
                    storage_path=str(sweep.folder / "ray") if resources.address else scratch,
                ),
            ).fit()
    finally:
        ray.shutdown()
