"""Who may ask: an optional bearer token (RFC 6750), and which web pages' scripts may (CORS, off by default)."""

from __future__ import annotations

import hmac

from serving.errors import RequestError

Headers = list[tuple[bytes, bytes]]
METHODS = (b"access-control-allow-methods", b"GET, POST")
_ASKED = (  # headers of requests that mean something here, but those that every page may send
    b"authorization, content-type, content-encoding, inference-header-content-length, x-request-id, traceparent"
)
_TOLD = b"retry-after, x-request-id, traceparent, inference-header-content-length"
PROBES = frozenset(  # asked by machines, which carry no token and must not be turned away when there is much to do
    ("/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready")
)
OPEN = PROBES | {"/", "/openapi.json"}  # the page is the same for everybody and asks for the token itself
OPEN_FOLDER = "/page/"


def is_open(path: str) -> bool:
    """Whether a route answers without the token."""
    return path in OPEN or path.startswith(OPEN_FOLDER)


class Guard:
    """Compares tokens in constant time and answers for other origins."""

    def __init__(self, token: str = "", cors_origins: str = "") -> None:
        self._token = token.encode()
        self._origins = frozenset(origin.strip() for origin in cors_origins.split(",") if origin.strip())

    def admit(self, path: str, header: bytes) -> None:
        """Lets through a request to `path` with this `Authorization` header.

        Raises:
            RequestError: 401 `token_missing` or `token_wrong`.
        """
        if not self._token or is_open(path):
            return
        scheme, _, given = header.partition(b" ")
        challenge = {"www-authenticate": 'Bearer realm="modelkiln"'}
        if scheme.lower() != b"bearer":
            raise RequestError(401, "token_missing", "send the header Authorization: Bearer <token>", challenge)
        if not hmac.compare_digest(given.strip(), self._token):
            raise RequestError(401, "token_wrong", "the token is not the one this service takes", challenge)

    def cors(self, origin: bytes, preflight: bool) -> Headers:
        """Headers for a page of `origin`; none if it may not ask, so that its browser keeps the answer from it."""
        if not self._origins or not origin:
            return []
        if "*" not in self._origins and origin.decode("latin-1") not in self._origins:
            return [(b"vary", b"origin")]
        headers = [(b"access-control-allow-origin", origin), (b"vary", b"origin")]
        if preflight:
            headers += [
                METHODS,
                (b"access-control-allow-headers", _ASKED),
                (b"access-control-max-age", b"600"),
            ]
        else:
            headers.append((b"access-control-expose-headers", _TOLD))
        return headers
