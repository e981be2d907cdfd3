# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a user can choose: `GatedPromptConfig`."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from .errors import ConfigError, DamagedAdapterError
from .field_types import convert, fault_of
from .files.adapter_file import FINGERPRINT, AdapterFile
from .files.folder import read_settings, read_undisturbed, write_settings
from .files.layout import BANK, parameter_shapes
from .registration import NAME, add_peft_type

POOLINGS = ("prompts", "patches", "prompts_and_patches")


def _hints(cls: type["GatedPromptConfig"]) -> dict[str, Any]:
    """The annotation of each field, from which its type is checked; those of PEFT's classes too."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


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
    read_from: int | None = field(
        default=None,
        metadata={"help": "index of the block whose output goes to the head; those above are not run. None: the last"},
    )
    deep: bool = field(
        default=False, metadata={"help": "VPT-deep: fresh prompts at every block from insert_at on, no gates"}
    )
    gates: bool = field(default=True, metadata={"help": "learn one gate for each gated block (paper, Section 4)"})
    gate_init: float = field(
        default=-5.0, metadata={"help": "initial gate logit; the paper's table value v means logit -v"}
    )
    gated_blocks: list[int] | None = field(
        default=None, metadata={"help": "indices of the gated blocks; None: all that prompts pass, but the last"}
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
        except (ValueError, TypeError) as error:
            raise ConfigError([str(error)]) from error
        self.peft_type = add_peft_type(NAME)
        # The file that this config was read with, until its tensors are on a model; no field, so never saved.
        self._file = AdapterFile("")
        for name, hint in _hints(type(self)).items():
            setattr(self, name, convert(getattr(self, name), hint))
        self.check()

    def check(self) -> None:
        """Refuse settings that are wrong whatever the base model is.

        Raises:
            ConfigError: as the class says.
        """
        hints = _hints(type(self))
        # Values of a wrong type cannot be compared.
        faults = [f for name, hint in hints.items() if (f := fault_of(name, getattr(self, name), hint))]
        faults = faults or self._faults()
        if faults:
            raise ConfigError(faults)

    def _faults(self) -> list[str]:
        faults = []
        if self.task_type is not None:
            faults.append(
                f"task_type is {self.task_type!r}; None is needed, as PEFT's task types are those of language models"
            )
        if self.num_virtual_tokens < 1:
            faults.append(f"num_virtual_tokens is {self.num_virtual_tokens}; at least 1 is needed")
        if self.prompt_rank is not None and not 1 <= self.prompt_rank <= self.num_virtual_tokens:
            faults.append(
                f"prompt_rank is {self.prompt_rank}; it must lie between 1 and num_virtual_tokens, "
                f"{self.num_virtual_tokens}; None gives prompts of full rank"
            )
        names = self.modules_to_save or []
        if {"", BANK} & set(names) or len(set(names)) < len(names):
            faults.append(f"modules_to_save names {names}; each is a module of the base, named once")
        if self.insert_at < 0:
            faults.append(f"insert_at is {self.insert_at}; blocks are counted from 0")
        if self.read_from is not None and self.read_from < max(0, self.insert_at):
            faults.append(
                f"read_from is {self.read_from}; prompts leave at or after the block that they enter, insert_at="
                f"{self.insert_at}"
            )
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
        above = [b for b in self.gated_blocks if self.read_from is not None and b > self.read_from]
        if above:
            faults.append(f"gated_blocks {above} lie above read_from={self.read_from}: these blocks are not run")
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

    def last_block(self, num_layers: int) -> int:
        """Index of the last block that runs: `read_from`, or the last of all."""
        return num_layers - 1 if self.read_from is None else self.read_from

    def gated_block_indices(self, num_layers: int) -> Sequence[int]:
        """Indices of the gated blocks: those asked for, or all from `insert_at` but the last that runs."""
        if self.deep or not self.gates:
            return []
        every = range(self.insert_at, self.last_block(num_layers))
        return self.gated_blocks if self.gated_blocks is not None else every

    def parameter_shapes(self, num_layers: int, hidden_size: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of this adapter's parameters on a base of this depth and width, without the head."""
        return parameter_shapes(
            num_blocks=self.last_block(num_layers) - self.insert_at + 1,
            hidden_size=hidden_size,
            num_tokens=self.num_virtual_tokens,
            deep=self.deep,
            rank=self.prompt_rank,
            num_gates=len(self.gated_block_indices(num_layers)),
            temperature=self.temperature,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Self:
        """Read `adapter_config.json` from a folder or Hub repository and check the weights beside it.

        PEFT calls this before it opens the weights itself, so that damage is found while nothing is changed. Of
        weights of more than 256 MiB only the header is read here; the tuner reads them once their shapes agree with
        the base. Where another process saves into the folder meanwhile, it is read again.
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

        def read() -> GatedPromptConfig:
            try:
                config = super(GatedPromptConfig, cls).from_pretrained(source, subfolder=subfolder, **kwargs)
            except ConfigError as error:
                raise ConfigError(error.faults, place=f"{CONFIG_NAME} in {place}") from None
            hub_kwargs, _, _ = cls._split_kwargs(kwargs)
            config._file = config._check_tensors(
                AdapterFile.find(source, subfolder, hub_kwargs, config.weights_sha256)
            )
            if config._file.is_small:
                config._file.check_content()
            return config

        return read_undisturbed(Path(place), read)

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        """Read the fields from a file, strictly; PEFT's reader takes any JSON and the last of repeated keys."""
        own, known = set(cls.__annotations__) - {FINGERPRINT}, {f.name for f in fields(cls)}
        return read_settings(Path(path_json_file), NAME, own, known)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `adapter_config.json`, atomically, with the fingerprint of the weights where it is known.

        It is known when `PeftModel.save_pretrained` calls, which has written the weights just before and says so by
        an `auto_mapping_dict`. transformers writes the config first and a user may write it alone: weights that lie
        there are then older, or not this config's concern.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError([f"the place to save at, {folder}, is a file; a folder is needed"])
        values, of_weights = self.to_dict(), "auto_mapping_dict" in kwargs
        if of_weights:
            values["auto_mapping"] = kwargs["auto_mapping_dict"] or values["auto_mapping"]
        write_settings(folder, values, of_weights)

    def check_weights_were_there(self) -> None:
        """Refuse a config that was read from a folder or repository without weights.

        Raises:
            DamagedAdapterError: there was no weights file beside the config.
        """
        if self._file.place and self._file.path is None:
            raise DamagedAdapterError(
                f"{self._file.place} lacks {SAFETENSORS_WEIGHTS_NAME}, expected beside {CONFIG_NAME}; copy or "
                "download the whole adapter. To start a new one with these settings, set inference_mode=False on the "
                "config"
            )

    def _check_tensors(self, file: AdapterFile) -> AdapterFile:
        if file.path is None:
            return file
        if self.num_layers is None or self.hidden_size is None:
            raise DamagedAdapterError(
                f"{CONFIG_NAME} beside {file.path} lacks num_layers or hidden_size, which every saved adapter "
                "records; save the adapter again"
            )
        return file.check_tensors(self.parameter_shapes(self.num_layers, self.hidden_size), self.modules_to_save or [])
