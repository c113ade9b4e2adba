"""Applies a chain of transforms to `tiny` on a few images: `python -m tests.export.transform_tiny STORE OUT CHAIN`.

`OUT/<name>/` gets what each link writes, with `told.json`, what it says it did. With STOP as a fourth word, every
fine-tuning is stopped after some steps and begun again, to see that it ends in the same weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import console
from catalog import Store, plugin, sha256_of
from export.transforms import MODEL, PACKAGE, Finetuning, Progress, Stopped, Work, chain, name_of

IMAGES = 160
STEPS = 3  # after which a stopped run stops


def main(root: str, out: str, text: str, stop: str = "") -> None:
    os.environ["TF_DETERMINISTIC_OPS"] = "1"
    with console.overlooked(*console.LOOKED_FOR):
        import keras  # noqa: F401
    from training import data

    store = Store(root)
    card, digits = store.card("tiny"), data.load("digits")
    few = dataclasses.replace(digits, x_train=digits.x_train[:IMAGES], y_train=digits.y_train[:IMAGES])
    stages, source = chain(text), store.model_dir("tiny") / MODEL
    for number, stage in enumerate(stages):
        form = plugin(PACKAGE, stage.file)
        recipe = form.TUNING.recipe("any", card.recipe, Finetuning(2))  # with a teacher, which a LeNet has not
        folder = Path(out, name_of(stages[: number + 1]))
        folder.mkdir(parents=True)
        told: list[Progress] = []
        work = Work(
            source,
            folder,
            Path(out, f".{folder.name}.checkpoints"),
            stage.level,
            stage.parameters,
            card.architecture,
            dataclasses.replace(recipe, batch_size=16),
            few,
            0,
            sha256_of(source),
            store.model_dir("tiny") / MODEL,
            sha256_of(store.model_dir("tiny") / MODEL),
            told.append,
        )
        result = _applied(form, work, told, bool(stop))
        result["told"] = [dataclasses.astuple(progress)[:2] for progress in told]
        (folder / "told.json").write_text(json.dumps(result))
        source = folder / MODEL


def _applied(form: Any, work: Work, told: list[Progress], stop: bool) -> dict[str, Any]:
    if stop:
        try:
            form.apply(dataclasses.replace(work, stop=lambda: told[-1].done >= STEPS))
        except Stopped:
            assert not (work.folder / MODEL).exists()
        else:
            raise AssertionError("it was asked to stop and did not")
        told.clear()
    result: dict[str, Any] = form.apply(work)
    return result


if __name__ == "__main__":
    main(*sys.argv[1:])
