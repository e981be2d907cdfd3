# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Measure the size of an adapter file, and the time to load it and to switch to it."""

import tempfile
import time
from pathlib import Path
from statistics import median

from peft import PeftModel, get_peft_model

import gated_prompt
from gated_prompt import GatedPromptConfig

from .contenders import plain


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
