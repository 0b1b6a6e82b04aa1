"""The interface between a raw input and a model: what a run folder keeps of its data module."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from milkweed._arguments import plain
from milkweed._files import read_json_file
from milkweed._registry import find, name_of, register_if_free, requires

FILE = "preprocessing.json"
FORMAT = 1
LARGEST_FILE = 2**26

Sample = dict[str, Tensor]
"""`inputs`, (L, D) features or (L,) tokens, and what else the task's model reads of the same L steps."""


class Preprocessing(ABC):
    """How one raw input, a file, an array or a text, becomes what a model reads; without the training data.

    A data module gives one by `SequenceData.preprocessing()`, asked for after `setup`. The training writes it into the
    run folder, and `milkweed predict` and `mw.load_predictor` make it again there. To write one for a data module:

    - The constructor takes what is needed as values of JSON: numbers that were fitted (mean, std), class names, a
      vocabulary, a sample rate, a permutation, names of columns. It calls `super().__init__(name=value, ...)` with all
      of them; they become `values`, from which `read_preprocessing` constructs it again. It reads no file.
    - `read(source, rate)` gives a name and a `Sample` for every input in a source, checked: what is of another width,
      length, rate or dtype, or holds NaN, is a ValueError that names the source. A source is what the user gave: a
      path or text of the command line, or an array, tensor or text from Python. It is prepared exactly as `load` of
      the data module prepares a sample.
    - `describe(outputs, sample)` gives the numbers that a regression or forecast found, in original units, as plain
      values. With `steps`, a list of one mapping per step, a table has a row for each; a forecast's have time stamps.
      Whatever a sample holds besides tensors for the model, such as its last time stamp, `read` puts into
      `sample["notes"]`, a plain mapping that no model sees.
    - `next_steps(chunk, position)`, for live streams, prepares a few steps that follow `position` earlier ones.

    Subclasses are registered under their class names. One in a user's own module is found when that module is imported.

    Args:
        class_names: Names of the classes by number; None where there are none.
        **values: All arguments of the subclass's constructor.
    """

    whole: int | None = None
    """Steps to which every batch is padded, for models that read padding; None for its longest."""
    forecasts: bool = False
    """Whether outputs (steps, columns) are what follows an input, and not one row for each of its steps."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_if_free("preprocessing", cls)

    def __init__(self, class_names: Iterable[str] | None = None, **values: Any) -> None:
        if isinstance(class_names, str) or not isinstance(class_names, Iterable | None):
            raise TypeError(f"class_names must be a list of names; got {class_names!r:.60}")
        self.class_names = None if class_names is None else [str(name) for name in class_names]
        if self.class_names == []:
            raise ValueError("class_names must name a class; use None where there are none")
        self.values = {"class_names": self.class_names} | {name: _json(value) for name, value in values.items()}
        self.folder = Path()
        """The run folder, where a tokenizer lies."""

    @abstractmethod
    def read(self, source: Any, rate: float = 1.0) -> Iterator[tuple[str, Sample]]:
        """Give a name and a sample for every input in a source; at another ``rate`` the source has that rate."""

    def describe(self, outputs: Tensor, sample: Sample) -> dict[str, Any]:
        """What the numbers are that a regression gave for a sample, (K,) or one row per step, (L, K)."""
        return described(outputs)

    def before(self, sample: Sample) -> dict[str, Any] | None:
        """What a forecast follows, for its picture: numbers by column, and `time` stamps; None where nothing does."""
        return None

    def next_steps(self, chunk: Any, position: int) -> Tensor:
        """Prepare some steps of a live stream, (D,) or (T, D), that follow `position` steps: (T, D)."""
        raise ValueError(
            f"{type(self).__name__} cannot be read step by step, as an input is prepared as a whole; call the "
            "predictor on whole inputs"
        )

    def as_dict(self) -> dict[str, Any]:
        """What `preprocessing.json` holds."""
        return {"format": FORMAT, "name": name_of("preprocessing", type(self)), "values": self.values}


def described(outputs: Tensor) -> dict[str, Any]:
    """Numbers as plain values: `value` or `values` of a sequence, `steps` of each step."""
    if outputs.ndim == 2:
        return {"steps": [{"step": step} | _numbers(row) for step, row in enumerate(outputs)]}
    return _numbers(outputs)


def _numbers(row: Tensor) -> dict[str, Any]:
    found = row.reshape(-1).tolist()
    return {"value": found[0]} if len(found) == 1 else {"values": found}


def read_preprocessing(folder: Path) -> Preprocessing:
    """Make the preprocessing of a run folder; a file of another version or that is damaged is a ValueError."""
    file = folder / FILE
    content = read_json_file(file, LARGEST_FILE)
    known = isinstance(content, dict) and isinstance(content.get("values"), dict)
    if not known or type(content.get("format")) is not int:
        raise ValueError(f"{file} is damaged: expected format, name and values; delete it to have it made again")
    if content["format"] < 1:
        raise ValueError(f"{file} is damaged: format={content['format']}; delete it to have it made again")
    if content["format"] > FORMAT:
        raise ValueError(f"{file} has format {content['format']}, this version reads {FORMAT}: update milkweed")
    kind: type[Preprocessing] = find("preprocessing", content.get("name"), f"{file}: name")
    try:
        made = kind(**content["values"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} is damaged: {error}; delete it to have it made again") from error
    made.folder = folder
    return made


def check_scale(mean: Any, std: Any, width: int) -> None:
    """Refuse a mean or a standard deviation that is not one number, or one for each of a step."""
    for name, value in (("mean", mean), ("std", std)):
        found = torch.as_tensor(value, dtype=torch.float64)
        if found.ndim > 1 or found.numel() not in {1, width} or not bool(torch.isfinite(found).all()):
            raise ValueError(f"{name} must be a finite number, or {width} of them; got {value!r:.60}")
        if name == "std" and not bool((found > 0).all()):
            raise ValueError(f"std must be above 0; got {value!r:.60}")


def check_counts(**values: Any) -> None:
    """Refuse what is neither None nor a whole number from 1 on."""
    for name, value in values.items():
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{name} must be a whole number from 1 on; got {value!r:.60}")


def check_finite(name: str, inputs: Tensor) -> None:
    """Refuse NaN and infinity in an input."""
    bad = (~torch.isfinite(inputs)).reshape(len(inputs), -1).any(1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{name}: the input holds NaN or infinity, first at step {bad[0]}; clean it")


def _json(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _json(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_json(each) for each in value]
    return value.tolist() if hasattr(value, "tolist") else plain(value)


def _check_class(cls: type, name: str) -> None:
    if not issubclass(cls, Preprocessing):
        raise TypeError(f"preprocessing {name!r} must be a subclass of milkweed.data.Preprocessing; got {cls!r}")


requires("preprocessing", _check_class)
