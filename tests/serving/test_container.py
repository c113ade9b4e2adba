"""The container: BentoML's own Dockerfile, built and run without an engine, by buildah in a chroot.

Where no registry of images can be reached, `tests/serving/debian_image.sh` makes the image that it begins with.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from catalog import ROOT
from tests.serving import processes
from tests.serving.processes import Running
from tests.serving.test_drain import events, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BASE, TAG = "docker.io/library/python:3.11-slim", "localhost/modelkiln:test"
SHIP = ROOT / "serving" / "page" / "samples" / "cifar10" / "ship.png"


def buildah(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["buildah", *arguments], env=_isolated(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 or not check, done.stderr[-2000:]
    return done.stdout.strip()


def _isolated() -> dict[str, str]:
    return {**os.environ, "BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of a bento, built by `bentoml containerize`."""
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("needs buildah (a package of Debian's) and root")
    if not buildah("images", "--quiet", BASE, check=False) and not buildah("pull", "--quiet", BASE, check=False):
        pytest.skip(f"{BASE} cannot be pulled; make it here: tests/serving/debian_image.sh")
    home = tmp_path_factory.mktemp("bentoml")
    env = {**_isolated(), "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    bentoml = str(Path(sys.executable).with_name("bentoml"))
    for told in (
        ["build"],
        ["containerize", "modelkiln:latest", "-t", TAG, "--backend", "buildah", "--opt", "pull-never"],
    ):
        done = subprocess.run([bentoml, *told], cwd=ROOT, env=env, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return TAG


@contextmanager
def contained(image: str, tmp: Path, **settings: str) -> Iterator[Running]:
    """A container that is ready, started as its Dockerfile says."""
    inside = json.loads(buildah("inspect", "--type", "image", image))["OCIv1"]["config"]
    assert inside["User"] == "bentoml", "it runs as root"
    container, port, log = buildah("from", "--pull-never", image), processes.free_port(), tmp / "container.log"
    told = [part for name, value in settings.items() for part in ("--env", f"MODELKILN_{name.upper()}={value}")]
    run = ["buildah", "run", "--user", inside["User"], *told, container, "--"]
    run += [*inside["Entrypoint"], "serve", "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(run, env=_isolated(), stdout=file, stderr=file)
    running = Running(f"http://127.0.0.1:{port}", process, log)
    try:
        processes.wait_until_ready(running)
        yield running
    finally:
        for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            left.kill()
        process.kill()
        process.wait()
        buildah("rm", container)


def service(running: Running) -> psutil.Process:
    """The container's first process of Python: `bentoml serve`."""
    (found,) = [
        child
        for child in psutil.Process(running.process.pid).children(recursive=True)
        if [Path(part).name for part in child.cmdline()[1:3]] == ["bentoml", "serve"]
    ]
    return found


def test_a_container_answers_replaces_its_workers_and_ends(image: str, tmp_path: Path) -> None:
    with contained(image, tmp_path, workers="2") as running:
        wait_for(lambda: len(events(running, "is ready")) == 2, 60)
        told = httpx.post(f"{running.url}/predict", content=SHIP.read_bytes(), timeout=20)
        assert told.status_code == 200 and told.json()["predictions"][0]["class"] == "ship"
        listed = {model["name"] for model in httpx.get(f"{running.url}/models").json()["models"]}
        assert listed >= {card.parent.name for card in (ROOT / "zoo").glob("*/card.json")}
        process = service(running)
        assert all(uid for uid in process.uids()), "it runs as root"
        process.children()[0].kill()
        wait_for(lambda: len(events(running, "is ready")) == 3, 60)
        assert httpx.post(f"{running.url}/predict", content=SHIP.read_bytes(), timeout=20).status_code == 200
        process.terminate()
        assert running.process.wait(30) == 0
