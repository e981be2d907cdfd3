# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Pre-train one of the two small backbones.

    accelerate launch examples/backbones/pretrain.py mae --output_dir runs/mae
    accelerate launch examples/backbones/pretrain.py supervised --output_dir runs/supervised

`pretrain.py mae --help` lists the options.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/: a script cannot import relatively

    from gated_prompt.command_line import mistakes_in_one_line
    from gated_prompt.errors import GatedPromptError

    with mistakes_in_one_line():
        kind, options = (sys.argv[1] if len(sys.argv) > 1 else None), sys.argv[2:]
        if kind == "mae":
            from backbones.pretrain_mae import main
        elif kind == "supervised":
            from backbones.pretrain_supervised import main
        else:
            raise GatedPromptError(f"unknown backbone {kind!r}; the first argument is 'mae' or 'supervised'")
        main(options)
