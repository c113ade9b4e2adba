"""Manners of the measuring process: what failed goes into one line, and pytest-benchmark does not probe the machine."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.measuring import job


def pytest_exception_interact(call: pytest.CallInfo[Any]) -> None:
    """Leaves the first failure's message where the run looks for it."""
    if call.excinfo is None or not os.environ.get(job.ENVIRONMENT):
        return
    reason = job.current().reason
    if not reason.exists():
        kind, text = call.excinfo.typename, " ".join(str(call.excinfo.value).split())
        reason.write_text(text if kind == "KilnError" else f"{kind}: {text}", encoding="utf-8")


def pytest_benchmark_generate_machine_info() -> dict[str, Any]:
    """Nothing: results.json describes the machine once, and the plug-in's own look takes a second a process."""
    return {"node": "", "processor": "", "machine": ""}


def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    """Nothing, for the same reason."""
    return {}
