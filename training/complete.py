"""What a finished run leaves behind: the saved model, its accuracy on the test split, plots, and the card, last."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

import catalog
from catalog import Accuracy, Card, sha256_of, to_json, write_atomic
from training import evaluation, network
from training.checkpoint import HISTORY, history_csv
from training.job import Job
from training.loop import PREDICT_BATCH, Trained, float32_again

MODEL_FILE = "model.keras"
FLIPPED = "test-time flip: every prediction is the mean over the image and its mirror image"


def complete(job: Job, trained: Trained, command: str, known: Card | None = None, notes: str = "") -> Card:
    """Saves and evaluates a trained network; the card comes last, so a folder with a card is whole.

    Of a network whose training somebody else has told of, `known` is that card: what it says of how it was trained is
    taken over.

    Raises:
        RuntimeError: The file that was saved does not predict what the trained network predicts.
    """
    keras, data = trained.keras, job.dataset
    compute_dtype = float32_again(keras)
    shape, classes = data.x_test.shape[1:], len(data.classes)
    plain = network.build(keras, job.architecture, shape, classes, job.recipe)
    plain.set_weights(trained.model.get_weights())
    saved = network.with_probabilities(keras, plain, flip=job.recipe.flip_at_test)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / catalog.CARD).unlink(missing_ok=True)
    file = _save(keras, saved, job.folder / MODEL_FILE)
    probabilities = np.asarray(file.predict(data.x_test, batch_size=PREDICT_BATCH, verbose=0))
    if not np.allclose(probabilities[:64], np.asarray(saved.predict(data.x_test[:64], verbose=0)), atol=1e-5):
        raise RuntimeError(f"{MODEL_FILE} predicts otherwise than the network it was saved from")
    correct = int((probabilities.argmax(axis=1) == data.y_test).sum())
    if trained.history:
        write_atomic(job.folder / HISTORY, history_csv(trained.history))
    else:
        (job.folder / HISTORY).unlink(missing_ok=True)
    evaluation.write_evaluation(job.folder, trained.history, data, probabilities, job.model)
    card = Card(
        model=job.model,
        architecture=job.architecture,
        recipe_name=job.recipe_name,
        recipe=job.recipe.decisive(),
        seed=job.seed,
        dataset=data.info,
        accuracy=Accuracy.of(correct, len(probabilities)),
        parameters=plain.count_params(),
        macs=network.macs(plain) * (2 if job.recipe.flip_at_test else 1),
        weights_sha256=network.weights_sha256(plain),
        train_seconds=round(trained.seconds, 1),
        commit=trained.commit,
        command=command,
        created=catalog.now(),
        files={name: sha256_of(job.folder / name) for name in [MODEL_FILE, *([HISTORY] if trained.history else [])]},
        **_trained(known) if known else _training(keras, job, trained, compute_dtype),
        notes="; ".join(filter(None, [FLIPPED if job.recipe.flip_at_test else "", notes])),
    )
    write_atomic(job.folder / catalog.CARD, to_json(card))
    return card


def _trained(known: Card) -> dict[str, Any]:
    """What another card says of the training."""
    return {key: getattr(known, key) for key in ("train_top1", "device", "versions", "teacher_sha256", "compute_dtype")}


def _training(keras: Any, job: Job, trained: Trained, compute_dtype: str) -> dict[str, Any]:
    """What the card says of the training that has just ended."""
    return {
        "train_top1": round(100 * trained.history[-1]["accuracy"], 4),
        "device": device(keras),
        "versions": versions(keras),
        "teacher_sha256": job.teacher_sha256,
        "compute_dtype": compute_dtype,
    }


def _save(keras: Any, model: Any, path: Path) -> Any:
    """Writes `model` whole or not at all, and reads it back: what is measured is the file."""
    temporary = path.with_name(f".writing.{path.name}")
    model.save(temporary)
    write_atomic(path, temporary.read_bytes())
    temporary.unlink()
    return keras.models.load_model(path, compile=False)


def versions(keras: Any) -> dict[str, str]:
    """Of Python, Keras, its backend and NumPy."""
    return {"python": platform.python_version(), **catalog.versions("keras", keras.backend.backend(), "numpy")}


def device(keras: Any) -> str:
    """What the run ran on: processor and cores, and the accelerator where there is one."""
    processor = f"{catalog.processor()[0]}, {os.cpu_count()} cores"
    accelerators = [d for d in keras.distribution.list_devices() if not d.lower().startswith("cpu")]
    return ", ".join([processor, *accelerators])
