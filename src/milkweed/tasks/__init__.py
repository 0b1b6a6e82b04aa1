"""What is learned: losses and metrics as LightningModules."""

from milkweed.tasks.classification import Classification

__all__ = ["Classification"]
