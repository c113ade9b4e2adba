"""How every command speaks: one console, progress bars, and one sentence instead of a traceback."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.console
import rich.progress
import typer
from typer.core import TyperGroup

from catalog import KilnError

LOOKED_FOR = ("jax", "sklearn")  # imported by TensorFlow and Keras where they find them, and used by nobody here

out = rich.console.Console()
err = rich.console.Console(stderr=True)


class DefaultGroup(TyperGroup):
    """A command group whose first command runs where no command is named: `python -m training lenet`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the default command's name before arguments that begin with no command."""
        default = next(iter(self.commands))
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [default, *args]
        return super().parse_args(ctx, args)


def app(help_text: str) -> typer.Typer:
    """A command-line application with this project's manners; add commands to it, the default one first."""
    return typer.Typer(
        help=help_text,
        cls=DefaultGroup,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def run(application: typer.Typer) -> None:
    """Runs a command and exits: 0 done, 1 a `KilnError` or `OSError`, in one line, 2 bad usage, 130 interrupted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the frameworks' banners are no news to a user
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    try:
        application()
    except (KilnError, OSError) as error:
        said = str(error) if isinstance(error, KilnError) else refused(error)
        err.print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("interrupted", style="yellow")
        sys.exit(130)


def refused(error: OSError) -> str:
    """What the system refused, in one line: the file and why."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


def progress(*columns: rich.progress.ProgressColumn | str) -> rich.progress.Progress:
    """A progress bar: description, bar, count, time spent, time left, then `columns`."""
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TimeRemainingColumn(),
        *columns,
        console=err,
    )


def words(text: str) -> list[str]:
    """Those of a list with commas between, each once however often it is named."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


@contextmanager
def without_banners() -> Iterator[None]:
    """Holds back what C++ libraries print to stderr while they load; shows it after all if the block raises."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as banner:
        os.dup2(banner.fileno(), 2)
        try:
            yield
        except BaseException:
            banner.seek(0)
            os.write(kept, banner.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextmanager
def overlooked(*packages: str) -> Iterator[None]:
    """Hides packages from what looks for them while it is imported: Keras and TensorFlow spend two seconds on some.

    What is imported already stays.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # of None an import fails, as of what is missing
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
