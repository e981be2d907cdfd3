"""Which files of the package a training on 60 pictures enters, and how many functions in each.

python tools/entered_files.py
"""

import inspect
import sys
import tempfile
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import Image

import gated_prompt
from gated_prompt.cli import main

PACKAGE = Path(gated_prompt.__file__).parent


def pictures(folder: Path) -> None:
    """Three colours, twenty noisy pictures of each."""
    rng = np.random.default_rng(0)
    for name, colour in {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 40, 40)}.items():
        (folder / name).mkdir(parents=True)
        for index in range(20):
            noise = rng.normal(colour, 60, (40, 40, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{index:02}.png")


def entered(argv: list[str]) -> dict[str, set[str]]:
    """Functions by file that the command calls; what runs while modules are imported does not count."""
    found: dict[str, set[str]] = defaultdict(set)
    import_module("gated_prompt.cli.train")
    import_module("gated_prompt.finetune.pipeline")

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        own = code.co_filename.startswith(str(PACKAGE)) and code.co_filename.endswith(".py")
        if event == "call" and own and not code.co_name.startswith("<") and code.co_flags & inspect.CO_OPTIMIZED:
            found[str(Path(code.co_filename).relative_to(PACKAGE))].add(code.co_qualname)

    sys.setprofile(note)
    try:
        main(argv)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pictures(place / "photos")
        options = {"train_dir": "photos", "output_dir": "run", "cache_dir": "features"}
        words = [f"--{name}={place / value}" for name, value in options.items()]
        found = entered(["train", *words, "--num_train_epochs=2"])
    for name in sorted(found):
        print(f"{len(found[name]):4} {name}")
    print(f"{len(found)} files, {sum(map(len, found.values()))} functions")
