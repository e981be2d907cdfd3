# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The settings of an adapter: `GatedPromptConfig`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, get_type_hints

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from .config_checks import setting_faults
from .errors import ConfigError, DamagedAdapterError
from .field_types import convert, fault_of
from .files.adapter_file import FINGERPRINT, AdapterFile
from .files.folder import read_settings, read_undisturbed, write_settings
from .files.layout import parameter_shapes
from .registration import NAME, add_peft_type


def _hints(cls: type["GatedPromptConfig"]) -> dict[str, Any]:
    """Return the type annotation of each field, including the fields of PEFT's classes."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


@dataclass
class GatedPromptConfig(PeftConfig):
    """Settings of gated prompt tuning (Yoo et al., ICML 2023, https://arxiv.org/abs/2306.05067).

    The constructor checks all fields together. `get_peft_model` checks those that depend on the depth of the base
    model, before it changes the base.

    `gate_init` is the initial gate *logit*: the default -5.0 means g = sigmoid(-5) = 0.0067, an almost closed gate.
    Mind the sign: where the paper's Table 5 lists a gate prior of 5, the official code starts at -5.

    Raises:
        ConfigError: a field has a wrong type or value, or two fields contradict each other; lists all faults.
    """

    num_virtual_tokens: int = field(
        default=50, metadata={"help": "P, the number of prompt tokens (per block when deep)"}
    )
    insert_at: int = field(default=0, metadata={"help": "index of the first block with prompts in its input"})
    read_from: int | None = field(
        default=None,
        metadata={"help": "index of the block whose output the head reads; later blocks do not run. None: the last"},
    )
    deep: bool = field(
        default=False, metadata={"help": "VPT-deep: fresh prompts at each block from insert_at on, without gates"}
    )
    zero_start: bool = field(
        default=False,
        metadata={
            "help": "with deep: the other tokens read the prompts in a softmax of their own, times tanh(a), one a for "
            "each head, 0 at the start: the adapted model begins as the base"
        },
    )
    gates: bool = field(default=True, metadata={"help": "learn one gate per gated block (paper, Section 4)"})
    gate_init: float = field(
        default=-5.0, metadata={"help": "initial gate logit; the paper's table value v means logit -v"}
    )
    gated_blocks: list[int] | None = field(
        default=None, metadata={"help": "indices of the gated blocks; None: all blocks with prompts except the last"}
    )
    hard_gates: bool = field(
        default=False,
        metadata={"help": "gates are sampled as 0 or 1 in training, and 1 if logit > 0 in eval mode (paper, Table 4)"},
    )
    temperature: bool = field(
        default=True, metadata={"help": "learn one attention temperature per block from insert_at on"}
    )
    temperature_init: float = field(default=1.0, metadata={"help": "initial temperature; fixed if temperature=False"})
    temperature_range: tuple[float, float] = field(
        default=(0.01, 10.0), metadata={"help": "learned temperatures are clamped to this range"}
    )
    prompt_dropout: float = field(default=0.1, metadata={"help": "dropout on the inserted prompts in training"})
    prompt_rank: int | None = field(
        default=None, metadata={"help": "r: the prompts are a product of (P, r) and (r, D); None: P x D parameters"}
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "help": "None: the model's own; 'prompts', 'patches' or 'prompts_and_patches': their mean before the "
            "final norm replaces token 0"
        },
    )
    eval_backbone: bool = field(
        default=True, metadata={"help": "train() keeps the modules inside the frozen blocks in eval mode"}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "modules to train and save with the prompts; None: the detected head; []: none"},
    )
    target_modules: str | None = field(
        default=None, metadata={"help": "dotted path of the list of blocks, if detection is ambiguous"}
    )
    num_prefix_tokens: int | None = field(
        default=None,
        metadata={"help": "number of tokens before the patches; None: detected. After injection: the number in use"},
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

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except (ValueError, TypeError) as error:
            raise ConfigError([str(error)]) from error
        self.peft_type = add_peft_type(NAME)
        # The weights file found beside this config, until a model has its tensors. Not a field, so never saved.
        self._file = AdapterFile("")
        for name, hint in _hints(type(self)).items():
            setattr(self, name, convert(getattr(self, name), hint))
        self.check()

    def check(self) -> None:
        """Check the settings that are independent of the base model.

        Raises:
            ConfigError: as for the constructor.
        """
        hints = _hints(type(self))
        # Types first: values of a wrong type cannot be compared.
        faults = [f for name, hint in hints.items() if (f := fault_of(name, getattr(self, name), hint))]
        faults = faults or setting_faults(self)
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Self:
        """Read `adapter_config.json` from a folder or Hub repository and check the weights beside it.

        PEFT calls this before it opens the weights, so damage is found before anything changes. If the weights exceed
        256 MiB, only their header is read here; the tuner reads the rest after comparing shapes with the base. If
        another process saves into the folder meanwhile, both files are read again.
        `kwargs` are those of `huggingface_hub.hf_hub_download`, as in PEFT.

        Raises:
            DamagedAdapterError: the config is not a JSON object; or the weights file is truncated, incomplete, a
                pickle, from another save than the config, or has unknown keys, wrong shapes or types, or non-finite
                numbers. A config without a weights file is allowed here; the tuner refuses it.
            AdapterMismatchError: the config belongs to another PEFT method.
            ConfigError: the config has wrong values.
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
        """Read the fields from a file, strictly: PEFT's reader accepts any JSON, and repeated keys."""
        own, known = set(cls.__annotations__) - {FINGERPRINT}, {f.name for f in fields(cls)}
        return read_settings(Path(path_json_file), NAME, own, known)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `adapter_config.json` atomically, with the SHA-256 of the weights if it is known.

        It is known if the caller is `PeftModel.save_pretrained`, recognized by its `auto_mapping_dict`: it has just
        written the weights. transformers writes the config first, and a user may save a config alone; weights in the
        folder are then older, or unrelated.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError([f"cannot save to {folder}, which is a file; give a folder"])
        values, of_weights = self.to_dict(), "auto_mapping_dict" in kwargs
        if of_weights:
            values["auto_mapping"] = kwargs["auto_mapping_dict"] or values["auto_mapping"]
        write_settings(folder, values, of_weights)

    def check_weights_were_there(self) -> None:
        """Check that a config that was read from a folder or repository came with weights.

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
        recorded = ["num_layers", "hidden_size", *(["num_heads"] if self.zero_start else [])]
        missing = [name for name in recorded if getattr(self, name) is None]
        if self.num_layers is None or self.hidden_size is None or missing:
            raise DamagedAdapterError(
                f"{CONFIG_NAME} beside {file.path} lacks {' and '.join(missing)}, which saving records; save the "
                "adapter again"
            )
        return file.check_tensors(self.parameter_shapes(self.num_layers, self.hidden_size), self.modules_to_save or [])
