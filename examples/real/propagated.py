# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Deep prompts that start as the same tokens in every block: tokens of images, passed through the frozen blocks.

After the propagated start of PAE (ICLR 2026, arXiv 2601.20232). The "sample" start draws other tokens for each block.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from peft import PeftModel

from gated_prompt import find_vision_transformer
from gated_prompt.inspect.readouts import find_adapter


@torch.no_grad()
def start_propagated(model: PeftModel, batches: Sequence[torch.Tensor], seed: int) -> None:
    """Start block b's prompts from P patch tokens of random images as they enter block b, the same P for every b."""
    bank, adapter = find_adapter(model, None)
    seen: dict[int, list[torch.Tensor]] = {block: [] for block in adapter.blocks}
    vit, mode = find_vision_transformer(model.get_base_model()), model.training
    with ExitStack() as stack, model.disable_adapter():
        for block, into in seen.items():
            hook = vit.blocks[block].register_forward_pre_hook(
                lambda _, args, into=into: into.append(args[0][:, vit.num_prefix_tokens :].flatten(0, 1))
            )
            stack.callback(hook.remove)
        for batch in batches:
            model.eval()(batch)
    model.train(mode)
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(sum(map(len, seen[adapter.first])), generator=draw)[: adapter.config.num_virtual_tokens]
    bank.start_from(adapter, torch.stack([torch.cat(seen[block])[chosen].float() for block in adapter.blocks]))
