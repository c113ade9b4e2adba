"""The frameworks that take part in `benchmarks.peers.serving`, and `EVERY`, the list of all who do."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from benchmarks.load import served, wire
from benchmarks.load.contents import BYTES, form
from benchmarks.peers import grpc_wire
from benchmarks.peers.contenders import (
    FASTAPI,
    JSON,
    OURS,
    Contender,
    Picture,
    Subject,
    Way,
    floats,
    listed,
    numbered,
    png_form,
    raw,
)


def _settings(subject: Subject, **more: str) -> dict[str, str]:
    told = {"MODEL": str(subject.file.resolve()), "THREADS": str(subject.threads), "TMPDIR": str(subject.scratch)}
    return {**told, "BATCH": str(subject.batch), **more}


def _module(subject: Subject, name: str, *arguments: str) -> list[str]:
    python = subject.environments.resolve() / name / "bin" / "python"
    return [str(python), "-m", f"benchmarks.peers.{name}_app", "{port}", *arguments]


def _start_bentoml(subject: Subject) -> AbstractContextManager[served.Server]:
    return served.bentoml(subject.file, **_settings(subject))


def _start_litserve(subject: Subject) -> AbstractContextManager[served.Server]:
    return served.running("LitServe", _module(subject, "litserve"), "/health", _settings(subject))


@contextmanager
def _start_mlserver(subject: Subject) -> Iterator[served.Server]:
    grpc = served.free_port()
    command = _module(subject, "mlserver", str(grpc), str(served.free_port()))
    with served.running("MLServer", command, "/v2/models/classifier/ready", _settings(subject)) as server:
        server.ports["grpc"] = grpc
        yield server


def _start_ray(subject: Subject) -> AbstractContextManager[served.Server]:
    more = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    more |= {"RAY_AUTH_MODE": "disabled"}  # on loopback; else it leaves a token in the user's home
    places = {
        "CONFIG_FILE_LOC": "haproxy.cfg",
        "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_FILE": "state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }
    more |= {f"RAY_SERVE_HAPROXY_{name}": str(subject.scratch / file) for name, file in places.items()}
    more |= {f"RAY_SERVE_HAPROXY_{name}_PORT": str(served.free_port()) for name in ("METRICS", "STATS")}
    more |= {"RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(subject.scratch), "RAY_TMPDIR": str(subject.scratch)}
    return served.running("Ray Serve", _module(subject, "ray"), "/", _settings(subject, **more))


def _v2_json(given: dict[str, Any]) -> bytes:
    return wire.request("/v2/models/classifier/infer", json.dumps({"inputs": [given]}).encode(), JSON)


def _v2_grpc(subject: Subject, picture: Picture) -> bytes:
    pixels = picture.pixels
    message = grpc_wire.infer("classifier", "images", pixels.shape, "UINT8", pixels.tobytes())
    return grpc_wire.call("/inference.GRPCInferenceService/ModelInfer", message)


def _v2_png(subject: Subject, picture: Picture) -> bytes:
    given = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(picture.png).decode()]}
    return _v2_json({**given, "parameters": {"content_type": "base64"}})


def _json_tensor(subject: Subject, picture: Picture) -> bytes:
    return wire.request("/tensor", json.dumps({"pixels": picture.pixels.tolist()}).encode(), JSON)


BENTOML = Contender(
    "bentoml",
    "BentoML",
    "bentoml",
    _start_bentoml,
    png=Way("PNG in a form", png_form("/predict"), lambda subject, body: numbered(json.loads(body))),
    tensor=Way("JSON", _json_tensor, lambda subject, body: numbered(json.loads(body)[0])),
    own_environment=False,
)
LITSERVE = Contender(
    "litserve",
    "LitServe",
    "litserve",
    _start_litserve,
    png=Way("PNG in a form", png_form("/predict"), listed),
    tensor=Way(
        "raw bytes in a form",
        lambda s, p: form("/predict", "tensor", p.pixels.tobytes(), BYTES["content-type"]),
        listed,
    ),
)
MLSERVER = Contender(
    "mlserver",
    "MLServer",
    "mlserver",
    _start_mlserver,
    png=Way("PNG as V2 base64", _v2_png, lambda subject, body: numbered(json.loads(body)["outputs"][0]["data"])),
    tensor=Way("V2, gRPC", _v2_grpc, lambda s, body: floats(s, grpc_wire.floats(body)), grpc_wire.Caller, "grpc"),
)
RAY = Contender(
    "ray",
    "Ray Serve",
    "ray",
    _start_ray,
    png=Way("PNG in a form", png_form("/"), listed),
    tensor=Way("raw bytes", raw("/"), floats),
)
EVERY = {one.name: one for one in (OURS, FASTAPI, BENTOML, LITSERVE, MLSERVER, RAY)}
