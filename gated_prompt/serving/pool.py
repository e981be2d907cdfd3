# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapters of many tasks on one frozen backbone, within a memory limit.

The backbone has no head: it returns features, and each adapter's own linear layer turns what it reads of them into
logits. So heads may differ in what they read and in their number of classes, and an adapter takes no more memory than
its file. Any number of threads may call.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn

from ..architecture.names import BASE
from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError, GatedPromptError
from ..heads import Reads
from ..predictor import MOST_PIXELS, Predictor
from ..sharing.backbone import preparation, quiet_loading
from ..tuner.bank import find_banks
from .backbone import Features, load_backbone
from .cache import AdapterCache, Stamp
from .contents import Files, read_files
from .frozen import add_frozen, drop_frozen
from .resident import Limits, Resident, blocks_read, stamp_of_folder

ANCHOR = "anchor"  # an adapter of one prompt that nobody calls: PEFT needs one on the model at all times


class AdapterPool(AdapterCache[Resident]):
    """A backbone and the most recently used adapters.

    Args:
        backbone: a classifier of transformers made with `num_labels=0`, or a model without a head, which returns
            `last_hidden_state`. It is frozen, put in eval mode and changed in place.
        memory: bytes that all adapters together may take.
        backbone_name: Hub id or folder. Adapters trained on another one are refused. None means that nothing is
            compared.
        image_side: the largest side of images that an adapter may ask for, in pixels.

    Attributes:
        nbytes: memory of all loaded adapters.

    Raises:
        ArchitectureError: the backbone is not a Vision Transformer.

    Example:
        ```python
        from pathlib import Path
        from gated_prompt.serving.pool import AdapterPool

        pool = AdapterPool(backbone, memory=2**30)
        with pool.hold(Path("me/birds")) as birds, pool.hold(Path("me/cars")) as cars:
            logits = pool.logits(pixel_values, [birds, cars])  # one mixed batch of two images
        ```
    """

    def __init__(
        self, backbone: nn.Module, memory: int, backbone_name: str | None = None, image_side: int = MOST_PIXELS
    ) -> None:
        super().__init__(memory)
        anchor = GatedPromptConfig(num_virtual_tokens=1, gates=False, temperature=False, modules_to_save=[])
        self.features = Features(backbone)
        self.model = get_peft_model(self.features, anchor, adapter_name=ANCHOR).eval().requires_grad_(False)
        self.backbone_name, self.image_side = backbone_name, image_side
        (self._bank,) = find_banks(self.model).values()
        self.device = next(backbone.parameters()).device
        self._count = 0

    @torch.inference_mode()
    def logits(self, pixels: Tensor, adapters: Sequence[Resident]) -> list[Tensor]:
        """Return logits (K_i,) of each image of `pixels` (B, 3, H, W) from its own adapter or probe, in one batch.

        Raises:
            GatedPromptError: the number of adapters is not that of the images.
        """
        keys = [one.key for one in adapters]
        blocks = tuple(sorted({block for one in adapters for block in one.blocks or ()}))
        seen = self.model(pixel_values=pixels.to(self.device), blocks=blocks, adapter_names=keys)
        kinds = [(one.predictor.reads, one.blocks) for one in adapters]
        read = {kind: self.features.read(seen, *kind).float() for kind in set(kinds)}
        found = [read[kind][row] for row, kind in enumerate(kinds)]
        return [
            one if adapter.weight is None else F.linear(one, adapter.weight, adapter.bias)
            for one, adapter in zip(found, adapters, strict=True)
        ]

    def frozen(self, reads: Reads, blocks: Sequence[int]) -> Resident:
        """As `AdapterCache.frozen`, of images that are prepared as `train` prepares them for this backbone."""
        depth, has_cls = self.features.num_blocks, self.features.num_prefix_tokens > 0
        if list(blocks) != sorted({*blocks} & {*range(depth)}) or not blocks:
            raise AdapterMismatchError(f"blocks is {list(blocks)}. Expected ascending indices from 0 to {depth - 1}.")
        if reads != "mean" and not has_cls:
            raise AdapterMismatchError(f"reads is {reads!r}, but this backbone has no CLS token. Use 'mean'.")
        predictor = Predictor(["feature"], self._preparation, reads=reads, blocks=list(blocks))
        return Resident(
            key=BASE,
            weight=None,
            bias=None,
            blocks=tuple(blocks),
            predictor=predictor,
            sha256=None,
            nbytes=0,
            stamp=(),
        )

    @cached_property
    def _preparation(self) -> dict[str, Any]:
        if self.backbone_name is None:
            raise GatedPromptError("the pool has no backbone_name, so how its images are prepared is unknown")
        return preparation(self.backbone_name)

    def _stamp(self, place: Path) -> Stamp:
        return stamp_of_folder(place)

    def _load(self, place: Path, stamp: Stamp) -> Resident:
        files = read_files(place, self.device)
        blocks = blocks_read(place, files, Limits(self.backbone_name, self.features.num_blocks, self.image_side))
        key = self._keep(place, files.nbytes, lambda: self._add(files))
        weight, bias = files.head
        resident = Resident(
            key=key,
            weight=weight,
            bias=bias,
            blocks=blocks,
            predictor=files.predictor,
            sha256=files.sha256,
            nbytes=files.nbytes,
            stamp=stamp,
        )
        self._try(resident)  # without a lock: other adapters are loaded meanwhile
        return resident

    def _add(self, files: Files) -> str:
        """Put the prompts on the model, and return their name there."""
        if files.config is None:
            return BASE
        self._count += 1
        key = f"a{self._count}"
        tensors = {name.rpartition(".")[2]: tensor for name, tensor in files.prompts.items()}
        add_frozen(self.features, self._bank, key, files.config, tensors)
        return key

    def _unload(self, adapter: Resident) -> None:
        if adapter.key != BASE:
            drop_frozen(self._bank, adapter.key)


def load_pool(backbone: str, memory: int, image_side: int) -> AdapterPool:
    """A pool for adapters of this backbone, which take at most `memory` bytes and images of at most this side.

    Raises:
        GatedPromptError: the backbone cannot be loaded, or takes no prompts.
    """
    quiet_loading()  # here, as each replica is a process of its own
    return AdapterPool(load_backbone(backbone), memory, backbone_name=backbone, image_side=image_side)
