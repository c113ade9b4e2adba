"""The service one would write by hand: FastAPI, ONNX Runtime, Pillow, in one file. Run by `benchmarks.load`.

    MODEL=model.onnx THREADS=1 uvicorn benchmarks.peers.fastapi_app:app --no-access-log

`POST /predict` takes a form's file `image`, `POST /raw` the image as the body, `POST /tensor` uint8 pixels. The
handlers are coroutines that compute on the event loop, the fastest way for networks of well under a millisecond
(handing over to a thread costs more than the inference). Decoding is the service's: any other would measure Pillow's
options.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import numpy as np
import onnxruntime
from fastapi import FastAPI, File, Request, UploadFile

from serving import images

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(os.environ.get("THREADS", "1"))
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
_, HEIGHT, WIDTH, _ = session.get_inputs()[0].shape
CLASSES = [str(index) for index in range(session.get_outputs()[0].shape[1])]
app = FastAPI()


def classify(pixels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """The five likeliest classes of uint8 `[1, H, W, 3]`."""
    row = session.run(None, {name: pixels})[0][0]
    order = np.argsort(-row, kind="stable")[:5].tolist()
    return {"predictions": [{"class": CLASSES[index], "probability": float(row[index])} for index in order]}


def decode(body: bytes) -> np.ndarray[Any, Any]:
    """uint8 `[1, H, W, 3]`."""
    return images.inspect(body, 25_000_000).decode(HEIGHT, WIDTH)[None]


@app.post("/predict")
async def predict(image: Annotated[UploadFile, File()]) -> dict[str, Any]:
    """Classifies a form's file."""
    return classify(decode(await image.read()))


@app.post("/raw")
async def raw(request: Request) -> dict[str, Any]:
    """Classifies the body."""
    return classify(decode(await request.body()))


@app.post("/tensor")
async def tensor(request: Request) -> dict[str, Any]:
    """Classifies pixels."""
    pixels = np.frombuffer(await request.body(), np.uint8).reshape(1, HEIGHT, WIDTH, 3)
    return classify(pixels)
