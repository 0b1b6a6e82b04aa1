"""A finished run as a function: raw inputs in, predictions out."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from milkweed._arguments import check_kind, check_size
from milkweed.data.preprocessing import Preprocessing, Sample
from milkweed.nn.filters.base import check_rate
from milkweed.tasks.base import Task
from milkweed.train.at_rate import at_rate
from milkweed.train.stream import Stream

Prediction = dict[str, Any]
"""Plain values: `input`, and `class`, `probability` and `probabilities`, or `value`, `values` or `steps`, or `text`."""


class Predictor:
    """A trained model with the preprocessing of its data: `predictor(inputs)` gives a list of predictions.

    Args:
        model: The model.
        task: What it was trained for.
        preprocessing: How inputs are read.
        name: What messages call the run.
    """

    options: tuple[str, ...] = ()
    """What a call takes beside `batch_size` and `rate`."""

    def __init__(self, model: nn.Module, task: Task, preprocessing: Preprocessing, name: str = "the model") -> None:
        self.model, self.task, self.preprocessing, self.name = model.eval(), task.eval(), preprocessing, name

    def __call__(self, inputs: Any, *, batch_size: int = 32, rate: float = 1.0, **options: Any) -> list[Prediction]:
        """Predict for every input, in their order.

        Args:
            inputs: A file, an array, a text, or a list of them; arrays may hold several inputs, see the preprocessing.
            batch_size: Inputs that the model reads at a time; results do not depend on it.
            rate: Distance between the steps of the inputs relative to training: 2 for signals that were sampled half as
                often. Arrays and recordings are taken as they are, of images every rate-th pixel is read.
            **options: What the task takes besides.

        Raises:
            ValueError: An input is not as in training: its width, length, rate or dtype, or it holds NaN.
        """
        check_rate(rate)
        check_kind(int, batch_size=batch_size)
        check_size(batch_size=batch_size)
        self._check_options(options)
        named = list(self.samples(inputs, rate))
        found: list[Prediction] = [{} for _ in named]
        # Inputs of like lengths together, so that little is padded.
        order = sorted(range(len(named)), key=lambda place: len(named[place][1]["inputs"]))
        with torch.inference_mode():
            for first in range(0, len(order), batch_size):
                places = order[first : first + batch_size]
                said = self.predict([named[place][1] for place in places], rate, **options)
                for place, each in zip(places, said, strict=True):
                    found[place] = {"input": named[place][0]} | each
        return found

    def samples(self, inputs: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """What the model reads of every input, with a name for it."""
        many = isinstance(inputs, list) and not _is_numbers(inputs)
        sources: Iterable[Any] = inputs if many else [inputs]
        for number, source in enumerate(sources):
            own = f"input {number}" if many else "the input"
            try:
                for name, sample in self.preprocessing.read(source, rate):
                    yield name.replace("the input", own, 1), sample
            except (TypeError, ValueError) as error:
                if type(error) not in {TypeError, ValueError}:
                    raise
                raise type(error)(str(error).replace("the input", own, 1)) from error

    def predict(self, samples: list[Sample], rate: float, **options: Any) -> list[Prediction]:
        """Predict for the samples of one batch."""
        batch = self.batch(samples)
        outputs = self.task.run_model(at_rate(self.model, rate), batch)
        return self.described(self.task.predictions(outputs, batch), samples)

    def batch(self, samples: list[Sample]) -> dict[str, Tensor]:
        """Samples of any lengths as one padded batch on the model's device."""
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(each["inputs"]) for each in samples])
        steps = max(int(lengths.max()), self.preprocessing.whole or 0)
        batch = {"lengths": lengths}
        for name in samples[0]:
            if name == "notes":
                continue
            rows = pad_sequence([each[name] for each in samples], batch_first=True, padding_value=self._padding(name))
            missing = [0] * (2 * (rows.ndim - 2)) + [0, steps - rows.shape[1]]
            batch[name] = nn.functional.pad(rows, missing, value=self._padding(name))
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def described(self, said: dict[str, Tensor], samples: list[Sample]) -> list[Prediction]:
        """What a task's predictions say, as plain values."""
        if "classes" in said:
            rows = zip(said["classes"].tolist(), said["probabilities"].tolist(), strict=True)
            return [self._of_class(number, probabilities) for number, probabilities in rows]
        if set(said) != {"values"}:
            return [{name: values[row].tolist() for name, values in said.items()} for row in range(len(samples))]
        values = said["values"].float().cpu()
        found = []
        for row, sample in zip(values, samples, strict=True):
            of_steps = row.ndim == 2 and values.shape[1] >= len(sample["inputs"]) and self._follows(values, samples)
            found.append(self.preprocessing.describe(row[: len(sample["inputs"])] if of_steps else row, sample))
        return found

    def stream(self, *, rate: float = 1.0) -> Stream:
        """Start to read a live stream, step by step; see `milkweed.train.stream.Stream`."""
        check_rate(rate)
        return Stream(self, rate)

    def _of_class(self, number: int, probabilities: list[float]) -> Prediction:
        names = self.preprocessing.class_names or [str(each) for each in range(len(probabilities))]
        if len(names) != len(probabilities):
            raise ValueError(
                f"{self.name}: the model gives {len(probabilities)} classes, and its preprocessing names {len(names)}; "
                "delete preprocessing.json to have it made again"
            )
        return {
            "class": names[number],
            "probability": probabilities[number],
            "probabilities": dict(zip(names, probabilities, strict=True)),
        }

    def _follows(self, values: Tensor, samples: list[Sample]) -> bool:
        """Whether outputs are one row per step of the inputs, and not per step of a forecast."""
        if self.preprocessing.forecasts:
            return False
        longest = max(len(each["inputs"]) for each in samples)
        return values.shape[1] == max(longest, self.preprocessing.whole or 0)

    def _padding(self, name: str) -> int:
        tokenizer = getattr(self.preprocessing, "tokenizer", None) if name == "inputs" else None
        return getattr(tokenizer, "pad_token_id", None) or 0

    def _check_options(self, options: dict[str, Any]) -> None:
        strange = [name for name in options if name not in self.options]
        if strange:
            takes = f"it takes {', '.join(self.options)}" if self.options else "it takes batch_size and rate"
            raise TypeError(f"{self.name} has the task {type(self.task).__name__}, which has no {strange[0]}; {takes}")


def _is_numbers(values: Any) -> bool:
    """Whether a list is an array, of numbers or of lists of them."""
    while isinstance(values, list) and values:
        values = values[0]
    return isinstance(values, int | float)
