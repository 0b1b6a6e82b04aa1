"""Conversion between architectures and checkpoint formats."""

from milkweed.convert import checkpoints

__all__ = ["checkpoints"]
