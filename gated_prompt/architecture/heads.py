# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a model does with its last tokens: which modules are its head, and which tokens and blocks it reads."""

import re
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .prefix import synthetic_images, undisturbed
from .towers import has_vocabulary
from .vision_transformer import VisionTransformer, find_vision_transformer

HEAD_NAMES = ("classifier", "head", "head_dist", "decode_head", "auxiliary_head")
TASK = re.compile(r"For[A-Z]")  # in names of transformers' classes that add a head to a pretrained body
READERS_OF_TOKEN_0 = ("Model", "ModelWithProjection", "ForImageClassification", "ForImageClassificationWithTeacher")


def find_head_names(root: nn.Module, vit: VisionTransformer | None = None) -> list[str]:
    """Return the paths of the modules around the pretrained body of `root`: heads, feature pyramids, new necks.

    A transformers class without a task in its name is a body, and so is the module that runs the blocks. Beside text
    modules, and in bodies of other libraries, other pretrained modules may follow. There, a head counts only by its
    name or `get_classifier`. Attention pools, output embeddings and loaded necks belong to the pretrained body.

    Args:
        root: any model.
        vit: what `find_vision_transformer` returned for it. None means that it is found here.

    Raises:
        ArchitectureError: `vit` is None, and `root` holds no Vision Transformer.

    Example:
        ```python
        gated_prompt.find_head_names(vit)  # ["classifier"]
        ```
    """
    vit = vit or find_vision_transformer(root)
    paths = {id(module): path for path, module in root.named_modules()}
    fresh, found = fresh_parameters(root, vit), list[str]()
    for holder, inner in zip(vit.tower.ancestors, [*vit.tower.ancestors[1:], None], strict=True):
        if type(holder).__module__.startswith("transformers.") and not TASK.search(type(holder).__name__):
            break
        others = [(name, child) for name, child in holder.named_children() if child is not inner]
        if holder is vit.tower.body or any(has_vocabulary(child) for _, child in others):
            own = _classifiers(holder)
            others = [(n, child) for n, child in others if n in HEAD_NAMES or any(child is m for m in own)]
        output = _asked(holder, "get_output_embeddings")
        found += [
            paths[id(child)]
            for name, child in others
            if not isinstance(child, BaseTunerLayer)
            and not any(module is output for module in child.modules())
            and any(True for _ in child.parameters())
            and not _is_attention_pool(child)
            and (name != "neck" or any(id(p) in fresh for p in child.parameters()))
        ]
        if holder is vit.tower.body:
            break
    return found


def fresh_parameters(root: nn.Module, vit: VisionTransformer) -> set[int]:
    """Return the ids of the parameters that `from_pretrained` did not find in the checkpoint. It marks the others.

    Quantized parameters, which have other types, have lost the mark and are not reported.
    """
    blocks, parameters = ([p for p in m.parameters() if type(p) is nn.Parameter] for m in (vit.blocks[0], root))
    if not all(hasattr(p, "_is_hf_initialized") for p in blocks):
        return set()
    return {id(p) for p in parameters if not hasattr(p, "_is_hf_initialized")}


def resolve(root: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the full paths for `names`, each a path or the end of one. Without paths inside others."""
    modules = [path for path, _ in root.named_modules()]
    paths: list[str] = []
    for name in names:
        paths += [name] if name in modules else [path for path in modules if path.endswith(f".{name}")]
    return [p for p in dict.fromkeys(paths) if not any(p.startswith(f"{other}.") for other in paths)]


def left_out(root: nn.Module, vit: VisionTransformer, heads: list[str]) -> list[str]:
    """Return parameters outside the backbone that would not be trained, although it seems that they should be.

    Either transformers newly initialized them on loading, or the blocks are already frozen and they are not.
    """
    fresh = fresh_parameters(root, vit)
    frozen = not any(p.requires_grad for block in vit.blocks for p in block.parameters())
    adapted = [m for m in root.modules() if isinstance(m, (BaseTunerLayer, ModulesToSaveWrapper))]
    known = {id(p) for module in (*vit.blocks, *vit.before, *adapted) for p in module.parameters()}
    known |= {id(p) for module in vit.tower.loops for p in module.parameters(recurse=False)}
    known |= {id(p) for path in heads for p in root.get_submodule(path).parameters()}
    parameters = [(name, p) for name, p in root.named_parameters() if id(p) not in known]
    return [name for name, p in parameters if id(p) in fresh or (frozen and p.requires_grad)]


def pooling_obstacle(root: nn.Module, vit: VisionTransformer, num_prefix_tokens: int) -> str | None:
    """Explain why a mean written into token 0 would not reach the head of `root`. None if it would.

    Heads that read token 0 and other tokens (DeiT, DINOv2) count as reading it. If that cannot be measured, `pooling`
    is allowed.
    """
    name, config = type(root).__name__, getattr(root, "config", None)
    if num_prefix_tokens == 0:
        return f"{name} has no prefix token that the mean could replace"
    global_pool = getattr(getattr(root, "timm_model", root), "global_pool", "token")
    if global_pool != "token":
        return f"{name} pools with global_pool={global_pool!r}, so its head does not read token 0"
    if type(root).__module__.startswith("transformers.") and not name.endswith(READERS_OF_TOKEN_0):
        return f"{name} reads the patch tokens, not token 0"
    if getattr(config, "use_mean_pooling", False) or _reads_token_0(root, vit) is False:
        return f"{name} reads the mean of the patch tokens, not token 0"
    return None


def _reads_token_0(root: nn.Module, vit: VisionTransformer) -> bool | None:
    """Whether the output depends on token 0 after the last block, measured on two equal images. None if unknown."""
    images = synthetic_images(vit.tower)
    if images is None:
        return None

    def change(output: Any) -> Any:
        tokens = (output[0] if isinstance(output, tuple) else output).clone()
        tokens[1, 0] += torch.linspace(-1.0, 1.0, tokens.shape[-1]).to(tokens)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    handle = vit.blocks[-1].register_forward_hook(_in_this_thread(change))
    try:
        with undisturbed(root):
            output: Any = root(images[1:].expand(2, -1, -1, -1))
    except Exception:  # any error of a model that needs more than images
        return None
    finally:
        handle.remove()
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else [output]
    values = [part for part in parts if isinstance(part, torch.Tensor) and len(part) == 2]
    changes = [(value[0] - value[1]).abs().max() > 1e-4 * value.abs().max() for value in values]
    return any(map(bool, changes)) if changes else None


def reads_between(root: nn.Module, vit: VisionTransformer, block: int) -> bool | None:
    """Whether the output depends on blocks above `block` other than through the last block. None if unknown.

    Measured by changing the output of the blocks between them while the last block returns the same as before.
    """
    between, last = vit.blocks[block + 1 : -1], vit.blocks[-1]
    images = synthetic_images(vit.tower) if between else None
    if images is None:
        return None
    kept: list[Any] = []

    def keep(output: Any) -> Any:
        kept.append(output)
        return kept[0]

    def change(output: Any) -> Any:
        if not kept:
            return None
        tokens = output[0] if isinstance(output, tuple) else output
        tokens = tokens + torch.linspace(-1.0, 1.0, tokens.shape[-1]).to(tokens)
        return (tokens, *output[1:]) if isinstance(output, tuple) else tokens

    # Before all other hooks of a block: transformers 5 captures hidden states in its own hook.
    handles = [last.register_forward_hook(_in_this_thread(keep), prepend=True)]
    handles += [module.register_forward_hook(_in_this_thread(change), prepend=True) for module in between]
    outputs = []
    try:
        for _ in range(2):
            with undisturbed(root):  # the same random numbers each time
                outputs.append(_values(root(images[1:])))
    except Exception:  # any error of a model that needs more than images
        return None
    finally:
        for handle in handles:
            handle.remove()
    pairs = list(zip(*outputs, strict=True))
    return any(bool((one - two).abs().max() > 1e-4 * one.abs().max()) for one, two in pairs) if pairs else None


def _in_this_thread(hook: Callable[[Any], Any]) -> Callable[[nn.Module, Any, Any], Any]:
    """Return a forward hook that acts in this thread only: others may run the model meanwhile."""
    own = threading.get_ident()
    return lambda _module, _args, output: hook(output) if threading.get_ident() == own else None


def _values(output: Any) -> list[torch.Tensor]:
    """Return the tensors in an output, except those reported per block."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = [part for name, part in output.items() if name not in ("hidden_states", "attentions")]
    return [value for part in output for value in _values(part)] if isinstance(output, (tuple, list)) else []


def _classifiers(holder: nn.Module) -> list[nn.Module]:
    """Return the classifiers that timm models report. Distilled models have two."""
    found = _asked(holder, "get_classifier")
    return list(found) if isinstance(found, tuple) else [found]


def _asked(module: nn.Module, method: str) -> Any:
    try:
        return getattr(module, method)() if hasattr(type(module), method) else None
    except NotImplementedError:  # transformers defines it for every class
        return None


def _is_attention_pool(head: nn.Module) -> bool:
    return any(isinstance(m, nn.MultiheadAttention) for m in head.modules())
