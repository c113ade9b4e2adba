"""What several rooms' tests share: the order they run in, and a browser."""

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests import browser as chromium

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has its children ignore it

LONGEST = ("training/test_runs.py", "training/test_sweep.py")  # begun first: no worker is left with them at the end
OWN_STORE = ("test_channel_prune.py", "test_channels.py", "test_transforms.py", "test_transforms_slow.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the longest files to the front."""
    items.sort(key=_place)  # stable: the order of collection otherwise


def _place(item: pytest.Item) -> int:
    path = item.path.as_posix()
    return 0 if path.endswith(LONGEST) else 1 if "/tests/export/" in path else 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers, a file's tests stay together, and so do the files that share the exported store."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "tests/export" if path.startswith("tests/export/") and not path.endswith(OWN_STORE) else path

    return ByFile(config, log)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """A headless Chromium for the tests of a module; they are to skip where there is none."""
    with chromium.browsing(tmp_path_factory.mktemp("profile")) as browser:
        yield browser
