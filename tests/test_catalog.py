"""The store's files: written whole or not at all, and what a killed process leaves is no one's trouble."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import catalog
from catalog import CARD, ROOT, KilnError, Store
from export.staging import sweep
from tests.serving.stores import COLOURS, network, write_model, write_variant


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of one variant, as a killed process leaves it that was writing its card anew."""
    parent = write_model(tmp_path, "colours")
    write_variant(tmp_path, parent, network(8, 8, np.eye(len(COLOURS))))
    (variant,) = Store(tmp_path).variants("colours")
    found = Store(tmp_path).variant_dir(variant.variant)
    (found / f".{CARD}.{ended()}.tmp").write_text("{ cut off")
    return found


def ended() -> int:
    """A process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_card_that_was_being_written_does_not_spoil_its_variant(folder: Path) -> None:
    store = Store(folder.parents[2])
    (card,) = store.variants("colours")
    store.verify(folder, card.files)
    sweep(folder.parent)
    assert sorted(path.name for path in folder.iterdir()) == sorted([CARD, *card.files])
    (folder / "stranger").touch()
    with pytest.raises(KilnError, match="stranger does not belong there"):
        store.verify(folder, card.files)


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, rename = tmp_path / "kept", Path.rename
    final.mkdir()
    (final / "old").touch()

    def refused(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError(28, "No space left on device", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="No space left"), catalog.staged_folder(final) as staged:
        (staged / "new").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (final / "old").exists()


def test_what_the_file_system_refuses_is_one_line(tmp_path: Path) -> None:
    parent = write_model(tmp_path, "colours")
    write_variant(tmp_path, parent, network(8, 8, np.eye(len(COLOURS))))
    (tmp_path / "zoo").write_text("no folder")
    command = [sys.executable, "-m", "export.zoo", "colours", "--store", str(tmp_path), "--zoo", str(tmp_path / "zoo")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
