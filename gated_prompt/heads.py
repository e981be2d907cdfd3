# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""One head for every backbone, also for those that have no class with one: DINOv3 above all."""

import copy
import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, ViTModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.modeling_outputs import ImageClassifierOutput

from .architecture import find_vision_transformer
from .architecture.block_tokens import BlockTokens
from .errors import ArchitectureError, ConfigError, GatedPromptError
from .segmenter import TokenSegmenter

__all__ = ["Reads", "TokenClassifier", "TokenSegmenter", "load_backbone", "read_tokens"]

Reads = Literal["cls", "mean", "both"]
IGNORED = -100  # the label that transformers leaves out of losses and counts


class TokenClassifier(nn.Module):
    """A Vision Transformer with a linear layer on its last tokens, as DINOv2's linear evaluation reads them.

    `get_peft_model` trains `classifier` with the prompts, and the adapter's file holds it. transformers' Trainer takes
    the model like any class for image classification.

    Args:
        backbone: a model that takes `pixel_values` and returns tokens (B, N, D), or an output with
            `last_hidden_state`.
        num_labels: C, the number of classes, or the names of the classes.
        reads: "cls" (the first token), "mean" (of the patches) or "both", one after the other (2 D values).
        blocks: indices of the blocks after which the tokens are read, from 0, in ascending order. The values of the
            blocks are concatenated, each after the final norm and without prompts. None means the output of the
            backbone.

    Raises:
        ConfigError: `reads` is unknown, or the backbone does not have one of `blocks`.
        ArchitectureError: `backbone` is not a Vision Transformer, or has no CLS token to read.

    Example:
        ```python
        from gated_prompt.heads import TokenClassifier

        base = TokenClassifier(backbone, ["cat", "dog"], reads="both", blocks=[1, 3])
        model = get_peft_model(base, GatedPromptConfig(num_virtual_tokens=10))
        logits = model(pixel_values=pixel_values).logits  # (B, 2)
        ```
    """

    base_model_prefix = "backbone"  # PEFT reads this name if there is a model of transformers inside

    def __init__(
        self,
        backbone: nn.Module,
        num_labels: int | list[str],
        reads: Reads = "cls",
        blocks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if reads not in get_args(Reads):
            raise ConfigError(
                [f"reads is {reads!r}. Expected one of {', '.join(get_args(Reads))}."], subject="TokenClassifier"
            )
        vit = find_vision_transformer(backbone)
        if reads != "mean" and vit.num_prefix_tokens == 0:
            raise ArchitectureError(f"{type(backbone).__name__} has no CLS token to read. Use reads='mean'.")
        depth = len(vit.blocks)
        if blocks is not None and (not blocks or list(blocks) != sorted({*blocks} & {*range(depth)})):
            raise ConfigError(
                [f"blocks is {list(blocks)}. Expected ascending indices from 0 to {depth - 1}."],
                subject="TokenClassifier",
            )
        self.blocks = None if blocks is None else tuple(blocks)
        self._block_tokens = None if blocks is None else BlockTokens(backbone, vit, blocks)
        names = num_labels if isinstance(num_labels, list) else [f"LABEL_{i}" for i in range(num_labels)]
        self.reads, self.num_prefix_tokens = reads, vit.num_prefix_tokens
        self.backbone = backbone
        self.name_or_path: str | None = getattr(backbone, "name_or_path", None)  # PEFT records it with an adapter
        like = next(p for p in backbone.parameters() if p.is_floating_point())
        width = vit.hidden_size * (2 if reads == "both" else 1) * (1 if blocks is None else len(blocks))
        self.classifier = nn.Linear(width, len(names), device=like.device, dtype=like.dtype)
        self.config = copy.deepcopy(getattr(backbone, "config", None))
        if self.config is not None:
            self.config.id2label = dict(enumerate(names))
            self.config.label2id = {name: i for i, name in enumerate(names)}

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Return class scores (B, C), with a loss if `labels` are given.

        `labels` are indices (B,), zeros and ones (B, C) as floats, or, with one class, values (B,). The loss is then
        the cross entropy, the binary cross entropy or the squared error, averaged over the labels. Trainer passes
        `num_items_in_batch`, the number of labels in all batches of an optimizer step. The loss is then this batch's
        part of the average over those. `kwargs` go to the backbone.

        Returns:
            An `ImageClassifierOutput` with `logits` (B, C), `loss`, and the backbone's `hidden_states` and
            `attentions`.
        """
        if self._block_tokens is None:
            output = self.backbone(pixel_values, **kwargs)
            tokens = [output if isinstance(output, torch.Tensor) else output["last_hidden_state"]]
        else:
            output, tokens = self._block_tokens.read(self.backbone, pixel_values, **kwargs)
        mask = kwargs.get("pixel_attention_mask")
        read = torch.cat([read_tokens(one, self.num_prefix_tokens, self.reads, mask) for one in tokens], dim=-1)
        logits = self._scores(read)
        loss = None if labels is None else self._loss(logits, labels, num_items_in_batch)
        states, attentions = getattr(output, "hidden_states", None), getattr(output, "attentions", None)
        return ImageClassifierOutput(loss=loss, logits=logits, hidden_states=states, attentions=attentions)

    def _scores(self, read: torch.Tensor) -> torch.Tensor:
        """Return the head's output, in the precision of its weight even under autocast.

        A fitted head undoes mean and scale of its features. On features that hardly vary, such as MAE's, bfloat16
        rounds away what is left.
        """
        if not torch.is_autocast_enabled(read.device.type):
            return self.classifier(read)
        weight = getattr(self.classifier, "weight", None)
        precise = weight.dtype if isinstance(weight, torch.Tensor) else torch.float32
        with torch.autocast(read.device.type, enabled=False):
            return self.classifier(read.to(precise))

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        config = self.config  # gets the problem_type, as in transformers' own classes
        if config is None:
            config = SimpleNamespace(num_labels=logits.shape[-1], problem_type=None)
        loss = ForSequenceClassificationLoss(labels, logits, config)
        if num_items_in_batch is None:
            return loss
        return loss * labels.ne(IGNORED).sum().to(loss.device) / num_items_in_batch

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Call the backbone's method, with whatever its version of transformers takes."""
        backbone: Any = self.backbone
        backbone.gradient_checkpointing_enable(*args, **kwargs)


def read_tokens(tokens: torch.Tensor, prefix: int, reads: Reads, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return features (B, D) or, for "both", (B, 2 D) of tokens (B, N, D), of which the first `prefix` are no patches.

    `mask` (B, N - prefix) is 0 at patches that are padding.
    """
    if reads == "cls":
        return tokens[:, 0]
    patches = tokens[:, prefix:]
    weights = torch.ones_like(patches[..., :1]) if mask is None else mask[..., None].to(patches)
    mean = (patches * weights).sum(dim=1) / weights.sum(dim=1)
    return mean if reads == "mean" else torch.cat((tokens[:, 0], mean), dim=-1)


def load_backbone(source: str, trust_remote_code: bool = False, **settings: Any) -> Any:
    """Load the Vision Transformer of a Hub id or folder, without pooler and head, in float32 and eval mode.

    `settings` override its published config, such as num_hidden_layers. Python code that a backbone brings runs only
    with `trust_remote_code`.

    Raises:
        GatedPromptError: it cannot be loaded, or transformers has no model without a head for it.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        if trust_remote_code and type(config) not in MODEL_MAPPING:
            return AutoModel.from_pretrained(source, dtype="float32", trust_remote_code=True, **settings)
        # ViTMAEModel masks most patches and shuffles the rest. Its encoder is a plain ViT.
        kind = ViTModel if config.model_type == "vit_mae" else MODEL_MAPPING[type(config)]
        if "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
            settings["add_pooling_layer"] = False
        return kind.from_pretrained(source, dtype="float32", **settings)
    except (OSError, KeyError, ValueError) as error:
        raise GatedPromptError(
            f"cannot load the backbone {source!r}. Give a folder with a transformers ViT or a reachable Hub "
            f"id ({str(error).splitlines()[0]})."
        ) from error
