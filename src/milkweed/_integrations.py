"""What this library adds to others once they are there: nothing of them is imported here."""

from __future__ import annotations

import functools
import importlib
import warnings

from milkweed._import_hook import when_imported

# Once a module has been imported, `register()` of one of this library's modules runs.
_REGISTRATIONS = {"peft": "milkweed.convert.peft.registration"}


def install() -> None:
    """Wait for the other libraries, whoever is imported first."""
    for name, registration in _REGISTRATIONS.items():
        when_imported(name, functools.partial(_register, name, registration))


def _register(name: str, registration: str) -> None:
    try:
        importlib.import_module(registration).register()
    except Exception as error:  # a version that is built in another way: its own import must not fail for that
        warnings.warn(f"milkweed cannot extend this version of {name}: {error}", stacklevel=2)
