"""A typed client of the service, for programs and for `python -m serving predict`.

    with Client("http://localhost:3000") as client:
        answer = client.predict(Path("cat.png"), model="simcnn", top=3)
        print(answer.predictions[0].name, answer.predictions[0].probability)

`AsyncClient` has the same methods to be awaited. A refusal that passes (429, 503) and a connection that cannot be had
or breaks are tried again, after the `Retry-After` the service named, else after a pause that doubles; asking twice for
a prediction changes nothing. Every other error is a `ServiceError` with the service's word and sentence.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

Image = bytes | Path
PASSING = (429, 503)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 30.0


class ServiceError(Exception):
    """The service refused or failed: its HTTP status, its word and its sentence. Status 0 is no answer at all."""

    def __init__(self, status: int, code: str, error: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{error} ({code}, {status})" if status else error)
        self.status, self.code, self.error, self.retry_after_s = status, code, error, retry_after_s


@dataclass(frozen=True)
class Prediction:
    """A class and its probability."""

    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a variant makes of an image, the likeliest class first; `milliseconds` are the service's, by stage."""

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    milliseconds: dict[str, float]


@dataclass(frozen=True)
class Retries:
    """How often a request is tried in all, and how long a pause may be, whatever the service names."""

    attempts: int = 4
    longest_pause_s: float = _LONGEST_PAUSE_S

    def pauses(self) -> Iterator[float]:
        """What to wait after each attempt but the last, where the service names nothing; with jitter."""
        pause = _FIRST_PAUSE_S
        for _ in range(self.attempts - 1):
            yield min(pause * random.uniform(0.5, 1.5), self.longest_pause_s)
            pause *= 2

    def after(self, error: ServiceError, otherwise: float) -> float:
        """The pause after this error."""
        return otherwise if error.retry_after_s is None else min(error.retry_after_s, self.longest_pause_s)


class _Calls:
    """What both clients send and how they read the answers."""

    @staticmethod
    def predict(image: Image, model: str, version: str, top: int | None) -> dict[str, Any]:
        return {
            "method": "POST",
            "url": "/predict",
            "params": _query(model, version, top),
            "content": _bytes(image),
            "headers": {"content-type": "application/octet-stream"},
        }

    @staticmethod
    def predict_batch(
        images: Sequence[Image] | NDArray[np.uint8], model: str, version: str, top: int | None
    ) -> dict[str, Any]:
        call: dict[str, Any] = {"method": "POST", "url": "/predict/batch", "params": _query(model, version, top)}
        if isinstance(images, np.ndarray):
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
                raise ValueError(f"images are {images.dtype} {list(images.shape)}; they are to be uint8 [N, H, W, 3]")
            call["params"]["shape"] = ",".join(map(str, images.shape))
            return {**call, "content": images.tobytes(), "headers": {"content-type": "application/octet-stream"}}
        return {**call, "files": [("image", (f"{i}", _bytes(image))) for i, image in enumerate(images)]}

    @staticmethod
    def answer(body: dict[str, Any]) -> Answer:
        return Answer(body["model"], body["version"], _predictions(body), body["milliseconds"])

    @staticmethod
    def answers(body: dict[str, Any]) -> list[Answer]:
        told = (body["model"], body["version"])
        return [Answer(*told, _predictions(result), body["milliseconds"]) for result in body["results"]]


class Client:
    """Asks one service over kept connections; safe to share between threads."""

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        token: str = "",
        timeout_s: float = 30,
        retries: Retries | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(token), timeout=timeout_s)
        self._retries = retries or Retries()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def predict(self, image: Image, *, model: str = "", version: str = "", top: int | None = None) -> Answer:
        """Classifies one image, given as encoded bytes or as the path of a file."""
        return _Calls.answer(self._ask(_Calls.predict(image, model, version, top)))

    def predict_batch(
        self, images: Sequence[Image] | NDArray[np.uint8], *, model: str = "", version: str = "", top: int | None = None
    ) -> list[Answer]:
        """Classifies several images in one request: encoded ones, or uint8 `[N, H, W, 3]` of the network's size."""
        return _Calls.answers(self._ask(_Calls.predict_batch(images, model, version, top)))

    def models(self) -> list[dict[str, Any]]:
        """What is served, with each variant's figures."""
        found: list[dict[str, Any]] = self._ask({"method": "GET", "url": "/models"})["models"]
        return found

    def model(self, name: str) -> dict[str, Any]:
        """One model's card and the cards of its variants."""
        return self._ask({"method": "GET", "url": f"/models/{name}"})

    def ready(self) -> bool:
        """Whether the service takes requests."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _ask(self, call: dict[str, Any]) -> dict[str, Any]:
        for otherwise in self._retries.pauses():
            try:
                return self._once(call)
            except ServiceError as error:
                if not _passes(error):
                    raise
                time.sleep(self._retries.after(error, otherwise))
        return self._once(call)

    def _once(self, call: dict[str, Any]) -> dict[str, Any]:
        try:
            return _read(self._http.request(**call))
        except httpx.TransportError as error:
            raise _unreachable(error, self._http.base_url) from error


class AsyncClient:
    """`Client` for an event loop."""

    def __init__(
        self,
        url: str = "http://localhost:3000",
        *,
        token: str = "",
        timeout_s: float = 30,
        retries: Retries | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(token), timeout=timeout_s)
        self._retries = retries or Retries()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def predict(self, image: Image, *, model: str = "", version: str = "", top: int | None = None) -> Answer:
        """Classifies one image, given as encoded bytes or as the path of a file."""
        return _Calls.answer(await self._ask(_Calls.predict(image, model, version, top)))

    async def predict_batch(
        self, images: Sequence[Image] | NDArray[np.uint8], *, model: str = "", version: str = "", top: int | None = None
    ) -> list[Answer]:
        """Classifies several images in one request: encoded ones, or uint8 `[N, H, W, 3]` of the network's size."""
        return _Calls.answers(await self._ask(_Calls.predict_batch(images, model, version, top)))

    async def models(self) -> list[dict[str, Any]]:
        """What is served, with each variant's figures."""
        found: list[dict[str, Any]] = (await self._ask({"method": "GET", "url": "/models"}))["models"]
        return found

    async def model(self, name: str) -> dict[str, Any]:
        """One model's card and the cards of its variants."""
        return await self._ask({"method": "GET", "url": f"/models/{name}"})

    async def ready(self) -> bool:
        """Whether the service takes requests."""
        try:
            return (await self._http.get("/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def _ask(self, call: dict[str, Any]) -> dict[str, Any]:
        for otherwise in self._retries.pauses():
            try:
                return await self._once(call)
            except ServiceError as error:
                if not _passes(error):
                    raise
                await asyncio.sleep(self._retries.after(error, otherwise))
        return await self._once(call)

    async def _once(self, call: dict[str, Any]) -> dict[str, Any]:
        try:
            return _read(await self._http.request(**call))
        except httpx.TransportError as error:
            raise _unreachable(error, self._http.base_url) from error


def _passes(error: ServiceError) -> bool:
    return error.status in PASSING or error.code == "unreachable"


def _read(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        body = {}
    if response.status_code == 200 and isinstance(body, dict):
        return body
    told = body if isinstance(body, dict) else {}
    raise ServiceError(
        response.status_code,
        str(told.get("code", "unexpected")),
        str(told.get("error", f"the service answered {response.status_code}")),
        _retry_after(response.headers.get("retry-after", "")),
    )


def _retry_after(text: str) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _unreachable(error: httpx.TransportError, url: httpx.URL) -> ServiceError:
    if isinstance(error, httpx.ReadTimeout):
        return ServiceError(0, "timeout", f"{url} did not answer in time")
    return ServiceError(0, "unreachable", f"{url} cannot be reached: {error or type(error).__name__}")


def _headers(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def _query(model: str, version: str, top: int | None) -> dict[str, str]:
    given = {"model": model, "version": version, "top": "" if top is None else str(top)}
    return {name: value for name, value in given.items() if value}


def _bytes(image: Image) -> bytes:
    return image.read_bytes() if isinstance(image, Path) else image


def _predictions(body: dict[str, Any]) -> tuple[Prediction, ...]:
    return tuple(Prediction(entry["class"], entry["probability"]) for entry in body["predictions"])
