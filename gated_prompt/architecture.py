# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Find the parts of a Vision Transformer that prompts need, in any model that has them.

No family is named here. The blocks are the one list of equal modules that hold a query projection; the patch
projection and the prefix tokens (CLS, registers, ...) are what stands before it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .errors import ArchitectureError

QUERY_NAMES = ("q_proj", "query", "qkv")
QUERY_NORM_NAMES = ("q_norm", "query_norm")
PREFIX_NAMES = (
    "cls_token",
    "class_token",
    "class_embedding",
    "distillation_token",
    "dist_token",
    "register_tokens",
    "reg_token",
)
HEAD_NAMES = (
    "classifier",
    "cls_classifier",
    "distillation_classifier",
    "head",
    "head_dist",
    "decode_head",
    "auxiliary_head",
)


@dataclass(frozen=True)
class QueryOutput:
    """The module whose output are the queries: (..., D), or (..., 3 D) with the queries first when `fused`."""

    module: nn.Module
    fused: bool


@dataclass(frozen=True)
class VisionTransformer:
    """The parts of one model.

    `blocks`: the L transformer blocks; `queries`: one for each block; `ancestors`: the modules that hold the
    blocks, the root first; `before`: the modules that run before them; `hidden_size`: D; `num_prefix_tokens`:
    tokens that stand before the patches; `patch_values`: numbers in one patch (3 p p).
    """

    blocks: list[nn.Module]
    queries: list[QueryOutput]
    ancestors: list[nn.Module]
    before: list[nn.Module]
    hidden_size: int
    num_prefix_tokens: int
    patch_values: int


def find_vision_transformer(root: nn.Module, blocks_path: str | None = None) -> VisionTransformer:
    """Describe the Vision Transformer inside `root`.

    `blocks_path` is the dotted path of the list of blocks, for models with more than one.

    Raises:
        ArchitectureError: there is no such list, more than one, or no patch projection before it.
    """
    path = _find_blocks_path(root, blocks_path)
    blocks = list(root.get_submodule(path).children())
    queries = [query for block in blocks if (query := _find_query(block))]
    parents = path.split(".")[:-1]
    ancestors = [root.get_submodule(".".join(parents[:i])) for i in range(len(parents) + 1)]
    body, before = _body_and_modules_before(ancestors, path.split("."))
    projection = next(filter(_is_projection, (m for module in before for m in module.modules())), None)
    if projection is None:
        raise ArchitectureError(
            f"{type(root).__name__}.{path} are transformer blocks, but no patch projection (Conv2d or Linear) stands "
            "before them, so this is no Vision Transformer; prompts need one"
        )
    hidden_size = _in_features(queries[0].module, blocks[0])
    return VisionTransformer(
        blocks=blocks,
        queries=queries,
        ancestors=ancestors,
        before=before,
        hidden_size=hidden_size,
        num_prefix_tokens=_count_prefix_tokens(body, blocks, hidden_size),
        patch_values=projection.get_parameter("weight")[0].numel(),
    )


def find_head_names(root: nn.Module) -> list[str]:
    """Dotted names of the heads on `root`, or on the model that it wraps; empty when there are none."""
    holders = [("", root)] + [(f"{n}.", m) for n, m in root.named_children() if n == "timm_model"]
    return [
        prefix + name
        for prefix, holder in holders
        for name, child in holder.named_children()
        if name in HEAD_NAMES and any(True for _ in child.parameters())
    ]


def pooling_obstacle(root: nn.Module, num_prefix_tokens: int) -> str | None:
    """Why a mean written into token 0 would not reach the head of `root`, or None if it does.

    Heads that read token 0 beside other tokens (DeiT, DINOv2) count as reading it.
    """
    name, config = type(root).__name__, getattr(root, "config", None)
    family = getattr(config, "model_type", "")
    if num_prefix_tokens == 0:
        return f"{name} has no prefix token whose place the mean could take"
    if name.endswith(("Backbone", "ForSemanticSegmentation", "ForMaskedImageModeling", "ForPreTraining")):
        return f"{name} reads the patch tokens, not token 0"
    if getattr(config, "use_mean_pooling", False) or (family == "clip" and name.endswith("ForImageClassification")):
        return f"{name} reads the mean of the patch tokens, not token 0"
    return None


def _find_blocks_path(root: nn.Module, asked: str | None) -> str:
    found = list(_block_lists(root))
    stages = [path for path in found if any(part.isdigit() for part in path.split("."))]
    if stages:
        raise ArchitectureError(
            f"{type(root).__name__} has stages of blocks ({', '.join(stages)}), so it is a hierarchical transformer; "
            "extra tokens do not fit its windows. Use a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, CLIP, ...)"
        )
    if asked is not None:
        if asked not in found:
            raise ArchitectureError(
                f"target_modules={asked!r} names no list of transformer blocks of {type(root).__name__}; "
                + (f"found: {', '.join(found)}" if found else "none was found")
            )
        return asked
    if len(found) == 1:
        return found[0]
    if found:
        raise ArchitectureError(
            f"{type(root).__name__} has several lists of transformer blocks: {', '.join(found)}; "
            "choose one with GatedPromptConfig(target_modules=...)"
        )
    raise ArchitectureError(
        f"{type(root).__name__} has no list of two or more equal transformer blocks with a query projection "
        f"({', '.join(QUERY_NAMES)}); gated prompts need a plain Vision Transformer (ViT, DeiT, MAE, DINOv2, ...)"
    )


def _block_lists(root: nn.Module) -> Iterator[str]:
    """Path of every list of equal blocks, outside decoders, text towers and other such lists."""
    inside: list[str] = []
    for path, module in root.named_modules():
        if any("decoder" in part or part.startswith("text") for part in path.split(".")):
            continue
        if any(path.startswith(f"{outer}.") for outer in inside):
            continue
        if not isinstance(module, (nn.ModuleList, nn.Sequential)):
            continue
        blocks = list(module.children())
        if len(blocks) < 2 or len({_signature(block) for block in blocks}) != 1:
            continue
        if _find_query(blocks[0]) and sum(isinstance(m, nn.Linear) for m in blocks[0].modules()) >= 4:
            inside.append(path)
            yield path


def _signature(block: nn.Module) -> tuple[object, ...]:
    return type(block), tuple((name, tuple(p.shape)) for name, p in block.named_parameters())


def _find_query(block: nn.Module) -> QueryOutput | None:
    """The queries of one block, after their norm where it has one (a norm would undo a scale put before it)."""
    named = dict(block.named_modules())
    hits = [name for name in named if name.rpartition(".")[2] in QUERY_NAMES]
    if len(hits) != 1:
        return None
    parent, _, leaf = hits[0].rpartition(".")
    for norm in QUERY_NORM_NAMES:
        module = named.get(f"{parent}.{norm}" if parent else norm)
        if module is not None and not isinstance(module, nn.Identity):
            return QueryOutput(module, fused=False)
    return QueryOutput(named[hits[0]], fused=leaf == "qkv")


def _in_features(query: nn.Module, block: nn.Module) -> int:
    width = getattr(query, "in_features", None)
    if width is None:  # a norm of the queries: read the width off the block's own norm
        width = next(m for m in block.modules() if isinstance(m, nn.LayerNorm)).normalized_shape[0]
    return int(width)


def _is_projection(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear))


def _body_and_modules_before(ancestors: list[nn.Module], path: list[str]) -> tuple[nn.Module, list[nn.Module]]:
    """The innermost ancestor with a projection among the siblings that come before the blocks, and those siblings."""
    for ancestor, name in zip(reversed(ancestors), reversed(path), strict=True):
        children = dict(ancestor.named_children())
        before = list(children.values())[: list(children).index(name)]
        if any(_is_projection(m) for child in before for m in child.modules()):
            return ancestor, before
    return ancestors[0], []


def _count_prefix_tokens(body: nn.Module, blocks: list[nn.Module], hidden_size: int) -> int:
    inner = {id(p) for block in blocks for p in block.parameters()}
    return sum(
        p.numel() // hidden_size
        for name, p in body.named_parameters()
        if id(p) not in inner and name.rpartition(".")[2] in PREFIX_NAMES
    )
