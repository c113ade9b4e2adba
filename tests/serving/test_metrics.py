"""What /metrics says after known requests, on a real server; and what happens to it when the disk is full."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from catalog import KilnError
from serving import settings as module
from serving.settings import Settings
from tests.serving import processes
from tests.serving.pictures import BLUE, RED, plain
from tests.serving.processes import Running

_SAMPLE = re.compile(r"^(modelkiln_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def figures(client: httpx.Client) -> dict[tuple[str, frozenset[str]], float]:
    text = processes.metrics(str(client.base_url))
    return {
        (name, frozenset(f"{k}={v}" for k, v in _LABEL.findall(labels) if k != "pid")): float(value)
        for name, labels, value in _SAMPLE.findall(text)
    }


class Growth:
    """By how much a figure has grown since this was made."""

    def __init__(self, client: httpx.Client) -> None:
        self._client, self._before = client, figures(client)

    def look(self) -> None:
        self._after = figures(self._client)

    def of(self, name: str, **labels: str) -> float:
        key = (f"modelkiln_{name}", frozenset(f"{k}={v}" for k, v in labels.items()))
        return self._after.get(key, 0.0) - self._before.get(key, 0.0)


@pytest.fixture
def growth(client: httpx.Client) -> Iterator[Growth]:
    yield Growth(client)


def test_every_request_is_counted_by_route_model_and_version(client: httpx.Client, growth: Growth) -> None:
    variant = {"model": "colours", "version": "onnx-fp32"}
    for colour in (RED, RED, BLUE):
        client.post("/predict?version=onnx-fp32", content=plain(colour))
    client.post("/predict?version=onnx-fp32", content=b"junk")
    client.post("/predict?version=none", content=b"junk")
    client.get("/made-up-by-a-client")
    growth.look()
    assert growth.of("requests_total", route="/predict", code="200") == 3
    assert growth.of("requests_total", route="other", code="404") == 1
    assert growth.of("model_requests_total", **variant, code="200") == 3
    assert growth.of("model_requests_total", **variant, code="400") == 1
    assert growth.of("errors_total", code="image_undecodable") == 1
    assert growth.of("errors_total", code="version_unknown") == 1
    assert growth.of("predictions_total", **variant, **{"class": "red"}) == 2
    assert growth.of("predictions_total", **variant, **{"class": "blue"}) == 1
    assert growth.of("confidence_count", **variant) == 3
    assert growth.of("confidence_bucket", **variant, le="0.95") == 0
    for stage in ("decode", "queue", "compute"):
        assert growth.of("stage_seconds_count", **variant, stage=stage) == 3
    assert growth.of("stage_seconds_sum", **variant, stage="decode") > 0
    assert growth.of("batch_images_count", **variant) == 3
    assert "made-up" not in processes.metrics(str(client.base_url))


def test_batches_are_counted_by_their_images(client: httpx.Client, growth: Growth) -> None:
    tensor = np.zeros((5, 16, 24, 3), np.uint8)
    answer = client.post("/predict/batch?model=wide&shape=5,16,24,3", content=tensor.tobytes())
    assert answer.status_code == 200
    growth.look()
    wide = {"model": "wide", "version": "onnx-fp32"}
    assert growth.of("model_requests_total", **wide, code="200") == 1
    assert growth.of("batch_images_sum", **wide) == 5 and growth.of("batch_images_count", **wide) == 1
    assert growth.of("confidence_count", **wide) == 5


def test_39_output_that_is_not_finite_is_counted(client: httpx.Client, growth: Growth) -> None:
    assert client.post("/predict?model=brittle", content=plain((255, 255, 255))).status_code == 500
    growth.look()
    assert growth.of("errors_total", code="model_output_invalid") == 1
    assert growth.of("model_requests_total", model="brittle", version="onnx-fp32", code="500") == 1


def test_20_and_request_ids_in_the_log(client: httpx.Client, server: Running) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x-request-id": "my-id.1", "traceparent": trace}
    answer = client.get("/models/a%0d%0a%1b[31mforged%22", headers=headers)
    assert answer.status_code == 404 and answer.headers["x-request-id"] == "my-id.1"
    assert answer.headers["traceparent"].split("-")[1] == trace.split("-")[1]
    deadline = time.monotonic() + 10
    while '"my-id.1"' not in (text := server.log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)  # the line follows the answer
    (line,) = [line for line in text.splitlines() if '"my-id.1"' in line]
    told = json.loads(line)
    assert (told["status"], told["code"], told["route"]) == (404, "model_unknown", "/models/{model}")
    assert told["trace_id"] == trace.split("-")[1] and told["ms"] >= 0
    assert "forged" not in text and "\x1b" not in line


@pytest.mark.skipif(not hasattr(psutil.Process, "rlimit"), reason="limits of another process are Linux's")
def test_32_a_full_disk_costs_no_answer_and_no_count(client: httpx.Client, server: Running, growth: Growth) -> None:
    """No file of the worker may grow any more, though there are new series; their room was taken at the start."""
    (worker,) = psutil.Process(server.process.pid).children()
    before = worker.rlimit(psutil.RLIMIT_FSIZE)
    worker.rlimit(psutil.RLIMIT_FSIZE, (0, before[1]))
    try:
        for _ in range(3):
            assert client.post("/predict", content=plain(RED)).status_code == 200
            assert client.post("/predict", content=b"junk").status_code == 400
        for path in ("/v2/models/wide/config", "/v2/models/wide/stats", "/healthz", "/livez", "/readyz"):
            assert client.get(path).status_code == 200
    finally:
        worker.rlimit(psutil.RLIMIT_FSIZE, before)
    growth.look()
    assert growth.of("errors_total", code="image_undecodable") == 3
    files = list((server.log.parent / "prometheus_multiproc_dir").glob(f"*_{worker.pid}.db"))
    assert len(files) == 4 and {file.stat().st_size for file in files} == {1 << 20}
    assert psutil.Process(server.process.pid).children() == [worker]


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_come_from_a_file_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / "kiln.toml"
    file.write_text('threads = 2\ntop = 3\ntoken = "t"\nstore = "/x"\nbody_timeout_s = 2\n')
    settings = Settings.from_environment({module.FILE: str(file), "MODELKILN_TOP": "7", "MODELKILN_MODEL": ""})
    assert (settings.threads, settings.top, settings.token, settings.store) == (2, 7, "t", Path("/x"))
    assert settings.body_timeout_s == 2.0 and settings.model == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("thread = 2", "'thread', which is no setting"),
        ('threads = "two"', "a whole number"),
        ("threads = [2]", "a whole number"),
        ("threads = true", "a whole number"),
        ("threads = 0", "above 0"),
        ('access_log = "some"', "all, errors, none"),
        ("drain_s = 30", "MODELKILN_DRAIN_S is 30 and MODELKILN_GRACE_S 20"),
        ("threads =", "cannot be read as TOML"),
    ],
)
def test_a_wrong_settings_file_is_told_of(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "kiln.toml"
    file.write_text(text)
    with pytest.raises(KilnError, match=said):
        Settings.from_environment({module.FILE: str(file)})
    with pytest.raises(KilnError, match=r"missing\.toml"):
        Settings.from_environment({module.FILE: str(tmp_path / "missing.toml")})


def test_the_settings_in_force_are_printed_but_not_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from serving.__main__ import app

    monkeypatch.setenv("MODELKILN_TOKEN", "hush-hush")
    monkeypatch.setenv("MODELKILN_TOP", "7")
    done = CliRunner().invoke(app, ["settings"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "hush-hush" not in done.output
    rows = {line.split("│")[1].strip(): line for line in done.output.splitlines() if line.count("│") > 3}
    assert [cell.strip() for cell in rows["MODELKILN_TOP"].split("│")[2:4]] == ["5", "7"]
    assert "(secret)" in rows["MODELKILN_TOKEN"]
