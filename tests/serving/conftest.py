"""One real server over a hand-made store for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.serving import processes, stores
from tests.serving.processes import MAX_BODY_BYTES, MAX_PIXELS, Running


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store the server runs on; not to be changed."""
    return stores.write_colours(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A ready server with small limits."""
    limits = {"MODELKILN_MAX_BODY_BYTES": str(MAX_BODY_BYTES), "MODELKILN_MAX_PIXELS": str(MAX_PIXELS)}
    quick = {"MODELKILN_BODY_TIMEOUT_S": "1", "MODELKILN_HEADER_TIMEOUT_S": "1", "__BENTOML_DEBUG_USAGE": "True"}
    settings = {"MODELKILN_STORE": str(store), **limits, **quick}
    with processes.serving(tmp_path_factory.mktemp("server"), settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client
