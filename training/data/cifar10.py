"""CIFAR-10 (Krizhevsky, 2009) in its official binary layout: 50,000 and 10,000 images of 32x32, ten classes.

Looked for in the folder given, then in the one `CIFAR10_DIR` names, then in the cache; else downloaded into the cache
(`MODELKILN_CACHE`, or ~/.cache/modelkiln). Six files of 10,000 records: a label byte, then a plane each of red, green
and blue. No pickle is read anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from catalog import KilnError
from training.data import Images, Labels, Source
from training.data._download import Archive, fetch

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
TEST_FILE = "test_batch.bin"
_RECORD, _RECORDS = 1 + 3 * 32 * 32, 10_000
ARCHIVE = Archive(
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    size_bytes=170_052_171,
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    members=(*TRAIN_FILES, TEST_FILE, "batches.meta.txt"),
    optional=("readme.html",),
)


def cache() -> Path:
    """Where downloads are kept."""
    return Path(os.environ.get("MODELKILN_CACHE") or Path.home() / ".cache" / "modelkiln")


def read(root: Path | None = None, archive: Archive = ARCHIVE) -> Source:
    """The two splits as published, downloaded if they are nowhere.

    Raises:
        KilnError: The folder lacks a file or holds a wrong one (all are named), or the download failed.
    """
    given = root or (Path(os.environ["CIFAR10_DIR"]) if os.environ.get("CIFAR10_DIR") else None)
    if given is None:
        given = cache() / archive.folder
        if not given.is_dir():
            fetch(archive, cache())
    if problems := _problems(given):
        raise KilnError(
            f"{given} is not CIFAR-10 in the binary layout: {'; '.join(problems)}. It needs "
            f"{', '.join(TRAIN_FILES)} and {TEST_FILE}; give their folder by --root or CIFAR10_DIR, or unset both"
        )
    parts = [_batch(given / name) for name in TRAIN_FILES]
    x_train, y_train = np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
    return Source(x_train, y_train, *_batch(given / TEST_FILE), CLASSES)


def _problems(folder: Path) -> list[str]:
    """What is wrong with the six files, one phrase a file."""
    if not folder.is_dir():
        return ["it is no folder"]
    found = []
    for name in (*TRAIN_FILES, TEST_FILE):
        file = folder / name
        if not file.is_file():
            found.append(f"{name} is missing")
        elif (size := file.stat().st_size) != _RECORD * _RECORDS:
            found.append(f"{name} has {size:,} bytes instead of {_RECORD * _RECORDS:,}")
        elif (worst := int(np.fromfile(file, np.uint8)[::_RECORD].max())) >= len(CLASSES):
            found.append(f"{name} holds the label {worst}, above 9")
    return found


def _batch(file: Path) -> tuple[Images, Labels]:
    """One file: uint8 `[10000, 32, 32, 3]` and int64 `[10000]`."""
    records = np.fromfile(file, np.uint8).reshape(-1, _RECORD)
    planes = records[:, 1:].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), records[:, 0].astype(np.int64)
