"""A wide space for random search and ASHA: what usually decides how well a small image classifier trains.

Weight decay is decoupled in every optimizer here, so `adam` with one is `adamw`, and only one of the two is tried.
"""

from __future__ import annotations

from typing import Any

from training.spaces import Log

BASE: dict[str, Any] = {"epochs": 12, "batch_size": 128, "validation": 0.1}


def space(model: str) -> dict[str, Any]:
    """The same for every model."""
    return {
        "optimizer": ["sgd", "adamw"],
        "learning_rate": Log(3e-4, 0.1),
        "weight_decay": Log(1e-5, 1e-2),
        "schedule": ["cosine", "onecycle"],
        "label_smoothing": [0.0, 0.05, 0.1],
        "augment": ["basic", "advanced"],
        "cutout": [0, 8],
        "average": [0.0, 0.99, 0.998],
    }
