"""`milkweed plot`: one module per subject."""

import importlib

from milkweed._suggest import unknown
from milkweed.cli.arguments import CommandParser
from milkweed.cli.errors import UsageError

SUBJECTS = {
    "monarch": "a matrix, its nearest Monarch matrix and the error by nblocks",
    "hippo": "a HiPPO basis, and the past of a signal as it remembers it",
    "kernel": "the convolution kernels that a trained model's state space layers learned",
}
EXAMPLE = """\
  milkweed plot monarch
  milkweed plot hippo --animate
  milkweed plot kernel runs/smnist
  milkweed plot monarch --help        lists the options of this subject"""


def run(arguments: list[str]) -> int:
    """Hand the arguments to the subject that is to be drawn.

    Args:
        arguments: The command line after the command.

    Returns:
        The exit code.

    Raises:
        UsageError: If there is no such subject.
    """
    parser = CommandParser("plot", "Draw a part of the library's mathematics.", EXAMPLE)
    subjects = "; ".join(f"{name}: {summary}" for name, summary in SUBJECTS.items())
    parser.add_argument("what", metavar="WHAT", help=subjects)
    words = [index for index, argument in enumerate(arguments) if not argument.startswith("-")]
    end = words[0] + 1 if words else len(arguments)
    what = parser.parse(arguments[:end]).what
    if what not in SUBJECTS:
        raise UsageError(unknown("WHAT", what, SUBJECTS))
    return importlib.import_module(f"milkweed.cli.plot.{what}").run(arguments[end:])
