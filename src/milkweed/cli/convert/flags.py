"""Errors of the library, which name arguments, in the words of the command line."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from milkweed._suggest import UsageError
from milkweed.convert.hub.conversion_progress import FolderError

VALUES = "out|file|device|dtype|parameters|max_length|batch_size|metric|metric_data|held_out|nblocks|rank|refine"
VALUES += "|opset|length"
# Arguments that have another name among the options.
RENAMED = {"file": "onnx"}
QUOTED = r"'[^']*'|\"[^\"]*\""


@contextmanager
def typed(switches: Iterable[str]) -> Iterator[None]:
    """Turn errors about arguments into errors about options as typed; `switches` are those without a value."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, TypeError) as error:
        text = as_typed(str(error), switches)
        if isinstance(error, FolderError) or text != str(error):
            raise UsageError(text) from error
        raise


def as_typed(text: str, switches: Iterable[str]) -> str:
    """Write options for arguments."""
    names = "|".join(switches)
    text = re.sub(rf"(?:by |with )?(?:the rule )?\{{({QUOTED}): None\}}", r"with --keep \1", text)
    text = re.sub(rf"\b({names})=True\b", r"--\1", text)
    text = re.sub(rf"\b({VALUES})=({QUOTED}|[\w.+-]*\w)", _option, text)
    text = re.sub(rf"\bleave ({names}) out\b", r"leave --\1 out", text)
    text = re.sub(r"\bgive texts, of which", "give --calibrate FILE.txt, of which", text)
    text = re.sub(r"\bmetric_data\b", "--metric-data", text)
    return re.sub(r"\bwithout texts\b", "without --calibrate", text)


def _option(found: re.Match[str]) -> str:
    value = found[2][1:-1] if found[2][0] in "'\"" else found[2]
    return f"--{RENAMED.get(found[1], found[1]).replace('_', '-')} {value}"
