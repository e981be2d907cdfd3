# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""Two files of onnxruntime-web, which runs ONNX graphs in a browser, from the npm registry.

onnxruntime-web is Microsoft's, under the MIT licence. Its archive is accepted if it has the SHA-512 that stands here.
"""

import base64
import hashlib
import io
import os
import sys
import tarfile
import urllib.request
from pathlib import Path

from gated_prompt.errors import GatedPromptError

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
ADDRESS = "https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{version}.tgz"
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
MOST_BYTES = 100_000_000
KEPT = Path(__file__).parents[2] / "runs" / f"onnxruntime-web-{VERSION}"  # git ignores it


def is_fetched(folder: Path = KEPT) -> bool:
    """Whether both files are there."""
    return all((folder / name).is_file() for name in FILES)


def fetch(folder: Path = KEPT, address: str = ADDRESS) -> Path:
    """Download the archive once, check it, and put its two files into `folder`.

    Raises:
        GatedPromptError: it cannot be reached, or is another one.
    """
    if is_fetched(folder):
        return folder
    try:
        with urllib.request.urlopen(address.format(version=VERSION), timeout=60) as answer:
            archive = answer.read(MOST_BYTES)
    except OSError as error:
        raise GatedPromptError(
            f"onnxruntime-web {VERSION} cannot be fetched ({error}). Connect to the network once, or put "
            f"{' and '.join(FILES)} of the npm package into {folder}."
        ) from error
    found = base64.b64encode(hashlib.sha512(archive).digest()).decode()
    if found != SHA512:
        raise GatedPromptError(
            f"the archive of onnxruntime-web has the SHA-512 {found}, expected {SHA512}, so it was not kept."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for name in FILES:
            partial = folder / f"{name}.partial"
            with files.extractfile(f"package/dist/{name}") as content:  # type: ignore[union-attr]  # a pinned archive
                partial.write_bytes(content.read())
            os.replace(partial, folder / name)
    return folder


if __name__ == "__main__":
    try:
        print(f"onnxruntime-web {VERSION} is in {fetch()}")
    except GatedPromptError as error:
        sys.exit(f"error: {error}")
