"""The section of docs/compression.md on networks with the CIFAR stem, which only a GPU trains: how fast int8 is.

Their speed does not ask for weights that are any good: `make stems` trains each for one epoch on the embedded digits.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.judging import compare, goals
from benchmarks.judging.compare import Line
from benchmarks.reporting import prose, publish, words
from benchmarks.results import Results

FOLDER = Path("results", "stems")
STEM = "default"  # the word that both networks have for it
HEAD = """## The CIFAR stem

<!-- written by `make stems`; do not edit -->
The `reference` recipes keep the image at its full size in the first layers, four times the work of the stem of the
`cpu` recipes. Speed does not ask what a network has learned: these were trained for one epoch on the embedded digits.
*one by one*: how many times as fast as float32 ONNX, the median ratio of the quietest turns taken side by side, and
what its 95% intervals span; *or chance*: they hold what was asked.
"""


def section(results: Results) -> list[str]:
    """The lines in Markdown."""
    groups = compare.groups(results)
    lines = [*HEAD.split("\n"), publish.dated(results, groups), "", *prose.quoted(results)]
    lines += ["| network | fp32, p50 ms | int8, p50 ms | one by one | asked | reached |"]
    lines += ["| --- | --: | --: | --: | --: | --- |"]
    for group in groups:
        for model in group.models:
            asked = goals.CIFAR_STEM_FASTER.get(results.models[model].architecture)
            if asked is not None and results.models[model].stem == STEM:
                lines.append(_row(results.models[model].architecture, goals.of_model(group, model), asked))
    return lines


def _row(network: str, lines: dict[tuple[str, str], Line], asked: float) -> str:
    plain, integers = lines.get(("", "fp32")), lines.get(("", "int8"))
    speed = integers.speed if integers else None
    if plain is None or integers is None or speed is None:
        return f"| {network} | – | – | – | {words.times(asked)} | – |"
    cells = [network, words.about(plain.row.p50_ms), words.about(integers.row.p50_ms)]
    cells += [f"{words.times(speed.ratio)} ({words.span(speed.low, speed.high, words.times)})", words.times(asked)]
    return f"| {' | '.join([*cells, words.reached(speed.ratio >= asked, chance=speed.high >= asked)])} |"
