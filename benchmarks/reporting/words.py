"""Figures as they are written in a report: three digits that mean something, and their unit where it is not above."""

from __future__ import annotations

from collections.abc import Callable, Sequence

NONE = "–"


def digits(value: float | None, significant: int = 3) -> str:
    """A number with so many significant digits, and thousands apart: `0.0402`, `14.3`, `12,300`."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    rounded = float(f"{value:.{significant}g}")
    whole = len(str(int(abs(rounded)))) if abs(rounded) >= 1 else 0
    if whole:
        return f"{rounded:,.{max(0, significant - whole)}f}"
    leading = f"{abs(rounded):.10f}"[2:]
    return f"{rounded:.{len(leading) - len(leading.lstrip('0')) + significant}f}"


def kilobytes(size: int | None) -> str:
    """Bytes as thousands of bytes, without the unit: `66.1`."""
    return NONE if size is None else digits(size / 1000)


def megabytes(size: int | None) -> str:
    """Bytes as millions of bytes, without the unit."""
    return NONE if size is None else digits(size / 1e6)


def percent(value: float | None) -> str:
    """A percentage with two decimals, without the sign."""
    return NONE if value is None else f"{value:.2f}"


def points(value: float | None) -> str:
    """A signed difference of percentages: `+0.10`, `−0.35`, `0.00`."""
    if value is None:
        return NONE
    text = f"{abs(value):.2f}"
    return text if float(text) == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def times(ratio: float | None) -> str:
    """A ratio: `1.62×`, `0.014×`."""
    if ratio is None:
        return NONE
    return (
        f"{ratio:.2f}" if 0.1 <= ratio < 9.995 else digits(ratio, 3 if ratio > 1 else 2)
    ) + "\N{MULTIPLICATION SIGN}"


def reached(enough: bool, chance: bool) -> str:
    """Whether a goal is reached; `chance` where what was asked lies within the interval of what was measured."""
    return "yes" if enough else "**no**, or chance" if chance else "**no**"


def about(value: float | None) -> str:
    """A measured number with the two digits that a second run would find again: `0.057`, `29,000`."""
    return digits(value, 2)


def about_times(ratio: float | None) -> str:
    """A ratio of measured numbers: `1.6×`."""
    return NONE if ratio is None else about(ratio) + "\N{MULTIPLICATION SIGN}"


def span(low: float, high: float, text: Callable[[float], str]) -> str:
    """Two ends of an interval: `0.049 to 0.063`."""
    return f"{text(low)} to {text(high)}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: `a`, `a and b`, `a, b and c`."""
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else ""


def chance(p: float | None) -> str:
    """A probability with three decimals: `0.021`, `<0.001`."""
    return NONE if p is None else "<0.001" if p < 0.0005 else f"{p:.3f}"


def whole(value: float | None) -> str:
    """An integer with thousands apart."""
    return NONE if value is None else f"{value:,.0f}"
