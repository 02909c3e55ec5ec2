"""The verb `review`; light to import."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def review(arguments: argparse.Namespace) -> int:
    """An album's assets on a page of this machine: look at them, rename or drop them."""
    from launch.review.page import Review
    from launch.review.server import ReviewServer

    with ReviewServer(Review(Path(arguments.folder)), arguments.port) as server:
        try:
            print(f"Open {server.url}\nThe button Done ends this, and so does Ctrl-C.", flush=True)
            if not arguments.no_browser:
                import webbrowser

                webbrowser.open(server.url)
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            print()
        state = server.review.state()
    if state["pending"]:
        print(f"{state['file']} holds what was decided. It takes effect with\n  {state['command']}")
    return 0


def add_verb(add: Any) -> None:
    """Put the verb into the command line; `add(verb, module)` makes a verb's parser."""
    if child := add(review, "launch.review.server", takes_overrides=False):
        child.add_argument("folder", metavar="FOLDER", help="an album's output, for example out/ALBUM")
        child.add_argument("--port", metavar="N", type=int, default=0, help="port to listen on (default: a free one)")
        child.add_argument("--no-browser", action="store_true", help="only print the page's address")
