"""What happens to files: truncated, mixed up, edited by hand, from another base or another method."""

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from gated_prompt import AdapterMismatchError, ConfigError, DamagedAdapterError

from .attack import CONFIG, HEAD, TOKENS, WEIGHTS, Attack, Change, put, remove, settings, tensors, write


def cut(count: int) -> Change:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:count])


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def repeat_a_key(folder: Path) -> None:
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace("{", '{"insert_at": 1,', 1))


def swap_two_blocks(folder: Path) -> None:
    found = load_file(folder / WEIGHTS)
    found[TOKENS] = found[TOKENS].flip(1).contiguous()
    save_file(found, folder / WEIGHTS)


_ROWS = {
    "truncated": (cut(-20), DamagedAdapterError, f"{WEIGHTS} is not a readable safetensors file", True),
    "header-only": (cut(40), DamagedAdapterError, "is not a readable safetensors file", True),
    "empty": (write(WEIGHTS, b""), DamagedAdapterError, "is not a readable safetensors file", True),
    "zeros": (write(WEIGHTS, b"\x00" * 4), DamagedAdapterError, "is not a readable safetensors file", True),
    "garbage": (write(WEIGHTS, b"no tensors, but long enough"), DamagedAdapterError, "is not a readable", True),
    "no-weights": (remove(WEIGHTS), DamagedAdapterError, f"lacks {WEIGHTS}, expected beside", True),
    "pickle": (pickle, DamagedAdapterError, r"adapter_model.bin, expected .*convert it once: safetensors.torch", True),
    "no-config": (remove(CONFIG), DamagedAdapterError, f"lacks {CONFIG}.*the folder holds: .*{WEIGHTS}", False),
    "half-config": (write(CONFIG, b'{"peft_type": "GATED'), DamagedAdapterError, f"{CONFIG} is not valid JSON", False),
    "no-text": (write(CONFIG, b"\xff\xfe\x00"), DamagedAdapterError, "is not valid JSON", False),
    "list": (write(CONFIG, b"[1, 2]"), DamagedAdapterError, "contains a list, expected a JSON object", False),
    "nested": (write(CONFIG, b"[" * 100_000), DamagedAdapterError, "is not valid JSON", False),
    "repeated-key": (repeat_a_key, DamagedAdapterError, "repeated key 'insert_at'", True),
    "misspelt-key": (
        settings(insert_at=KeyError, insert_ta=0),
        DamagedAdapterError,
        "unknown field.* 'insert_ta' and lacks insert_at",
        True,
    ),
    "no-method": (settings(peft_type=KeyError), DamagedAdapterError, "lacks 'peft_type'", False),
    "lora": (
        lambda folder: LoraConfig(target_modules=["query"]).save_pretrained(folder),
        AdapterMismatchError,
        "peft_type 'LORA', expected 'GATED_PROMPT'",
        False,
    ),
    "wrong-values": (settings(num_virtual_tokens=-3, pooling="max"), ConfigError, r"2 fault\(s\)", True),
    "wrong-types": (settings(deep=1, gate_init="-5", gated_blocks=[0.5]), ConfigError, r"3 fault\(s\)", True),
    "huge": (settings(num_layers=10**30), ConfigError, "num_layers is 10{30}. Expected None or an integer", True),
    "huge-float": (settings(gate_init=10**400), ConfigError, "gate_init is .*. Expected a number", True),
    "not-finite": (settings(temperature_init=float("inf")), ConfigError, "temperature_init is inf", True),
    "task": (settings(task_type="IMAGES"), ConfigError, "task_type is .*. Use None", True),
    "lost-record": (settings(num_layers=None), DamagedAdapterError, "lacks num_layers, which saving records", True),
    "other-depth": (settings(num_layers=5), DamagedAdapterError, r"has shape \(3,\), but .* requires \(4,\)", True),
    "other-prefix": (settings(detected_prefix_tokens=2), AdapterMismatchError, "adapter 2, base 1", True),
    "no-tokens": (tensors(lambda t: t.pop(TOKENS)), DamagedAdapterError, rf"lacks {TOKENS}, .*\(1, 3, 32\)", True),
    "prompts": (put(TOKENS, torch.zeros(1, 4, 32)), DamagedAdapterError, r"shape \(1, 4, 32\), .*\(1, 3, 32\)", True),
    "width": (put(TOKENS, torch.zeros(1, 3, 16)), DamagedAdapterError, r"shape \(1, 3, 16\), .*\(1, 3, 32\)", True),
    "integers": (put(TOKENS, torch.zeros(1, 3, 32).int()), DamagedAdapterError, f"{TOKENS} .* type I32", True),
    "nan": (put(TOKENS, torch.full((1, 3, 32), float("nan"))), DamagedAdapterError, f"{TOKENS} in .* holds NaN", True),
    "inf": (put(TOKENS, torch.full((1, 3, 32), float("inf"))), DamagedAdapterError, "holds NaN or infinite", True),
    "nan-head": (put(HEAD + "bias", torch.full((5,), float("nan"))), DamagedAdapterError, "bias in .* NaN", True),
    "surplus": (put("base_model.model.vit.extra", torch.zeros(1)), DamagedAdapterError, "do not belong .*extra", True),
    "surplus-head": (put(HEAD + "scale", torch.zeros(5)), AdapterMismatchError, "holds classifier.scale", True),
    "half-a-head": (
        tensors(lambda t: t.pop(HEAD + "weight")),
        AdapterMismatchError,
        "classifier.weight has shape .* no entry .*is damaged, or comes from",
        True,
    ),
    "no-head": (
        tensors(lambda t: [t.pop(HEAD + name) for name in ("weight", "bias")]),
        DamagedAdapterError,
        "lacks the tensors of the head 'base_model.model.classifier.'",
        True,
    ),
    "labels": (put(HEAD + "bias", torch.zeros(7)), AdapterMismatchError, r"shape \(5,\) .* shape \(7,\) in", True),
    "integer-head": (put(HEAD + "bias", torch.zeros(5).int()), AdapterMismatchError, "of integers", True),
    "other-weights": (swap_two_blocks, DamagedAdapterError, "was not saved with its adapter_config.json", True),
}

ATTACKS = {name: Attack(*row) for name, row in _ROWS.items()}
