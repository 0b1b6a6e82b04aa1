"""The `milkweed` command."""

import importlib
import importlib.util
import os
import sys
import warnings
from contextlib import suppress

from milkweed._suggest import unknown
from milkweed._version import __version__
from milkweed.cli.errors import UsageError, caused_by_input, debugging, print_error
from milkweed.cli.hints import meant_command

COMMANDS = {
    "train": "train a recipe and leave its results under runs/",
    "evaluate": "test the model of a finished run again",
    "convert": "make the linear layers of a transformers model structured, with little or no training",
    "recipes": "list the recipes that come with milkweed",
    "inspect": "show layers, parameters, FLOPs and memory of a recipe",
    "demo": "train three small models on handwritten digits and compare them",
    "plot": "draw matrices, HiPPO bases and the kernels that a run learned",
}
FIRST_STEPS = """\
milkweed demo                                a first look, under three minutes
milkweed recipes                             what can be trained
milkweed train digits --model.d_model 96     every value of a recipe is an option
milkweed evaluate runs/digits                test the result again
milkweed convert MODEL --plan                what Monarch matrices would make of a transformers model
milkweed plot monarch dct                    a matrix and its Monarch factors, as a PNG
milkweed --import my_layers train my.yaml    with classes of your own, which my_layers.py registers
milkweed COMMAND --help                      more, with an example"""
OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name; that of the process if None.

    Returns:
        The exit code: 0 if all went well, 2 for input that needs mending, 130 when stopped by Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return dispatch(arguments)
    except KeyboardInterrupt as stop:
        stderr().print(f"\n{stop or 'Stopped.'}", highlight=False, markup=False, soft_wrap=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe, e.g. `head`, has seen enough; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if debugging(arguments) or not caused_by_input(error):
            raise
        print_error(stderr(), error)
        return BAD_INPUT


def dispatch(arguments: list[str]) -> int:
    """Hand the arguments to their command, importing no more than that one needs.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code.

    Raises:
        UsageError: If there is no such command.
    """
    while arguments and arguments[0].partition("=")[0] == "--import":
        arguments = import_module(arguments)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in {"--help", "-h", "help"}:
        print_overview()
        return OK
    if command == "--version":
        stdout().print(f"milkweed {__version__}", highlight=False)
        return OK
    if command not in COMMANDS:
        meant = meant_command(command)
        if meant is None and command.startswith("-"):
            raise UsageError(f"{command} stands before any command; e.g. milkweed train digits {' '.join(arguments)}")
        raise UsageError(
            f"command={command!r} is unknown; use milkweed {meant}" if meant else unknown("command", command, COMMANDS)
        )
    with warnings.catch_warnings():
        return importlib.import_module(f"milkweed.cli.{command}").run(rest)


def import_module(arguments: list[str]) -> list[str]:
    """Import a module of the user's, which registers classes; it is looked for in the working folder too.

    Args:
        arguments: The command line, which begins with `--import`.

    Returns:
        The rest of it.

    Raises:
        UsageError: There is no such module.
    """
    _, equals, name = arguments[0].partition("=")
    name, rest = (name, arguments[1:]) if equals else ("".join(arguments[1:2]), arguments[2:])
    name, spec = name.removesuffix(".py"), None
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if all(map(str.isidentifier, name.split("."))):
        with suppress(ModuleNotFoundError):  # of a package around it
            spec = importlib.util.find_spec(name)
    if spec is None:
        raise UsageError(
            f"--import {name}: there is no such module; give the name by which Python imports it, e.g. my_layers for "
            "my_layers.py in this folder"
        )
    importlib.import_module(name)
    return rest


def print_overview() -> None:
    """Print what the program can do."""
    from rich.table import Table

    table = Table.grid(padding=(0, 3))
    for name, summary in COMMANDS.items():
        table.add_row(f"  [bold]{name}[/]", summary)
    out = stdout()
    out.print("[bold]milkweed[/]: sub-quadratic building blocks for PyTorch, from recipe to result\n")
    out.print(table)
    out.print(f"\n[bold]For example[/]\n{FIRST_STEPS}", highlight=False)


def stdout():
    """A console on standard output.

    Returns:
        A new rich console, bound to the stream of this moment.
    """
    from rich.console import Console

    return Console()


def stderr():
    """A console on standard error.

    Returns:
        A new rich console, bound to the stream of this moment.
    """
    from rich.console import Console

    return Console(stderr=True)
