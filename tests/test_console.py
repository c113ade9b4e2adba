"""What importing costs, and what is hidden from it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import catalog
import console


def test_what_is_overlooked_cannot_be_imported_until_afterwards():
    for name in ("tabnanny", "json"):
        assert (name in sys.modules) == (name == "json")
    with console.overlooked("tabnanny", "json"):
        with pytest.raises(ImportError):
            import tabnanny
        assert json.loads("1") == 1 and sys.modules["json"] is json, "what is imported already stays"
    import tabnanny

    assert tabnanny.check is not None
    with pytest.raises(ZeroDivisionError), console.overlooked("this"):
        print(1 / 0)
    assert "this" not in sys.modules


def test_training_does_not_import_what_keras_only_looks_for():
    code = (
        "import sys; from training import loop; loop.keras_namespace()\n"
        "print(sorted({'jax', 'sklearn'} & {name for name, module in sys.modules.items() if module}))\n"
        "import sklearn; print(sklearn.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=catalog.ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.split("\n")[:2] == ["[]", "sklearn"], done.stderr
