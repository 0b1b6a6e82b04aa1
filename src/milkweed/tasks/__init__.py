"""What is learned: losses and metrics."""

from milkweed.tasks.base import Task
from milkweed.tasks.classification import Classification
from milkweed.tasks.forecast import Forecast
from milkweed.tasks.glue import Glue
from milkweed.tasks.language import Language
from milkweed.tasks.masked_language import MaskedLanguage
from milkweed.tasks.regression import Regression
from milkweed.tasks.retrieval import Retrieval

__all__ = ["Classification", "Forecast", "Glue", "Language", "MaskedLanguage", "Regression", "Retrieval", "Task"]
