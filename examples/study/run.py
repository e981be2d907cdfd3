# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The studies: methods on few labelled images (docs/benchmark.md), and the paper's claims in miniature.

python examples/study/run.py race --data_dir FOLDER         the race, what is missing of it
python examples/study/run.py promise --data_dir FOLDER      does an out-of-fold accuracy hold on 20 small tasks?
python examples/study/run.py strangers --data_dir FOLDER    does predict --unlike find images of another kind?
python examples/study/run.py miniature                      the miniature; --data_dir FOLDER adds CIFAR-10 and DTD
python examples/study/run.py check-real --data_dir FOLDER   a part of docs/benchmark.md again, with a new seed
python examples/study/run.py check-miniature                a part of docs/appendix/miniature.md again, with a new seed

Each run adds a record when it is done. A new start continues.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # examples/: a script cannot import relatively

    from gated_prompt.command_line import mistakes_in_one_line
    from study.command import main

    with mistakes_in_one_line():
        sys.exit(main(description=__doc__))
