"""The `milkweed` command."""

import os
import sys
import warnings

from milkweed._suggest import UsageError, unknown
from milkweed._version import __version__
from milkweed.cli.command import run_command
from milkweed.cli.console import complain, echo, in_columns
from milkweed.cli.errors import caused_by_input, debugging, print_error
from milkweed.cli.own_modules import import_named

COMMANDS = {
    "train": "train a recipe and leave its results under runs/",
    "evaluate": "test the model of a finished run again",
    "sweep": "train every combination of some values and seeds, and compare them",
    "compare": "put runs beside each other, in a table and a figure",
    "predict": "predict for files or texts with a finished run",
    "convert": "make the linear layers of a transformers model structured, with little or no training",
    "export": "write a model, converted or not, as an ONNX file",
    "data": "check the data of a recipe before a training",
    "recipes": "list the recipes that come with milkweed",
    "inspect": "show layers, parameters, FLOPs and memory of a recipe",
    "demo": "train three small models on handwritten digits and compare them",
    "plot": "draw matrices, HiPPO bases and the kernels that a run learned",
}
# Words of other programs.
MEANT_COMMANDS = {
    **dict.fromkeys(("version", "-v", "-V"), "--version"),
    **dict.fromkeys(("list", "ls", "models", "recipe"), "recipes"),
    **dict.fromkeys(("run", "fit", "start", "resume", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("test", "eval", "validate", "val", "score"), "evaluate"),
    **dict.fromkeys(("show", "summary", "describe", "info", "params"), "inspect"),
    **dict.fromkeys(("infer", "inference", "classify", "forecast", "generate", "sample"), "predict"),
    **dict.fromkeys(("compress", "project"), "convert"),
    **dict.fromkeys(("onnx", "to-onnx", "deploy"), "export"),
    **dict.fromkeys(("grid", "search", "tune", "multirun"), "sweep"),
    **dict.fromkeys(("diff", "table", "leaderboard"), "compare"),
    **dict.fromkeys(("draw", "figure", "visualize", "visualise"), "plot"),
}
FIRST_STEPS = """\
milkweed demo                                a first look, under three minutes
milkweed recipes                             what can be trained
milkweed train digits --model.d_model 96     every value of a recipe is an option
milkweed evaluate runs/digits                test the result again
milkweed sweep digits --grid model.layer.init=legs,inv,lin --seeds 3
milkweed compare runs --out table.md         all runs beside each other
milkweed predict runs/digits three.png       use it
milkweed convert MODEL --plan                what Monarch matrices would make of a transformers model
milkweed export DIR --onnx FILE.onnx          a model for ONNX Runtime, compared with torch
milkweed plot monarch dct                    a matrix and its Monarch factors, as a PNG
milkweed --import my_layers train my.yaml    with classes of your own, which my_layers.py registers
milkweed COMMAND --help                      more, with an example"""
OK, BAD_INPUT, INTERRUPTED = 0, 2, 130
imported: list[str] = []  # modules of the user's, which processes that a command starts have to import too


def main(arguments: list[str] | None = None) -> int:
    """Run one command."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    imported.clear()
    try:
        dispatch(arguments)
        sys.stdout.flush()
        return OK
    except KeyboardInterrupt as stop:
        complain(f"\n{str(stop) or 'Stopped.'}")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe, e.g. `head`, has seen enough; the interpreter must not complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if debugging(arguments) or not caused_by_input(error):
            raise
        print_error(error)
        return BAD_INPUT


def dispatch(arguments: list[str]) -> None:
    """Hand the arguments to their command, importing no more than that one needs."""
    while arguments and arguments[0].partition("=")[0] == "--import":
        arguments = import_module(arguments)
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in {"--help", "-h", "help"}:
        print_overview()
        return
    if command == "--version":
        echo(f"milkweed {__version__}")
        return
    if command not in COMMANDS:
        meant = MEANT_COMMANDS.get(command.lstrip("-") if command.startswith("--") else command)
        if meant is None and command.startswith("-"):
            raise UsageError(f"{command} stands before any command; e.g. milkweed train digits {' '.join(arguments)}")
        raise UsageError(
            f"command={command!r} is unknown; use milkweed {meant}" if meant else unknown("command", command, COMMANDS)
        )
    for place, each in enumerate(rest):
        if each.partition("=")[0] == "--import":
            module = each.partition("=")[2] or "".join(rest[place + 1 : place + 2]) or "MODULE"
            raise UsageError(f"--import stands before the command: milkweed --import {module} {command} …")
    with warnings.catch_warnings():
        run_command(command, rest)


def import_module(arguments: list[str]) -> list[str]:
    """Import a module of the user's, which registers classes."""
    _, equals, name = arguments[0].partition("=")
    name, rest = (name, arguments[1:]) if equals else ("".join(arguments[1:2]), arguments[2:])
    import_named(name, f"--import {name.removesuffix('.py')}")
    imported.append(name.removesuffix(".py"))
    return rest


def print_overview() -> None:
    """Print what the program can do."""
    echo("milkweed: sub-quadratic building blocks for PyTorch, from recipe to result\n")
    in_columns(COMMANDS.items(), "  ")
    echo(f"\nFor example\n{FIRST_STEPS}")
