"""`train-all` and a sweep on a real Ray cluster: a head and a second node, each a process of its own."""

from __future__ import annotations

import csv
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import catalog
from catalog import KilnError, Store
from training.cluster import run_commands

RAY = Path(sys.executable).with_name("ray")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"nobody://127.0.0.1:{free_port()}")
    with pytest.raises(KilnError, match="the cluster at nobody:"):
        run_commands({"lenet": ["-c", "pass"]}, 1)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which commands find a cluster of two nodes with one core each, which asks for a token."""
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "CUDA_VISIBLE_DEVICES": "-1"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    head = ["--head", "--port", address.rpartition(":")[2], "--temp-dir", str(tmp_path_factory.mktemp("ray"))]
    nodes = []
    try:
        for role in ([*head, "--include-dashboard=false"], ["--address", address]):
            command = [str(RAY), "start", *role, "--node-ip-address=127.0.0.1", "--num-cpus=1", "--block"]
            nodes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            until_there(address, len(nodes), environment)
        yield {**environment, "RAY_ADDRESS": address}
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait(60)


COUNT = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
print(sum(node["Alive"] for node in ray.nodes()))
"""


def until_there(address: str, nodes: int, environment: dict[str, str]) -> None:
    """Waits until the cluster has so many nodes."""
    deadline = time.monotonic() + 120
    while True:
        told = subprocess.run(
            [sys.executable, "-c", COUNT, address], env=environment, capture_output=True, text=True, timeout=120
        )
        if told.stdout.split()[-1:] == [str(nodes)]:
            return
        assert time.monotonic() < deadline, told.stderr
        time.sleep(1)


def command(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "training", *map(str, arguments)],
        cwd=catalog.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
def test_the_family_is_trained_a_task_each_and_a_failure_is_told(cluster: dict[str, str], tmp_path: Path) -> None:
    arguments = ["all", "--dataset", "digits", "--recipe", "quick", "--models", "lenet,simcnn", "--cpus", 1]
    arguments += ["--store", tmp_path]
    (tmp_path / "simcnn").write_text("a file where the model's folder has to be")
    failed = command(cluster, *arguments)
    assert failed.returncode == 1 and "1 of 2 models failed: simcnn" in failed.stderr
    assert "Traceback" not in failed.stdout + failed.stderr
    assert Store(tmp_path).models() == ["lenet"]
    written = (tmp_path / "lenet" / "model.keras").stat().st_mtime_ns

    (tmp_path / "simcnn").unlink()
    done = command(cluster, *arguments)
    assert done.returncode == 0, done.stderr
    assert Store(tmp_path).models() == ["lenet", "simcnn"]
    assert (tmp_path / "lenet" / "model.keras").stat().st_mtime_ns == written
    assert "lenet is done" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_sweep_runs_on_the_cluster(cluster: dict[str, str], tmp_path: Path) -> None:
    done = command(
        cluster, "sweep", "lenet", "--dataset", "digits", "--recipe", "quick", "--space", "wide", "--search", "random",
        "--trials", 2, "--epochs", 2, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with (tmp_path / "sweep.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done", "done"]
    assert len(list(tmp_path.glob("trials/*/result.json"))) == 2


@pytest.mark.slow
def test_a_cluster_that_asks_for_a_token_says_so(cluster: dict[str, str], tmp_path: Path) -> None:
    without = {name: value for name, value in cluster.items() if not name.startswith("RAY_AUTH")}
    refused = command(
        without, "all", "--dataset", "digits", "--recipe", "quick", "--models", "lenet", "--store", tmp_path
    )
    assert refused.returncode == 1 and "RAY_AUTH_TOKEN" in refused.stderr
    assert "Traceback" not in refused.stderr
