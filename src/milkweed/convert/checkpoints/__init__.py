"""Checkpoints of other repositories."""

from milkweed.convert.checkpoints import s4

__all__ = ["s4"]
