"""The architecture that a model had before anything was converted, without its numbers."""

from __future__ import annotations

import sys

import torch
from torch import nn

from milkweed.models.base import Model, build_model


def skeleton_of(model: nn.Module) -> nn.Module | None:
    """Build a milkweed or transformers model anew from its config, on the meta device; None if that cannot be."""
    library = sys.modules.get("transformers")
    with torch.device("meta"):
        if isinstance(model, Model):
            return build_model(model.config)
        if library is not None and isinstance(model, library.PreTrainedModel):
            try:
                skeleton: nn.Module = type(model)(model.config)
            except TypeError:  # a subclass of the user's own that takes further arguments
                return None
            return skeleton
    return None
