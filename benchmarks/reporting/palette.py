"""Colours of the pictures, and how one drawing serves light and dark."""

from __future__ import annotations

from dataclasses import dataclass

MODELS = 8  # colours; further models begin again with the first


@dataclass(frozen=True)
class Theme:
    """Colours of a plot. `models` are told apart with every common colour vision, on `surface`."""

    ink: str
    muted: str
    grid: str
    surface: str
    models: tuple[str, ...]


# Okabe and Ito's palette, the pale ones darkened on white and the dark ones lightened on black.
LIGHT = Theme(
    ink="#1b1f24",
    muted="#59636e",
    grid="#e4e7eb",
    surface="#ffffff",
    models=("#0072b2", "#bf4f00", "#00835f", "#b0468c", "#8a6a00", "#4b4bc8", "#0a7d96", "#9c3b3b"),
)
DARK = Theme(
    ink="#e8eaed",
    muted="#9aa4af",
    grid="#2b3138",
    surface="#15181c",
    models=("#56b4e9", "#ff8a3d", "#2cc59b", "#e79bcb", "#e6c84b", "#a9a9ff", "#62d6ec", "#ff9c94"),
)
# Stand-ins that `svg` turns into CSS variables, so that one drawing serves light and dark.
CSS = Theme("#010101", "#010102", "#010103", "#010104", tuple(f"#0102{i:02x}" for i in range(MODELS)))
VARIABLES = {
    **{CSS.ink: "var(--ink)", CSS.muted: "var(--muted)", CSS.grid: "var(--grid)", CSS.surface: "var(--surface)"},
    **{colour: f"var(--model-{i})" for i, colour in enumerate(CSS.models)},
}
