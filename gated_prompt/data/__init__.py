# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's data sets: VTAB-1k, FGVC and ADE20K, from the Hugging Face Hub or from local files.

Requires the `gated-prompt[data]` extra (`datasets` and `pillow`). `import gated_prompt` does not import this package.
"""
