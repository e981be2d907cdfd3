# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Parts of Markdown pages that scripts write: what stands between `<!-- generated: NAME -->` and `<!-- end -->`."""

from collections.abc import Mapping

from gated_prompt import GatedPromptError


def fill(page: str, parts: Mapping[str, str]) -> str:
    """The page with these parts replaced, and everything else unchanged.

    Raises:
        GatedPromptError: a part has not exactly one place in the page.
    """
    for name, text in parts.items():
        start, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        if page.count(start) != 1:
            raise GatedPromptError(
                f"{page.count(start)} places for the generated part {name!r}; the page must have one"
            )
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = f"{before}{start}\n{text.strip()}\n\n{end}{after}"
    return page
