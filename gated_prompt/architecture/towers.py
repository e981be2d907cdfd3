# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Which list of blocks reads patches: the vision tower of a model, told from its text towers, resamplers and decoders.

What a list of blocks reads is the nearest thing before it, in the order in which the modules were registered: a patch
projection, a table of word embeddings, or another list of blocks.
"""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..errors import ArchitectureError

NO_WORDS = re.compile("pos|row|col|type|quer")


@dataclass(frozen=True)
class Tower:
    """A list of blocks that reads patches.

    `path`: of the list; `ancestors`: the modules that hold it, the root first; `body`: the innermost of them that also
    holds what stands `before` the blocks; `embeddings`: the one of these with the patch `projection`.
    """

    path: str
    ancestors: list[nn.Module]
    body: nn.Module
    before: list[nn.Module]
    embeddings: nn.Module
    projection: nn.Conv2d | nn.Conv3d | nn.Linear

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: 3 p p for colour images."""
        if isinstance(self.projection, nn.Linear):
            return self.projection.in_features  # the weights of a quantized one are packed
        return self.projection.weight[0].numel()

    @property
    def loops(self) -> list[nn.Module]:
        """The modules from the body inwards: those that run the blocks."""
        return self.ancestors[self.ancestors.index(self.body) :]


def find_tower(root: nn.Module, widths: dict[str, int], asked: str | None) -> Tower:
    """The tower of `root` that reads patches; `widths` has the path and the width of every list of blocks.

    Raises:
        ArchitectureError: there is none, or more than one and none is `asked` for; or its blocks come in stages.
    """
    name = type(root).__name__
    found = {path: _source(root, path, widths) for path in widths}
    towers = {path: source for path, source in found.items() if isinstance(source, Tower)}
    stages = [path for path in widths if any(part.isdigit() for part in path.split(".")) and _is_visual(found[path])]
    if stages:
        raise ArchitectureError(
            f"{name} has stages of blocks ({', '.join(stages)}), so it is a hierarchical transformer; "
            "extra tokens do not fit its windows. Use a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, CLIP, ...)"
        )
    if asked is not None and asked not in found:
        raise ArchitectureError(
            f"target_modules={asked!r} names no list of transformer blocks of {name}; "
            + (f"found: {', '.join(towers or found)}" if found else "none was found")
        )
    if asked in towers:
        return towers[asked]
    if asked is None and len(towers) == 1:
        return next(iter(towers.values()))
    if asked is None and towers:
        raise ArchitectureError(
            f"{name} has several lists of transformer blocks that read patches: {', '.join(towers)}; "
            "choose one with GatedPromptConfig(target_modules=...)"
        )
    if found:
        reasons = "; ".join(f"{path} {source}" for path, source in found.items() if asked in (None, path))
        raise ArchitectureError(
            f"{name} has transformer blocks, but none of them reads patches: {reasons}. Prompts need a Vision "
            "Transformer, whose blocks read what a patch projection returns (a Conv2d, or a Linear over patches)"
        )
    raise ArchitectureError(
        f"{name} has no list of two or more equal transformer blocks with a query projection; "
        "gated prompts need a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, ...)"
    )


def _source(root: nn.Module, path: str, widths: dict[str, int]) -> Tower | str:
    """The tower of the list at `path`, or what it reads instead of patches."""
    parts = path.split(".")
    ancestors = [root.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    for depth in reversed(range(len(parts))):
        children = dict(ancestors[depth].named_children())
        before = list(children)[: list(children).index(parts[depth])]
        for name in reversed(before):
            place = ".".join([*parts[:depth], name])
            if any(f"{other}.".startswith(f"{place}.") for other in widths):
                return f"reads what {place} returns"
            projection = _patch_projection(name, children[name], widths[path])
            if projection is not None:
                modules = [children[other] for other in before]
                return Tower(path, ancestors, ancestors[depth], modules, children[name], projection)
            if has_vocabulary(children[name], name):
                return f"reads the embeddings of words in {place}"
    return "has no patch projection before it"


def _is_visual(source: Tower | str) -> bool:
    return isinstance(source, Tower) or "words" not in source


def _patch_projection(name: str, holder: nn.Module, width: int) -> nn.Conv2d | nn.Conv3d | nn.Linear | None:
    """The first module in `holder` that turns patches into tokens of this width: a convolution with a stride.

    Others have to be named after patches, or their holder know the size of one, and have no words beside them: Linears
    and 1 x 1 convolutions stand before blocks of many kinds.
    """
    modules = dict(holder.named_modules(prefix=name))
    wordless = not has_vocabulary(holder, name)
    for path, part in modules.items():
        if not isinstance(part, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            continue
        named = "patch" in path or _reads_patches(
            part, getattr(modules.get(path.rpartition(".")[0]), "patch_size", None)
        )
        strided = not isinstance(part, nn.Linear) and max(part.stride) > 1
        out = part.out_features if isinstance(part, nn.Linear) else part.out_channels
        if out == width and (strided or (named and wordless)):
            return part
    return None


def _reads_patches(part: nn.Module, size: Any) -> bool:
    """Whether a Linear reads grey or coloured patches of this size, p or (p, p); a convolution need only have one."""
    if size is None or not isinstance(part, nn.Linear):
        return size is not None
    height, width = (size, size) if isinstance(size, int) else size
    return part.in_features in (height * width, 3 * height * width)


def has_vocabulary(holder: nn.Module, name: str = "") -> bool:
    """Whether this is a part for text: it holds a table of embeddings that is not one of places, kinds or queries."""
    tables = [path for path, m in holder.named_modules(prefix=name) if isinstance(m, nn.Embedding)]
    return any(not NO_WORDS.search(path) for path in tables)
