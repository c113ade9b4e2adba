"""Lighthouse, where `make audit` has installed it: what it gives a page for accessibility and best practices."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests import browser

HOME = Path(__file__).parent
COMMAND = HOME / "node_modules" / ".bin" / "lighthouse"
WANTED = 95
_CATEGORIES = "accessibility,best-practices"

installed = pytest.mark.skipif(
    not COMMAND.exists() or browser.binary() is None, reason="no Lighthouse or no Chromium; install it: make audit"
)


@contextmanager
def hosting(folder: Path) -> Iterator[str]:
    """A folder's files over HTTP, which Lighthouse asks for; the address to put before their names."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()


def below(url: str, folder: Path) -> list[str]:
    """Where a page gets less than `WANTED` of 100, on a phone or a desk: category, points, what is amiss."""
    told: list[str] = []
    for form in ((), ("--preset=desktop",)):
        out = folder / "lighthouse.json"
        command = [str(COMMAND), url, *form, f"--only-categories={_CATEGORIES}", "--output=json", "--quiet"]
        command += [f"--output-path={out}", "--chrome-flags=--headless --no-sandbox --disable-gpu"]
        environment = {**os.environ, "CHROME_PATH": browser.binary() or ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = json.loads(out.read_text())
        assert set(found["categories"]) == set(_CATEGORIES.split(","))
        amiss = [
            audit["title"] for audit in found["audits"].values() if audit["score"] is not None and not audit["score"]
        ]
        for name, category in found["categories"].items():
            points = round(100 * category["score"])
            print(f"{' '.join(form) or '--preset=phone'} {name} {points}: {amiss}")
            if points < WANTED:
                told.append(f"{name} {points}: {amiss}")
    return told
