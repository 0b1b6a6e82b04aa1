"""What this library adds to others once they are there: nothing of them is imported here."""

from __future__ import annotations

import importlib
import warnings
from functools import partial

from milkweed._import_hook import when_imported

# Once the module on the left has been imported, the one on the right is, and registers what it holds.
_REGISTRATIONS = {
    "peft": "milkweed.convert.peft.registration",
    "transformers.models.auto.configuration_auto": "milkweed.models.hf.register_config",
    "transformers.models.auto.modeling_auto": "milkweed.models.hf.register_models",
    "transformers.quantizers.auto": "milkweed.convert.hub.native",
}


def install() -> None:
    """Wait for the other libraries, whoever is imported first."""
    for theirs, ours in _REGISTRATIONS.items():
        when_imported(theirs, partial(_register, theirs.partition(".")[0], ours))


def _register(library: str, ours: str) -> None:
    try:
        importlib.import_module(ours)
    except Exception as error:  # a version that is built in another way: its own import must not fail for that
        warnings.warn(f"milkweed cannot extend this version of {library}: {error}", stacklevel=2)
