# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Prepare a config for a base model: check it against the model, and fill in the fields left at None."""

import warnings
from dataclasses import fields

from torch import nn

from ..config import GatedPromptConfig
from ..errors import AdapterMismatchError, ArchitectureError, ConfigError
from ..files.layout import BANK, PREFIX
from .heads import find_head_names, left_out, pooling_obstacle, reads_between, resolve
from .vision_transformer import VisionTransformer


def prepare_config(config: GatedPromptConfig, model: nn.Module, vit: VisionTransformer) -> GatedPromptConfig:
    """Fill in head, prefix tokens, depth and width of `model`, and return the config.

    Raises:
        AdapterMismatchError: the config was saved with another depth, width, number of prefix tokens or head.
        ConfigError: a block index exceeds the model's depth, or the model lacks a module to save.
        DamagedAdapterError: the config is for inference and came without weights.
        ArchitectureError: `pooling` is set but the model's head does not read token 0. `read_from` is set but the
            model reads the output of several blocks. A temperature is set but no hook can apply it, or `zero_start`
            is set but the prompts of a block cannot get keys and values on their own.
    """
    unknown = [field.name for field in fields(config) if getattr(config, field.name) is None]
    config.check()  # again: fields may have been set since it was created
    if config.inference_mode:
        # PEFT reads the weights later, and would look for missing ones on the Hub. To start a new adapter from a saved
        # config, inference_mode must be off anyway, or nothing would train.
        config.check_weights_were_there()
    if config.zero_start and vit.unfit_for_zero_start is not None:
        raise ArchitectureError(
            "zero_start=True needs an attention that uses transformers' AttentionInterface, with projections of the "
            f"normed tokens as keys and values. {type(vit.unfit_for_zero_start).__name__} does not qualify. Use "
            "deep=True without zero_start, or gated prompts."
        )
    _check_temperature(config, vit)
    _check_recorded(config, model, vit)
    _check_head_is_there(config, model)
    if config.modules_to_save is None:
        config.modules_to_save = find_head_names(model, vit)
    faults = _faults(config, model, vit)
    if faults:
        raise ConfigError(faults)
    config.modules_to_save = resolve(model, config.modules_to_save)
    _check_head(config, model)
    if not config.weights_file.is_small:
        config.weights_file.check_content()
    config.num_layers, config.hidden_size = len(vit.blocks), vit.hidden_size
    config.detected_prefix_tokens = vit.num_prefix_tokens
    config.num_heads = vit.attentions[0].num_heads if config.zero_start else None
    if config.num_prefix_tokens is None:
        config.num_prefix_tokens = vit.num_prefix_tokens
    obstacle = pooling_obstacle(model, vit, config.num_prefix_tokens) if config.pooling else None
    if obstacle:
        raise ArchitectureError(f"pooling={config.pooling!r} has no effect here: {obstacle}. Use pooling=None.")
    read = config.last_block(len(vit.blocks))
    if reads_between(model, vit, read):
        raise ArchitectureError(
            f"read_from={read} skips the blocks above {read}, but {type(model).__name__} reads the output of several "
            "of them, as for feature maps. Use read_from=None."
        )
    _warn_of_what_is_left_out(config, model, vit)
    config.filled_in = tuple(name for name in unknown if getattr(config, name) is not None)
    return config


def _check_temperature(config: GatedPromptConfig, vit: VisionTransformer) -> None:
    deaf = next((parts for parts in vit.attentions if not parts.takes_temperature), None)
    if deaf is not None and (config.temperature or config.temperature_init != 1.0):
        raise ArchitectureError(
            f"{type(deaf.attention).__name__} adds its query bias outside its module `{deaf.query}`, so the attention "
            "temperature would miss it. Use GatedPromptConfig(temperature=False)."
        )


def _warn_of_what_is_left_out(config: GatedPromptConfig, model: nn.Module, vit: VisionTransformer) -> None:
    names = [] if hasattr(model, BANK) else left_out(model, vit, config.modules_to_save or [])
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        warnings.warn(
            f"{type(model).__name__} has parameters outside backbone and head that are newly initialized or were "
            f"trainable, but this adapter neither trains nor saves them: {shown}. Add their modules to "
            f"GatedPromptConfig(modules_to_save=...), beside {config.modules_to_save}, if you use them.",
            stacklevel=2,
        )


def _check_recorded(config: GatedPromptConfig, model: nn.Module, vit: VisionTransformer) -> None:
    pairs = (
        ("blocks", config.num_layers, len(vit.blocks)),
        ("width", config.hidden_size, vit.hidden_size),
        ("prefix tokens", config.detected_prefix_tokens, vit.num_prefix_tokens),
        ("attention heads", config.num_heads, vit.attentions[0].num_heads),
    )
    wrong = [f"{what}: adapter {old}, base {new}" for what, old, new in pairs if old is not None and old != new]
    if wrong:
        raise AdapterMismatchError(
            f"the adapter does not fit this {type(model).__name__} ({'; '.join(wrong)}). Load it on the base it was "
            f"trained on"
            + (f": {config.base_model_name_or_path}" if config.base_model_name_or_path else "")
            + (f" (read from {config.weights_file.place})." if config.weights_file.place else ".")
        )


def _check_head_is_there(config: GatedPromptConfig, model: nn.Module) -> None:
    """The names of a config that was saved come from the model it was trained on, not from the caller."""
    names = [name for name, _ in model.named_modules()]
    for wanted in config.modules_to_save or [] if config.num_layers is not None else []:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            raise AdapterMismatchError(
                f"the adapter was trained with a module {wanted!r}, which this {type(model).__name__} does not have. "
                "Load the base with the class that the adapter was trained on, such as "
                "AutoModelForImageClassification if it was given to AutoModel."
            )


def _faults(config: GatedPromptConfig, model: nn.Module, vit: VisionTransformer) -> list[str]:
    last = len(vit.blocks) - 1
    lower = f"The last block of this {type(model).__name__} is {last}. Give a lower one."
    lower = f"The last block of this {type(model).__name__} is {last}. Give a lower one."
    faults = []
    if config.insert_at > last:
        faults.append(f"insert_at is {config.insert_at}. {lower}")
    if config.last_block(len(vit.blocks)) > last:
        faults.append(f"read_from is {config.read_from}. {lower}")
    beyond = [block for block in config.gated_blocks or [] if block > last]
    if beyond:
        faults.append(f"gated_blocks {beyond} exceed the last block, {last}. List lower ones.")
    if (config.prompt_rank or 0) > vit.hidden_size:
        faults.append(
            f"prompt_rank is {config.prompt_rank}. Expected at most {vit.hidden_size}, the width of this "
            f"{type(model).__name__}."
        )
    names = [name for name, _ in model.named_modules()]
    for wanted in config.modules_to_save or []:
        if not any(name == wanted or name.endswith(f".{wanted}") for name in names):
            faults.append(
                f"modules_to_save names {wanted!r}, which this {type(model).__name__} does not have. Name one of its "
                "modules, or leave it out."
            )
    skipped = [m for block in vit.blocks[config.last_block(len(vit.blocks)) + 1 :] for m in block.modules()]
    for path in resolve(model, config.modules_to_save or []):
        if any(model.get_submodule(path) is module for module in skipped):
            faults.append(f"modules_to_save names {path}, in a block that read_from={config.read_from} skips.")
        if any(map(_is_quantized, model.get_submodule(path).parameters())):
            faults.append(
                f"{path} is to be trained but is quantized. Load the base with llm_int8_skip_modules=[{path!r}] "
                f"(BitsAndBytesConfig) or modules_to_not_convert=[{path!r}] (TorchAoConfig and others)."
            )
    return faults


def _check_head(config: GatedPromptConfig, model: nn.Module) -> None:
    """Compare the head of the base with the head in the weights file of `config`, if it has one."""
    if config.weights_file.path is None:
        return
    heads = tuple(f"{name}." for name in config.modules_to_save or [])
    base = {
        key.replace(".original_module.", "."): (tuple(tensor.shape), tensor.dtype.is_floating_point)
        for key, tensor in model.state_dict().items()
        if key.startswith(heads) and ".modules_to_save." not in key
    }
    saved = {
        key.removeprefix(PREFIX): (entry.shape, entry.is_float) for key, entry in config.weights_file.entries.items()
    }
    for key, entry in base.items():
        found = saved.get(key)
        if found != entry:
            remedy = "Load the base with the adapter's num_labels"
            if found is None:
                remedy = "The file is damaged, or comes from a transformers version whose head has other names"
            raise AdapterMismatchError(
                f"the head's {key} has {_describe(entry)} in this {type(model).__name__} and {_describe(found)} in "
                f"the adapter of {config.weights_file.place}. {remedy}."
            )
    surplus = sorted(key for key in saved if key.startswith(heads) and key not in base)
    if surplus:
        raise AdapterMismatchError(
            f"the adapter of {config.weights_file.place} holds {', '.join(surplus[:5])}, which the head of this "
            f"{type(model).__name__} does not have. Load the base that the adapter was trained on."
        )


def _describe(entry: tuple[tuple[int, ...], bool] | None) -> str:
    if entry is None:
        return "no entry"
    shape, is_float = entry
    return f"shape {shape}" + ("" if is_float else " of integers")


def _is_quantized(parameter: nn.Parameter) -> bool:
    return not parameter.is_floating_point() or type(parameter).__module__.split(".")[0] != "torch"
