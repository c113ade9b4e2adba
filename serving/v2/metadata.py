"""What V2 tells of the server, of models, and of their variants' work so far."""

from __future__ import annotations

from typing import Any

from serving.models.repository import Model, Served
from serving.v2.fields import ENCODED, IMAGES, PROBABILITIES

NAME, VERSION = "modelkiln", "0.1.0"  # as in pyproject.toml, which is not packed with the service
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
_PLATFORMS = {"onnx": "onnxruntime_onnx", "litert": "litert_tflite", "openvino": "openvino_ir"}


def server() -> dict[str, Any]:
    """Of `GET /v2`."""
    return {"name": NAME, "version": VERSION, "extensions": list(EXTENSIONS)}


def metadata(model: Model, served: Served) -> dict[str, Any]:
    """Of a model, by one of its variants. A request takes one of the two inputs."""
    info, card = model.card.dataset, served.card
    return {
        "name": model.card.model,
        "versions": list(model.variants),
        "platform": platform(served),
        "inputs": [
            {"name": IMAGES, "datatype": "UINT8", "shape": [-1, info.height, info.width, 3]},
            {"name": ENCODED, "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [{"name": PROBABILITIES, "datatype": "FP32", "shape": [-1, len(info.classes)]}],
        "parameters": {
            "version": served.version,
            "default_version": model.default,
            "classes": info.classes,
            "encodings": ["image/png", "image/jpeg", "image/webp"],
            "top1_percent": card.accuracy.top1 if card.accuracy else None,
        },
    }


def platform(served: Served) -> str:
    """Triton's word for a variant's format, where it has one."""
    return _PLATFORMS.get(served.card.variant.format, served.card.variant.format)


def config(model: Model, served: Served, max_images: int) -> dict[str, Any]:
    """In the shape of Triton's model configuration."""
    info, limits = model.card.dataset, served.lane.limits
    return {
        "name": model.card.model,
        "platform": platform(served),
        "backend": served.card.variant.format,
        "max_batch_size": max_images,
        "input": [
            {
                "name": IMAGES,
                "data_type": "TYPE_UINT8",
                "format": "FORMAT_NHWC",
                "dims": [info.height, info.width, 3],
                "optional": True,
            },
            {"name": ENCODED, "data_type": "TYPE_STRING", "dims": [1], "optional": True},
        ],
        "output": [{"name": PROBABILITIES, "data_type": "TYPE_FP32", "dims": [len(info.classes)]}],
        "dynamic_batching": {
            "preferred_batch_size": [limits.max_batch],
            "max_queue_delay_microseconds": 0,
            "default_queue_policy": {
                "timeout_action": "REJECT",
                "default_timeout_microseconds": round(limits.deadline_s * 1e6),
                "allow_timeout_override": True,
                "max_queue_size": limits.max_queue,
            },
        },
        "default_model_filename": served.card.file,
    }


def statistics(model: Model, served: Served) -> dict[str, Any]:
    """A variant's work in this worker since it was loaded, as Triton's statistics extension has it."""
    tally = served.lane.tally
    batches = [
        {"batch_size": size, "compute_infer": _duration(count, seconds)}
        for size, (count, seconds) in sorted(tally.batches.items())
    ]
    return {
        "name": model.card.model,
        "version": served.version,
        "last_inference": round(1000 * tally.last),
        "inference_count": tally.images,
        "execution_count": sum(count for count, _ in tally.batches.values()),
        "inference_stats": {
            "success": _duration(tally.requests, tally.queue_s + tally.compute_s),
            "fail": _duration(tally.failures, 0.0),
            "queue": _duration(tally.requests, tally.queue_s),
            "compute_infer": _duration(tally.requests, tally.compute_s),
        },
        "batch_stats": batches,
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
