# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Try gated prompts on every vision class of the installed transformers and on models of timm, and write the table.

    python tools/sweep_families.py                         # all of it: about an hour on one core
    python tools/sweep_families.py --only Dinov2Model timm/beit_base_patch16_224
    python tools/sweep_families.py --page                  # docs/families.md again from the results

The results are in tools/family_sweep/results.json. Classes that are tried again replace their record. Where timm
cannot be imported, its records stay as they are.
"""

import argparse
import json
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from family_sweep import page, timm_models, tiny  # before anything that imports transformers
from family_sweep.sweep import record

RESULTS = HERE / "family_sweep" / "results.json"


def main(argv: list[str] | None = None) -> None:
    """Run the sweep, or a part of it."""
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="classes of transformers, or timm/NAME")
    parser.add_argument("--resume", action="store_true", help="leave out classes that have a record")
    parser.add_argument("--page", action="store_true", help="only write the page from the results")
    args = parser.parse_args(argv)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    records = json.loads(RESULTS.read_text())["records"] if RESULTS.is_file() else {}
    if not args.page:
        chosen = args.only or [*tiny.names(), *timm_models.names()]
        for name in chosen:
            if not (args.resume and name in records):
                records[name] = record(name)
                print(name, records[name]["status"], flush=True)
                _write(records)
    page.write()


def _write(records: dict[str, dict[str, object]]) -> None:
    versions = _old_versions()
    for library in ("transformers", "peft", "torch", "timm"):
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    content = {"versions": versions, "records": dict(sorted(records.items()))}
    partial = RESULTS.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(RESULTS)


def _old_versions() -> dict[str, str]:
    found: dict[str, str] = json.loads(RESULTS.read_text())["versions"] if RESULTS.is_file() else {}
    return found


if __name__ == "__main__":
    main()
