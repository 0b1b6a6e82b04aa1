"""The metric that the command line names: one that milkweed has, or a function of the user's."""

from collections.abc import Callable
from typing import Any

from milkweed._suggest import UsageError, unknown
from milkweed.cli.own_modules import import_named
from milkweed.convert.evaluation.metrics import METRICS, takes_batches


def find_metric(text: str) -> str | Callable[..., Any]:
    """Find a metric by its name, or as MODULE:FUNCTION."""
    module, colon, name = text.partition(":")
    if not colon:
        if text not in METRICS:
            raise UsageError(unknown("metric", text, METRICS) + "; or MODULE:FUNCTION of your own")
        return text
    found: Any = import_named(module, f"--metric {text}")
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        functions = [
            each for each, value in vars(import_named(module, text)).items() if callable(value) and each[0] != "_"
        ]
        has = f"; it has: {', '.join(functions[:8])}" if functions else ""
        raise UsageError(f"--metric {text}: {module} has no function {name!r}{has}")
    try:
        takes_batches(found)
    except TypeError as error:
        raise UsageError(f"--metric {text}: {error}") from error
    return found
