"""Checkpoints of other repositories."""

from milkweed.convert.checkpoints import m2, s4, sashimi

__all__ = ["m2", "s4", "sashimi"]
