# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Find the parts of a Vision Transformer that prompts need, in any model that has them.

No model family is named here. The blocks are the only list of identical modules with a query projection. The patch
projection and the prefix tokens (CLS, registers, ...) precede it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from ..errors import ArchitectureError
from .attention import BIAS_TABLE, QUERY_NAMES, AttentionParts, find_attention
from .prefix import count_prefix_tokens
from .towers import Tower, find_tower

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OWN_POSITIONS = ("get_bias", "get_position_ids")  # methods of timm's relative position biases and V-JEPA 2's attention


@dataclass(frozen=True)
class PositionBias:
    """A module that computes a bias (1, H, N, N) on the attention logits of one block. None means of all blocks."""

    module: nn.Module
    block: int | None


@dataclass(frozen=True)
class VisionTransformer:
    """The parts of one model.

    `tower`: the blocks with the modules that contain and precede them. `blocks`: the L transformer blocks.
    `attentions`: the parts of each. `ancestors`: the modules that contain the blocks, the root first. `before`: the
    modules that run before them. `embeddings`: the one of these with the patch `projection`. `position_biases`: the
    relative ones, if any. `hidden_size`: D. `num_prefix_tokens`: number of tokens before the patches. `patch_values`:
    number of values in one patch (3 p p). `keys_are_projections`: False if a measurement (`measured.py`) showed that
    keys and values are not the projections of the normed tokens.
    """

    tower: Tower
    blocks: list[nn.Module]
    attentions: list[AttentionParts]
    ancestors: list[nn.Module]
    before: list[nn.Module]
    embeddings: nn.Module
    projection: nn.Module
    position_biases: list[PositionBias]
    hidden_size: int
    num_prefix_tokens: int
    patch_values: int
    keys_are_projections: bool = True

    @property
    def can_be_passive(self) -> frozenset[int]:
        """The blocks whose attention can read prompts on their own, as keys and values only."""
        named = frozenset(index for index, parts in enumerate(self.attentions) if parts.can_be_passive)
        return named if self.keys_are_projections else frozenset()

    @property
    def prompt_bound(self) -> float:
        """v = sqrt(6 / (3 p p + D)), the patch projection's Xavier bound: prompts start uniform in (-v, v)."""
        return math.sqrt(6.0 / (self.patch_values + self.hidden_size))

    @property
    def unfit_for_zero_start(self) -> nn.Module | None:
        """The first attention in which prompts cannot be read on their own (`zero_start`). None if all fit."""
        fit = self.can_be_passive
        unfit = (p.attention for i, p in enumerate(self.attentions) if i not in fit or p.num_heads is None)
        return next(unfit, None)


def find_vision_transformer(root: nn.Module, blocks_path: str | None = None) -> VisionTransformer:
    """Describe the Vision Transformer inside `root`.

    Args:
        root: any model.
        blocks_path: dotted path of the list of blocks, for models with several lists.

    Raises:
        ArchitectureError: there is no such list, there are several, there is no patch projection before it, or a
            backbone class reads the output of each block.

    Example:
        ```python
        found = gated_prompt.find_vision_transformer(vit)
        print(found.tower.path, len(found.blocks), found.hidden_size)
        ```
    """
    # One block is what a probe of the first block leaves of a backbone. Beside longer lists it is something else.
    paths = [*_block_lists(root, least=2)] or [*_block_lists(root, least=1)]
    lists = {path: _width(root.get_submodule(path)) for path in paths}
    tower = find_tower(root, lists, blocks_path)
    blocks = list(root.get_submodule(tower.path).children())
    _refuse_what_has_no_room(root, tower)
    hidden_size = lists[tower.path]
    return VisionTransformer(
        tower=tower,
        blocks=blocks,
        attentions=[parts for block in blocks if (parts := find_attention(block))],
        ancestors=tower.ancestors,
        before=tower.before,
        embeddings=tower.embeddings,
        projection=tower.projection,
        position_biases=_position_biases(root, blocks),
        hidden_size=hidden_size,
        num_prefix_tokens=count_prefix_tokens(tower, blocks[0], hidden_size),
        patch_values=tower.patch_values,
    )


def _block_lists(root: nn.Module, least: int) -> Iterator[str]:
    """Yield the path of every list of `least` or more identical blocks that is not inside another such list."""
    inside: list[str] = []
    for path, module in root.named_modules():
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        blocks = list(module.children())
        if len(blocks) < least or len({_signature(block) for block in blocks}) != 1:
            continue
        if find_attention(blocks[0]) and len(linears := _linears(blocks[0])) >= 4:
            _refuse_foreign(root, path, linears)
            inside.append(path)
            yield path


def _linears(block: nn.Module) -> list[nn.Module]:
    """The modules like nn.Linear in a block, without wrappers around them, such as those of LoRA."""
    likely = [m for m in block.modules() if hasattr(m, "in_features")]
    return [m for m in likely if not any(hasattr(child, "in_features") for child in m.children())]


def _refuse_foreign(root: nn.Module, path: str, linears: list[nn.Module]) -> None:
    """Refuse blocks whose Linears are of another kind, such as those of `torch.ao.quantization.quantize_dynamic`.

    Raises:
        ArchitectureError: fewer than four are `nn.Linear` or a subclass.
    """
    foreign = [linear for linear in linears if not isinstance(linear, nn.Linear)]
    if len(linears) - len(foreign) < 4:
        kind = type(foreign[0])
        raise ArchitectureError(
            f"the blocks {path} of {type(root).__name__} hold {kind.__module__}.{kind.__qualname__} in place of "
            "nn.Linear, through which prompts may get no gradient. Use the base in full precision, or quantized by "
            "bitsandbytes or torchao."
        )


def _signature(block: nn.Module) -> tuple[object, ...]:
    return type(block), tuple((name, tuple(p.shape)) for name, p in block.named_parameters())


def _width(blocks: nn.Module) -> int:
    """Return the width of these blocks' tokens, the input of the query projection."""
    block = next(blocks.children())
    query = next(m for name, m in block.named_modules() if name.rpartition(".")[2] in QUERY_NAMES)
    width = getattr(query, "in_features", None)
    return int(next(p for p in query.parameters() if p.ndim > 1).shape[-1] if width is None else width)


def _position_biases(root: nn.Module, blocks: list[nn.Module]) -> list[PositionBias]:
    """Return all modules of `root` with a table of relative position biases.

    Raises:
        ArchitectureError: an attention has its own table, so no hook can widen the bias.
    """
    owner = {id(module): index for index, block in enumerate(blocks) for module in block.modules()}
    found = [m for m in root.modules() if BIAS_TABLE in m._parameters]
    for module in found:
        if any(name in QUERY_NAMES for name, _ in module.named_children()):
            raise ArchitectureError(
                f"{type(module).__name__} adds a relative position bias for a fixed number of tokens in its forward, "
                "so there is no room for prompts. Use a model whose bias is a separate module (transformers' BEiT) or "
                "that has none."
            )
    return [PositionBias(module, owner.get(id(module))) for module in found]


def _refuse_what_has_no_room(root: nn.Module, tower: Tower) -> None:
    """Refuse models that would fail, some of them silently, where no hook can help.

    Raises:
        ArchitectureError: a backbone makes feature maps from the output of each block, or tables for a fixed number of
            tokens are added between the blocks or inside their attention, or tokens meet where prompts would disturb
            them.
    """
    loop = tower.ancestors[-1]
    if hasattr(loop, "out_features"):
        raise ArchitectureError(
            f"{type(loop).__name__} runs its blocks itself and makes feature maps of their output, prompts included. "
            "Use a transformers version whose backbone has an encoder (DINOv3ViTBackbone: 5.4 or later)."
        )
    in_blocks = {id(p) for p in root.get_submodule(tower.path).parameters()}
    for module in tower.loops[1:]:
        for name, table in module.named_parameters():
            if id(table) not in in_blocks and table.ndim > 2:
                raise ArchitectureError(
                    f"{type(module).__name__} adds {name}, a table for a fixed number of tokens, between its blocks, "
                    "which leaves no room for prompts. Use a model without it."
                )
    for module in root.get_submodule(tower.path).modules():
        method = next((name for name in OWN_POSITIONS if hasattr(module, name)), None)
        if method is not None:
            raise ArchitectureError(
                f"{type(module).__name__} derives positions from the index in the sequence ({method}), which prompts "
                "would shift and no hook can correct. Use a model with absolute or rotary patch positions."
            )
    for block in root.get_submodule(tower.path).children():
        parts = find_attention(block)
        if parts is not None and getattr(parts.attention, "is_causal", False):
            raise causal(block)
        if any(isinstance(m, CONVOLUTIONS) and max(m.kernel_size) > 1 for m in block.modules()):
            raise mixing(block)


def causal(block: nn.Module) -> ArchitectureError:
    """The error for a block with causal attention."""
    return ArchitectureError(
        f"in {type(block).__name__} each token attends to earlier ones only (is_causal), so prompts would depend on "
        "their order and not see the patches. Use a Vision Transformer in which all tokens attend to each other."
    )


def mixing(block: nn.Module) -> ArchitectureError:
    """The error for a block that lets tokens reach each other outside of its attention."""
    return ArchitectureError(
        f"in {type(block).__name__} tokens reach their neighbours outside of the attention, as by a convolution, so "
        "prompts would mix with whatever stands beside them. Use a plain Vision Transformer."
    )
