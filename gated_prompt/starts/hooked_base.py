# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The frozen base with hooks that read tensors inside it, without prompts, while images pass through."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..architecture import VisionTransformer
from ..architecture.prefix import undisturbed
from ..errors import GatedPromptError
from ..files.layout import BANK
from ..tuner.request import Request, requested

Batch = torch.Tensor | Mapping[str, Any] | Sequence[Any]
Look = Callable[[torch.Tensor], torch.Tensor | None]  # what it returns takes the place of the tensor
Take = Callable[[torch.Tensor, torch.Tensor | None], None]  # patch tokens (B, N, D), and which of them are images


class _EnoughError(Exception):
    """Everything was seen: the rest of the forward is not needed."""


class HookedBase:
    """Passes batches of images through the base below an adapter. Made by `hooked_base`.

    `on_patches`, `on_input` and `on_output` say what to look at. Each forward ends as soon as all of that has been
    seen, so that looking at the first block costs no more than the embeddings. `prefix`: tokens before the patches.
    """

    def __init__(self, root: nn.Module, vit: VisionTransformer, prefix: int) -> None:
        self.prefix = prefix
        self._vit, self._root, self._weight = vit, root, vit.projection.get_parameter("weight")
        self._visible: torch.Tensor | None = None
        # The innermost module that takes images: bare pixels need no captions for a text tower beside it.
        self._body = next(m for m in reversed(vit.ancestors) if any(part is vit.embeddings for part in m.modules()))
        self._forwards = _forwards(root)
        self._looks = self._seen = 0
        self._handles: list[Any] = []

    def on_patches(self, block: int, take: Take, before_positions: bool = False) -> None:
        """Give `take` the patch tokens (B, N, D) that enter a block, or leave the patch projection.

        Beside them it gets a mask (B, N), False for tokens of SigLIP 2 that only fill up a row, or None.

        Raises:
            GatedPromptError: from a forward, where the tokens are not finite.
        """

        def look(hidden: torch.Tensor) -> None:
            # A convolution gives (B, D, rows, columns).
            tokens = hidden.flatten(2).transpose(1, 2) if hidden.ndim > 3 else hidden
            tokens = tokens if before_positions else tokens[:, self.prefix :]
            if not bool(torch.isfinite(tokens).all()):
                raise GatedPromptError(
                    f"the tokens at block {block} hold NaN or infinite values. Look at the images and, in float16, at "
                    "the precision of the base."
                )
            take(tokens, self._visible)

        if before_positions:
            self.on_output(self._vit.projection, look)
        else:
            self.on_input(self._vit.blocks[block], look)

    def on_input(self, module: nn.Module, look: Look) -> None:
        """Call `look` with the first argument of `module`, which may be given by name."""

        def hook(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            name = None if args else next(iter(inspect.signature(module.forward).parameters))
            changed = look(args[0] if name is None else kwargs[name])
            self._count()
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        self._looks += 1

    def on_output(self, module: nn.Module, look: Look) -> None:
        """Call `look` with the output of `module`."""

        def hook(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            changed = look(output)
            self._count()
            return changed

        self._handles.append(module.register_forward_hook(hook))
        self._looks += 1

    def clear(self) -> None:
        """Stop looking at anything."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._looks = 0

    def run(self, batch: Batch) -> None:
        """Pass one batch: pixels (B, 3, H, W), a mapping with `pixel_values`, or a sequence that starts with pixels.

        A mapping with more than pixels and labels is passed to the whole model, by name.

        Raises:
            GatedPromptError: the batch is none of these.
        """
        inputs = {k: self._placed(v) for k, v in model_inputs(batch).items()}
        mask = inputs.get("pixel_attention_mask")
        self._visible = None if mask is None else mask.bool()
        self._seen = 0
        try:
            if set(inputs) == {"pixel_values"}:
                self._body(inputs["pixel_values"])
            else:
                self._root(**inputs)
        except _EnoughError:
            # transformers 4.57 replaces forwards while it captures hidden states, and an exception leaves them so.
            _restore(self._forwards)

    def _placed(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self._weight.device, self._weight.dtype if value.is_floating_point() else None)

    def _count(self) -> None:
        self._seen += 1
        if self._seen == self._looks:
            raise _EnoughError


@contextmanager
def hooked_base(root: nn.Module, vit: VisionTransformer, prefix: int, seed: int) -> Iterator[HookedBase]:
    """A `HookedBase` of `root`, which carries an adapter. On leaving, also by an error, all is as it was.

    Inside, the model is evaluated without gradients, with random numbers of its own, and its adapters and trained
    heads are off.
    """
    forwards = _forwards(root)
    device = vit.projection.get_parameter("weight").device
    with seeded(root, device, seed), requested(Request(getattr(root, BANK), adapters=())):
        look = HookedBase(root, vit, prefix)
        try:
            yield look
        finally:
            look.clear()
            _restore(forwards)


@contextmanager
def seeded(root: nn.Module, device: torch.device, seed: int) -> Iterator[None]:
    """Inside, `root` is evaluated without gradients. On leaving, also by an error, all is as it was.

    The global random numbers inside are those of `seed`: they order a shuffling loader and choose the patches that a
    ViT-MAE drops.
    """
    with undisturbed(root):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _forwards(root: nn.Module) -> list[tuple[nn.Module, Any]]:
    """The forwards that modules carry themselves, in the place of their class's (accelerate puts some there)."""
    return [(module, module.__dict__.get("forward")) for module in root.modules()]


def _restore(forwards: list[tuple[nn.Module, Any]]) -> None:
    for module, own in forwards:
        module.__dict__.pop("forward", None)
        if own is not None:
            module.__dict__["forward"] = own


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What of a batch goes to the model, by name: everything but labels.

    Raises:
        GatedPromptError: the batch holds no pixels.
    """
    if isinstance(batch, Mapping):
        if not isinstance(batch.get("pixel_values"), torch.Tensor):
            raise GatedPromptError(
                f"a batch has the keys {', '.join(map(repr, batch)) or 'none'}. Expected a tensor 'pixel_values'."
            )
        return {key: value for key, value in batch.items() if key != "labels"}
    pixels = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4:
        found = f"of shape {tuple(pixels.shape)}" if isinstance(pixels, torch.Tensor) else f"a {type(pixels).__name__}"
        raise GatedPromptError(
            f"a batch holds pixels {found}. Expected pixel values (images, channels, height, width): a tensor, a "
            "dict with 'pixel_values' or a pair (pixels, labels)."
        )
    return {"pixel_values": pixels}
