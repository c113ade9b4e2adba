"""The routes of the Open Inference Protocol V2 in the description at `/openapi.json`."""

from __future__ import annotations

from typing import Any

from serving.routes.openapi import ALWAYS, ANY_OBJECT, BINARY, COUNT, IMAGE, TEXT, Schema, array, operation, path, ref
from serving.v2.codec import MAX_ID
from serving.v2.fields import ENCODED, IMAGES, PROBABILITIES

_NAME = path("model", "A network's name", "lenet")
_VERSION = path("version", "A variant's name", "onnx-int8")
_TRUE: Schema = {"type": "boolean", "const": True}
_BODY_ERRORS = (*ALWAYS, 408, 413)


def _told(properties: dict[str, Schema], optional: tuple[str, ...] = ()) -> Schema:
    """An object whose further properties are not ours to forbid."""
    return {"type": "object", "properties": properties, "required": [n for n in properties if n not in optional]}


def schemas() -> dict[str, Schema]:
    """Requests and answers of the protocol."""
    shape = {"type": "array", "items": COUNT, "minItems": 1}
    size = {"type": "object", "properties": {"binary_data_size": COUNT}}
    data: Schema = {"type": "array", "items": {"type": ["array", "integer", "string", "number"]}}
    given: dict[str, Schema] = {
        "name": {"enum": [IMAGES, ENCODED]},
        "shape": shape,
        "datatype": {"enum": ["UINT8", "BYTES"]},
        "parameters": size,
        "data": data,
    }
    wanted: dict[str, Schema] = {"name": {"const": PROBABILITIES}, "parameters": ANY_OBJECT}
    output: dict[str, Schema] = {"name": TEXT, "datatype": TEXT, "shape": shape, "parameters": size, "data": data}
    tensor = _told({"name": TEXT, "datatype": TEXT, "shape": {"type": "array", "items": {"type": "integer"}}})
    metadata: dict[str, Any] = {"name": TEXT, "versions": array(TEXT), "platform": TEXT}
    metadata |= {"inputs": array(tensor), "outputs": array(tensor), "parameters": ANY_OBJECT}
    duration = _told({"count": COUNT, "ns": COUNT})
    entry: dict[str, Schema] = {
        "name": TEXT,
        "version": TEXT,
        "state": {"enum": ["READY", "UNAVAILABLE"]},
        "reason": TEXT,
    }
    statistics: dict[str, Any] = {"name": TEXT, "version": TEXT, "last_inference": COUNT, "inference_count": COUNT}
    statistics |= {
        "execution_count": COUNT,
        "inference_stats": {"type": "object", "additionalProperties": duration},
        "batch_stats": array(ANY_OBJECT),
    }
    request: dict[str, Any] = {"id": {"type": "string", "maxLength": MAX_ID}, "parameters": ANY_OBJECT}
    request |= {
        "inputs": {**array(_told(given, ("parameters", "data"))), "minItems": 1, "maxItems": 1},
        "outputs": array(_told(wanted, ("parameters",))),
    }
    answer = {"id": TEXT, "model_name": TEXT, "model_version": TEXT, "outputs": array(ref("V2Output"))}
    return {
        "V2Request": _told(request, ("id", "parameters", "outputs")),
        "V2Output": _told(output, ("parameters", "data")),
        "V2Answer": _told({**answer, "parameters": ANY_OBJECT}, ("id", "parameters")),
        "V2Metadata": _told(metadata),
        "V2Statistics": _told({"model_stats": array(_told(statistics))}),
        "V2Index": array(_told(entry)),
    }


def _of_model() -> dict[str, Schema]:
    """What there is of a model, and of a variant of it."""
    found: dict[str, Schema] = {}
    for base, names in (("/v2/models/{model}", (_NAME,)), ("/v2/models/{model}/versions/{version}", (_NAME, _VERSION))):

        def get(summary: str, answer: Schema, names: tuple[Schema, ...] = names) -> Schema:
            return {"get": operation(summary, answer, errors=(*ALWAYS, 404), parameters=names, tag="V2")}

        ready = _told({"name": TEXT, "version": TEXT, "ready": _TRUE})
        found[base] = get("What a model takes and gives", ref("V2Metadata"))
        found[f"{base}/ready"] = get("Whether it is loaded", ready)
        found[f"{base}/config"] = get("Its configuration, in Triton's words", ANY_OBJECT)
        found[f"{base}/stats"] = get("What it has done in this worker", ref("V2Statistics"))
        found[f"{base}/infer"] = {"post": _infer(names)}
    return found


def _infer(names: tuple[Schema, ...]) -> Schema:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of JSON before the binary tensors",
        "schema": COUNT,
    }
    content = {"application/json": {"schema": ref("V2Request")}, "application/octet-stream": {"schema": BINARY}}
    infer = operation(
        "Infer", ref("V2Answer"), errors=IMAGE, parameters=(*names, length),
        body={"required": True, "content": content}, tag="V2",
    )  # fmt: skip
    infer["responses"]["200"]["content"]["application/octet-stream"] = {"schema": BINARY}
    return infer


def _control(summary: str, answer: Schema) -> Schema:
    schema = _told({"parameters": ANY_OBJECT}, ("parameters",))
    body = {"required": False, "content": {"application/json": {"schema": schema}}}
    errors = (*_BODY_ERRORS, 403, 404, 409, 503)
    return {"post": operation(summary, answer, errors=errors, parameters=(_NAME,), body=body, tag="V2")}


def paths() -> dict[str, Schema]:
    """All routes under `/v2`."""

    def get(summary: str, answer: Schema, errors: tuple[int, ...] = ALWAYS) -> Schema:
        return {"get": operation(summary, answer, errors=errors, tag="V2")}

    wish = {"application/json": {"schema": _told({"ready": {"type": "boolean"}}, ("ready",))}}
    index = operation(
        "What the repository holds", ref("V2Index"), errors=_BODY_ERRORS,
        body={"required": False, "content": wish}, tag="V2",
    )  # fmt: skip
    server = _told({"name": TEXT, "version": TEXT, "extensions": array(TEXT)})
    probe = (400, 415)
    repository = "/v2/repository/models/{model}"
    return {
        "/v2": get("The server", server),
        "/v2/health/live": get("Whether the process lives", _told({"live": _TRUE}), probe),
        "/v2/health/ready": get("Whether requests are taken", _told({"ready": _TRUE}), (*probe, 503)),
        "/v2/models": get("Names of what is loaded", _told({"models": array(TEXT)})),
        "/v2/models/stats": get("What every variant has done in this worker", ref("V2Statistics")),
        **_of_model(),
        "/v2/repository/index": {"post": index},
        f"{repository}/load": _control("Load a model, or load it anew", ANY_OBJECT),
        f"{repository}/unload": _control("Take a model out of service", ANY_OBJECT),
        f"{repository}/rollback": _control("Serve what was served before", _told({"name": TEXT, "version": TEXT})),
    }
