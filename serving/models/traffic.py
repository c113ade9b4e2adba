"""Which variant takes a request that names none.

A canary answers its share of such requests, exactly: every request adds the share to a credit, and a whole credit is
one request for the canary.
"""

from __future__ import annotations

from typing import Generic, TypeVar

V = TypeVar("V")


class Split(Generic[V]):
    """Shares requests out between the default variant and a canary; `shadow` looks on."""

    def __init__(self, default: V, canary: V | None = None, share: float = 0.0, shadow: V | None = None) -> None:
        self.default, self.canary, self.share, self.shadow = default, canary, share, shadow
        self._credit = 0.0

    def pick(self) -> V:
        """The variant for the next request."""
        if self.canary is None:
            return self.default
        self._credit += self.share
        if self._credit < 1 - 1e-9:
            return self.default
        self._credit -= 1
        return self.canary
