# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Adapters of many tasks on one frozen backbone, within a memory limit.

The backbone has no head: it returns features, and each adapter's own linear layer turns what it reads of them into
logits. So heads may differ in what they read and in their number of classes, and an adapter takes no more memory than
its file. Any number of threads may call.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import get_peft_model, set_peft_model_state_dict
from PIL import Image
from torch import Tensor, nn

from ..architecture.names import BASE
from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError, DamagedAdapterError, GatedPromptError
from ..predictor import FILE, MOST_PIXELS
from ..sharing.backbone import quiet_loading
from .backbone import Features, load_backbone
from .contents import Files, read_files
from .resident import Limits, Resident, Stamp, blocks_read, stamp_of_folder

ANCHOR = "anchor"  # an adapter of one prompt that nobody calls: PEFT needs one on the model at all times
TRIES, MOMENT = 10, 0.005  # to read a folder that is being replaced. Seconds between them


class PoolFullError(GatedPromptError):
    """Every adapter in memory is in use and one more does not fit. Try again when some calls have ended."""


class AdapterPool:
    """A backbone and the most recently used adapters.

    Args:
        backbone: a classifier of transformers made with `num_labels=0`, or a model without a head,
            which returns `last_hidden_state`. It is frozen, put in eval mode and changed in place.
        memory: bytes that all adapters together may take.
        backbone_name: Hub id or folder. Adapters trained on another one are refused. None: not compared.
        image_side: the largest side of images that an adapter may ask for, in pixels.

    Attributes:
        nbytes: memory of all loaded adapters.

    Raises:
        ArchitectureError: the backbone is not a Vision Transformer.
    """

    def __init__(
        self, backbone: nn.Module, memory: int, backbone_name: str | None = None, image_side: int = MOST_PIXELS
    ) -> None:
        anchor = GatedPromptConfig(num_virtual_tokens=1, gates=False, temperature=False, modules_to_save=[])
        self.features = Features(backbone)
        self.model = get_peft_model(self.features, anchor, adapter_name=ANCHOR).eval().requires_grad_(False)
        self.memory, self.backbone_name, self.image_side = memory, backbone_name, image_side
        self.device, self.nbytes = next(backbone.parameters()).device, 0
        self._residents: OrderedDict[Path, Resident] = OrderedDict()  # least recently used first
        self._replaced: list[Resident] = []  # by other files. Dropped when their calls have ended
        self._loading: dict[Path, threading.Lock] = {}  # each is held by the thread that loads and tries an adapter
        self._count = 0
        self._books = threading.Lock()  # guards the four above. Never held while files are read or logits computed
        self._changes = threading.RLock()  # the model changes by one adapter at a time

    def __len__(self) -> int:
        return len(self._residents)

    @contextmanager
    def hold(self, folder: Path) -> Iterator[Resident]:
        """The adapter in `folder`, loaded if it is not in memory or its files changed. It stays while this is open.

        Raises:
            PoolFullError: it does not fit beside the adapters in use.
            GatedPromptError: it is damaged, does not fit the backbone, or exceeds the limit alone.
        """
        resident = self._take(folder)
        try:
            yield resident
        finally:
            with self._books:
                resident.users -= 1

    @torch.inference_mode()
    def logits(self, pixels: Tensor, residents: Sequence[Resident]) -> list[Tensor]:
        """Logits (K_i,) of each image of `pixels` (B, 3, H, W) from its own adapter or probe, in one mixed batch.

        Raises:
            GatedPromptError: the number of adapters is not that of the images.
        """
        keys = [resident.key for resident in residents]
        blocks = tuple(sorted({block for resident in residents for block in resident.blocks or ()}))
        seen = self.model(pixel_values=pixels.to(self.device), blocks=blocks, adapter_names=keys)
        kinds = [(resident.predictor.reads, resident.blocks) for resident in residents]
        read = {kind: self.features.read(seen, *kind).float() for kind in set(kinds)}
        heads = zip(kinds, residents, strict=True)
        return [F.linear(read[kind][row], one.weight, one.bias) for row, (kind, one) in enumerate(heads)]

    def _take(self, folder: Path) -> Resident:
        if (found := self._in_memory(folder)) is not None:
            return found
        with self._books:
            loading = self._loading.setdefault(folder, threading.Lock())
        with loading:  # one thread loads it, and others load other adapters meanwhile
            try:
                if (found := self._in_memory(folder)) is not None:  # another thread was faster
                    return found
                resident = self._load_undisturbed(folder)
                with self._books:
                    self._retire(folder)
                    resident.users += 1
                    self._residents[folder] = resident
                return resident
            finally:
                with self._books:
                    self._loading.pop(folder, None)

    def _retire(self, folder: Path) -> None:
        """With `_books` held: have an adapter dropped when the calls that use it have ended."""
        old = self._residents.pop(folder, None)
        if old is not None:
            self._replaced.append(old)

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
        """Drop an adapter, at once or when the calls that use it have ended."""
        with self._changes:
            with self._books:
                self._retire(folder)
            self._make_room(0)

    def _load_undisturbed(self, folder: Path) -> Resident:
        """Load it, again if its files changed meanwhile. A folder that is being replaced is missing for a moment."""
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
            self._drop(resident)  # it may have the names of one adapter and the weights of another
        raise DamagedAdapterError(f"the adapter in {folder} kept being replaced while it was read; try again")

    def _load(self, folder: Path, stamp: Stamp) -> Resident:
        files = read_files(folder, self.device)
        limits = Limits(self.backbone_name, self.features.num_blocks, self.image_side, self.memory)
        blocks = blocks_read(folder, files, limits)
        key = self._add(files)
        resident = Resident(key, *files.head, files.predictor, blocks, files.sha256, files.nbytes, stamp)
        try:
            self._try(resident)  # without a lock: other adapters are loaded meanwhile
        except BaseException:
            self._drop(resident)
            raise
        return resident

    def _add(self, files: Files) -> str:
        """Put the prompts on the model, and return their name there."""
        with self._changes:
            self._make_room(files.nbytes)
            key = BASE
            if files.config is not None:
                self._count += 1
                key = f"a{self._count}"
                self.model.add_adapter(key, files.config)
                try:
                    set_peft_model_state_dict(self.model, files.prompts, adapter_name=key)
                except BaseException:
                    self.model.delete_adapter(key)
                    raise
            self.nbytes += files.nbytes
        return key

    def _try(self, resident: Resident) -> None:
        """Compute one image before anyone else calls the adapter."""
        pixels = resident.predictor.transform()(Image.new("RGB", (64, 64), "grey"))[None]
        try:
            (logits,) = self.logits(pixels, [resident])
        except (RuntimeError, ValueError) as error:
            raise AdapterMismatchError(
                f"the adapter does not compute on this backbone with images prepared as its {FILE} says: {error}"
            ) from error
        if not logits.isfinite().all():
            raise AdapterMismatchError("the adapter's scores of a grey image are not finite; train it again")

    def _make_room(self, nbytes: int) -> None:
        """Drop unused adapters, least recently used first, until `nbytes` more fit."""
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
        with self._changes:
            if resident.key != BASE:
                self.model.delete_adapter(resident.key)
            self.nbytes -= resident.nbytes


def load_pool(backbone: str, memory: int, image_side: int) -> AdapterPool:
    """A pool for adapters of this backbone, which take at most `memory` bytes and images of at most this side.

    Raises:
        GatedPromptError: the backbone cannot be loaded, or takes no prompts.
    """
    quiet_loading()  # here, as each replica is a process of its own
    return AdapterPool(load_backbone(backbone), memory, backbone_name=backbone, image_side=image_side)
