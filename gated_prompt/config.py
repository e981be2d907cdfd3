# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a user can choose: `GatedPromptConfig`."""

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from .config_types import type_faults
from .errors import ConfigError, DamagedAdapterError
from .files.checkpoint import Entry, check_adapter_file
from .files.config_file import FINGERPRINT, fingerprint, read_config_file, write_config_file
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
    hard_gates: bool = field(
        default=False,
        metadata={
            "help": "gates are drawn open or shut while training, and open where logit > 0 in eval (paper, Table 4)"
        },
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
    gate_tolerance: float = field(
        default=0.0,
        metadata={
            "help": "in eval, gates up to this value count as closed, which saves time; 0: only those that do nothing"
        },
    )
    prompt_rank: int | None = field(
        default=None, metadata={"help": "r: the prompts are a product (P, r) (r, D); None: P x D free numbers"}
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
    weights_sha256: str | None = field(
        default=None, metadata={"help": "recorded: SHA-256 of the weights file that this config was saved with"}
    )

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        self.peft_type = add_peft_type(NAME)
        # Notes on the files that this config was read from; no fields, so never saved. The tuner compares the head
        # with the base before PEFT writes anything.
        self._read_from: str | None = None
        self._weights_path: str | None = None
        self._file_entries: dict[str, Entry] | None = None
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
        faults = type_faults(self)
        if faults:
            return faults  # values of a wrong type cannot be compared
        if self.num_virtual_tokens < 1:
            faults.append(f"num_virtual_tokens is {self.num_virtual_tokens}; at least 1 is needed")
        if self.prompt_rank is not None and not 1 <= self.prompt_rank <= self.num_virtual_tokens:
            faults.append(
                f"prompt_rank is {self.prompt_rank}; it must lie between 1 and num_virtual_tokens, "
                f"{self.num_virtual_tokens}; None gives prompts of full rank"
            )
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
        if not 0 <= self.gate_tolerance < 1:
            faults.append(f"gate_tolerance is {self.gate_tolerance}; it is a gate value and must lie in [0, 1)")
        if self.hard_gates and (self.deep or not self.gates):
            faults.append("hard_gates=True needs gates, and there are none with deep=True or gates=False")
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
            DamagedAdapterError: the config is no JSON object; or the weights file is truncated, incomplete, a
                pickle, not the one that the config was saved with, or holds unknown keys, wrong shapes or types,
                or non-finite numbers. A config without any weights file is fine here; the tuner refuses it.
            AdapterMismatchError: it is the config of another PEFT method.
            ConfigError: the config holds wrong values.
        """
        source = os.fspath(pretrained_model_name_or_path)
        place = os.path.join(source, subfolder) if subfolder else source
        try:
            config = super().from_pretrained(source, subfolder=subfolder, **kwargs)
        except ConfigError as error:
            raise ConfigError(error.faults, place=f"{CONFIG_NAME} in {place}") from None
        hub_kwargs, _, _ = cls._split_kwargs(kwargs)
        config._weights_path, config._file_entries = check_adapter_file(config, source, subfolder, hub_kwargs)
        config._read_from = place
        return config

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Read the fields from a file, strictly; PEFT's reader takes any JSON and the last of repeated keys."""
        own, known = set(cls.__annotations__), {f.name for f in fields(cls)}
        return read_config_file(path_json_file, own - {FINGERPRINT}, known)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `adapter_config.json`, whole or not at all, with the fingerprint of the weights where it is known.

        It is known when `PeftModel.save_pretrained` calls, which has written the weights just before and says so by
        an `auto_mapping_dict`. transformers writes the config first and a user may write it alone: weights that lie
        there are then older, or not this config's concern.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError([f"the place to save at, {folder}, is a file; a folder is needed"])
        folder.mkdir(parents=True, exist_ok=True)
        values, weights = self.to_dict(), folder / SAFETENSORS_WEIGHTS_NAME
        values[FINGERPRINT] = None
        if "auto_mapping_dict" in kwargs:
            values["auto_mapping"] = kwargs["auto_mapping_dict"] or values["auto_mapping"]
            values[FINGERPRINT] = fingerprint(weights.read_bytes()) if weights.is_file() else None
        write_config_file(folder / CONFIG_NAME, values)

    def check_weights_were_there(self) -> None:
        """Refuse a config that was read from a folder or repository without weights.

        Raises:
            DamagedAdapterError: there was no weights file beside the config.
        """
        if self._read_from is not None and self._file_entries is None:
            raise DamagedAdapterError(
                f"{self._read_from} lacks {SAFETENSORS_WEIGHTS_NAME}, expected beside {CONFIG_NAME}; copy or download "
                "the whole adapter. To start a new one with these settings, set inference_mode=False on the config"
            )
