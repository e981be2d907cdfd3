# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The exceptions of this package.

All are `ValueError`s, so code written for PEFT's errors keeps working. Each message says what was given, what was
expected and what to do.
"""

from collections.abc import Sequence


class GatedPromptError(ValueError):
    """Base class of all errors of this package."""


class ConfigError(GatedPromptError):
    """The config is invalid, either for any model or for this one. The message lists all faults of `subject`."""

    def __init__(self, faults: Sequence[str], place: str | None = None, subject: str = "GatedPromptConfig") -> None:
        self.faults, self.place, self.subject = list(faults), place, subject
        lines = "".join(f"\n  - {fault}" for fault in self.faults)
        of_place = f" of {place}" if place else ""
        super().__init__(f"{subject}{of_place} has {len(self.faults)} fault(s):{lines}")

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str], str | None, str]]:
        # By default, unpickling would pass the message as `faults` and so nest it.
        return type(self), (self.faults, self.place, self.subject)


class UnknownSettingError(GatedPromptError, TypeError):
    """A setting has no name, or a name that the config does not know."""


class ArchitectureError(GatedPromptError):
    """Prompts cannot be inserted into the base model."""


class AdapterMismatchError(GatedPromptError):
    """The adapter is for a different base model (depth, width, prefix tokens or head) or PEFT method."""


class AdapterNameError(GatedPromptError):
    """The adapter name is invalid, or no adapter has it."""


class DamagedAdapterError(GatedPromptError):
    """An adapter file is unreadable, incomplete, or has invalid content."""


class UnsupportedOperationError(GatedPromptError):
    """Prompts do not support the operation, such as merging, two active adapters, or wrapping a base twice."""


class DataError(GatedPromptError):
    """A data set is missing, incomplete, damaged or not the requested one."""


class ConversionError(GatedPromptError):
    """A checkpoint to convert is unreadable or has an unexpected layout, or the output folder cannot be used."""


REMOVED = {
    "fold_temperatures": "it saved one multiplication per block, too little to measure. Leave the call out.",
    "transforms.FgvcTransform": "use gated_prompt.transforms.ResizeCenterCrop, with the same arguments.",
    "transforms.VtabTransform": "use gated_prompt.transforms.ResizeSquare. For the same pixels as before, give "
    "sampling='half_pixel' (or 'antialias') and round_to_bytes=True.",
    "transforms.resize_to_square": "use gated_prompt.transforms.resize_square(image, size, sampling='half_pixel' or "
    "'antialias'), and round its floats for the same pixels as before.",
    "unfold_temperatures": "temperatures can no longer be folded into weights. Leave the call out.",
}


class RemovedNameError(GatedPromptError, AttributeError):
    """A public name of an earlier version was removed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"gated_prompt.{name} was removed: {REMOVED[name]}")
