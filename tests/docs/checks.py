"""Whether what a document tells to type would be understood: by the real applications, without running them."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import typer

from catalog import ROOT, KilnError, plugin, plugin_names
from docs import commands as reference
from serving.routes import openapi
from serving.settings import FILE, PREFIX, Settings, variable
from serving.v2 import openapi as openapi_v2

KEYWORDS = ("until", "while", "do", "then", "if", "!")
SILENT = ("cd", "done", "fi", "git", "head", "kill", "ls", "sleep", "source")  # of the shell; nothing of ours to check
FOREIGN = ("docker", "kubectl", "openssl")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", MAKEFILE, re.MULTILINE))
VARIABLES = set(re.findall(r"\$\((?:if \$\()?([A-Z_]+)", MAKEFILE)) | set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.M))
OURS = {variable(name) for name in Settings.__dataclass_fields__} | {FILE, f"{PREFIX}COMMIT"}
_VARIABLE = re.compile(rf"\b{PREFIX}[A-Z0-9_]*[A-Z0-9]\b")


@dataclass(frozen=True)
class Typed:
    """One command of a block: the variables set before it, and its words."""

    variables: dict[str, str]
    words: list[str]


def typed(text: str) -> Iterator[Typed]:
    """The commands of a shell block; comments, keywords, pipes and redirections are taken away."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        command: list[str] = []
        tokens = list(lexer)
        for index, token in enumerate([*tokens, ";"]):
            if set(token) <= set(";&|"):
                if command:
                    yield _split(command)
                command = []
            elif set(token) <= set("<>") or (index and set(tokens[index - 1]) <= set("<>")):
                continue
            elif command or token not in KEYWORDS:
                command.append(token)


def _split(words: list[str]) -> Typed:
    variables = {}
    while words and (match := re.fullmatch(r"([A-Z][A-Z0-9_]*)=(.*)", words[0])):
        variables[match[1]] = match[2]
        words = words[1:]
    return Typed(variables, words)


def problems(command: Typed) -> list[str]:
    """What is wrong with a command, a sentence each."""
    found = [f"{name} is no setting" for name in settings(" ".join(command.variables))]
    if not command.words:
        return found
    program, arguments = command.words[0].rpartition("/")[2], command.words[1:]
    checks: dict[str, Callable[[list[str]], list[str]]] = {
        "python": _python,
        "make": _make,
        "bentoml": _bentoml,
        "curl": _curl,
        "pre-commit": lambda words: [] if words == ["install"] else [f"pre-commit {words}"],
    }
    if program in checks:
        return found + checks[program](arguments)
    return found if program in (*SILENT, *FOREIGN) else [*found, f"{program!r} is no program that is known here"]


def settings(text: str) -> list[str]:
    """The variables of this project's prefix in a text that are no settings."""
    return sorted(set(_VARIABLE.findall(text)) - OURS)


def _python(words: list[str]) -> list[str]:
    name = " ".join(words[:2]) if words[:1] == ["-m"] else words[0] if words else ""
    if name == "-m pytest":
        return [f"{path} is not there" for path in words[2:] if path.endswith(".py") and not (ROOT / path).is_file()]
    module = reference.applications().get(name)
    if module is None:
        return [f"python {name} is none of: {', '.join(reference.applications())}"]
    arguments = words[2 if name.startswith("-m") else 1 :] or _otherwise(module)
    try:
        return _wrong_names(name, parsed(reference.application(module), arguments))
    except typer.Exit:
        return []  # --help
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("typer", "click"):
            raise
        said = error.format_message() if hasattr(error, "format_message") else type(error).__name__
        return [f"python {shlex.join(words)}: {said}"]


def _otherwise(module: str) -> list[str]:
    """What the module runs where no argument is given."""
    return re.findall(r'sys\.argv\.append\("(\w+)"\)', inspect.getsource(importlib.import_module(module)))


def parsed(application: Any, arguments: list[str]) -> dict[str, Any]:
    """The values a command would be called with; it is not called.

    Raises:
        Exception: What typer or click raise for arguments that are wrong.
    """
    context = application.make_context("", list(arguments))
    while hasattr(context.command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = context.command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return dict(context.params)


def _wrong_names(application: str, values: dict[str, Any]) -> list[str]:
    """Of data sets, spaces, recipes and transforms, which typer takes as any text."""
    found = []
    for parameter, package in (("dataset", "training.data"), ("space", "training.spaces")):
        name = values.get(parameter)
        if name is not None and name not in plugin_names(package):
            found.append(f"there is no {parameter} {name!r}")
    model, recipe = values.get("model"), values.get("recipe")
    if recipe and model in plugin_names("training.models"):
        recipes = plugin("training.models", model).RECIPES
        found += [] if recipe in recipes else [f"{model} has no recipe {recipe!r}"]
    if application == "-m export" and values.get("transforms"):
        from export.transforms import chain

        for text in values["transforms"].split(","):
            try:
                chain(text)
            except KilnError as error:
                found.append(str(error))
    return found


def _make(words: list[str]) -> list[str]:
    given = [word.partition("=")[0] for word in words if "=" in word]
    targets = [word for word in words if "=" not in word]
    found = [f"the Makefile has no target {name!r}" for name in targets if name not in TARGETS]
    return found + [f"the Makefile has no variable {name!r}" for name in given if name not in VARIABLES]


def _bentoml(words: list[str]) -> list[str]:
    import click

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of BentoML's own making, and of the packages it builds on
        try:
            parsed(_bentoml_application(), words)
        except click.ClickException as error:
            return [f"bentoml {shlex.join(words)}: {error.format_message()}"]
    return []


@functools.cache
def _bentoml_application() -> Any:
    from bentoml_cli.cli import create_bentoml_cli

    return create_bentoml_cli()


def _curl(words: list[str]) -> list[str]:
    """Route and query of what is asked of the service."""
    found = []
    asked = [word for word in words if re.match(r"(http://)?localhost:3000", word)]
    for address in asked:
        url = urlsplit(address if "//" in address else f"http://{address}")
        route = next((r for r in _routes() if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", r), url.path)), None)
        if route is None:
            found.append(f"the service has no route {url.path}")
            continue
        known = {parameter["name"] for verb in _routes()[route].values() for parameter in _parameters(verb)}
        found += [f"{route} takes no {name!r}" for name, _ in parse_qsl(url.query) if name not in known]
    return found or ([] if asked else ["curl asks for nothing on localhost:3000"])


def _parameters(verb: Any) -> list[dict[str, Any]]:
    return list(verb.get("parameters", [])) if isinstance(verb, dict) else []


@functools.cache
def _routes() -> dict[str, Any]:
    found: dict[str, Any] = openapi.describe(Settings(), openapi_v2.paths(), openapi_v2.schemas())["paths"]
    return found
