"""Errors as a user reads them: one clear block, no traceback."""

import os
import re

from milkweed._suggest import UsageError
from milkweed.cli.console import complain
from milkweed.train.recipe.words import SECTIONS

DEBUG_VARIABLE = "MILKWEED_DEBUG"


def print_error(error: BaseException) -> None:
    """Print an error of the user's input."""
    complain(describe(error), "error: ")
    if not isinstance(error, UsageError):
        complain(f"--debug or {DEBUG_VARIABLE}=1 shows where it came from.")


def describe(error: BaseException) -> str:
    """The text of an error, without the machinery around it where a library wrote it."""
    text = str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError) and error.name and "milkweed[" not in text:
        return f'this command needs {error.name}, which is not installed: pip install "milkweed[train]"'
    if "Parser key" not in text:
        return as_flags(text)
    from milkweed.train.recipe.check import readable_type_error  # of jsonargparse's

    return readable_type_error(text) or text


def as_flags(text: str) -> str:
    """Write `--data.length 48` for `data.length=48`, as the library says it, which knows no command line."""
    value = r"('[^']*'|\"[^\"]*\"|(?:[^\s,;()]|,(?=\S))*[^\s,;().:])"
    option = rf"(?:{'|'.join(SECTIONS)})\.(?!init_args|class_path)[\w.]*\w"
    return re.sub(rf"(?<![\w.-])(?<!--grid )({option})={value}", r"--\1 \2", text)


def caused_by_input(error: BaseException) -> bool:
    """Whether an error can be mended by whoever typed the command; any other is a defect of the program."""
    # Lightning and jsonargparse have their own kinds; by name, since neither may be installed.
    names = {kind.__name__ for kind in type(error).__mro__}
    expected = (ValueError, TypeError, OSError, ImportError, FloatingPointError)
    return isinstance(error, expected) or bool(names & {"MisconfigurationException", "ArgumentError"})


def debugging(arguments: list[str]) -> bool:
    """Whether tracebacks are wanted."""
    return "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}
