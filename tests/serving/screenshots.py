"""`make screenshots`: the page as the documentation shows it, light and dark, over the zoo."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

import console
from benchmarks.load import served
from catalog import ROOT, KilnError
from tests import browser

NETWORK, SAMPLE = "simcnn", "truck"
FILES = {"light": "page.png", "dark": "page-dark.png"}
_CHOOSE = f"""(() => {{
  const model = document.getElementById('model');
  model.value = '{NETWORK}';
  model.dispatchEvent(new Event('change'));
}})()"""
_ASK = f"document.querySelector('#samples button[title={SAMPLE}]').click()"
_ANSWERED = "document.querySelectorAll('#answers article').length > 1"

app = console.app("Takes the pictures of the page that the documentation shows.")


@app.command()
def take(out: Annotated[Path, typer.Option(help="The folder for the pictures.")] = ROOT / "docs" / "images") -> None:
    """Starts the service, asks it by the page for one sample image, and takes a picture in either colour scheme."""
    if browser.binary() is None:
        raise KilnError(f"there is none of {', '.join(browser.NAMES)} on the PATH; install Chromium")
    with (
        served.ours(ROOT / "zoo") as server,
        tempfile.TemporaryDirectory() as profile,
        browser.browsing(Path(profile)) as page,
    ):
        page.size(1200, 900)
        for scheme, name in FILES.items():
            page.theme(scheme)
            page.go(server.url)
            page.wait("document.querySelectorAll('#figures tbody tr').length")
            page.run(_CHOOSE)
            for _ in range(3):  # the first answers are those of a service that has just started
                page.run("document.getElementById('answers').replaceChildren()")
                page.run(_ASK)
                page.wait(_ANSWERED)
            page.screenshot(out / name)
            console.out.print(out / name, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    console.run(app)
