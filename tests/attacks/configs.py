"""Settings that nobody writes by accident: names that reach elsewhere, other task types, special files."""

import os
from pathlib import Path

from gated_prompt import ConfigError, DamagedAdapterError

from .attack import CONFIG, WEIGHTS, Attack, Change, settings


def instead(name: str, make) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


ATTACKS = {
    **{
        f"task-{task}": Attack(settings(task_type=task), ConfigError, f"task_type is '{task}'. Use None")
        for task in ("CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION")
    },
    "task-list": Attack(settings(task_type=["CAUSAL_LM"]), ConfigError, "task_type is .*. Use None"),
    "head-is-the-bank": Attack(settings(modules_to_save=["gated_prompt"]), ConfigError, "modules_to_save is"),
    "head-is-the-root": Attack(settings(modules_to_save=[""]), ConfigError, "modules_to_save is"),
    "head-twice": Attack(settings(modules_to_save=["classifier"] * 2), ConfigError, "modules_to_save is"),
    "dict-for-string": Attack(settings(target_modules={"a": 1}), ConfigError, "target_modules is {'a': 1}"),
    "dict-for-mapping": Attack(settings(auto_mapping=[1]), ConfigError, r"auto_mapping is \[1\]"),
    "string-for-flag": Attack(
        settings(inference_mode="yes"), ConfigError, "inference_mode is 'yes'. Expected True or False"
    ),
    "nan": Attack(settings(gate_init=float("nan")), ConfigError, "gate_init is nan"),
    "object-for-hash": Attack(settings(weights_sha256={}), ConfigError, "weights_sha256 is {}"),
    "zero-device": Attack(instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), DamagedAdapterError, "lacks"),
    "fifo": Attack(instead(WEIGHTS, os.mkfifo), DamagedAdapterError, f"lacks {WEIGHTS}"),
    "folder": Attack(instead(WEIGHTS, os.mkdir), DamagedAdapterError, f"lacks {WEIGHTS}"),
    "config-is-a-fifo": Attack(instead(CONFIG, os.mkfifo), DamagedAdapterError, f"lacks {CONFIG}", False),
    "config-is-a-device": Attack(
        instead(CONFIG, lambda path: path.symlink_to("/dev/zero")), DamagedAdapterError, f"lacks {CONFIG}", False
    ),
    "weights-link-to-themselves": Attack(
        instead(WEIGHTS, lambda path: path.symlink_to(path.name)), DamagedAdapterError, f"lacks {WEIGHTS}"
    ),
}
