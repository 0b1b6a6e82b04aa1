"""What other libraries are told about milkweed, once both have been imported, in either order."""

from __future__ import annotations

import importlib
from functools import partial

from milkweed._import_hook import when_imported

# After the module on the left has been imported, the one on the right is, and registers itself.
_MODULES = (
    ("transformers.models.auto.configuration_auto", "milkweed.models.hf.register_config"),
    ("transformers.models.auto.modeling_auto", "milkweed.models.hf.register_models"),
    ("transformers.quantizers.auto", "milkweed.convert.hub.native"),
)


def install() -> None:
    """Wait for the libraries."""
    for theirs, ours in _MODULES:
        when_imported(theirs, partial(importlib.import_module, ours))
