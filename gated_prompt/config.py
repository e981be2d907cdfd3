# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The settings of an adapter: `GatedPromptConfig`."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self, get_type_hints

from .config_file import ConfigWithFile
from .errors import ConfigError, UnknownSettingError
from .field_types import convert, fault_of, unknown_field
from .files.adapter_file import AdapterFile
from .files.layout import BANK, parameter_shapes
from .registration import NAME, add_peft_type

POOLINGS = ("prompts", "patches", "prompts_and_patches")


def _hints(cls: type["GatedPromptConfig"]) -> dict[str, Any]:
    """Return the type annotation of each field, including the fields of PEFT's classes."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


@dataclass
class GatedPromptConfig(ConfigWithFile):
    """Settings of gated prompt tuning (Yoo et al., ICML 2023, https://arxiv.org/abs/2306.05067).

    The constructor checks all fields together. `get_peft_model` checks those that depend on the depth of the base
    model, before it changes the base.

    `gate_init` is the initial gate *logit*. The default -5.0 means g = sigmoid(-5) = 0.0067, an almost closed gate.
    Mind the sign: where the paper's Table 5 lists a gate prior of 5, the official code starts at -5.

    Attributes:
        filled_in: names of the fields that were None until a base model was adapted. This is not a field, so it is
            never saved.

    Raises:
        ConfigError: a field has a wrong type or value, or two fields contradict each other. The message lists all
            faults.
        UnknownSettingError: a setting has no name, or a name that the config does not know.

    Example:
        ```python
        config = GatedPromptConfig(num_virtual_tokens=10, deep=True, zero_start=True, temperature=False)
        model = get_peft_model(vit, config)
        model.print_trainable_parameters()
        ```
    """

    num_virtual_tokens: int = field(
        default=50, metadata={"help": "P, the number of prompt tokens (per block when deep)"}
    )
    insert_at: int = field(default=0, metadata={"help": "index of the first block with prompts in its input"})
    read_from: int | None = field(
        default=None,
        metadata={
            "help": "index of the block whose output the head reads. Later blocks do not run. None means the last "
            "block"
        },
    )
    deep: bool = field(
        default=False, metadata={"help": "VPT-deep: fresh prompts at each block from insert_at on, without gates"}
    )
    zero_start: bool = field(
        default=False,
        metadata={
            "help": "with deep, the other tokens read the prompts in a separate softmax, times tanh(a), one a for "
            "each head, 0 at the start, so that the adapted model begins as the base"
        },
    )
    gates: bool = field(default=True, metadata={"help": "learn one gate per gated block (paper, Section 4)"})
    gate_init: float = field(
        default=-5.0, metadata={"help": "initial gate logit. The paper's table value v means logit -v"}
    )
    gated_blocks: list[int] | None = field(
        default=None,
        metadata={"help": "indices of the gated blocks. None means all blocks with prompts except the last"},
    )
    hard_gates: bool = field(
        default=False,
        metadata={"help": "gates are sampled as 0 or 1 in training, and 1 if logit > 0 in eval mode (paper, Table 4)"},
    )
    temperature: bool = field(
        default=True, metadata={"help": "learn one attention temperature per block from insert_at on"}
    )
    temperature_init: float = field(
        default=1.0, metadata={"help": "initial temperature, which stays fixed if temperature=False"}
    )
    temperature_range: tuple[float, float] = field(
        default=(0.01, 10.0), metadata={"help": "learned temperatures are clamped to this range"}
    )
    prompt_dropout: float = field(default=0.1, metadata={"help": "dropout on the inserted prompts in training"})
    prompt_rank: int | None = field(
        default=None, metadata={"help": "deprecated: r, with which the prompts are a product of (P, r) and (r, D)"}
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "'prompts', 'patches' or 'prompts_and_patches', whose mean before the final norm replaces token "
            "0. None keeps the model's own pooling"
        },
    )
    eval_backbone: bool = field(
        default=True, metadata={"help": "train() keeps the modules inside the frozen blocks in eval mode"}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={
            "help": "modules to train and save with the prompts. None means the detected head, [] means no module"
        },
    )
    target_modules: str | None = field(
        default=None, metadata={"help": "dotted path of the list of blocks, if detection is ambiguous"}
    )
    num_prefix_tokens: int | None = field(
        default=None,
        metadata={
            "help": "number of tokens before the patches. None means that it is detected, and then replaced by the "
            "number found"
        },
    )
    num_layers: int | None = field(default=None, metadata={"help": "recorded: number of blocks of the base model"})
    hidden_size: int | None = field(default=None, metadata={"help": "recorded: width of the base model"})
    num_heads: int | None = field(
        default=None, metadata={"help": "recorded with zero_start: number of attention heads of the base model"}
    )
    detected_prefix_tokens: int | None = field(
        default=None, metadata={"help": "recorded: number of prefix tokens detected in the base model"}
    )
    weights_sha256: str | None = field(
        default=None, metadata={"help": "recorded: SHA-256 of the weights file saved with this config"}
    )

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        """Refuse what `__init__` would answer with a TypeError that helps nobody, or take for a field of PEFT."""
        fault = unknown_field(args, settings, [field.name for field in fields(cls) if field.init])
        if fault is not None:
            raise UnknownSettingError(f"{cls.__name__} got {fault}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:
            if self.task_type is not None:
                raise ConfigError([_no_task(self.task_type)]) from error
            raise ConfigError([str(error)]) from error
        self.peft_type = add_peft_type(NAME)
        self.weights_file = AdapterFile("")
        self.filled_in: tuple[str, ...] = ()
        for name, hint in _hints(type(self)).items():
            setattr(self, name, convert(getattr(self, name), hint))
        self.check()
        if self.gates and not self.deep and self.gate_init >= 1 and self.num_layers is None:  # not from a file
            opening = 1 / (1 + math.exp(-self.gate_init))
            warnings.warn(
                f"gate_init={self.gate_init:g} is a logit: gates start open, at {opening:.2f}. The paper's "
                f"table value {self.gate_init:g} means gate_init={-self.gate_init:g} here",
                stacklevel=3,
            )
        if self.prompt_rank is not None:
            warnings.warn(
                "prompt_rank is deprecated and will be removed. Leave it out for prompts of full rank. Adapters "
                "that were saved with it can still be loaded.",
                FutureWarning,
                stacklevel=3,
            )

    def check(self) -> None:
        """Check the settings that are independent of the base model.

        Raises:
            ConfigError: as for the constructor.
        """
        hints = _hints(type(self))
        # Types first: values of a wrong type cannot be compared.
        faults = [f for name, hint in hints.items() if (f := fault_of(name, getattr(self, name), hint))]
        faults = faults or _setting_faults(self)
        if faults:
            raise ConfigError(faults)

    def last_block(self, num_layers: int) -> int:
        """Index of the last block that runs: `read_from`, or the model's last block."""
        return num_layers - 1 if self.read_from is None else self.read_from

    def gated_block_indices(self, num_layers: int) -> Sequence[int]:
        """Indices of the gated blocks: `gated_blocks`, or all from `insert_at` except the last that runs."""
        if self.deep or not self.gates:
            return []
        every = range(self.insert_at, self.last_block(num_layers))
        return self.gated_blocks if self.gated_blocks is not None else every

    def parameter_shapes(self, num_layers: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the adapter's parameters on a base of this depth and width, without the head."""
        return parameter_shapes(
            num_blocks=self.last_block(num_layers) - self.insert_at + 1,
            hidden_size=hidden_size,
            num_tokens=self.num_virtual_tokens,
            deep=self.deep,
            rank=self.prompt_rank,
            num_gates=len(self.gated_block_indices(num_layers)),
            temperature=self.temperature,
            num_heads=self.num_heads if self.zero_start else None,
        )

    def recorded(self) -> dict[str, int | None]:
        """What saving records of the base model, and reading needs. None if it was not recorded."""
        names = ["num_layers", "hidden_size", *(["num_heads"] if self.zero_start else [])]
        return {name: getattr(self, name) for name in names}

    def recorded_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the adapter's parameters on the base that was recorded, without the head."""
        return self.parameter_shapes(self.num_layers or 0, self.hidden_size or 0)


def _no_task(task_type: Any) -> str:
    return f"task_type is {task_type!r}. Use None, since PEFT's task types are for language models."


def _setting_faults(config: GatedPromptConfig) -> list[str]:
    """Return one message for each setting that is wrong for any base model."""
    faults = []
    if config.task_type is not None:
        faults.append(_no_task(config.task_type))
    if config.num_virtual_tokens < 1:
        faults.append(f"num_virtual_tokens is {config.num_virtual_tokens}. Expected at least 1.")
    if config.prompt_rank is not None and not 1 <= config.prompt_rank <= config.num_virtual_tokens:
        faults.append(
            f"prompt_rank is {config.prompt_rank}. Expected 1 to num_virtual_tokens, {config.num_virtual_tokens}, or "
            "None for prompts of full rank."
        )
    names = config.modules_to_save or []
    if {"", BANK} & set(names) or len(set(names)) < len(names):
        faults.append(f"modules_to_save is {names}. Name each module of the base once.")
    if config.insert_at < 0:
        faults.append(f"insert_at is {config.insert_at}. Expected 0 or more. Leave it out for the first block.")
    if config.read_from is not None and config.read_from < max(0, config.insert_at):
        faults.append(f"read_from is {config.read_from}. Expected at least insert_at={config.insert_at}.")
    if not 0 <= config.prompt_dropout < 1:
        faults.append(f"prompt_dropout is {config.prompt_dropout}. Expected a number in [0, 1).")
    if config.pooling is not None and config.pooling not in POOLINGS:
        faults.append(f"pooling is {config.pooling!r}. Expected None or one of {', '.join(map(repr, POOLINGS))}.")
    if config.num_prefix_tokens is not None and config.num_prefix_tokens < 0:
        faults.append(
            f"num_prefix_tokens is {config.num_prefix_tokens}. Expected 0 or more. Leave it out to detect it."
        )
    return faults + _zero_start_faults(config) + _gate_faults(config) + _temperature_faults(config)


def _zero_start_faults(config: GatedPromptConfig) -> list[str]:
    if not config.zero_start:
        return []
    faults = []
    if not config.deep:
        faults.append("zero_start=True needs deep=True, since each block reads its own prompts. Set both.")
    if config.pooling in ("prompts", "prompts_and_patches"):
        faults.append(
            f"zero_start=True contradicts pooling={config.pooling!r}: these prompts never become output tokens. Use "
            "pooling='patches' or None."
        )
    return faults


def _gate_faults(config: GatedPromptConfig) -> list[str]:
    faults = []
    if not math.isfinite(config.gate_init):
        faults.append(f"gate_init is {config.gate_init}. Expected a finite logit (-20 closes a gate, 20 opens it).")
    if config.hard_gates and (config.deep or not config.gates):
        faults.append("hard_gates=True needs gates, but deep=True and gates=False have none. Leave hard_gates out.")
    if config.gated_blocks is None:
        return faults
    if config.deep:
        faults.append("deep=True has no gates, which contradicts gated_blocks. Leave one of the two out.")
    elif not config.gates:
        faults.append("gates=False contradicts gated_blocks. Leave one of the two out.")
    elif not config.gated_blocks:
        faults.append("gated_blocks is empty. Use gates=False for prompts without gates.")
    if sorted(set(config.gated_blocks)) != config.gated_blocks:
        faults.append(f"gated_blocks is {config.gated_blocks}. List each block once, in ascending order.")
    below = [b for b in config.gated_blocks if b < config.insert_at]
    if below:
        faults.append(
            f"gated_blocks {below} lie below insert_at={config.insert_at}: these blocks have no prompts. List others."
        )
    above = [b for b in config.gated_blocks if config.read_from is not None and b > config.read_from]
    if above:
        faults.append(
            f"gated_blocks {above} lie above read_from={config.read_from}: these blocks do not run. List others."
        )
    return faults


def _temperature_faults(config: GatedPromptConfig) -> list[str]:
    faults = []
    low, high = config.temperature_range
    if not (0 < low < high and math.isfinite(high)):
        faults.append(f"temperature_range is {config.temperature_range}. Expected 0 < low < high.")
    elif config.temperature and not low <= config.temperature_init <= high:
        faults.append(
            f"temperature_init is {config.temperature_init}, outside temperature_range ({low}, {high}). Give one "
            "inside."
        )
    if not (config.temperature_init > 0 and math.isfinite(config.temperature_init)):
        faults.append(f"temperature_init is {config.temperature_init}. Expected a positive, finite number.")
    return faults
