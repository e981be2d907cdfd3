# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a user can choose: `GatedPromptConfig`."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from peft import PeftConfig

from .checkpoint import check_adapter_file
from .errors import ConfigError, DamagedAdapterError
from .registration import NAME, add_peft_type

POOLINGS = ("prompts", "patches", "prompts_and_patches")


@dataclass
class GatedPromptConfig(PeftConfig):
    """Settings of gated prompt tuning (Yoo et al., ICML 2023, https://arxiv.org/abs/2306.05067).

    All fields are checked together when the config is made; those that depend on the depth of the base
    model are checked by `get_peft_model`, before the base is touched.

    The sign of `gate_init`: it is the initial gate *logit*, so the default -5.0 means g = sigmoid(-5) = 0.0067,
    an almost closed gate. Where the paper's Table 5 lists a gate prior of 5, the official code starts at -5.

    Raises:
        ConfigError: a field has a wrong type or value, or two fields contradict each other; all faults are listed.
    """

    num_virtual_tokens: int = field(
        default=50, metadata={"help": "P, the number of prompt tokens (of every block when deep)"}
    )
    insert_at: int = field(default=0, metadata={"help": "index of the first block whose input holds the prompts"})
    deep: bool = field(
        default=False, metadata={"help": "VPT-deep: fresh prompts at every block from insert_at on, no gates"}
    )
    gates: bool = field(default=True, metadata={"help": "learn one gate for each gated block (paper, Section 4)"})
    gate_init: float = field(
        default=-5.0, metadata={"help": "initial gate logit; the paper's table value v means logit -v"}
    )
    gated_blocks: list[int] | None = field(
        default=None, metadata={"help": "indices of the gated blocks; None: all from insert_at but the last"}
    )
    temperature: bool = field(
        default=True, metadata={"help": "learn one attention temperature for each block from insert_at on"}
    )
    temperature_init: float = field(
        default=1.0, metadata={"help": "initial temperature; the fixed one when temperature is off"}
    )
    temperature_range: tuple[float, float] = field(
        default=(0.01, 10.0), metadata={"help": "learned temperatures are kept inside this range"}
    )
    prompt_dropout: float = field(
        default=0.1, metadata={"help": "dropout on the prompts where they are inserted, while training"}
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "None: the model's own; 'prompts', 'patches' or 'prompts_and_patches': the mean of those tokens "
            "before the final norm takes the place of token 0"
        },
    )
    eval_backbone: bool = field(
        default=True, metadata={"help": "train() leaves the inside of the frozen blocks in eval mode"}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "None: the head, found by name, is trained and saved; []: nothing but prompts"}
    )
    target_modules: str | None = field(
        default=None, metadata={"help": "dotted path of the list of blocks, where detection is ambiguous"}
    )
    num_prefix_tokens: int | None = field(
        default=None,
        metadata={"help": "tokens that stand before the patches; None: counted. After injection: the number in use"},
    )
    num_layers: int | None = field(default=None, metadata={"help": "recorded: blocks of the base model"})
    hidden_size: int | None = field(default=None, metadata={"help": "recorded: width of the base model"})
    detected_prefix_tokens: int | None = field(
        default=None, metadata={"help": "recorded: prefix tokens counted in the base model"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type(NAME)
        # Shapes of the tensors in the file that this config was read with; not a field, so never saved. The tuner
        # compares the head's shapes with the base before PEFT writes anything.
        self._file_shapes: dict[str, tuple[int, ...]] | None = None
        if isinstance(self.temperature_range, list):  # JSON has no tuples
            self.temperature_range = tuple(self.temperature_range)
        if isinstance(self.gated_blocks, (tuple, range)):
            self.gated_blocks = list(self.gated_blocks)
        if isinstance(self.modules_to_save, (tuple, set)):
            self.modules_to_save = sorted(self.modules_to_save)
        faults = self._faults()
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        """Everything that is wrong whatever the base model is."""
        faults = _type_faults(self)
        if faults:
            return faults  # values of a wrong type cannot be compared
        if self.num_virtual_tokens < 1:
            faults.append(f"num_virtual_tokens is {self.num_virtual_tokens}; at least 1 is needed")
        if self.insert_at < 0:
            faults.append(f"insert_at is {self.insert_at}; blocks are counted from 0")
        if not 0 <= self.prompt_dropout < 1:
            faults.append(f"prompt_dropout is {self.prompt_dropout}; it must lie in [0, 1)")
        if self.pooling is not None and self.pooling not in POOLINGS:
            faults.append(f"pooling is {self.pooling!r}; known are None, {', '.join(map(repr, POOLINGS))}")
        if self.num_prefix_tokens is not None and self.num_prefix_tokens < 0:
            faults.append(f"num_prefix_tokens is {self.num_prefix_tokens}; it cannot be negative")
        return faults + self._gate_faults() + self._temperature_faults()

    def _gate_faults(self) -> list[str]:
        faults = []
        if not math.isfinite(self.gate_init):
            faults.append(f"gate_init is {self.gate_init}; a finite logit is needed (-20 closes a gate, 20 opens it)")
        if self.gated_blocks is None:
            return faults
        if self.deep:
            faults.append("deep=True has no gates, so gated_blocks cannot be given; leave one of the two out")
        elif not self.gates:
            faults.append("gates=False contradicts gated_blocks; leave one of the two out")
        elif not self.gated_blocks:
            faults.append("gated_blocks is empty; use gates=False for prompts without gates")
        if sorted(set(self.gated_blocks)) != self.gated_blocks:
            faults.append(f"gated_blocks is {self.gated_blocks}; list each block once, in ascending order")
        below = [b for b in self.gated_blocks if b < self.insert_at]
        if below:
            faults.append(f"gated_blocks {below} lie below insert_at={self.insert_at}: no prompts are there yet")
        return faults

    def _temperature_faults(self) -> list[str]:
        faults = []
        low, high = self.temperature_range
        if not (0 < low < high and math.isfinite(high)):
            faults.append(f"temperature_range is {self.temperature_range}; 0 < low < high is needed")
        elif self.temperature and not low <= self.temperature_init <= high:
            faults.append(f"temperature_init is {self.temperature_init}, outside temperature_range ({low}, {high})")
        if not (self.temperature_init > 0 and math.isfinite(self.temperature_init)):
            faults.append(f"temperature_init is {self.temperature_init}; attention logits are divided by it, so > 0")
        return faults

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Self:
        """Read `adapter_config.json` from a folder or Hub repository and check the weights beside it.

        PEFT calls this before it opens the weights itself, so that damage is found while nothing is changed.
        `kwargs` are those of `huggingface_hub.hf_hub_download`, as in PEFT.

        Raises:
            DamagedAdapterError: the config is no JSON, or the weights file is truncated, incomplete, holds
                unknown keys, wrong shapes or non-finite numbers.
            ConfigError: the config holds wrong values.
        """
        try:
            config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedAdapterError(
                f"adapter_config.json of {pretrained_model_name_or_path!r} is not valid JSON ({error}); "
                "save or download the adapter again"
            ) from error
        config._file_shapes = check_adapter_file(config, pretrained_model_name_or_path, subfolder, kwargs)
        return config


def _type_faults(config: GatedPromptConfig) -> list[str]:
    faults = []

    def expect(name: str, ok: bool, wanted: str) -> None:
        if not ok:
            faults.append(f"{name} is {getattr(config, name)!r}; {wanted} is needed")

    for name in ("num_virtual_tokens", "insert_at"):
        expect(name, _is_int(getattr(config, name)), "an integer")
    for name in ("num_prefix_tokens", "num_layers", "hidden_size", "detected_prefix_tokens"):
        expect(name, getattr(config, name) is None or _is_int(getattr(config, name)), "None or an integer")
    for name in ("deep", "gates", "temperature", "eval_backbone"):
        expect(name, isinstance(getattr(config, name), bool), "True or False")
    for name in ("gate_init", "temperature_init", "prompt_dropout"):
        expect(name, _is_number(getattr(config, name)), "a number")
    for name in ("pooling", "target_modules"):
        expect(name, getattr(config, name) is None or isinstance(getattr(config, name), str), "None or a string")
    expect("gated_blocks", _is_list_of(config.gated_blocks, _is_int), "None or a list of block indices")
    expect(
        "modules_to_save",
        _is_list_of(config.modules_to_save, lambda v: isinstance(v, str)),
        "None or a list of module names",
    )
    pair = config.temperature_range
    expect(
        "temperature_range",
        isinstance(pair, Sequence) and len(pair) == 2 and all(map(_is_number, pair)),
        "a pair of numbers (low, high)",
    )
    return faults


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_list_of(value: object, check: Any) -> bool:
    return value is None or (isinstance(value, list) and all(map(check, value)))
