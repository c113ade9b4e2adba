"""Runs the blocks of a page in order, as one script, in a copy of the checkout with stores of its own.

Shell blocks are typed as they stand, Python blocks are given to the interpreter, those with a title become the file of
that name. Only the port is changed, and what a page leaves running is noted, to be ended.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from catalog import ROOT
from tests.docs.blocks import SHELL, Block, blocks
from tests.serving.processes import free_port

QUICK = (  # by `make test`: all together in one script, against one service
    "README.md",
    "docs/operations.md",
    "docs/serving-v2.md",
    "docs/how-to/tune-a-budget.md",
    "docs/how-to/kubernetes.md",
)
LONG = (  # each by itself, by `make test-slow`
    "docs/tutorial.md",
    "docs/how-to/own-images.md",
    "docs/how-to/add-a-model.md",
    "docs/how-to/add-a-format.md",
    "docs/how-to/read-the-report.md",
)
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".benchmarks", "__pycache__", "docs", "tests"),
    *("artifacts", "build", "reports", "site", "sweeps"),
)


@dataclass(frozen=True)
class Ran:
    """What came of a script."""

    status: int
    out: str
    err: str

    @property
    def ending(self) -> str:
        """What to read when it failed."""
        return f"status {self.status}\n{self.out[-3000:]}\n{self.err[-3000:]}"


def runnable(page: Path) -> list[Block]:
    """The blocks of a page that do not say why they are not run."""
    return [block for block in blocks(page) if block.language in (*SHELL, "python") and not block.why_not]


def checkout(folder: Path) -> Path:
    """A copy of what a user has cloned, but for documents and tests; nothing is trained in it."""
    return Path(shutil.copytree(ROOT, folder / "checkout", ignore=LEFT_OUT))


def script(found: list[Block], port: int) -> str:
    """One shell script of all blocks; a line before each says where it comes from."""
    lines = ["trap 'jobs -p | xargs --no-run-if-empty kill 2>/dev/null' EXIT"]
    for block in found:
        lines.append(f"printf '\\n%s\\n' '--- {block}'")
        if block.title:
            lines += [f"cat > {block.title} <<'END_OF_FILE'", block.text.rstrip("\n"), "END_OF_FILE"]
        elif block.language == "python":
            lines += ["python - <<'END_OF_FILE'", _ported(block.text.rstrip("\n"), port), "END_OF_FILE"]
        else:
            lines += [_noted(_ported(line, port)) for line in block.text.splitlines()]
    return "\n".join(lines) + "\n"


def _ported(text: str, port: int) -> str:
    text = re.sub(r"\bbentoml serve\b", f"bentoml serve --host 127.0.0.1 --port {port}", text)
    text = re.sub(r"\bserving predict\b", f"serving predict --url http://127.0.0.1:{port}", text)
    return text.replace("localhost:3000", f"127.0.0.1:{port}")


def _noted(line: str) -> str:
    return f'{line}\necho $! >> "$SERVICES"' if re.search(r"\bbentoml serve .*&$", line) else line


def run(folder: Path, root: Path, found: list[Block], timeout: float) -> Ran:
    """Runs the blocks in `root`; an answer that is an HTTP error fails the script. No service outlives it."""
    home, services = folder / "home", folder / "services"
    home.mkdir()
    (home / ".curlrc").write_text("fail\nsilent\nshow-error\n")
    services.touch()
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("MODELKILN_", "BENTOML_"))}
    environment = kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        "CURL_HOME": str(home),
        "BENTOML_HOME": str(home),
        "BENTOML_DO_NOT_TRACK": "True",
        "CUDA_VISIBLE_DEVICES": "-1",
        "COLUMNS": "120",
        "SERVICES": str(services),
    }
    told = script(found, free_port())
    try:
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", told],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
    finally:
        for process in services.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGTERM)
    return Ran(done.returncode, done.stdout, done.stderr)
