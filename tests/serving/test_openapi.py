"""The description tells the truth: its routes are the router's, and schemathesis finds nothing against it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from serving import page
from serving.errors import RequestError
from serving.http.auth import Guard
from serving.routes import openapi
from serving.routes.api import Api
from serving.settings import Settings
from serving.v2 import V2
from serving.v2 import openapi as openapi_v2
from tests.serving import processes, stores
from tests.serving.processes import Running

OTHERS = ("/openapi.json", "/livez", "/readyz", "/healthz", "/metrics")
NOT_CHECKED = ",".join(
    (
        "positive_data_acceptance",  # bytes that schemathesis makes up are no images, names no models
        "negative_data_rejection",  # a form's file may hold anything that is text, and curl sends bytes as a form
        "missing_required_header",
        "unsupported_method",  # TRACE and the like are refused, by 405, which is checked in test_service
        "use_after_free",
        "ensure_resource_availability",
    )
)


def fuzz(
    url: str, examples: int, report: Path, phases: str = "examples,coverage,fuzzing", seed: int = 1
) -> subprocess.CompletedProcess[str]:
    """Schemathesis against a server: `examples` an operation and phase."""
    program = str(Path(sys.executable).with_name("schemathesis"))
    command = [program, "run", f"{url}/openapi.json", "--max-examples", str(examples), "--exclude-checks", NOT_CHECKED]
    command += ["--phases", phases, "--seed", str(seed), "--request-timeout", "20", "--no-color"]
    command += ["--suppress-health-check", "all", "--generation-database", "none"]
    environment = {**os.environ, "COLUMNS": "160"}
    return subprocess.run(command, cwd=report, env=environment, capture_output=True, text=True, timeout=3000)


def test_every_route_is_described_and_no_other(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()
    told = {(method.upper(), path) for path, route in described["paths"].items() for method in route}
    nothing: Any = None  # a table does not ask for what its handlers will use
    routes = [*Api(nothing, Settings(), nothing).routes(), *V2(nothing, Settings(), nothing).routes(), *page.routes()]
    assert told == {(route.method, route.path) for route in routes} | {("GET", path) for path in OTHERS}
    for method, path in told:
        asked = client.request(method, path.replace("{", "").replace("}", ""), content=b"")
        assert asked.status_code != 405, (method, path)
        assert str(asked.status_code) in described["paths"][path][method.lower()]["responses"], (method, path)


def test_examples_fit_their_schemas(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()

    def fits(name: str, body: object) -> None:
        jsonschema.validate(body, {**described["components"]["schemas"][name], "components": described["components"]})

    fits("Models", client.get("/models").json())
    fits("Model", client.get("/models/wide").json())
    fits("V2Metadata", client.get("/v2/models/colours").json())
    fits("V2Statistics", client.get("/v2/models/stats").json())
    fits("Error", client.get("/models/none").json())
    with pytest.raises(jsonschema.ValidationError):
        fits("Error", {"error": "x"})


def test_a_token_is_described_where_it_is_needed() -> None:
    described = openapi.describe(Settings(token="t"), openapi_v2.paths(), openapi_v2.schemas())
    assert described["security"] and "401" in described["paths"]["/predict"]["post"]["responses"]
    assert described["paths"]["/metrics"]["get"]["security"] == []
    asked = {
        path for path, route in described["paths"].items() for method in route.values() if "security" not in method
    }
    guard = Guard("t")
    for path, route in described["paths"].items():
        assert {"401" in method["responses"] for method in route.values()} == {path in asked}
        with pytest.raises(RequestError) if path in asked else nullcontext():
            guard.admit(path, b"")
    assert "security" not in openapi.describe(Settings())


def test_a_head_without_end_is_described_at_every_route() -> None:
    described = openapi.describe(Settings(), openapi_v2.paths(), openapi_v2.schemas())
    assert all("431" in method["responses"] for route in described["paths"].values() for method in route.values())
    assert "431" in described["components"]["responses"]


def test_schemathesis_finds_nothing(server: Running, tmp_path: Path) -> None:
    """A bounded run; `make chaos` makes 10,000 cases of it."""
    done = fuzz(server.url, 1, tmp_path, "coverage,fuzzing")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert httpx.get(f"{server.url}/readyz").status_code == 200


@pytest.mark.slow
def test_schemathesis_finds_nothing_where_models_may_be_loaded(tmp_path: Path) -> None:
    store = stores.write_colours(tmp_path / "store")
    settings = {"MODELKILN_STORE": str(store), "MODELKILN_CONTROL": "on", "MODELKILN_BODY_TIMEOUT_S": "1"}
    with processes.serving(tmp_path, settings=settings) as running:
        done = fuzz(running.url, 30, tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
