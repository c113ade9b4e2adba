"""`make quickstart`: the whole way on the embedded digits, offline, with the commands a user would type.

Trains, exports, measures, writes the report, starts the service, asks it over HTTP, and stops it. It is the product's
own commands one after another, so what works here works by hand.
"""

from __future__ import annotations

import io
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

import catalog
import console
from benchmarks.load import served
from catalog import KilnError

app = console.app("Runs the whole way on the embedded digits: train, export, measure, report, serve, ask.")


@app.command()
def quickstart(
    model: Annotated[str, typer.Option(help="a network with a `quick` recipe: lenet or simcnn")] = "lenet",
    folder: Annotated[Path, typer.Option(help="where everything goes")] = Path("build/quickstart"),
) -> None:
    """Runs every step and says where things lie."""
    begun = time.monotonic()
    store, report = folder / "artifacts", folder / "report"
    _step(1, "train", "training", model, "--dataset", "digits", "--recipe", "quick", "--store", str(store))
    _step(2, "export and prove", "export", model, "--store", str(store))
    _step(3, "measure and report", "benchmarks", "run", "--quick", "--store", str(store), "--out", str(report))
    _title(4, "serve", f"MODELKILN_STORE={store} bentoml serve")
    with ExitStack() as stack:
        with console.err.status("waiting for the service ..."):
            url = stack.enter_context(served.ours(store)).url
        console.out.print(f"ready at {url}; asking it with a test image:", highlight=False)
        console.out.print_json(data=_ask(url, folder / "digit.png", model))
    seconds = time.monotonic() - begun
    console.out.rule(f"done in {seconds:.0f} s")
    console.out.print(
        f"  report    {report / 'report.html'} (and report.md)\n"
        f"  model     {store / model / 'model.keras'}, its card.json and plots/ beside it\n"
        f"  variants  {store / model / 'variants'}/*/, each with the proof of what it cost in its card.json\n"
        f"  image     {folder / 'digit.png'}\n\n"
        f"Serve it again:  MODELKILN_STORE={store} .venv/bin/bentoml serve\n"
        f"then ask it:     curl -F image=@{folder / 'digit.png'} localhost:3000/predict\n"
        f"Bring CIFAR-10:  make train-all export-all benchmark",
        highlight=False,
        soft_wrap=True,
    )


def _title(number: int, title: str, command: str) -> None:
    console.out.rule(f"{number} of 4: {title}", align="left")
    console.out.print(f"$ {command}", style="dim", highlight=False, soft_wrap=True)


def _step(number: int, title: str, *arguments: str) -> None:
    _title(number, title, shlex.join(["python", "-m", *arguments]))
    status = subprocess.run([sys.executable, "-m", *arguments], cwd=catalog.ROOT).returncode
    if status:
        raise KilnError(f"step {number} ({title}) ended with status {status}; it said why above")


def _ask(url: str, image: Path, model: str) -> Any:
    """Sends one test image as a user's PNG and returns the answer."""
    import httpx
    from PIL import Image

    from training import data

    digits = data.load("digits")
    buffer = io.BytesIO()
    Image.fromarray(digits.x_test[0]).save(buffer, format="PNG")
    catalog.write_atomic(image, buffer.getvalue())
    true = digits.classes[int(digits.y_test[0])]
    curl = shutil.which("curl") and f"curl -F image=@{image} '{url}/predict?model={model}&top=3'"
    console.out.print(f"$ {curl or f'POST {url}/predict'}   # a handwritten {true}", style="dim", soft_wrap=True)
    answer = httpx.post(
        f"{url}/predict",
        params={"model": model, "top": 3},
        files={"image": (image.name, buffer.getvalue(), "image/png")},
    )
    if answer.status_code != 200:
        raise KilnError(f"the service answered {answer.status_code}: {answer.text[:300]}")
    return answer.json()


if __name__ == "__main__":
    console.run(app)
