"""Run by a Python that has `kserve`: its stock client, with its defaults, against a server; prints what came of it.

Its own records of an InferenceService are asked about ours, too.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from kserve import (
    InferenceRESTClient,
    InferInput,
    InferRequest,
    V1beta1InferenceService,
    V1beta1InferenceServiceSpec,
    V1beta1PredictorSpec,
)
from kserve.inference_client import RESTConfig

SCALARS = {"int": int, "str": str, "bool": bool}


def refused(manifest: Path) -> list[str]:
    """Fields that KServe's records do not have, or not as such a scalar."""
    service = yaml.safe_load(manifest.read_text())
    levels: list[tuple[dict[str, Any], Any]] = [
        (service, V1beta1InferenceService),
        (service["spec"], V1beta1InferenceServiceSpec),
        (service["spec"]["predictor"], V1beta1PredictorSpec),
    ]
    found = []
    for told, record in levels:
        names = {there: here for here, there in record.attribute_map.items()}
        for name, value in told.items():
            kind = SCALARS.get(record.openapi_types.get(names.get(name, ""), ""), object)
            if name not in names or not isinstance(value, kind):
                found.append(name)
    return found


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
    print(json.dumps({**told, "refused": refused(Path(sys.argv[2]))}))


asyncio.run(main(sys.argv[1]))
