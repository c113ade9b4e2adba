"""Run by a Python that has `kserve`: its stock client, with its defaults, against a server; prints what came of it."""

import asyncio
import json
import sys

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig


async def main(url: str) -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, ..., 0], images[1, ..., 2] = 255, 255
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        told = {
            "live": await client.is_server_live(url),
            "ready": await client.is_server_ready(url),
            "model": await client.is_model_ready(url, "colours"),
            "nothing": await client.is_model_ready(url, "nothing"),
        }
        for binary_in in (False, True):
            for binary_out in (False, True):
                tensor = InferInput("images", list(images.shape), "UINT8")
                tensor.set_data_from_numpy(images, binary_data=binary_in)
                request = InferRequest(
                    model_name="colours",
                    infer_inputs=[tensor],
                    request_id="r-1",
                    parameters={"binary_data_output": True} if binary_out else None,
                )
                answer = await client.infer(url, request, model_name="colours")
                best = answer.outputs[0].as_numpy().argmax(axis=1).tolist()
                told[f"{binary_in} {binary_out}"] = [answer.id, answer.model_name, best]
    print(json.dumps(told))


asyncio.run(main(sys.argv[1]))
