# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Read and write the config of an adapter, and remember the weights file that lies beside it."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Self

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME

from .errors import ConfigError, DamagedAdapterError
from .files.adapter_file import FINGERPRINT, AdapterFile
from .files.folder import read_settings, read_undisturbed, write_settings
from .registration import NAME


class ConfigWithFile(PeftConfig):
    """A config that is read together with the weights beside it.

    Attributes:
        weights_file: the weights file found beside this config, until a model has its tensors. `AdapterFile("")` if
            the config was not read from a folder or repository. Not a field, so never saved.
    """

    weights_file: AdapterFile

    def recorded(self) -> Mapping[str, int | None]:
        """What saving records of the base model, and reading needs. None if it was not recorded."""
        raise NotImplementedError

    def recorded_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the adapter's parameters on the base that was recorded, without the head."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Self:
        """Read `adapter_config.json` from a folder or Hub repository and check the weights beside it.

        PEFT calls this before it opens the weights, so damage is found before anything changes. If the weights exceed
        256 MiB, only their header is read here. The tuner reads the rest after comparing shapes with the base. If
        another process saves into the folder meanwhile, both files are read again.
        `kwargs` are those of `huggingface_hub.hf_hub_download`, as in PEFT.

        Raises:
            DamagedAdapterError: the config is not a JSON object, or the weights file is truncated, incomplete, a
                pickle, from another save than the config, or has unknown keys, wrong shapes or types, or non-finite
                numbers. A config without a weights file is allowed here. The tuner refuses it.
            AdapterMismatchError: the config belongs to another PEFT method.
            ConfigError: the config has wrong values.
        """
        source = os.fspath(pretrained_model_name_or_path)
        place = os.path.join(source, subfolder) if subfolder else source

        def read() -> Any:
            try:
                config = super(ConfigWithFile, cls).from_pretrained(source, subfolder=subfolder, **kwargs)
            except ConfigError as error:
                raise ConfigError(error.faults, place=f"{CONFIG_NAME} in {place}") from None
            hub_kwargs, _, _ = cls._split_kwargs(kwargs)
            config.weights_file = config._check_tensors(
                AdapterFile.find(source, subfolder, hub_kwargs, config.weights_sha256)
            )
            if config.weights_file.is_small:
                config.weights_file.check_content()
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
        written the weights. transformers writes the config first, and a user may save a config alone. Weights in the
        folder are then older, or unrelated.
        """
        folder = Path(save_directory)
        if folder.is_file():
            raise ConfigError([f"cannot save to {folder}, which is a file. Give a folder."])
        values, of_weights = self.to_dict(), "auto_mapping_dict" in kwargs
        if of_weights:
            values["auto_mapping"] = kwargs["auto_mapping_dict"] or values["auto_mapping"]
        write_settings(folder, values, of_weights)

    def check_weights_were_there(self) -> None:
        """Check that a config that was read from a folder or repository came with weights.

        Raises:
            DamagedAdapterError: there was no weights file beside the config.
        """
        if self.weights_file.place and self.weights_file.path is None:
            raise DamagedAdapterError(
                f"{self.weights_file.place} lacks {SAFETENSORS_WEIGHTS_NAME}, expected beside {CONFIG_NAME}. Copy or "
                "download the whole adapter. To start a new one with these settings, set inference_mode=False on the "
                "config."
            )

    def _check_tensors(self, file: AdapterFile) -> AdapterFile:
        if file.path is None:
            return file
        missing = [name for name, value in self.recorded().items() if value is None]
        if missing:
            raise DamagedAdapterError(
                f"{CONFIG_NAME} beside {file.path} lacks {' and '.join(missing)}, which saving records. Save the "
                "adapter again."
            )
        return file.check_tensors(self.recorded_shapes(), self.modules_to_save or [])
