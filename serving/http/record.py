"""What becomes known of one request on its way through the service, for its metrics and its line in the log."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """Filled in by whoever knows: the gate the identity, the router the route, a handler the model and its times.

    `model` and `version` are set only after they were found, so that they are safe as labels. Times are seconds.
    """

    id: str = ""
    trace: str = ""  # W3C trace id, 32 hexadecimal digits
    span: str = ""  # of this service's part, 16 hexadecimal digits
    route: str = "other"
    status: int = 0
    code: str = ""  # the word of an error
    model: str = ""
    version: str = ""
    images: int = 0
    decode_s: float = 0.0
    queue_s: float = 0.0  # waited for its turn in a batch
    compute_s: float = 0.0
    tops: list[tuple[str, float]] = field(default_factory=list)  # an image's likeliest class and its probability
