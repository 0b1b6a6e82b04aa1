"""Arrays of one's own: files of numpy and safetensors, or tensors from Python."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from milkweed._arguments import checked
from milkweed._suggest import unknown
from milkweed.data.base import SPLITS, SequenceData
from milkweed.data.batches import ArrayDataset
from milkweed.data.digits import stratified_split
from milkweed.data.preprocessing import Preprocessing, Signals, Tokens
from milkweed.data.splits import check_classes, check_shares, split_name

SUFFIXES = (".npy", ".npz", ".safetensors")
Source = Any
"""A file, an array, a tensor or a list. Were classes named here, texts in recipes would be import paths."""


class Arrays(SequenceData):
    """Sequences and what is to be learned of them, as arrays: `Arrays(x, y)` in Python, or files in a recipe.

    A file is named as `data/x.npy`, or as `data/all.npz:inputs` where it holds several arrays (.npz, .safetensors).

    Args:
        inputs: Features (N, L, D), or (N, L) of one feature, or with `tokens` integers (N, L).
        targets: A class for each sequence, (N,) integers or texts; or numbers, (N, K) for each sequence, (N, L, K) for
            each step, (N,) for one number each.
        lengths: Valid steps of each sequence, (N,); all by default. What lies behind them may hold anything.
        split: The split of each sequence, (N,) texts such as "train", "val" and "test"; by default the next two shares,
            always of the same samples, and of every class alike.
        val: Share of the samples for validation.
        test: Share of the samples for the test.
        tokens: Whether inputs are tokens.
        standardise: Subtract the mean of each feature and divide by its standard deviation, both of the training split.
        batch_size: Samples per optimiser step over all processes together.
        seed: Decides the order of the training samples, nothing else.
        limit: At most this many samples per split, for trials.
    """

    @checked(but=("inputs", "targets", "lengths", "split"))
    def __init__(
        self,
        inputs: Source,
        targets: Source,
        lengths: Source | None = None,
        split: Source | None = None,
        val: float = 0.1,
        test: float = 0.1,
        tokens: bool = False,
        standardise: bool = True,
        batch_size: int = 64,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        super().__init__(batch_size, seed, limit)
        check_shares(val, test)
        self.sources: Mapping[str, Any] = {"inputs": inputs, "targets": targets, "lengths": lengths, "split": split}
        for name, value in self.sources.items():
            if not isinstance(value, str | list | np.ndarray | Tensor) and not (
                value is None and name in {"lengths", "split"}
            ):
                raise TypeError(f"{name} must be an array, a tensor or the name of a file; got {type(value).__name__}")
        self.val, self.test, self.tokens, self.standardise = val, test, tokens, standardise
        self.mean: Tensor | None = None
        self.std: Tensor | None = None

    @property
    def length(self) -> int:  # type: ignore[override]
        """Steps of the longest sequence."""
        return self.split("train").inputs.shape[1]

    @property
    def d_input(self) -> int:  # type: ignore[override]
        """Features of each step, or the number of different tokens."""
        if self.tokens:
            return 1 + max(int(self.split(name).inputs.max()) for name in SPLITS)
        return self.split("train").inputs.shape[2]

    def load(self) -> dict[str, ArrayDataset]:
        """Read, check and split the arrays."""
        arrays = {name: None if source is None else _read(name, source) for name, source in self.sources.items()}
        inputs, targets = _inputs(arrays["inputs"], self.tokens), _numbers("targets", arrays["targets"])
        count = len(inputs)
        if not count:
            raise ValueError("inputs hold no sequence; give three or more, one for each split")
        for name, values in arrays.items():
            if values is not None and (values.ndim == 0 or len(values) != count):
                raise ValueError(f"{name} must be one for each of the {count} inputs; got shape {values.shape}")
        lengths = _lengths(arrays["lengths"], inputs)
        parts = self._parts(arrays["split"], targets)
        targets = self._targets(targets, parts, inputs.shape[1])
        if lengths is not None:
            inputs = without_padding(inputs, lengths)
            targets = without_padding(targets, lengths) if targets.ndim == 3 else targets
        if self.standardise and not self.tokens:
            training = parts["train"]
            self.mean, self.std = standardised(inputs[training], None if lengths is None else lengths[training])
            inputs = (inputs - self.mean) / self.std
            inputs = inputs if lengths is None else without_padding(inputs, lengths)
        return {
            name: ArrayDataset(inputs[chosen], targets[chosen], None if lengths is None else lengths[chosen])
            for name, chosen in parts.items()
        }

    def preprocessing(self) -> Preprocessing:
        """Arrays like these."""
        self.setup()
        training = self.split("train")
        # Answers for every step may be wanted of any number of steps.
        of_steps = training.targets.ndim == 3
        length = None if self.sources["lengths"] is not None or of_steps else self.length
        if self.tokens:
            return Tokens(self.d_input, length, self.class_names)
        scale = {} if self.mean is None else {"mean": self.mean.tolist(), "std": cast(Tensor, self.std).tolist()}
        return Signals(self.d_input, length, **scale, class_names=self.class_names)

    def _parts(self, split: np.ndarray | None, targets: np.ndarray) -> dict[str, np.ndarray]:
        if split is None:
            classes = targets if _are_classes(targets) else np.zeros(len(targets), int)
            return stratified_split(classes, self.val, self.test)
        names = np.array([split_name(name, "split") for name in split.reshape(-1)])
        found = {name: np.flatnonzero(names == name) for name in SPLITS}
        for name, chosen in found.items():
            if not len(chosen):
                raise ValueError(f"split: no sample is for {name!r}; name some, or leave split out")
        return found

    def _targets(self, targets: np.ndarray, parts: Mapping[str, np.ndarray], length: int) -> Tensor:
        if _are_classes(targets):
            labels = {name: [str(each) for each in targets[chosen]] for name, chosen in parts.items()}
            self.class_names = check_classes(type(self).__name__, labels)
            places = {name: place for place, name in enumerate(self.class_names)}
            return torch.tensor([places[str(each)] for each in targets])
        if targets.ndim > 3 or (targets.ndim == 3 and targets.shape[1] != length):
            raise ValueError(
                f"targets must be (N,) classes, (N, K) numbers or (N, L={length}, K) numbers; got {targets.shape}"
            )
        found = torch.from_numpy(targets.astype(np.float32))
        return found[:, None] if found.ndim == 1 else found


def standardised(inputs: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and scale of each feature over the valid steps of (N, L, D); one that never changes keeps its scale."""
    steps = inputs.flatten(0, 1) if lengths is None else inputs[torch.arange(inputs.shape[1]) < lengths[:, None]]
    mean, std = steps.double().mean(0), steps.double().std(0, correction=0)
    return mean.float(), torch.where(std > 0, std, 1.0).float()


def _are_classes(targets: np.ndarray) -> bool:
    return targets.ndim == 1 and targets.dtype.kind in "iubUSO"


def _read(name: str, source: Any) -> np.ndarray:
    if isinstance(source, Tensor):
        return source.detach().cpu().numpy()
    if isinstance(source, list):
        try:
            return np.array(source)
        except ValueError as error:
            raise ValueError(f"{name}: no array can be made of the list ({error}); give rows of one length") from error
    return source if isinstance(source, np.ndarray) else read_array(source, f"data.{name}={source}")


def read_array(source: str, where: str) -> np.ndarray:
    """Read one array of a file, named `FILE` or `FILE:KEY`; no pickles, which could run code."""
    path, key = _file_and_key(source)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{where}: arrays are read from {', '.join(SUFFIXES)} files; got {path.suffix or 'no'} suffix")
    if not path.is_file():
        raise FileNotFoundError(f"{where}: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as stored:
                return stored.get_tensor(_key(where, key, list(stored.keys()))).numpy()
        found = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        if isinstance(found, np.ndarray):
            if key is not None:
                raise ValueError(f"{where}: {path} holds one array; name it without ':{key}'")
            return found
        with found:
            return found[_key(where, key, found.files)]
    except (SafetensorError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"{where}: {path} is damaged or no {path.suffix} file ({error})") from error
    except ValueError as error:
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            raise ValueError(f"{where}: {path} holds Python objects, which are not read; save plain numbers") from error
        raise


def _file_and_key(source: str) -> tuple[Path, str | None]:
    for suffix in SUFFIXES:
        head, found, key = source.rpartition(f"{suffix}:")
        if found:
            return Path(head + suffix), key
    return Path(source), None


def _key(where: str, key: str | None, keys: list[str]) -> str:
    if key is None and len(keys) == 1:
        return keys[0]
    if key is None:
        raise ValueError(f"{where}: the file holds {', '.join(sorted(keys))}; name one as FILE:{min(keys)}")
    if key not in keys:
        raise ValueError(f"{where}: {unknown('array', key, keys)}")
    return key


def _numbers(name: str, values: np.ndarray | None) -> np.ndarray:
    if values is None or values.dtype.kind not in "iubfUSO" or not _one_kind(values):
        raise TypeError(f"{name} must be real numbers{' or texts' if name == 'targets' else ''}; got {values.dtype}")
    return values


def _one_kind(values: np.ndarray) -> bool:
    """Whether objects are all texts."""
    return values.dtype.kind != "O" or all(isinstance(each, str) for each in values.reshape(-1))


def _inputs(values: np.ndarray, tokens: bool) -> Tensor:
    if values.dtype.kind not in "iubf":
        raise TypeError(f"inputs must be real numbers; got {values.dtype}")
    if tokens:
        if values.ndim != 2 or values.dtype.kind not in "iu":
            raise ValueError(
                f"inputs must be (N, L) integers with tokens=true; got {values.dtype} of shape {values.shape}"
            )
        if values.size and values.min() < 0:
            raise ValueError(f"inputs: tokens must be 0 or more; got {values.min()}")
        return torch.from_numpy(values.astype(np.int64))
    if values.ndim not in {2, 3} or 0 in values.shape[1:]:
        raise ValueError(f"inputs must be (N, L) or (N, L, D) with L and D at least 1; got shape {values.shape}")
    found = torch.from_numpy(values.astype(np.float32))
    return found[..., None] if found.ndim == 2 else found


def _lengths(values: np.ndarray | None, inputs: Tensor) -> Tensor | None:
    if values is None:
        return None
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise TypeError(f"lengths must be (N,) integers; got {values.dtype} of shape {values.shape}")
    if values.size and not (values.min() >= 1 and values.max() <= inputs.shape[1]):
        raise ValueError(f"lengths must lie in 1…{inputs.shape[1]}; got {values.min()}…{values.max()}")
    return torch.from_numpy(values.astype(np.int64))


def without_padding(inputs: Tensor, lengths: Tensor) -> Tensor:
    """Fill (N, L) or (N, L, D) with 0 behind the valid steps."""
    valid = torch.arange(inputs.shape[1]) < lengths[:, None]
    return torch.where(valid if inputs.ndim == 2 else valid[..., None], inputs, 0)
