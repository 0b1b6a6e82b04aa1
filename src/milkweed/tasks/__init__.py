"""What is learned: losses and metrics as LightningModules."""

from milkweed.tasks.classification import Classification
from milkweed.tasks.language import Language
from milkweed.tasks.regression import Regression

__all__ = ["Classification", "Language", "Regression"]
