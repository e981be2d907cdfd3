# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k: the 19 tasks, their exact splits without TensorFlow, and a loader for each common source.

    split_keys(task, keys)              select VTAB's examples by their original keys
    load_hub(task, split)               load from a Hub data set
    load_folder(root, task, split)      load from the community's "vtab-1k" folder layout
    load_original(root, task, split)    load from the original data set

Each loader returns `LabelledImages`; its `provenance` says whether the images are exactly VTAB's.
"""

from ..images import InexactDataWarning, LabelledImages, Provenance
from .vtab_folder import load_folder
from .vtab_hub import load_hub
from .vtab_original import load_original
from .vtab_splits import split_keys, tfds_order
from .vtab_tasks import SPLITS, TASKS, VtabTask, find_task

__all__ = [
    "SPLITS",
    "TASKS",
    "InexactDataWarning",
    "LabelledImages",
    "Provenance",
    "VtabTask",
    "find_task",
    "load_folder",
    "load_hub",
    "load_original",
    "split_keys",
    "tfds_order",
]
