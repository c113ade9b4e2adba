"""A job: everything that decides a run's weights and where they go; and whether it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog import CARD, Card, KilnError, Recipe, Store, sha256_of, sha256_of_json
from training import imagenet
from training.checkpoint import Checkpoints, held
from training.data import Dataset
from training.distill import Teacher


@dataclass(frozen=True)
class Job:
    """Everything that decides a run's weights, and where it is written."""

    model: str  # its name in the store
    architecture: str
    recipe_name: str
    recipe: Recipe
    dataset: Dataset
    seed: int
    store: Store
    checkpoint_seconds: float = 60.0
    teacher: Teacher | None = None  # where the recipe has one
    devices: int = 1  # that share every batch; 0 is every GPU there is
    start: Path | None = None  # the file of a logits network to go on with, instead of a new one of the architecture
    watch: Callable[[int, int, str], bool] | None = None  # told steps done, of how many, figures; True stops the run
    over: bool = False  # starts over: what is there is forgotten as soon as the run can begin

    def __post_init__(self) -> None:
        """Refuses ImageNet weights for a network that would not take them, and frozen layers without such weights.

        Raises:
            KilnError: Names the recipes that do.
        """
        if self.recipe.frozen_layers and self.recipe.weights != "imagenet":
            raise KilnError(
                f"{self.recipe.frozen_layers} frozen layers would stay as they are drawn: only ImageNet weights can be "
                f"frozen; these recipes have them: {', '.join(imagenet.recipes())}"
            )
        if self.recipe.weights == "imagenet" and self.recipe.stem != "imagenet":
            raise KilnError(
                f"{self.architecture} by recipe {self.recipe_name} does not begin with ImageNet weights; these recipes "
                f"do: {', '.join(imagenet.recipes())}"
            )

    @property
    def teacher_sha256(self) -> str:
        """Of what the teacher answers by; empty where there is none."""
        return self.teacher.sha256 if self.teacher else ""

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint or card must share with this job to be its own."""
        return {
            "architecture": self.architecture,
            "dataset": self.dataset.sha256,
            "seed": self.seed,
            "teacher_sha256": self.teacher_sha256,
            **({"start_sha256": sha256_of(self.start)} if self.start else {}),
            **self.recipe.decisive(),
        }

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of the identity's hash: tells the runs of one recipe's name apart."""
        return sha256_of_json(self.identity)[:8]

    def is_of(self, card: Card) -> bool:
        """Whether this very job made the card."""
        told = {"architecture": card.architecture, "dataset": card.dataset.sha256, "seed": card.seed}
        return self.identity == {**told, "teacher_sha256": card.teacher_sha256, **card.whole_recipe}

    @property
    def folder(self) -> Path:
        """Where the model's files go."""
        return self.store.model_dir(self.model)

    @property
    def checkpoints(self) -> Checkpoints:
        """Those of this run, whether or not there are any."""
        return Checkpoints(self.folder / "checkpoints")


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """Keeps every other process from training into the job's folder.

    Raises:
        KilnError: One does.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(held(job.folder, wait=False))
        except BlockingIOError as error:
            raise KilnError(
                f"another process is training {job.model} into {job.folder}; wait for it, or give this run another "
                "--name"
            ) from error
        yield


def finished(job: Job, store: Store, name: str) -> Card | None:
    """The card of this very job, if it is done and kept in `store` as `name`.

    Raises:
        KilnError: It is, but one of its files is missing or altered.
    """
    folder = store.model_dir(name)
    if not (folder / CARD).is_file() or not job.is_of(card := store.card(name)):
        return None
    store.verify(folder, card.files, extra_allowed=True)
    return card


def start_over(job: Job) -> None:
    """Forgets the card and the checkpoints; files stay until the new ones replace them."""
    (job.folder / CARD).unlink(missing_ok=True)
    job.checkpoints.clear()
