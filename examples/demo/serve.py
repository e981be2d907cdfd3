# Copyright 2026 The gated_prompt authors. Licensed under the Apache License, Version 2.0.
"""A page in the browser: one picture, several tasks on one frozen ViT, all answered in one pass, without a server.

    make web                            # or:
    python examples/demo/app.py

It builds a folder of static files, shows it to this machine alone and opens it. More: docs/demo.md.
"""

import sys
import threading
import webbrowser
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gated_prompt import GatedPromptError
from gated_prompt.command_line import CommandLine
from gated_prompt.sharing.backbone import quiet_loading
from gated_prompt.shipped import SHIPPED_BACKBONE

from .page import ADAPTERS, PAGE, build_page, load_collection


class Files(SimpleHTTPRequestHandler):
    """Static files, asked for anew after each build."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line each."""


def launch(page: Path, port: int | None = None) -> str:
    """Serve the folder to this machine alone, from a thread that ends with the program, and return its address.

    Raises:
        OSError: the port is taken.
    """
    server = ThreadingHTTPServer(("127.0.0.1", port or 0), partial(Files, directory=str(page)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine(description=__doc__)
    parser.add_argument("--backbone", type=Path, default=SHIPPED_BACKBONE, help="folder (default: the shipped ViT)")
    parser.add_argument("--adapters", type=Path, default=ADAPTERS, help="folder with a subfolder for each adapter")
    parser.add_argument("--output_dir", type=Path, default=PAGE, help="folder of the page, which any server can serve")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--build_only", action="store_true", help="neither serve the page nor open it")
    try:
        args = parser.parse_args(argv)
        quiet_loading()
        page = build_page(load_collection(args.adapters), args.output_dir, args.backbone)
        if args.build_only:
            print(f"The page is in {page}.")
            return
        address = launch(page, args.port)
        print(f"The page is at {address} (Ctrl+C stops it). Any file server can serve {page}.", flush=True)
    except (GatedPromptError, OSError) as error:  # OSError: the port is taken, or the disk is full
        sys.exit(f"error: {error}")
    webbrowser.open(address)
    threading.Event().wait()
