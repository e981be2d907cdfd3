# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""VTAB-1k: the 19 tasks, their exact splits, and loaders."""

from .vtab_splits import split_keys, tfds_order
from .vtab_tasks import SPLITS, TASKS, VtabTask, find_task

__all__ = ["SPLITS", "TASKS", "VtabTask", "find_task", "split_keys", "tfds_order"]
