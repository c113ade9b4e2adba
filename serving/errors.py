"""What goes wrong with a request, as the one body every error has: `{"error": "<one sentence>", "code": "<word>"}`."""

from __future__ import annotations


class RequestError(Exception):
    """A request that gets no answer but this: an HTTP status, a word for programs and a sentence for people.

    The sentence never holds a path of this machine, and what it quotes of the request is shortened by `quoted`.
    """

    def __init__(self, status: int, code: str, error: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(error)
        self.status, self.code, self.error, self.headers = status, code, error, headers or {}


def quoted(text: str) -> str:
    """Somebody else's text, fit for a message or a log: on one line, control characters escaped, 80 at most."""
    return repr(text[:80]) + ("…" if len(text) > 80 else "")
