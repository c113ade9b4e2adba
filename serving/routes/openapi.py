"""The description of every route and error, as OpenAPI 3.1, served at `/openapi.json`.

It is written by hand as data and held to the truth by tests: the routes are those of the router, and schemathesis asks
the service what the description says.
"""

from __future__ import annotations

from typing import Any

from serving.http.auth import is_open
from serving.http.web import Answer, Request, Route
from serving.settings import Settings

Schema = dict[str, Any]
VERSION = "3.1.0"
WORDS = {
    400: "The request is wrong; the sentence says what in it",
    401: "The token is missing or wrong",
    403: "Models are not loaded and unloaded by request here",
    404: "There is no such model, version or route; the sentence says which there are",
    408: "The body did not arrive in time",
    409: "There is nothing to go back to",
    413: "The body, the image or the batch is too large",
    415: "The content type or the image format is not read here",
    429: "The service has all it can do; `Retry-After` says when to try again",
    431: "The line and the headers are too long; the connection is closed",
    500: "The model's output is not finite, or the service failed; its log says why",
    503: "The request waited past its deadline, or this worker is ending",
    504: "The inference took too long",
}
ALWAYS = (400, 415, 429)
IMAGE = (400, 404, 408, 413, 415, 429, 500, 503, 504)


def ref(name: str) -> Schema:
    """A schema by name."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(properties: dict[str, Schema], optional: tuple[str, ...] = (), **more: Any) -> Schema:
    """An object with these properties, all of them there but the optional ones, and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def array(items: Schema) -> Schema:
    """An array of these."""
    return {"type": "array", "items": items}


TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
ANY_OBJECT: Schema = {"type": "object"}
BINARY: Schema = {"type": "string", "format": "binary"}


def query(name: str, description: str, schema: Schema) -> Schema:
    """A field of the query that may be left out."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def path(name: str, description: str, example: str) -> Schema:
    """A segment of the path."""
    schema = {"type": "string", "minLength": 1}
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": schema,
        "example": example,
    }


def operation(
    summary: str,
    answer: Schema | None,
    *,
    errors: tuple[int, ...] = ALWAYS,
    parameters: tuple[Schema, ...] = (),
    body: Schema | None = None,
    media: str = "application/json",
    tag: str = "predictions",
) -> Schema:
    """One method of one route: what it takes, what it answers, how it refuses."""
    content = {} if answer is None else {"content": {media: {"schema": answer}}}
    responses: Schema = {"200": {"description": "Done", **content}}
    responses |= {str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(set(errors))}
    described: Schema = {"summary": summary, "tags": [tag], "responses": responses}
    if parameters:
        described["parameters"] = list(parameters)
    if body is not None:
        described["requestBody"] = body
    return described


_MODEL = query("model", "A network's name; the most accurate one where it is left out", TEXT)
_VERSION = query("version", "A variant of it; the chosen one where it is left out", TEXT)
_TOP = query("top", "How many classes to tell", {"type": "integer", "minimum": 1, "maximum": 999999})
_SHAPE = query("shape", "Of a tensor: N,H,W,3", {"type": "string", "pattern": r"^[0-9]{1,6},[0-9]{1,6},[0-9]{1,6},3$"})
_NAME = path("model", "A network's name", "lenet")


def _schemas() -> dict[str, Schema]:
    milliseconds = {"type": "object", "additionalProperties": NUMBER}
    prediction = record({"class": TEXT, "probability": {"type": "number", "minimum": 0, "maximum": 1}})
    named = {"model": TEXT, "version": TEXT}
    figures = {
        "version": TEXT,
        "format": TEXT,
        "precision": TEXT,
        "top1": {"type": ["number", "null"]},
        "size_bytes": COUNT,
        "warm_ms": NUMBER,
        "p50_ms": {"type": ["number", "null"]},
        "images_per_s": {"type": ["number", "null"]},
    }
    summary = {
        "name": TEXT,
        "dataset": TEXT,
        "classes": array(TEXT),
        "input": {"type": "array", "items": COUNT, "minItems": 3, "maxItems": 3},
        "default_version": TEXT,
        "versions": array({"type": "object", "properties": figures, "required": list(figures)}),
    }
    listed = {**summary, "default": {"type": "boolean"}}
    detailed = {**summary, "card": ANY_OBJECT, "variants": array(ANY_OBJECT)}
    return {
        "Error": record({"error": TEXT, "code": {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"}}),
        "Prediction": prediction,
        "Answer": record({**named, "predictions": array(ref("Prediction")), "milliseconds": milliseconds}),
        "Answers": record(
            {
                **named,
                "results": array(record({"predictions": array(ref("Prediction"))})),
                "milliseconds": milliseconds,
            }
        ),
        "Models": record({"models": array({"type": "object", "properties": listed, "required": list(listed)})}),
        "Model": {"type": "object", "properties": detailed, "required": list(detailed)},
    }


def _own() -> dict[str, Schema]:
    image = {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": record({"image": BINARY})},
            "application/octet-stream": {"schema": BINARY},
            "image/*": {"schema": BINARY},
        },
    }
    batch = {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": record({"image": array(BINARY)})},
            "application/octet-stream": {"schema": BINARY},
        },
    }
    chosen = (_MODEL, _VERSION, _TOP)
    return {
        "/predict": {
            "post": operation("Classify one image", ref("Answer"), errors=IMAGE, parameters=chosen, body=image)
        },
        "/predict/batch": {
            "post": operation(
                "Classify several images, or a uint8 tensor in C order",
                ref("Answers"), errors=IMAGE, parameters=(*chosen, _SHAPE), body=batch,
            )
        },
        "/models": {"get": operation("What is served", ref("Models"))},
        "/models/{model}": {
            "get": operation("A network's card", ref("Model"), errors=(*ALWAYS, 404), parameters=(_NAME,))
        },
    }  # fmt: skip


def _operations() -> dict[str, Schema]:
    def get(summary: str, media: str, errors: tuple[int, ...] = ALWAYS) -> Schema:
        return {"get": operation(summary, TEXT, media=media, errors=errors, tag="operations")}

    return {
        "/": get("The page", "text/html; charset=utf-8"),
        "/page/{file}": {
            "get": operation(
                "A file of the page", None, errors=(*ALWAYS, 404), tag="operations",
                parameters=(path("file", "Its name", "page.js"),),
            )
        },
        "/page/samples/{dataset}/{file}": {
            "get": operation(
                "A sample image", BINARY, media="image/png", errors=(*ALWAYS, 404), tag="operations",
                parameters=(path("dataset", "A data set's name", "cifar10"), path("file", "Its name", "truck.png")),
            )
        },
        "/openapi.json": {"get": operation("This description", ANY_OBJECT, tag="operations")},
        "/livez": get("Whether the process lives", "text/plain; charset=utf-8", ()),
        "/healthz": get("As /livez", "text/plain; charset=utf-8", ()),
        "/readyz": get("Whether requests are taken", "text/plain; charset=utf-8", (503,)),
        "/metrics": get("Prometheus metrics", "text/plain; version=1.0.0; charset=utf-8", ()),
    }  # fmt: skip


def _responses(settings: Settings) -> dict[str, Schema]:
    body = {"application/json": {"schema": ref("Error")}}
    retry = {"Retry-After": {"schema": TEXT, "required": False, "description": "Seconds"}}
    return {
        str(status): {"description": words, "content": body, **({"headers": retry} if status in (429, 503) else {})}
        for status, words in WORDS.items()
        if status != 401 or settings.token
    }


def describe(
    settings: Settings, paths: dict[str, Schema] | None = None, schemas: dict[str, Schema] | None = None
) -> Schema:
    """The whole document; `paths` and `schemas` are further ones, of other protocols."""
    described: Schema = {
        "openapi": VERSION,
        "info": {
            "title": "modelkiln",
            "version": "1",
            "description": f"Image classification. Bodies are at most {settings.max_body_bytes} bytes, images "
            f"{settings.max_pixels} pixels, batches {settings.max_batch} images.",
        },
        "paths": {**_own(), **(paths or {}), **_operations()},
        "components": {"schemas": {**_schemas(), **(schemas or {})}, "responses": _responses(settings)},
    }
    for route in described["paths"].values():
        for method in route.values():
            method["responses"]["431"] = {"$ref": "#/components/responses/431"}
    if settings.token:
        _guard(described)
    return described


def _guard(described: Schema) -> None:
    """Says which routes ask for the token."""
    described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"token": []}]
    for name, route in described["paths"].items():
        for method in route.values():
            if is_open(name):
                method["security"] = []
            else:
                method["responses"]["401"] = {"$ref": "#/components/responses/401"}


def route(
    settings: Settings, paths: dict[str, Schema] | None = None, schemas: dict[str, Schema] | None = None
) -> Route:
    """`GET /openapi.json`."""
    described = Answer(describe(settings, paths, schemas))

    async def handler(request: Request) -> Answer:
        request.query()
        return described

    return Route("GET", "/openapi.json", handler)
