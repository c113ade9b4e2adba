"""The page at `/`: its files, read once, and sample images by data set. It asks nobody but this service."""

from __future__ import annotations

from pathlib import Path

from serving.errors import RequestError, quoted
from serving.http.web import Answer, Handler, Request, Route

_FOLDER = Path(__file__).parent
_MEDIA = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def routes() -> list[Route]:
    """The page, its files by name, and the samples; names are only ever compared, never made a path."""
    files = {
        path.relative_to(_FOLDER).as_posix(): _answer(path)
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _MEDIA
    }
    samples: dict[str, list[str]] = {}
    for name in files:
        match name.split("/"):
            case ["samples", dataset, image]:
                samples.setdefault(dataset, []).append(image)
    files["samples.json"] = Answer({"samples": samples}, headers=_HEADERS)
    return [
        Route("GET", "/", _fixed(files["index.html"])),
        Route("GET", "/page/{file}", _named(files, "{file}")),
        Route("GET", "/page/samples/{dataset}/{file}", _named(files, "samples/{dataset}/{file}")),
    ]


def _answer(path: Path) -> Answer:
    return Answer(path.read_bytes(), headers=_HEADERS, media=_MEDIA[path.suffix])


def _fixed(answer: Answer) -> Handler:
    async def handler(request: Request) -> Answer:
        request.query()
        return answer

    return handler


def _named(files: dict[str, Answer], template: str) -> Handler:
    async def handler(request: Request) -> Answer:
        request.query()
        name = template.format(**request.params)
        if name not in files:
            raise RequestError(404, "file_unknown", f"the page has no file {quoted(name)}")
        return files[name]

    return handler
