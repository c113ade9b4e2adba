"""What a lane may do, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """What a lane may do. Counts are images, times seconds unless the name says otherwise."""

    max_batch: int = 32
    max_queue: int = 512
    deadline_s: float = 5.0  # of a request that names none, from its arrival in the lane to the start of its batch
    compute_timeout_s: float = 20.0
    max_stuck: int = 4  # threads that may hang before the lane takes no more
    alone_ms: float = 2.0  # the only request there is, expected to be shorter, is computed on the event loop
    inline_ms: float = 0.3  # so is any that is shorter than handing it to a thread and back is worth
    ahead_ms: float = 20.0  # a full batch expected to be shorter is handed over before the one in the thread is done


@dataclass(slots=True)
class Tally:
    """What a lane has done since it was opened; seconds are summed over requests."""

    requests: int = 0
    images: int = 0
    failures: int = 0
    refused: int = 0
    batches: dict[int, tuple[int, float]] = field(default_factory=dict)  # images -> batches, seconds of computing
    queue_s: float = 0.0
    compute_s: float = 0.0
    last: float = 0.0  # seconds since the epoch
