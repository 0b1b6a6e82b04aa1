"""Checkpoints of other repositories."""

from milkweed.convert.checkpoints import m2, m2_folder, s4, sashimi

__all__ = ["m2", "m2_folder", "s4", "sashimi"]
