"""What several rooms' tests share: one LeNet trained on digits by its `quick` recipe, through the real command."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def quick_store(tmp_path_factory) -> Path:
    """A store holding the trained `lenet`; copy it before changing it."""
    store = tmp_path_factory.mktemp("quick-store")
    command = [sys.executable, "-m", "training", "lenet", "--dataset", "digits", "--recipe", "quick"]
    subprocess.run([*command, "--store", str(store)], cwd=ROOT, check=True, capture_output=True, timeout=280)
    return store
