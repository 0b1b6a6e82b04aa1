"""Errors as a user reads them: one clear block, no traceback."""

import argparse
import os
import re

from rich.console import Console
from rich.text import Text

from milkweed.cli.hints import meant_value

DEBUG_VARIABLE = "MILKWEED_DEBUG"
EXPECTED_KIND = r"Expected a (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\])"


class UsageError(ValueError):
    """The command line asks for something that does not exist or does not fit."""


def caused_by_input(error: BaseException) -> bool:
    """Whether an error can be mended by whoever typed the command.

    Args:
        error: Any exception.

    Returns:
        True for bad values, files and options; False for what must be a defect of the program.
    """
    # Lightning and jsonargparse have their own kinds; by name, since neither may be installed.
    names = {kind.__name__ for kind in type(error).__mro__}
    expected = (ValueError, TypeError, OSError, ImportError, FloatingPointError, argparse.ArgumentError)
    return isinstance(error, expected) or bool(names & {"MisconfigurationException", "ArgumentError"})


def print_error(console: Console, error: BaseException) -> None:
    """Print an error of the user's input.

    Args:
        console: Standard error.
        error: What happened.
    """
    console.print(Text.assemble(("error: ", "bold red"), describe(error)), soft_wrap=True)
    if not isinstance(error, UsageError):
        console.print(f"[dim]--debug or {DEBUG_VARIABLE}=1 shows where it came from.[/]", highlight=False)


def describe(error: BaseException) -> str:
    """The text of an error, made readable where a library wrote it.

    Args:
        error: What happened.

    Returns:
        A message without the machinery around it.
    """
    text = str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name and "milkweed[" not in text:
        return f'this command needs {error.name}, which is not installed: pip install "milkweed[train]"'
    return readable_type_error(text) or text


def readable_type_error(text: str) -> str | None:
    """Shorten jsonargparse's report on a value of the wrong type.

    Args:
        text: The report.

    Returns:
        For example `model.d_model='abc' does not fit; expected int`; None if the report is about something else.
    """
    keys = re.findall(r'Parser key "([^"]+)"', text)
    kinds = list(dict.fromkeys(re.findall(EXPECTED_KIND, text)))
    given = re.search(r"(?:Got|Given) value: (.+)", text)
    if not (keys and kinds and given):
        return None
    name = re.sub(r"^optimisation\b", "task", ".".join(keys).replace(".init_args", ""))
    expected = " or ".join("null" if kind == "NoneType" else kind or choices for kind, choices in kinds)
    return f"{name}={given[1]!r} does not fit; expected {expected}{meant_value(name, given[1])}"


def debugging(arguments: list[str]) -> bool:
    """Whether tracebacks are wanted.

    Args:
        arguments: The command line.

    Returns:
        True with `--debug` or the environment variable set.
    """
    return "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}
