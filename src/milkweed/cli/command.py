"""A typed function as a command: its signature is its options, its docstring their help.

Arguments before the `*` are given by position, the others as options, with dashes; `bool` is a switch, a `list` may be
repeated, and by position takes one value or more, `Annotated[int, read]` is read by that function. In the docstring,
`out (DIR): …` names the value, and every section beside `Args` is a group of the help. `overrides: Overrides` gets the
options of the recipe, `**further` those that the module's `further_options` lists.
"""

import argparse
import importlib
import inspect
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NoReturn

from milkweed._suggest import UsageError, unknown
from milkweed.cli.errors import DEBUG_VARIABLE
from milkweed.cli.options import split_overrides
from milkweed.train.recipe import docs
from milkweed.train.recipe.words import OPTIONS, meant_option


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of ending the interpreter."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments."""
        raise UsageError(f"{message}; see {self.prog} --help")


def run_command(name: str, arguments: list[str]) -> None:
    """Import a command, or the subject of one, and call its function with what the command line says."""
    module = importlib.import_module(f"milkweed.cli.{name.replace(' ', '.')}")
    function = getattr(module, name.rpartition(" ")[2])
    parser = make_parser(name, function, module)
    if hasattr(module, "SUBJECTS"):
        run_subject(name, module.SUBJECTS, parser, arguments)
        return
    takes_recipe = "overrides" in inspect.signature(function).parameters
    own, overrides = split_overrides(arguments) if takes_recipe else (arguments, [])
    if takes_recipe and {"--help", "-h"} & set(own):
        parser.print_help()
        recipe = None
        with suppress(UsageError):  # what is missing or wrong does not keep from help
            values, _ = parser.parse_known_args([each for each in own if each not in {"--help", "-h"}])
            recipe = getattr(values, "recipe", None)
        if recipe is not None:
            print_recipe_options(recipe)
        return
    values, extra = parser.parse_known_args(own)
    if extra:
        known = [option for action in parser._actions for option in action.option_strings]
        recipe = recipe_options(getattr(values, "recipe", None)) if takes_recipe else ()
        meant = meant_option(extra[0], known, recipe) if extra[0].startswith("-") else None
        raise UsageError(
            f"unknown argument {extra[0]}{f'; did you mean {meant}?' if meant else f'; see {parser.prog} --help'}"
        )
    given = {key: value for key, value in vars(values).items() if key != "debug"}
    function(**given, **({"overrides": overrides} if takes_recipe else {}))


def run_subject(name: str, subjects: Iterable[str], parser: Parser, arguments: list[str]) -> None:
    """Hand the arguments to the subject that they name."""
    words = [place for place, argument in enumerate(arguments) if not argument.startswith("-")]
    end = words[0] + 1 if words else len(arguments)
    values, extra = parser.parse_known_args(arguments[:end])
    if extra:
        raise UsageError(f"unknown argument {extra[0]}; see {parser.prog} --help")
    if values.what not in subjects:
        raise UsageError(unknown("WHAT", values.what, subjects))
    run_command(f"{name} {values.what}", arguments[end:])


def make_parser(name: str, function: Callable[..., None], module: types.ModuleType) -> Parser:
    """The parser of a function's arguments."""
    text = inspect.getdoc(function) or ""
    parser = Parser(
        prog=f"milkweed {name}",
        description=textwrap.fill(docs.summary(text), max(40, shutil.get_terminal_size().columns - 2)),
        epilog=f"example:\n{module.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--debug", action="store_true", help=f"show tracebacks (also {DEBUG_VARIABLE}=1)")
    hints = typing.get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {"Args": parser}
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("overrides", None)
    entries = {entry.name: entry for entry in docs.entries(text) if entry.name in parameters}
    for each in parameters:  # without docstrings, as under python -OO, all options are there without a meaning
        entries.setdefault(each, docs.Entry("Args", each, "", ""))
    for entry in entries.values():
        group = groups.get(entry.section)
        if group is None:
            group = groups[entry.section] = parser.add_argument_group(entry.section)
        parameter = parameters[entry.name]
        if parameter.kind is parameter.VAR_KEYWORD:
            for option, meaning in module.further_options().items():
                _add(
                    group,
                    parameter.replace(name=option, kind=parameter.KEYWORD_ONLY, default=None),
                    hints[entry.name],
                    docs.Entry("", option, "", meaning),
                )
        else:
            _add(group, parameter, hints[entry.name], entry)
    return parser


def _add(group: Any, parameter: inspect.Parameter, hint: Any, entry: docs.Entry) -> None:
    """Add one argument to a parser."""
    kind, default = parameter.kind, parameter.default
    positional = kind is parameter.POSITIONAL_OR_KEYWORD
    options: dict[str, Any] = {"help": entry.text.replace("%", "%%")}
    if entry.kind or positional:
        options["metavar"] = entry.kind or parameter.name.upper()
    if default is not parameter.empty:
        options["default"] = default
        if default not in {None, False} and "default" not in entry.text:
            options["help"] += f"; default: {default}"
    options |= _reading(hint)
    if positional and options.get("action") == "append":
        options = {key: value for key, value in options.items() if key != "action"} | {"nargs": "+"}
    elif positional and default is not parameter.empty:
        options["nargs"] = "?"
    if positional:
        group.add_argument(parameter.name, **options)
        return
    names = [f"--{parameter.name.replace('_', '-')}", f"--{parameter.name}"]
    action = group.add_argument(names[0], dest=parameter.name, **options)
    for name in names[1:]:  # underscores will do too, unlisted
        group._option_string_actions.setdefault(name, action)


def _reading(hint: Any) -> dict[str, Any]:
    """How argparse reads values of a type."""
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    if typing.get_origin(hint) is typing.Annotated:
        return {"type": hint.__metadata__[0]}
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) is list:
        return {"action": "append", "type": typing.get_args(hint)[0]}
    return {"action": "store_true"} if hint is bool else {"type": hint}


def recipe_options(recipe: str | None) -> Iterable[str]:
    """Names of a recipe's options, to find the one that was meant; the usual ones if there is no such recipe."""
    if recipe is not None:
        from milkweed.cli.recipe import find_recipe
        from milkweed.cli.table import option_rows

        try:
            return [row[0] for row in option_rows(find_recipe(recipe))]
        except UsageError:
            pass
    return set(OPTIONS.values())


def print_recipe_options(recipe: str) -> None:
    """Print every option of a recipe."""
    from rich.console import Console

    from milkweed.cli.recipe import find_recipe
    from milkweed.cli.table import print_options

    print_options(Console(), find_recipe(recipe))
