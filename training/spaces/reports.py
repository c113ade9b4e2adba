"""The grid of the student reports: optimizer, learning rate, weight decay, augmentation; for AlexNet also dropout.

Weight decay is decoupled here: a step shrinks a weight by learning rate times decay. Where the reports had it in the
loss, as L2, it pulled harder (ten times with momentum .9), and this axis of their grid says less than it did there.
"""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "schedule": "cosine",
    "epochs": 10,
    "batch_size": 128,
    "warmup_epochs": 0.0,
    "label_smoothing": 0.0,
    "cutout": 0,
    "mixup": 0.0,
    "cutmix": 0.0,
    "sizes": (),
    "average": 0.0,
    "validation": 0.1,
}


def space(model: str) -> dict[str, list[Any]]:
    """16 combinations, 32 for AlexNet."""
    varied: dict[str, list[Any]] = {
        "optimizer": ["sgd", "adam"],
        "learning_rate": [0.001, 0.01],
        "weight_decay": [5e-4, 1e-4],
        "augment": ["basic", "advanced"],
    }
    return varied | ({"dropout": [0.3, 0.5]} if model == "alexnet" else {})
