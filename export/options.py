"""What a user asks of an export beside which variants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from catalog import DatasetInfo
from export.transforms import ITS_OWN, Finetuning


@dataclass(frozen=True)
class Options:
    """How to export. `calibration_images` and `seed` choose the training images that int8 ranges are measured on."""

    threads: int = 2
    force: bool = False
    timeout: float = 1800.0  # seconds for one conversion with its proof
    calibration_images: int = 1024
    seed: int = 0
    finetune: Finetuning = ITS_OWN
    allowed_drop: float | None = None  # points of top-1 on the validation split; what loses more is not offered
    as_it_is: bool = False  # take a transform that is there, however long it was fine-tuned

    def settings(self, form: Any, precision: str, data: DatasetInfo) -> dict[str, Any]:
        """What a variant would be made with: the format's settings, and how it was calibrated if it was."""
        settings: dict[str, Any] = dict(form.SETTINGS[precision])
        if precision in ("int8", "mixed"):
            settings |= {
                "calibration_images": min(self.calibration_images, data.train_images),
                "calibration_seed": self.seed,
            }
        return settings
