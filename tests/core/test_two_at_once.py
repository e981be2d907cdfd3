"""Processes that save into one folder while others read it: never a mixture, never a false alarm."""

import multiprocessing
import os
import sys
import threading
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import gated_prompt
from gated_prompt import DamagedAdapterError, GatedPromptConfig, GatedPromptError
from gated_prompt.files import folder as folders
from gated_prompt.files.folder import LOCK_NAME, locked
from helpers.models import bank_of, vit

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ENOUGH, SECONDS = 3, 60.0

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="saves in forked processes. This system has no fork")


def make(value: float, **settings: object) -> PeftModel:
    model = get_peft_model(vit(), GatedPromptConfig(num_virtual_tokens=3, **settings)).eval()
    bank(model).gated_prompt_tokens["default"].data.fill_(value)
    return model


def bank(model: PeftModel) -> torch.nn.Module:
    return bank_of(model)


def pair(model: PeftModel) -> tuple[float, str | None]:
    """What only one of the two savers writes: the prompts, in the weights, and the pooling, in the config."""
    return float(bank(model).gated_prompt_tokens["default"].mean()), model.peft_config["default"].pooling


def go_on_saving(model: PeftModel, folder: Path, enough: Event) -> None:
    while not enough.is_set():
        gated_prompt.save(model, folder)


@needs_fork
def test_two_savers_and_a_reader(tmp_path: Path) -> None:
    models = [make(1.0), make(2.0, pooling="patches")]
    gated_prompt.save(models[0], tmp_path)
    context = multiprocessing.get_context("fork")
    enough = context.Event()
    savers = [context.Process(target=go_on_saving, args=(model, tmp_path, enough)) for model in models]
    for saver in savers:
        saver.start()
    wanted = {(1.0, None), (2.0, "patches")}
    base, seen, end = vit(), Counter(), time.monotonic() + SECONDS
    try:
        # Which saver gets the lock is the system's choice, so the reader goes on until it met both.
        while min(seen[one] for one in wanted) < ENOUGH and time.monotonic() < end:
            model = gated_prompt.load(base, tmp_path)  # an error here is a false alarm
            seen[pair(model)] += 1
            base = model.unload()
    finally:
        enough.set()
        for saver in savers:
            saver.join()
    assert [saver.exitcode for saver in savers] == [0, 0]
    assert set(seen) == wanted and min(seen.values()) >= ENOUGH
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", CONFIG, WEIGHTS]


def test_threads_that_save_wait_for_each_other(tmp_path: Path) -> None:
    """Without a lock, a second thread would find the staging folder of the first."""
    faults = []

    def save(value: float) -> None:
        try:
            for _ in range(5):
                gated_prompt.save(make(value), tmp_path)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=save, args=(float(value),)) for value in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == [] and not (tmp_path / LOCK_NAME).exists()


def test_waiting_has_an_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "WAIT", 0.1)
    model, outcome = make(1.0), []

    def save() -> None:
        try:
            gated_prompt.save(model, tmp_path)
        except GatedPromptError as error:
            outcome.append(str(error))

    with locked(tmp_path):
        thread = threading.Thread(target=save)
        thread.start()
        thread.join()
    assert len(outcome) == 1 and "another process has been saving into" in outcome[0]
    assert list(tmp_path.iterdir()) == []
    gated_prompt.save(model, tmp_path)


def test_a_reader_looks_again(tmp_path: Path, monkeypatch) -> None:
    """The weights are replaced after the config was read; the next attempt finds both."""
    old, new = make(1.0), make(2.0, pooling="patches")
    gated_prompt.save(old, tmp_path)
    found, looks = folders.read_settings, []

    def read_and_replace(*args: object) -> object:
        values = found(*args)
        if not looks:
            gated_prompt.save(new, tmp_path)
        looks.append(values["pooling"])
        return values

    monkeypatch.setattr("gated_prompt.config_file.read_settings", read_and_replace)
    assert pair(gated_prompt.load(vit(), tmp_path)) == (2.0, "patches")
    assert looks[:2] == [None, "patches"]


def test_looking_again_has_an_end(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    model = make(1.0)
    gated_prompt.save(model, tmp_path)
    found = folders.read_settings

    def read_and_replace(*args: object) -> object:
        gated_prompt.save(model, tmp_path)
        return found(*args)

    monkeypatch.setattr("gated_prompt.config_file.read_settings", read_and_replace)
    with pytest.raises(DamagedAdapterError, match="was replaced repeatedly"):
        gated_prompt.load(vit(), tmp_path)


def test_replaced_while_pefts_own_loader_reads(tmp_path: Path, monkeypatch) -> None:
    """PEFT's loader opens the weights after the check; ours loads a copy of the checked file."""
    old, new = make(1.0), make(2.0, pooling="patches")
    gated_prompt.save(old, tmp_path)
    found = PeftModel.load_adapter

    def replace_and_load(self: PeftModel, *args: object, **kwargs: object) -> object:
        gated_prompt.save(new, tmp_path)
        return found(self, *args, **kwargs)

    monkeypatch.setattr(PeftModel, "load_adapter", replace_and_load)
    with pytest.raises(DamagedAdapterError, match="was replaced while it was being loaded"):
        PeftModel.from_pretrained(vit(), tmp_path)
    gated_prompt.save(old, tmp_path)
    assert pair(gated_prompt.load(vit(), tmp_path)) == (1.0, None)


def test_a_reader_writes_nothing_into_the_folder(tmp_path: Path) -> None:
    """So it also works in a read-only folder."""
    gated_prompt.save(make(1.0), tmp_path / "adapter")
    folder, touched, watching = str(tmp_path / "adapter"), [], [True]

    def watch(event: str, arguments: tuple) -> None:
        if not watching or not arguments or folder not in str(arguments[0]):
            return
        changes = event in {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod"}
        if changes or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            touched.append((event, arguments))

    sys.addaudithook(watch)
    try:
        model = gated_prompt.load(vit(), folder)
        gated_prompt.load(model, folder, "second")
    finally:
        watching.clear()
    assert touched == []


def test_a_second_adapter_is_taken_from_a_copy_too(tmp_path: Path) -> None:
    gated_prompt.save(make(1.0), tmp_path / "a")
    gated_prompt.save(make(2.0, pooling="patches"), tmp_path / "b")
    model = gated_prompt.load(gated_prompt.load(vit(), tmp_path / "a"), tmp_path / "b", "second")
    wanted = load_file(tmp_path / "b" / WEIGHTS)["base_model.model.gated_prompt.gated_prompt_tokens"]
    assert torch.equal(bank(model).gated_prompt_tokens["second"], wanted)
    assert model.peft_config["second"].pooling == "patches"
