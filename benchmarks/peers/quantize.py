"""Runs one peer's post-training quantization by its defaults; a program of its own, in the peers' environment.

    python quantize.py PEER SOURCE.onnx CALIBRATION.npy OUT_FOLDER

`PEER` is `olive` (Microsoft Olive's OnnxStaticQuantization pass), `nncf-onnx` or `nncf-openvino` (nncf.quantize on ONNX
and on OpenVINO's graph). CALIBRATION is uint8 `[N, H, W, 3]`, what the ONNX takes. It imports nothing of this project.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np


def nncf_onnx(source: Path, images: Any, out: Path) -> None:
    """NNCF on the ONNX graph, preset and subset size its own; writes `model.onnx`."""
    import nncf
    import onnx

    model = onnx.load(source)
    name = model.graph.input[0].name
    data = nncf.Dataset([{name: images[i : i + 1]} for i in range(len(images))])
    _save(nncf.quantize(model, data), out)


def nncf_openvino(source: Path, images: Any, out: Path) -> None:
    """NNCF on OpenVINO's graph; writes `model.xml` and `model.bin`."""
    import nncf
    import openvino as ov

    data = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
    model = nncf.quantize(ov.convert_model(source), data)
    model.set_rt_info("f32", ["modelkiln", "inference_precision"])  # what the loader here asks of every file
    ov.save_model(model, out / "model.xml", compress_to_fp16=False)


def olive(source: Path, images: Any, out: Path) -> None:
    """Olive's static quantization pass with nothing set but the data; writes `model.onnx`."""
    import onnx
    import torch
    from olive.data.registry import Registry
    from olive.workflows import run

    name = onnx.load(source).graph.input[0].name

    class Images(torch.utils.data.Dataset):  # type: ignore[misc]  # torch is not installed where this is checked
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[dict[str, Any], int]:
            return {name: images[index]}, 0

    Registry.register_dataset("calibration_images")(lambda **_: Images())
    work = out / "olive"
    run(
        {
            "input_model": {"type": "ONNXModel", "model_path": str(source)},
            "data_configs": [
                {
                    "name": "calibration",
                    "type": "DataContainer",
                    "load_dataset_config": {"type": "calibration_images"},
                    "pre_process_data_config": {"type": "skip_pre_process"},
                    "post_process_data_config": {"type": "skip_post_process"},
                    "dataloader_config": {"type": "default_dataloader", "batch_size": 1},
                }
            ],
            "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
            "output_dir": str(work / "output"),
            "cache_dir": str(work / "cache"),
        }
    )
    _save(onnx.load(work / "output" / "model.onnx"), out)
    shutil.rmtree(work)


def _save(model: Any, out: Path) -> None:
    """Writes `model.onnx` without the operator sets that no node uses: the loader refuses those it does not know."""
    import onnx

    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used or entry.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, out / "model.onnx")


PEERS = {"olive": olive, "nncf-onnx": nncf_onnx, "nncf-openvino": nncf_openvino}

if __name__ == "__main__":
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # NNCF and OpenVINO do without it
    peer, source, calibration, out = sys.argv[1:5]
    try:
        PEERS[peer](Path(source).resolve(), np.load(calibration), Path(out).resolve())
    except ModuleNotFoundError as error:
        sys.exit(f"the package {error.name} is not installed; run: make peers-export")
