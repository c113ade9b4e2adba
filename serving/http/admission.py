"""How many requests a worker lets in: so many are worked on at a time, and more are turned away at once.

A request has a place while it is worked on, not while its body is still on its way nor while its answer is: who writes
or reads slowly, or not at all, keeps nobody else out. Twice as many bodies as there are places may be on their way, so
that a worker never holds more than three times as many.
"""

from __future__ import annotations

import math

from serving.errors import RequestError
from serving.settings import Settings

SENDING = 2  # bodies on their way, for each place
CROWDED_S = 0.25  # for a body to arrive where as many others as there are places are on their way already


class House:
    """One worker's places; all methods are for its event loop's thread."""

    def __init__(self, settings: Settings) -> None:
        self.places = settings.max_inflight
        self.taken = 0  # by requests that are worked on, or wait for their turn
        self.sending = 0  # requests that were let in and whose bodies are on their way
        self.coming = 0  # that the server has read since the gate last saw one of them
        self._retry_after = str(math.ceil(settings.retry_after_s))

    def present(self) -> int:
        """Requests that have a place, or are to ask for one."""
        return self.taken + self.coming

    def full(self) -> bool:
        """Whether there is no room for another request."""
        return self.present() >= self.places or self._crowded()

    def _crowded(self) -> bool:
        """Whether too many bodies are on their way."""
        return self.sending >= SENDING * self.places

    def enter(self) -> Place:
        """A place for a request.

        Raises:
            RequestError: 429 `overloaded`; all are taken, or too many bodies are on their way.
        """
        if self.taken >= self.places or self._crowded():
            raise self.overloaded()
        return Place(self)

    def overloaded(self, headers: dict[str, str] | None = None) -> RequestError:
        """What somebody is told whom there is no room for, with further headers."""
        sentence = "the service has all it can do; try again"
        return RequestError(429, "overloaded", sentence, {"retry-after": self._retry_after, **(headers or {})})


class Place:
    """One request's place, from its admission to the beginning of its answer; `with` it, its body is on its way."""

    __slots__ = ("_held", "house")

    def __init__(self, house: House) -> None:
        self.house, self._held = house, True
        house.taken += 1

    def leave(self) -> None:
        """Gives the place back, once."""
        if self._held:
            self._held = False
            self.house.taken -= 1

    def __enter__(self) -> bool:
        """Lends the place to others; true if there are so many whose bodies are on their way that it must be quick."""
        self.house.taken -= 1
        self.house.sending += 1
        return self.house.sending > self.house.places

    def __exit__(self, *_: object) -> None:
        """Takes a place again, even if there is none: what was let in and has been read is answered."""
        self.house.sending -= 1
        self.house.taken += 1
