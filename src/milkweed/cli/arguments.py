"""Parsing of a command's own arguments, with an example in every help and the nearest name in every refusal."""

import argparse
from collections.abc import Callable, Iterable
from typing import NoReturn

from milkweed.cli.errors import DEBUG_VARIABLE, UsageError
from milkweed.cli.hints import meant_option


class CommandParser(argparse.ArgumentParser):
    """An argparse parser that raises instead of ending the interpreter.

    Args:
        command: Name of the command.
        summary: One sentence.
        example: Shown at the end of the help.
    """

    def __init__(self, command: str, summary: str, example: str) -> None:
        super().__init__(
            prog=f"milkweed {command}",
            description=summary,
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help=f"show tracebacks (also {DEBUG_VARIABLE}=1)")

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Args:
            message: argparse's explanation.

        Raises:
            UsageError: Always.
        """
        raise UsageError(f"{message}; see {self.prog} --help")

    def parse(
        self, arguments: list[str], recipe_options: Callable[[argparse.Namespace], Iterable[str]] = lambda values: ()
    ) -> argparse.Namespace:
        """Parse the command's own arguments.

        Args:
            arguments: What is left after the recipe's options are taken out.
            recipe_options: Lists the options of the recipe that the values name, to find the one that was meant.

        Returns:
            The values.

        Raises:
            UsageError: If an argument is unknown.
        """
        values, extra = self.parse_known_args(arguments)
        if extra:
            known = [option for action in self._actions for option in action.option_strings]
            meant = meant_option(extra[0], known, recipe_options(values)) if extra[0].startswith("-") else None
            hint = f"; did you mean {meant}?" if meant else f"; see {self.prog} --help"
            raise UsageError(f"unknown argument {extra[0]}{hint}")
        return values
