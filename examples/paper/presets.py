# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's settings for each task (batch size, prompts, learning rate, gate prior), and what each method searches.

Yoo et al., ICML 2023, https://arxiv.org/abs/2306.05067, Table 5, all of it for ViT-B/16 and gated prompts. The paper
gives no such table for VPT-shallow, VPT-deep and the other baselines: they get the same batch size and learning rate.
Numbers of others are facts from their papers and configuration files. Each search says whose it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gated_prompt import GatedPromptError

PRESETS = ("none", "paper", "recommended")
KINDS = ("mae", "moco")
DEEP_PROMPTS = 10  # of each block, where gated prompts have 100 (Table 1)

# (batch size, prompts, learning rate, gate prior v) for MAE, then for MoCo v3. The gates start at the logit -v.
TABLE_5: dict[str, tuple[tuple[int, int, float, float], tuple[int, int, float, float]]] = {
    "caltech101": ((128, 1, 0.5, 5), (128, 10, 2.5, 4)),
    "cifar": ((128, 1, 0.25, 5), (128, 10, 1.0, 15)),
    "clevr_dist": ((128, 1, 0.1, 15), (128, 5, 1.0, 10)),
    "clevr_count": ((128, 1, 0.05, 15), (128, 5, 0.5, 5)),
    "diabetic_retinopathy": ((128, 5, 0.05, 10), (128, 5, 0.5, 5)),
    "dmlab": ((128, 1, 0.1, 5), (128, 1, 1.0, 5)),
    "dsprites_ori": ((128, 1, 0.05, 5), (128, 5, 0.5, 5)),
    "dsprites_loc": ((128, 1, 0.1, 5), (128, 5, 0.5, 5)),
    "dtd": ((128, 1, 0.25, 1), (128, 10, 1.0, 5)),
    "eurosat": ((128, 5, 0.1, 1), (128, 10, 1.0, 5)),
    "kitti": ((128, 5, 0.1, 7), (128, 5, 1.0, 5)),
    "oxford_flowers102": ((128, 1, 0.25, 5), (128, 5, 1.0, 7)),
    "oxford_iiit_pet": ((128, 1, 0.5, 10), (64, 100, 1.0, 1)),
    "patch_camelyon": ((128, 1, 0.05, 5), (128, 1, 1.0, 10)),
    "resisc45": ((128, 10, 0.25, 5), (64, 100, 1.0, 7)),
    "smallnorb_azi": ((128, 1, 0.1, 20), (128, 10, 0.5, 3)),
    "smallnorb_ele": ((128, 1, 0.05, 10), (128, 5, 0.5, 4)),
    "sun397": ((128, 1, 0.5, 10), (128, 1, 1.0, 4)),
    "svhn": ((128, 1, 0.1, 10), (128, 5, 1.0, 10)),
    "cub": ((64, 100, 0.1, 5), (64, 100, 1.0, 5)),
    "flowers": ((64, 100, 0.1, 15), (64, 100, 1.0, 10)),
    "cars": ((64, 100, 0.25, 5), (64, 100, 0.5, 5)),
    "dogs": ((64, 100, 0.5, 15), (64, 100, 0.5, 10)),
    "nabirds": ((64, 100, 0.5, 5), (64, 100, 1.0, 5)),
    "ade20k": ((16, 100, 0.001, 10), (16, 100, 0.001, 10)),
}


Value = str | int | float
Choice = Mapping[str, float]  # learning_rate and weight_decay


@dataclass(frozen=True)
class Search:
    """Settings to choose from on validation images, and whose they are.

    Attributes:
        scaled: Whether learning rates are multiplied by batch size / 256.
    """

    source: str
    learning_rates: tuple[float, ...]
    weight_decays: tuple[float, ...] = (0.0,)
    scaled: bool = False

    def choices(self, batch_size: int) -> list[Choice]:
        """Every combination, the smaller rates first and of these the smaller decays, as ties are broken."""
        factor = batch_size / 256 if self.scaled else 1
        rates, decays = sorted(self.learning_rates), sorted(self.weight_decays)
        return [{"learning_rate": factor * rate, "weight_decay": decay} for rate in rates for decay in decays]


@dataclass(frozen=True)
class Searched:
    """One setting of a search: its validation accuracy in percent, None if it diverged or was not run."""

    choice: Choice
    validation: float | None
    diverged: bool = False


def best_of(tried: Sequence[Searched]) -> Choice | None:
    """The best choice of a complete search, of equals the first (the smaller rate). None if all diverged.

    A choice that was not run is missing from a complete search: then there is no best one.
    """
    if any(one.validation is None and not one.diverged for one in tried):
        return None
    ended = [one for one in tried if one.validation is not None]
    return max(ended, key=lambda one: one.validation or 0.0).choice if ended else None


def at_edge(tried: Sequence[Searched], best: Choice) -> bool:
    """Whether the best learning rate is the smallest or largest of several that were tried."""
    rates = sorted({one.choice["learning_rate"] for one in tried})
    return len(rates) > 1 and best["learning_rate"] in (rates[0], rates[-1])


LEARNING_RATES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_DECAYS = (0.0, 0.0001, 0.001, 0.01)
_LINEAR = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0)
PAPER = Search("the paper, Appendix A.2", LEARNING_RATES)
OURS = Search("our reading: the paper's grid for prompts", LEARNING_RATES)
FULL = Search("VPT's code: fine-tuning", (0.0001, 0.0005, 0.001, 0.005), _DECAYS, scaled=True)
LINEAR = {
    "mae": Search("VPT's code: linear, MAE", (0.0025, 0.005, 0.025, *_LINEAR), _DECAYS, scaled=True),
    "moco": Search("VPT's code: linear", _LINEAR, _DECAYS, scaled=True),
}


@dataclass(frozen=True)
class Row:
    """A row of a table: a method, and settings that differ from the paper's choice for the task.

    Attributes:
        search: Where its learning rates come from.
        unlike: Why its numbers do not compare with the published ones. None if they do.
    """

    name: str
    method: str
    settings: Mapping[str, Value] = field(default_factory=dict)
    search: Search = PAPER
    unlike: str | None = None


@dataclass(frozen=True)
class Preset:
    """What the paper uses for one task. `batch_size` counts the images of all processes together."""

    batch_size: int
    num_virtual_tokens: int
    learning_rate: float
    gate_init: float


def paper_preset(task: str, kind: str, method: str) -> Preset:
    """The paper's settings for a task and a backbone of this kind. VPT-deep has 10 prompts where others have 100.

    Raises:
        GatedPromptError: the paper has none for this task or this kind of backbone.
    """
    if task not in TABLE_5:
        raise GatedPromptError(f"--preset paper has no settings for task {task!r}. It has: {', '.join(TABLE_5)}.")
    if kind not in KINDS:
        raise GatedPromptError(
            "--preset paper has settings for MAE and MoCo v3 only, but the name of --backbone contains neither. "
            f"Choose with --backbone_kind {' or '.join(KINDS)}."
        )
    batch_size, prompts, learning_rate, gate_prior = TABLE_5[task][KINDS.index(kind)]
    if method in ("deep", "zero_start") and prompts == 100:
        prompts = DEEP_PROMPTS
    return Preset(batch_size, prompts, learning_rate, -gate_prior)
