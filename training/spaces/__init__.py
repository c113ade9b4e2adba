"""What a sweep varies: one file a space, found by its name.

A file has `BASE`, fields of `Recipe` that every trial shares, and `space(model)`, the fields that vary: for each a list
of values to try, or a `Log` range to draw from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Log:
    """Any value from `low` to `high`, uniform in its logarithm; for random search and ASHA."""

    low: float
    high: float
