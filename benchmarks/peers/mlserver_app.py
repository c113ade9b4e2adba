"""MLServer: a custom inference runtime over ONNX Runtime, spoken to in the Open Inference Protocol V2.

    MODEL=model.onnx THREADS=1 python -m benchmarks.peers.mlserver_app PORT GRPC_PORT METRICS_PORT

Sources: docs.seldon.ai/mlserver, "Custom Inference Runtimes" (the class, `model-settings.json` beside it), "Content
Types" (`np` for a tensor, `base64` for an image's bytes), "MLServer Settings" (`debug` false also switches the access
log off), "Parallel Inference" (`parallel_workers` 0 computes in the server's own process; the default, a pool of one
worker, was slower here: 256 against 588 gRPC calls/s by one connection and 602 against 597 by 16, for 1.7 times the
processor time, and with uvloop 0.22 or newer MLServer 1.7.1 cannot start its pool), "Adaptive Batching" (off as it
comes; used where `BATCH` is above 1). A tensor goes in over gRPC, which was faster than REST here, where it is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers import network

NAME = "classifier"


class Classifier(MLModel):  # type: ignore[misc]  # it has no types where this is checked
    """The network as a runtime."""

    async def load(self) -> bool:
        """Opens the session."""
        self.network = network.opened()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Probabilities of a UINT8 tensor, or of a PNG as BYTES."""
        given = payload.inputs[0]
        if given.datatype == "BYTES":
            pixels = np.concatenate([self.network.decode(body) for body in Base64Codec.decode_input(given)])
        else:
            pixels = NumpyCodec.decode_input(given)
        output = NumpyCodec.encode_output("probabilities", self.network(pixels))
        return InferenceResponse(model_name=self.name, outputs=[output])


def main(port: int, grpc_port: int, metrics_port: int) -> None:
    """Writes the model repository that `mlserver start` is documented to take, and becomes it."""
    folder = Path(tempfile.mkdtemp(prefix="mlserver-"))  # below TMPDIR, which benchmarks.peers.serving empties
    settings = {
        "debug": False,
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "metrics_dir": str(folder / "metrics"),
        "environments_dir": str(folder / "environments"),
        "parallel_workers": 0,
    }
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    model: dict[str, object] = {"name": NAME, "implementation": f"{__spec__.name}.Classifier"}
    if network.BATCH > 1:
        model |= {"max_batch_size": network.BATCH, "max_batch_time": network.BATCH_WAIT_S}
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    mlserver = str(Path(sys.executable).with_name("mlserver"))
    os.execve(mlserver, [mlserver, "start", str(folder)], {**os.environ, "PYTHONPATH": os.getcwd()})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
