# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapters of many tasks on one frozen backbone, within a limit of memory.

The backbone has no head: it gives features, and each adapter's own linear layer makes logits of them. So heads may
have any number of classes, and an adapter takes what its file holds and no more. Any number of threads may call.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import get_peft_model, set_peft_model_state_dict
from peft.utils import CONFIG_NAME
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError, DamagedAdapterError, GatedPromptError
from ..files.layout import BANK, PREFIX
from ..sharing.card import last_part
from ..sharing.loading import checked
from ..sharing.predictor import FILE, Predictor, read_predictor
from .resident import Resident, Stamp, head_of, memory_of, stamp_of_folder

ANCHOR = "anchor"  # an adapter of one prompt that nobody calls: PEFT wants one on the model at all times
TRIES, MOMENT = 10, 0.005  # seconds between them, when a folder is replaced while it is read


class PoolFullError(GatedPromptError):
    """Every adapter in memory is in use, and one more does not fit; try again when some calls have ended."""


class AdapterPool:
    """A backbone, and the adapters that were used last.

    Args:
        backbone: gives features (B, D) as `logits`: a classifier of transformers made with `num_labels=0`. It is
            frozen, put in eval mode and changed in place.
        memory: bytes that adapters may take together.
        backbone_name: Hub id or folder; an adapter that says it was trained on another is refused. None: not compared.

    Attributes:
        nbytes: memory of all adapters that are loaded.

    Raises:
        ArchitectureError: the backbone is no Vision Transformer.
    """

    def __init__(self, backbone: nn.Module, memory: int, backbone_name: str | None = None) -> None:
        anchor = GatedPromptConfig(num_virtual_tokens=1, gates=False, temperature=False, modules_to_save=[])
        self.model = get_peft_model(backbone, anchor, adapter_name=ANCHOR).eval().requires_grad_(False)
        self.memory, self.backbone_name = memory, backbone_name
        self.device = next(backbone.parameters()).device
        self.nbytes = 0
        self._residents: OrderedDict[Path, Resident] = OrderedDict()  # least recently used first
        self._replaced: list[Resident] = []  # another file has taken their place; they go when their calls have ended
        self._count = 0
        self._books = threading.Lock()  # for the three above; never held while something is read or computed
        self._changes = threading.Lock()  # for adapters that come and go, one at a time

    def __len__(self) -> int:
        return len(self._residents)

    @contextmanager
    def hold(self, folder: Path) -> Iterator[Resident]:
        """The adapter in `folder`, read first if it is not in memory or was saved anew; it stays while this is open.

        Raises:
            PoolFullError: it does not fit beside the adapters in use.
            GatedPromptError: it is damaged, does not fit the backbone, or is larger than the limit.
        """
        resident = self._take(folder)
        try:
            yield resident
        finally:
            with self._books:
                resident.users -= 1

    @torch.inference_mode()
    def logits(self, pixels: Tensor, residents: Sequence[Resident]) -> list[Tensor]:
        """Logits (K_i,) of each picture of `pixels` (B, 3, H, W) by its own adapter, in one mixed batch.

        Raises:
            GatedPromptError: there is not one adapter for each picture.
        """
        keys = [resident.key for resident in residents]
        features = self.model(pixel_values=pixels.to(self.device), adapter_names=keys).logits.float()
        return [F.linear(row, one.weight, one.bias) for row, one in zip(features, residents, strict=True)]

    def _take(self, folder: Path) -> Resident:
        found = self._in_memory(folder)
        if found is not None:
            return found
        with self._changes:
            found = self._in_memory(folder)  # another thread was faster
            if found is not None:
                return found
            resident = self._load_undisturbed(folder)
            with self._books:
                old = self._residents.pop(folder, None)
                if old is not None:
                    self._replaced.append(old)
                resident.users += 1
                self._residents[folder] = resident
            return resident

    def _in_memory(self, folder: Path) -> Resident | None:
        stamp = stamp_of_folder(folder)
        with self._books:
            found = self._residents.get(folder)
            if found is None or found.stamp != stamp:
                return None
            self._residents.move_to_end(folder)
            found.users += 1
            return found

    def forget(self, folder: Path) -> None:
        """Let go of an adapter that was deleted; at once, or when the calls that use it have ended."""
        with self._changes:
            with self._books:
                old = self._residents.pop(folder, None)
                if old is not None:
                    self._replaced.append(old)
            self._make_room(0)

    def _load_undisturbed(self, folder: Path) -> Resident:
        """Read it again where it was replaced meanwhile; a folder that is replaced is away for a moment."""
        for _ in range(TRIES):
            stamp = stamp_of_folder(folder)
            try:
                resident = self._load(folder, stamp)
            except (DamagedAdapterError, AdapterMismatchError):
                time.sleep(MOMENT)
                if stamp_of_folder(folder) == stamp:
                    raise
                continue
            if stamp_of_folder(folder) == stamp:
                return resident
            self._drop(resident)  # it may have the names of one and the weights of another
        raise DamagedAdapterError(f"the adapter in {folder} was replaced again and again while it was read; ask again")

    def _load(self, folder: Path, stamp: Stamp) -> Resident:
        predictor = read_predictor(folder)
        with checked(str(folder)) as (config, _):
            self._check_backbone(folder, config, predictor)
            nbytes = memory_of(config._file)
            if nbytes > self.memory:
                raise GatedPromptError(
                    f"the adapter in {folder} takes {nbytes} bytes, more than the {self.memory} that all may take; "
                    "raise the limit"
                )
            self._make_room(nbytes)
            if not config._file.is_small:
                config._file.check_content()  # was left until now
            path = config._file.path
            loaded = load_file(path, device=str(self.device)) if path is not None else {}
            tensors = {key: loaded[key] for key in config._file.entries}  # without those of other adapters
            # A copy without the head, which is applied here, and without the memory of where the backbone lay.
            own = replace(config, modules_to_save=[])
            own.base_model_name_or_path, own.inference_mode = None, True
        head = head_of(folder, config, tensors, predictor)
        prompts = {key: value for key, value in tensors.items() if key.startswith(f"{PREFIX}{BANK}.")}
        self._count += 1
        key = f"a{self._count}"
        self.model.add_adapter(key, own)
        try:
            set_peft_model_state_dict(self.model, prompts, adapter_name=key)
            resident = Resident(key, *head, predictor, config.weights_sha256, nbytes, stamp)
            self._try(resident)
        except BaseException:
            self.model.delete_adapter(key)
            raise
        self.nbytes += nbytes
        return resident

    def _check_backbone(self, folder: Path, config: GatedPromptConfig, predictor: Predictor) -> None:
        trained_on = last_part(config.base_model_name_or_path)
        if self.backbone_name is not None and trained_on not in ("", last_part(self.backbone_name)):
            raise AdapterMismatchError(
                f"the adapter in {folder} was trained on {trained_on!r}, the backbone here is "
                f"{last_part(self.backbone_name)!r}; if it is the same model under another name, change "
                f"base_model_name_or_path in its {CONFIG_NAME}"
            )
        here = self.model.get_base_model().config
        other = [f"{name}={value}" for name, value in predictor.base.items() if getattr(here, name, None) != value]
        if other:
            raise AdapterMismatchError(
                f"the adapter in {folder} was trained on a backbone with {', '.join(other)}, as its {FILE} says, "
                "unlike the one here; serve it separately"
            )

    def _try(self, resident: Resident) -> None:
        """One picture through backbone and head, before anyone else calls it."""
        pixels = resident.predictor.transform()(Image.new("RGB", (64, 64), "grey"))[None]
        try:
            self.logits(pixels, [resident])
        except (RuntimeError, ValueError) as error:
            raise AdapterMismatchError(
                f"the adapter does not compute on this backbone with the pictures that its {FILE} means: {error}"
            ) from error

    def _make_room(self, nbytes: int) -> None:
        """Delete what nobody uses, least recently used first, until `nbytes` more fit."""
        while True:
            with self._books:
                gone = next((one for one in self._replaced if not one.users), None)
                if gone is not None:
                    self._replaced.remove(gone)
                elif self.nbytes + nbytes <= self.memory:
                    return
                else:
                    folder = next((f for f, one in self._residents.items() if not one.users), None)
                    if folder is None:
                        raise PoolFullError(
                            f"{len(self._residents)} adapters with {self.nbytes} bytes are in use, and {nbytes} more "
                            f"exceed the limit of {self.memory}; try again, or raise the limit"
                        )
                    gone = self._residents.pop(folder)
            self._drop(gone)

    def _drop(self, resident: Resident) -> None:
        self.model.delete_adapter(resident.key)
        self.nbytes -= resident.nbytes
