# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""The paper's data sets: VTAB-1k, FGVC and ADE20K, from the Hugging Face Hub or from local files.

Needs the extra `gated-prompt[data]` (`datasets` and `pillow`). `import gated_prompt` imports none of it.
"""
