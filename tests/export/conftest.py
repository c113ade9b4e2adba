from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import catalog
from catalog import Store

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs `python -m MODULE …` from the root, as a user would."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            cwd=catalog.ROOT,
            env={**os.environ, "COLUMNS": "120", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"},
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


@pytest.fixture(scope="session")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with one LeNet, trained for a moment on digits."""
    root = tmp_path_factory.mktemp("export") / "store"
    done = run("tests.export.train_tiny", root)
    assert done.returncode == 0, done.stderr
    return Store(root)


@pytest.fixture(scope="session")
def first_run(run: Run, trained: Store) -> subprocess.CompletedProcess[str]:
    """The export of everything, by the command a user gives."""
    return run("export", "tiny", "--store", trained.root)


@pytest.fixture(scope="session")
def store(trained: Store, first_run: subprocess.CompletedProcess[str]) -> Store:
    """The store with all variants of `tiny`."""
    assert first_run.returncode == 0, first_run.stderr
    return trained


@pytest.fixture
def onnx_path(store: Store) -> Path:
    return store.model_dir("tiny") / "variants" / "onnx-fp32" / "model.onnx"
