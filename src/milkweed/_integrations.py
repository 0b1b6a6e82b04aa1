"""What other libraries are told about milkweed, once both have been imported, in either order."""

from __future__ import annotations

import importlib
import warnings
from functools import partial

from milkweed._import_hook import when_imported

# After the module on the left has been imported, the one on the right is, and registers itself.
_MODULES = (
    ("transformers.quantizers.auto", "milkweed.convert.hub.native"),
    ("peft", "milkweed.convert.peft.registration"),
)


def install() -> None:
    """Wait for the libraries."""
    for theirs, ours in _MODULES:
        when_imported(theirs, partial(_extend, theirs, ours))


def _extend(theirs: str, ours: str) -> None:
    try:
        importlib.import_module(ours)
    except Exception as error:  # a version that is built in another way: its own import must not fail for that
        warnings.warn(f"milkweed cannot extend this version of {theirs}: {error}", stacklevel=2)
