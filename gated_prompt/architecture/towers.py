# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Find the vision tower of a model: the blocks that read patches, unlike text towers, resamplers and decoders.

A list of blocks reads the nearest source before it, in the order in which the modules were registered: a patch
projection, a table of word embeddings, or another list of blocks.
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ArchitectureError

NO_WORDS = re.compile("pos|row|col|type|quer")  # in names of embedding tables that are not vocabularies
READS_WORDS = "reads the word embeddings in"


@dataclass(frozen=True)
class Tower:
    """A list of blocks that reads patches.

    `path`: of the list. `ancestors`: the modules that contain it, the root first. `body`: the innermost of these that
    also contains the modules `before` the blocks. `embeddings`: the one of those with the patch `projection`.
    """

    path: str
    ancestors: list[nn.Module]
    body: nn.Module
    before: list[nn.Module]
    embeddings: nn.Module
    projection: nn.Conv2d | nn.Conv3d | nn.Linear

    @property
    def patch_values(self) -> int:
        """Number of values in one patch: 3 p p for colour images."""
        if isinstance(self.projection, nn.Linear):
            return self.projection.in_features  # quantized weights are packed
        return self.projection.weight[0].numel()

    @property
    def loops(self) -> list[nn.Module]:
        """The modules that run the blocks, from the body inwards."""
        return self.ancestors[self.ancestors.index(self.body) :]


def find_tower(root: nn.Module, widths: dict[str, int], asked: str | None) -> Tower:
    """Return the tower of `root` that reads patches. `widths`: the width of every list of blocks by path.

    Raises:
        ArchitectureError: there is none, or several and `asked` names none of them, or the blocks come in stages.
    """
    name = type(root).__name__
    found = {path: _source(root, path, widths) for path in widths}
    towers = {path: source for path, source in found.items() if isinstance(source, Tower)}
    stages = [path for path in widths if any(part.isdigit() for part in path.split(".")) and _is_visual(found[path])]
    if stages:
        raise ArchitectureError(
            f"{name} has stages of blocks ({', '.join(stages)}), so it is a hierarchical transformer. Its "
            "windows have no room for extra tokens. Use a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, CLIP, "
            "...)."
        )
    if asked is not None and asked not in found:
        raise ArchitectureError(
            f"target_modules={asked!r} names no list of transformer blocks of {name}. "
            + (f"Found: {', '.join(towers or found)}." if found else "None was found.")
        )
    if asked in towers:
        return towers[asked]
    if asked is None and len(towers) == 1:
        return next(iter(towers.values()))
    if asked is None and towers:
        raise ArchitectureError(
            f"{name} has several lists of transformer blocks that read patches: {', '.join(towers)}. "
            "Choose one with GatedPromptConfig(target_modules=...)."
        )
    if found:
        reasons = "; ".join(f"{path} {source}" for path, source in found.items() if asked in (None, path))
        raise ArchitectureError(
            f"{name} has transformer blocks, but none read patches: {reasons}. Prompts need a Vision "
            "Transformer, whose blocks read what a patch projection returns (a Conv2d, or a Linear over patches)."
        )
    raise ArchitectureError(
        f"{name} has no list of two or more identical transformer blocks with a query projection. "
        "Gated prompts need a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, ...)."
    )


def _source(root: nn.Module, path: str, widths: dict[str, int]) -> Tower | str:
    """Return the tower of the list at `path`, or a description of what it reads instead of patches."""
    parts = path.split(".")
    ancestors = [root.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    for depth in reversed(range(len(parts))):
        children = dict(ancestors[depth].named_children())
        before = list(children)[: list(children).index(parts[depth])]
        for name in reversed(before):
            place = ".".join([*parts[:depth], name])
            if any(f"{other}.".startswith(f"{place}.") for other in widths):
                return f"reads the output of {place}"
            projection = _patch_projection(name, children[name], widths[path])
            if projection is not None:
                modules = [children[other] for other in before]
                return Tower(path, ancestors, ancestors[depth], modules, children[name], projection)
            if has_vocabulary(children[name], name):
                return f"{READS_WORDS} {place}"
    return "has no patch projection before it"


def _is_visual(source: Tower | str) -> bool:
    return isinstance(source, Tower) or not source.startswith(READS_WORDS)


def _patch_projection(name: str, holder: nn.Module, width: int) -> nn.Conv2d | nn.Conv3d | nn.Linear | None:
    """Return the first module in `holder` that projects patches to tokens of this width: a strided convolution.

    Linears and 1 x 1 convolutions precede many kinds of blocks. They count only if their path names patches or their
    parent has a `patch_size`, and if `holder` has no word embeddings.
    """
    modules = dict(holder.named_modules(prefix=name))
    convolutions = [part for part in modules.values() if isinstance(part, (nn.Conv2d, nn.Conv3d))]
    wordless = not has_vocabulary(holder, name)
    for path, part in modules.items():
        if not isinstance(part, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            continue
        named = "patch" in path or _reads_patches(
            part, getattr(modules.get(path.rpartition(".")[0]), "patch_size", None)
        )
        # A later convolution makes features, as that of a ResNet before a DETR's encoder does.
        strided = bool(convolutions) and part is convolutions[0] and max(convolutions[0].stride) > 1
        out = part.out_features if isinstance(part, nn.Linear) else part.out_channels
        if out == width and (strided or (named and wordless)):
            return part
    return None


def _reads_patches(part: nn.Module, size: Any) -> bool:
    """Whether a Linear reads grey or colour patches of this size, p or (p, p). For a convolution any size will do."""
    if size is None or not isinstance(part, nn.Linear):
        return size is not None
    height, width = (size, size) if isinstance(size, int) else size
    return part.in_features in (height * width, 3 * height * width)


def has_vocabulary(holder: nn.Module, name: str = "") -> bool:
    """Whether this module is for text: it has an embedding table, and not of positions, token types or queries."""
    tables = [path for path, m in holder.named_modules(prefix=name) if isinstance(m, nn.Embedding)]
    return any(not NO_WORDS.search(path) for path in tables)
