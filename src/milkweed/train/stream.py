"""Predictions for a live stream, step by step."""

from typing import TYPE_CHECKING, Any

import torch

from milkweed.data.preprocessing import described

if TYPE_CHECKING:
    from milkweed.train.predictor import Predictor


class Stream:
    """A stream that is read as it comes: `stream(chunk)` gives the prediction for all steps so far.

    A model that answers for every step gives the answers for the new ones. Each step costs the same, however long the
    stream is, with layers that are recurrences; bidirectional ones are refused, as they need the whole.

    Args:
        predictor: The predictor.
        rate: Distance between the steps of the stream relative to training.
    """

    def __init__(self, predictor: "Predictor", rate: float) -> None:
        model = predictor.model
        if not hasattr(model, "stepper"):
            raise TypeError(
                f"{predictor.name} cannot be read step by step: {type(model).__name__} has no stepper; train a "
                "SequenceModel or Sashimi of layers that only look back, or call the predictor on whole inputs"
            )
        if predictor.options:
            raise TypeError(f"{predictor.name} reads texts; milkweed.models.stream continues a text token by token")
        self.predictor, self.steps = predictor, 0
        self._stepper = model.stepper(rate)
        self._state = self._stepper.initial_state(1)
        self._device = next(model.parameters()).device

    def __call__(self, chunk: Any) -> dict[str, Any]:
        """Read one step, (D,), or some, (T, D), in the units of the data, and predict."""
        predictor = self.predictor
        inputs = predictor.preprocessing.next_steps(chunk, self.steps).to(self._device)
        with torch.inference_mode():
            outputs, self._state = self._stepper.read(inputs[None], self._state)
            batch = {"inputs": inputs[None], "lengths": torch.tensor([len(inputs)], device=self._device)}
            said = predictor.task.predictions(outputs, batch)
        first, self.steps = self.steps, self.steps + len(inputs)
        if set(said) == {"values"} and outputs.ndim == 3 and not predictor.preprocessing.forecasts:
            found = described(said["values"][0].float().cpu())
            for each in found["steps"]:
                each["step"] += first
            return found
        return predictor.described(said, [{"inputs": inputs}])[0]
