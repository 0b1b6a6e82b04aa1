"""Parsing of a command's own arguments, with an example in every help and the nearest name in every refusal."""

import argparse
import difflib
from typing import NoReturn

from milkweed.cli.errors import DEBUG_VARIABLE, UsageError


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

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parse the command's own arguments.

        Args:
            arguments: What is left after the recipe's options are taken out.

        Returns:
            The values.

        Raises:
            UsageError: If an argument is unknown.
        """
        values, extra = self.parse_known_args(arguments)
        if extra:
            known = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(extra[0].partition("=")[0], known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"
            raise UsageError(f"unknown argument {extra[0]}{hint}")
        return values
