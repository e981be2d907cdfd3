# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Measure one contender: seconds of a training step and of a forward, memory, and what its adapter file costs."""

import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig

from .contenders import CLASSES, CONTENDERS, logits_of, plain


@dataclass(frozen=True)
class Setting:
    """The settings that all contenders of a table share. `batch` images of 224 x 224 pixels."""

    size: str
    batch: int
    device: str = "cpu"
    bf16: bool = False
    compiled: bool = False
    checkpointing: bool = False


class Run:
    """One contender with P prompts, ready to be timed."""

    def __init__(self, name: str, prompts: int, setting: Setting) -> None:
        self.setting = setting
        self.model = CONTENDERS[name](setting.size, prompts).to(setting.device)
        if setting.checkpointing:
            enable: Any = self.model.gradient_checkpointing_enable
            enable()
        self.call = torch.compile(self.model) if setting.compiled else self.model
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
        torch.manual_seed(1)
        self.pixels = torch.randn(setting.batch, 3, 224, 224, device=setting.device)
        self.labels = torch.randint(CLASSES, (setting.batch,), device=setting.device)

    def train_step(self) -> float:
        """Return the seconds of one forward pass, backward pass and update."""
        self.model.train()
        start = self._now()
        with self._autocast():
            loss = F.cross_entropy(logits_of(self.call(self.pixels)), self.labels)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self._now() - start

    @torch.inference_mode()
    def forward(self) -> float:
        """Return the seconds of one forward pass in eval mode."""
        self.model.eval()
        start = self._now()
        with self._autocast():
            self.call(self.pixels)
        return self._now() - start

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.setting.bf16:
            return nullcontext()
        return torch.autocast(self.setting.device.partition(":")[0], torch.bfloat16)

    def _now(self) -> float:
        if self.setting.device.startswith("cuda"):
            torch.cuda.synchronize()
        return time.perf_counter()


def peak_memory(name: str, prompts: int, setting: Setting) -> float:
    """Return the peak MiB of two training steps in a separate process: its memory on a CPU, allocated on a GPU."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure_memory, name, prompts, setting).result()


def _measure_memory(name: str, prompts: int, setting: Setting) -> float:
    run = Run(name, prompts, setting)
    for _ in range(2):
        run.train_step()
    if setting.device.startswith("cuda"):
        return float(torch.cuda.max_memory_allocated() / 2**20)
    return _peak_of_this_process()


def _peak_of_this_process() -> float:
    """Return MiB. Not from getrusage on Linux, where it starts at the parent's memory."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def adapter_times(size: str, prompts: int, count: int = 6) -> dict[str, float]:
    """Measure adapters without a head: kB of the weights file. Median ms to load one more, and to switch."""
    settings = GatedPromptConfig(num_virtual_tokens=prompts, modules_to_save=[])
    with tempfile.TemporaryDirectory() as folder:
        gated_prompt.save(get_peft_model(plain(size, prompts).requires_grad_(False), settings), folder)
        kilobytes = Path(folder, "adapter_model.safetensors").stat().st_size / 1000
        model = PeftModel.from_pretrained(
            plain(size, prompts).requires_grad_(False), folder
        )  # the first load also installs the hooks
        loads, switches = [], []
        for index in range(count):
            start = time.perf_counter()
            model.load_adapter(folder, f"adapter{index}")
            loads.append(time.perf_counter() - start)
        for _ in range(5):
            for index in range(count):
                start = time.perf_counter()
                model.set_adapter(f"adapter{index}")
                switches.append(time.perf_counter() - start)
    return {
        "prompts": prompts,
        "file_kB": round(kilobytes, 1),
        "load_ms": round(1000 * median(loads), 2),
        "switch_ms": round(1000 * median(switches), 3),
    }
