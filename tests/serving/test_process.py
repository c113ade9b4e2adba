"""The life of the process: what it imports, when it refuses to start, how it ends; and the check beforehand."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from catalog import ROOT
from tests.serving import processes, stores
from tests.serving.pictures import plain
from tests.serving.processes import Running


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A store of one model."""
    store = tmp_path / "store"
    colours = stores.write_model(store, "colours")
    stores.write_variant(store, colours, stores.network(32, 32, np.eye(3)))
    return store


def run(arguments: list[str], home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = processes.environment(home, **settings)
    return subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a start which was refused prints, before status 1."""
    assert done.returncode == 1
    lines = (done.stdout + done.stderr).strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def test_neither_tensorflow_nor_keras_is_imported(small: Path, tmp_path: Path) -> None:
    code = (
        "import sys, serving.service as s; s.Modelkiln.to_asgi();"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'keras', 'tf_keras', 'jax', 'torch')])"
    )
    done = run([sys.executable, "-W", "ignore", "-c", code], tmp_path, MODELKILN_STORE=str(small))
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


@pytest.mark.parametrize("how", ["altered", "extra", "empty"])
def test_a_bad_store_ends_the_start_in_one_line(small: Path, tmp_path: Path, how: str) -> None:
    model = small / "colours" / "variants" / "onnx-fp32" / "model.onnx"
    named = "model.onnx"
    if how == "altered":
        model.write_bytes(model.read_bytes()[:-1] + b"!")
    elif how == "extra":
        (model.parent / "notes.txt").write_text("?")
        named = "notes.txt"
    else:
        small, named = tmp_path / "nothing", "no model to serve"
    port = processes.free_port()
    assert named in refusal(run(processes.command(port), tmp_path, MODELKILN_STORE=str(small)))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    done = run([sys.executable, "-m", "serving", "check"], tmp_path, MODELKILN_STORE=str(small), COLUMNS="400")
    assert named in refusal(done)


def test_a_port_in_use_ends_the_start_in_one_line(small: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        done = run(processes.command(port), tmp_path, MODELKILN_STORE=str(small))
    assert f"port {port} of 127.0.0.1" in refusal(done)


def test_32_where_no_file_can_be_written_the_start_ends_in_one_line(small: Path, tmp_path: Path) -> None:
    environment = processes.environment(tmp_path, MODELKILN_STORE=str(small))
    done = subprocess.run(
        processes.command(processes.free_port()), cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=60, preexec_fn=processes.no_file_may_grow,
    )  # fmt: skip
    assert "no file can be written" in refusal(done) and str(tmp_path) in refusal(done)


def test_32_without_a_temporary_folder_bentomls_own_will_do(small: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys, tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc'];"
        "import serving.service as s; s._check_folder();"
        "print(tempfile.gettempdir(), os.environ['TMPDIR'], sep='\\n')"
    )
    done = run([sys.executable, "-W", "ignore", "-c", code], tmp_path, MODELKILN_STORE=str(small))
    assert (done.returncode, done.stdout.split()) == (0, [str(tmp_path)] * 2), done.stderr


def test_a_bad_setting_ends_the_start_in_one_line(small: Path, tmp_path: Path) -> None:
    done = run(processes.command(processes.free_port()), tmp_path, MODELKILN_STORE=str(small), MODELKILN_TOP="many")
    assert "MODELKILN_TOP" in refusal(done)


def test_sigterm_ends_it_cleanly_and_frees_the_port(small: Path, tmp_path: Path) -> None:
    settings = {"MODELKILN_STORE": str(small), "MODELKILN_WORKERS": "2"}
    with processes.serving(tmp_path, settings=settings) as running:
        assert httpx.post(f"{running.url}/predict", content=plain()).status_code == 200
        assert processes.stop(running.process) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(running.url)
    assert "Traceback" not in running.log.read_text()


def test_the_check_prints_what_would_be_served(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serving", "check", "--store", str(store)]
    done = run(command, tmp_path, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for row in ("answers by default", "stale: made from other weights", "below-floor", "reference only"):
        assert row in done.stdout
    assert "a request that names no model is answered by colours" in done.stdout


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bento built from a copy of the sources with a store of its own, exported as a folder."""
    tmp = tmp_path_factory.mktemp("bento")
    project, home = tmp / "project", tmp / "home"
    for name in ("bentofile.yaml", "catalog.py", "console.py", "LICENSE", "serving", "export", "requirements"):
        _copy(ROOT / name, project / name)
    stores.write_colours(project / "artifacts")
    (project / "artifacts" / "colours" / "model.keras").write_bytes(b"not to be packed")
    build = [str(Path(sys.executable).with_name("bentoml")), "build"]
    done = subprocess.run(
        build, cwd=project, env=processes.environment(home), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (path.parent for path in home.glob("bentos/modelkiln/*/bento.yaml"))
    return folder


def _copy(source: Path, target: Path) -> None:
    import shutil

    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _same_answers(bento: Path, server: Running, empty: Path, python: Path) -> None:
    empty.mkdir()
    with processes.serving(empty.parent, str(bento), settings={}, cwd=empty, python=python) as packed:
        for query in ("", "?version=onnx-fp32", "?model=wide"):
            answers = [
                httpx.post(f"{url}/predict{query}", content=plain((200, 90, 10))) for url in (packed.url, server.url)
            ]
            assert [answer.status_code for answer in answers] == [200, 200]
            assert answers[0].json()["predictions"] == answers[1].json()["predictions"]
            assert answers[0].json()["version"] == answers[1].json()["version"]


def test_a_bento_holds_what_serving_needs_and_no_more(bento: Path) -> None:
    packed = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*") if path.is_file()}
    assert {"catalog.py", "serving/service.py", "artifacts/colours/variants/onnx-int8/model.onnx"} <= packed
    assert {"serving/page/index.html", "serving/page/samples/cifar10/ship.png"} <= packed
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "FROM python:3.11" in dockerfile and "BENTO_USER_UID=1034" in dockerfile  # as deploy/kubernetes runs it
    assert not [name for name in packed if name.endswith((".keras", ".pyc")) or name.startswith(("training", "tests"))]


def test_a_bento_serves_the_same_from_an_empty_folder(bento: Path, server: Running, tmp_path: Path) -> None:
    _same_answers(bento, server, tmp_path / "empty", Path(sys.executable))


@pytest.mark.slow
def test_a_bento_serves_the_same_with_only_its_own_requirements(bento: Path, server: Running, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    requirements = bento / "env" / "python" / "requirements.txt"
    install = [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(requirements)]
    done = subprocess.run(install, env={**os.environ}, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    _same_answers(bento, server, tmp_path / "empty", python)
