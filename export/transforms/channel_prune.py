"""Structured pruning, ours: whole channels go until a share of the multiply-accumulates is left; dense runtimes gain.

In rounds: score every channel, cut the coupled groups to the round's budget, fine-tune what is left by the training
loop with the unpruned parent as teacher. `export/channels/` knows what must be cut together, what a channel is
worth and which go.

A round's network is written before it is trained and after, so a killed run goes on inside its round, and on a CPU ends
in the same weights.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from catalog import Store, write_atomic
from export.transforms import MODEL, Progress, Stopped, Tuning, Work

ORDER = 0
PACKAGES = ("keras", "tensorflow", "numpy")
LEVELS: dict[str, dict[str, Any]] = {
    "channels50": {"macs_share": 0.5, "rounds": 3, "criterion": "taylor", "images": 1024},
    "channels25": {"macs_share": 0.25, "rounds": 5, "criterion": "taylor", "images": 1024},
    "channels50_scale": {"macs_share": 0.5, "rounds": 3, "criterion": "scale"},
    "channels25_scale": {"macs_share": 0.25, "rounds": 5, "criterion": "scale"},
}
# A network without channels to spare needs its own learning rate again, and longer, and has no use for a teacher:
# LeNet, half of whose work is in six filters, keeps 69.4% instead of 67.0%, and SimCNN 82.1% instead of 81.5%. The last
# round, half of the epochs, has to be nearly as long as the network was trained for before SimCNN is done.
SMALL: dict[str, Any] = {"epochs": 0.6, "learning_rate": 1.0, "distill": 0.0}
TUNING = Tuning(
    epochs=0.3,
    learning_rate=0.5,
    at_least=3,
    distill=0.7,
    mixed_precision=True,
    changes={"temperature": 4.0, "label_smoothing": 0.0},
    families={"lenet": SMALL, "simcnn": {**SMALL, "epochs": 1.5}},
)
BETWEEN = 0.5  # share of the epochs that all rounds but the last have together


def apply(work: Work) -> dict[str, Any]:
    """Prunes and fine-tunes in rounds; the network that is written keeps the budget.

    Raises:
        KilnError: A layer that cannot be pruned around, a budget out of reach, or a loss that is no longer finite.
        Stopped: The user stopped it; it is saved.
    """
    from export import channels
    from export.tuning import twin
    from training import loop, network

    keras = loop.keras_namespace(work.recipe.mixed_precision)
    compute_dtype = loop.float32_again(keras)
    whole = keras.saving.load_model(work.keras_path, compile=False)
    parent = twin.network_in(whole)
    before = channels.wiring(parent)
    lengths = epochs_of(work.recipe.epochs, work.parameters["rounds"])
    _begin(work, compute_dtype)
    network_now, told = parent, list[dict[str, Any]]()
    for number, epochs in enumerate(lengths):
        share = work.parameters["macs_share"] ** ((number + 1) / len(lengths))
        folder = work.checkpoints / f"round{number}"
        if not (folder / "start.keras").is_file():
            _save(_cut(network_now, before, int(share * network.macs(parent)), number, work), folder / "start.keras")
        network_now, top1 = _mended(keras, work, folder, epochs, (sum(lengths[:number]), sum(lengths)))
        told.append({"macs": network.macs(network_now), "epochs": epochs, "val_top1": top1})
    flip = any(isinstance(layer, keras.Model) for layer in whole.layers)
    network.with_probabilities(keras, network_now, flip).save(work.folder / MODEL)
    written = twin.network_in(keras.saving.load_model(work.folder / MODEL, compile=False))
    if (difference := twin.disagreement(written, network_now)) > twin.TOLERANCE:
        raise RuntimeError(f"{MODEL} differs by {difference:.1e} in a probability from the network it was made of")
    after = channels.wiring(network_now)
    return {
        **work.parameters,
        "teacher_sha256": work.taught_by,
        "macs": [network.macs(parent), network.macs(network_now)],
        "weights": [parent.count_params(), network_now.count_params()],
        "channels": channels.widths(before, after),
        "rounds": told,
        "compute_dtype": compute_dtype,
        "distilled": {
            name: getattr(work.recipe, name) for name in ("teacher", "distill_weight", "temperature", "label_smoothing")
        },
    }


def epochs_of(epochs: int, rounds: int) -> list[int]:
    """The epochs of each round, at least one: half for the last, the others share the rest; if so few, fewer rounds."""
    rounds = min(rounds, epochs)
    if rounds == 1:
        return [epochs]
    each = max(1, int(BETWEEN * epochs / (rounds - 1)))
    return [each] * (rounds - 1) + [epochs - each * (rounds - 1)]


def _begin(work: Work, compute_dtype: str) -> None:
    """Makes room for the rounds; what was begun from other weights, data or settings is dropped."""
    file = work.checkpoints / "identity.json"
    identity = json.dumps({**work.identity, "between": BETWEEN, "compute_dtype": compute_dtype}, sort_keys=True)
    if not file.is_file() or file.read_text() != identity:
        shutil.rmtree(work.checkpoints, ignore_errors=True)
        work.checkpoints.mkdir(parents=True)
        write_atomic(file, identity)


def _cut(model: Any, first: Any, budget: int, number: int, work: Work) -> Any:
    """`model` without the channels that the budget does not allow; `first` is the wiring of the unpruned parent."""
    from export import channels
    from export.channels import choose, score
    from export.worker import stratified

    wired = channels.wiring(model)
    if work.parameters["criterion"] == "taylor":
        pick = stratified(work.dataset.y_train, work.parameters["images"], work.seed + number)
        scores = score.taylor(model, wired, work.dataset.x_train[pick], work.dataset.y_train[pick])
    else:
        scores = score.scale(model, wired)
    full = [len(group.channels) for group in first.groups]
    small = channels.without(model, wired, choose.choose(wired, scores, budget, full))
    small.trainable = True  # also what an ImageNet recipe froze: it has to mend
    return small


def _mended(keras: Any, work: Work, folder: Path, epochs: int, passed: tuple[int, int]) -> tuple[Any, float | None]:
    """A round's network once fine-tuned, and its validation top-1 in percent; `passed`: epochs before, of all."""
    from training import loop
    from training.distill import Teacher
    from training.job import Job

    done = folder / "done.keras"
    if not done.is_file():
        recipe = dataclasses.replace(work.recipe, epochs=epochs)
        job = Job(
            model=folder.name,
            architecture=work.architecture,
            recipe_name=work.level,
            recipe=recipe,
            dataset=work.dataset,
            seed=work.seed,
            store=Store(work.checkpoints),
            teacher=Teacher(work.teacher_path, work.teacher_sha256) if work.recipe.teacher else None,
            start=folder / "start.keras",
            watch=lambda step, steps, figures: _told(work, step, steps, figures, epochs, passed),
        )
        try:
            trained = loop.train(job)
        except loop.Interrupted as stop:
            raise Stopped(f"{work.level} was stopped and is saved; the same command goes on") from stop
        loop.float32_again(keras)
        plain = keras.saving.load_model(folder / "start.keras", compile=False)  # without the loop's faster kernels
        plain.set_weights(trained.model.get_weights())
        write_atomic(folder / "history.json", json.dumps(trained.history))
        _save(plain, done)
    history = json.loads((folder / "history.json").read_text())
    top1 = history[-1].get("val_accuracy")
    return keras.saving.load_model(done, compile=False), None if top1 is None else round(100 * top1, 4)


def _told(work: Work, step: int, steps: int, figures: str, epochs: int, passed: tuple[int, int]) -> bool:
    """Tells the progress over all rounds; whether the user asked to stop."""
    each = steps // epochs
    work.progress(Progress(passed[0] * each + step, passed[1] * each, figures))
    return work.stop()


def _save(model: Any, path: Path) -> None:
    """Writes a network whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing.{path.name}")
    model.save(temporary)
    write_atomic(path, temporary.read_bytes())
    temporary.unlink()
