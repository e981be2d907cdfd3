# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What the scripts leave out of the output of transformers and PEFT: what happens on purpose. All else is shown."""

import logging
import re
import warnings

from transformers.utils.logging import disable_progress_bar

# A head is new where classes are, and dropped where only features are read. Nobody reads the pooler.
HEAD = re.compile(r"(^|\.)(classifier|cls_classifier|distillation_classifier|head|pooler\.dense)\.(weight|bias)$")
# Blocks that are left out are the last ones. MAE's decoder and BEiT's head serve pretraining alone.
LEFT_OUT = re.compile(r"(^|\.)(((layer|layers|blocks)\.\{?[1-9])|decoder\.|lm_head\.)")
ROW = re.compile(r"^(.+?) +\| (?:\x1b\[\d+m)?([A-Z]{3,})", re.MULTILINE)  # of the table that transformers 5 prints
LISTED = re.compile(r"'([\w.]+)'")
MISMATCH = re.compile(r"^- ([\w.]+): found shape", re.MULTILINE)


def quiet_loading() -> None:
    """Drop reports on weights that are expected to differ, the bar of loading, and a warning that PEFT causes."""
    logging.getLogger("transformers.modeling_utils").addFilter(is_news)
    disable_progress_bar()
    warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)


def is_news(record: logging.LogRecord) -> bool:
    """Whether a message is anything but a report in which every weight is as expected."""
    text = record.getMessage()
    if "LOAD REPORT" in text:
        found = ROW.findall(text)
    elif "were not initialized from the model checkpoint" in text:  # transformers 4
        found = [(key, "MISSING") for key in LISTED.findall(text) + MISMATCH.findall(text)]
    elif "were not used when initializing" in text:
        found = [(key, "UNEXPECTED") for key in LISTED.findall(text)]
    else:
        return True
    return not found or not all(_expected(key, status) for key, status in found)


def _expected(key: str, status: str) -> bool:
    new = status in ("MISSING", "MISMATCH", "UNEXPECTED") and HEAD.search(key) is not None
    return new or (status == "UNEXPECTED" and LEFT_OUT.search(key) is not None)
