"""Your own images: `<root>/{train,test}/<class>/*.png` (or jpg, jpeg, webp), all of one size.

One rule makes them RGB: the EXIF rotation is applied, 16-bit grey scaled to 8, transparency laid over white, then grey,
palette and CMYK converted. Everything that is wrong with the folder is said at once, before any training.
"""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import console
from catalog import KilnError
from training.data import Images, Labels, Source

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_MOST_SAID = 20


def read(root: Path | None = None) -> Source:
    """Both splits, files in sorted order, classes sorted by name.

    Raises:
        KilnError: No root, or a list of what is wrong in it: missing splits or classes, labels that only one split has,
            files that are no images, images of another size than the most.
    """
    if root is None:
        raise KilnError(
            "the data set `folder` needs --root: a folder holding train/<class>/*.png and test/<class>/*.png"
        )
    problems: list[str] = []
    listed = {split: _listing(root, split, problems) for split in ("train", "test")}
    classes = sorted(listed["train"])
    _compare_classes(classes, sorted(listed["test"]), problems)
    files = [file for split in listed.values() for members in split.values() for file in members]
    images = _decode_all(files, problems)
    _compare_sizes(images, root, problems)
    if problems:
        shown = "".join(f"\n  - {problem}" for problem in problems[:_MOST_SAID])
        more = f"\n  … and {len(problems) - _MOST_SAID} more" if len(problems) > _MOST_SAID else ""
        raise KilnError(f"{root} cannot be used as a data set:{shown}{more}")
    return Source(*_stack(listed["train"], classes, images), *_stack(listed["test"], classes, images), classes)


def _listing(root: Path, split: str, problems: list[str]) -> dict[str, list[Path]]:
    """Class name to its image files, both sorted."""
    folder = root / split
    if not folder.is_dir():
        problems.append(f"there is no folder {split}/ (looked for {folder})")
        return {}
    found: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            problems.append(f"{split}/{entry.name} lies beside the class folders")
            continue
        members = sorted(path for path in entry.iterdir() if not path.name.startswith("."))
        found[entry.name] = [path for path in members if path.suffix.lower() in SUFFIXES]
        others = [path.name for path in members if path.suffix.lower() not in SUFFIXES]
        if others:
            problems.append(
                f"{split}/{entry.name} holds {len(others)} other files ({others[0]}); allowed: {' '.join(SUFFIXES)}"
            )
        if not found[entry.name]:
            problems.append(f"{split}/{entry.name} holds no image")
    if not found:
        problems.append(f"{split}/ holds no class folder")
    return found


def _compare_classes(train: list[str], test: list[str], problems: list[str]) -> None:
    if len(train) == 1:
        problems.append(f"train/ holds one class only ({train[0]}); a classifier needs two")
    for name in sorted(set(test) - set(train)):
        close = difflib.get_close_matches(name, train, n=1)
        hint = f"; is it {close[0]!r}?" if close else ""
        problems.append(f"the class {name!r} is in test/ but not in train/{hint}")
    for name in sorted(set(train) - set(test)) if test else []:
        problems.append(f"the class {name!r} is in train/ but not in test/")


def _decode_all(files: list[Path], problems: list[str]) -> dict[Path, NDArray[np.uint8]]:
    """Every readable file as uint8 `[H, W, 3]`."""
    from PIL import Image

    images: dict[Path, NDArray[np.uint8]] = {}
    with console.progress() as bar:
        for file in bar.track(files, description="reading images"):
            try:
                images[file] = decode(file)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0].replace(str(file), file.name)
                problems.append(f"{'/'.join(file.parts[-3:])} is unreadable: {reason[:80]}")
    return images


def decode(file: Path) -> NDArray[np.uint8]:
    """One image file as uint8 `[H, W, 3]` by the rule above; raises what Pillow raises."""
    from PIL import Image, ImageOps

    with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit grey
            image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return np.asarray(image.convert("RGB"))


def _compare_sizes(images: dict[Path, NDArray[np.uint8]], root: Path, problems: list[str]) -> None:
    sizes = Counter(image.shape[:2] for image in images.values())
    if len(sizes) < 2:
        return
    (height, width), most = sizes.most_common(1)[0]
    problems.append(f"the images have {len(sizes)} sizes; {most} of {len(images)} are {width}x{height}, but")
    for file, image in images.items():
        if image.shape[:2] != (height, width):
            problems.append(f"  {file.relative_to(root)} is {image.shape[1]}x{image.shape[0]}")


def _stack(
    split: dict[str, list[Path]], classes: list[str], images: dict[Path, NDArray[np.uint8]]
) -> tuple[Images, Labels]:
    pairs = [(file, classes.index(name)) for name in classes for file in split[name]]
    return np.stack([images[file] for file, _ in pairs]), np.array([label for _, label in pairs], np.int64)
