# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""What a conversion did, and what it left out."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Report:
    """`dropped` maps each key of the checkpoint that was left out to the reason; every other key was converted."""

    source: Path
    folder: Path
    kind: str
    result: str
    dropped: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source} (kind: {self.kind})", f"-> {self.folder}: {self.result}"]
        reasons = list(dict.fromkeys(self.dropped.values()))
        for reason in reasons:
            keys = [key for key, why in self.dropped.items() if why == reason]
            lines += [f"left out, {len(keys)} tensor(s): {reason}", *(f"  {line}" for line in _by_pattern(keys))]
        if not self.dropped:
            lines.append("left out: nothing")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


def _by_pattern(keys: list[str]) -> list[str]:
    """Return one line for all keys that differ only in the block number."""
    counts = Counter(re.sub(r"(?<=blocks\.)\d+", "*", key) for key in keys)
    return [f"{key} ({count})" if count > 1 else key for key, count in counts.items()]
