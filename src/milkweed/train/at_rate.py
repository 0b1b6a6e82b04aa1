"""A trained model on signals of another sampling rate, and its data at that rate."""

from typing import Any

from torch import nn

from milkweed.data.base import SequenceData
from milkweed.nn.rates import takes_rate


class AtRate(nn.Module):
    """A model whose calls have one more argument, its rate."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        super().__init__()
        if not takes_rate(model):
            raise ValueError(
                f"rate must be 1 for a {type(model).__name__}, which knows no time but steps; got {rate!r}; train a "
                "SequenceModel or Sashimi of state space layers, s4 or s4d, for signals of another sampling rate"
            )
        self.model, self.rate = model, rate

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.model(*args, **kwargs, rate=self.rate)


def at_rate(model: nn.Module, rate: float) -> nn.Module:
    """The model at a rate; itself at rate 1."""
    return model if rate == 1 else AtRate(model, rate)


def set_rate(data: SequenceData, rate: float) -> None:
    """Let a data module's validation and test be at a rate, if it has one."""
    if data.tokens and rate != 1:
        raise ValueError(f"rate={rate:g} must be 1: {type(data).__name__} gives tokens, which have no sampling rate")
    data.rate = rate
