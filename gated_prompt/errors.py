# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Every error that this package raises on purpose.

All are `ValueError`s, so code written against PEFT's own errors keeps working. Each message says what was
given, what was expected and what to do.
"""

from collections.abc import Sequence


class GatedPromptError(ValueError):
    """Base of all errors of this package."""


class ConfigError(GatedPromptError):
    """The configuration is wrong, in itself or for this model. Lists every fault, not only the first."""

    def __init__(self, faults: Sequence[str], place: str | None = None) -> None:
        self.faults, self.place = list(faults), place
        lines = "".join(f"\n  - {fault}" for fault in self.faults)
        of_place = f" of {place}" if place else ""
        super().__init__(f"GatedPromptConfig{of_place} has {len(self.faults)} fault(s):{lines}")

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str], str | None]]:
        return type(self), (
            self.faults,
            self.place,
        )  # the message is not the argument: without this, unpickling nests it


class ArchitectureError(GatedPromptError):
    """The base model is not a Vision Transformer that prompts can be inserted into."""


class AdapterMismatchError(GatedPromptError):
    """The adapter was made for another base model (depth, width, prefix tokens or head) or PEFT method."""


class AdapterNameError(GatedPromptError):
    """No adapter can have this name, or none of the adapters has it."""


class DamagedAdapterError(GatedPromptError):
    """A file of the adapter is unreadable, incomplete, or holds what it should not hold."""


class UnsupportedOperationError(GatedPromptError):
    """The operation has no meaning for prompts: merging, two active adapters, wrapping a base twice."""


class DataError(GatedPromptError):
    """A data set is missing, incomplete, damaged or not the one that was asked for."""


class ConversionError(GatedPromptError):
    """A checkpoint to convert is unreadable or not laid out as expected, or the converted files have no place."""


REMOVED = {
    "fold_temperatures": "it saved one multiplication per block, which nobody could measure; leave the call out",
    "unfold_temperatures": "temperatures can no longer be folded into weights; leave the call out",
}


class RemovedNameError(GatedPromptError, AttributeError):
    """A public name of an earlier version."""

    def __init__(self, name: str) -> None:
        super().__init__(f"gated_prompt.{name} was removed: {REMOVED[name]}")
