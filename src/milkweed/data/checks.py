"""What loaded data must be: anything else would fail later, or spoil a training unnoticed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from milkweed.data.batches import ArrayDataset


def check_names(owner: str, loaded: Any, names: Sequence[str]) -> None:
    """Refuse what is no mapping of the three splits."""
    if not isinstance(loaded, Mapping):
        raise TypeError(
            f"{owner}.load must return a dictionary with {', '.join(names)}, each an ArrayDataset; got "
            f"{type(loaded).__name__}"
        )
    missing = [name for name in names if name not in loaded]
    if missing:
        raise ValueError(
            f"{owner}.load gives no {missing[0]} split; it gives {', '.join(map(str, loaded)) or 'nothing'}"
        )
    for name in names:
        if not hasattr(loaded[name], "__getitem__") or isinstance(loaded[name], Tensor | Sequence):
            raise TypeError(
                f"{owner}.load: the {name} split must be an ArrayDataset(inputs, targets, lengths); got "
                f"{type(loaded[name]).__name__}"
            )


def check_class_names(owner: str, names: Any) -> None:
    """Refuse classes without names."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(each, str) for each in names):
        raise TypeError(f"{owner}.class_names must be the names of all classes, e.g. ('no', 'yes'); got {names!r:.60}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{owner}.class_names must be two or more different names; got {list(names)!r:.60}")


def check_sizes(owner: str, data: Any, splits: Mapping[str, Any]) -> None:
    """Refuse a module without `length` or `d_input`, and splits of another width than that."""
    for name in ("length", "d_input"):
        if not isinstance(getattr(data, name, None), int):
            raise TypeError(f"{owner}.{name} must be a whole number; got {getattr(data, name, None)!r}")
    for name, split in splits.items():
        if not isinstance(split, ArrayDataset):
            continue
        if split.inputs.ndim == 3 and split.inputs.shape[2] != data.d_input:
            raise ValueError(
                f"{owner}: {name} split: inputs have {split.inputs.shape[2]} features for each step, and "
                f"d_input={data.d_input}"
            )
        if split.inputs.ndim == 2 and int(split.inputs.max()) >= data.d_input:
            raise ValueError(
                f"{owner}: {name} split: inputs hold the token {int(split.inputs.max())}, and d_input="
                f"{data.d_input} is the number of different tokens"
            )


def check_split(owner: str, name: str, split: ArrayDataset, classes: int | None = None) -> None:
    """Refuse tensors of wrong kinds, shapes or contents; numbers as targets have no `classes`."""
    where = f"{owner}: {name} split"
    if not len(split):
        raise ValueError(f"{where} is empty; check the files under the data folder")
    _check_shapes(where, split)
    for values in (split.inputs, split.targets):
        bad = (~torch.isfinite(values)).reshape(len(split), -1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{where}: {len(bad)} of {len(split)} samples hold NaN or infinity, first at sample {bad[0]}; "
                "clean or drop them"
            )
    if classes is not None:
        if split.targets.is_floating_point() or split.targets.dtype == torch.bool:
            raise TypeError(f"{where}: targets must be the numbers of classes, int64; got {split.targets.dtype}")
        _check_range(where, "targets", split.targets, 0, classes - 1)
    _check_range(where, "lengths", split.lengths, 1, split.inputs.shape[1])


def _check_shapes(where: str, split: ArrayDataset) -> None:
    for name in ("inputs", "targets", "lengths"):
        values = getattr(split, name)
        if not isinstance(values, Tensor):
            raise TypeError(f"{where}: {name} must be a tensor; got {type(values).__name__}; use torch.as_tensor")
    inputs, kind = split.inputs, split.inputs.dtype
    if kind in {torch.float64, torch.bool} or kind.is_complex:
        raise TypeError(f"{where}: inputs must be float32 features or int64 tokens; got {kind}; use .float()")
    wanted = 3 if kind.is_floating_point else 2
    if inputs.ndim != wanted:
        what = "features (N, L, D)" if wanted == 3 else "tokens (N, L)"
        fix = "; for one feature use inputs[..., None]" if wanted == 3 and inputs.ndim == 2 else ""
        raise ValueError(f"{where}: inputs of {kind} must be {what}; got shape {tuple(inputs.shape)}{fix}")
    for name in ("targets", "lengths"):
        values = getattr(split, name)
        if values.ndim == 0 or len(values) != len(inputs):
            raise ValueError(f"{where}: {name} must be one for each of {len(inputs)} inputs; got {tuple(values.shape)}")
    if split.lengths.ndim != 1 or split.lengths.is_floating_point():
        raise TypeError(
            f"{where}: lengths must be (N,) integers; got {split.lengths.dtype} of {tuple(split.lengths.shape)}"
        )


def _check_range(where: str, what: str, values: torch.Tensor, low: int, high: int) -> None:
    outside = ((values < low) | (values > high)).nonzero().flatten().tolist()
    if outside:
        raise ValueError(
            f"{where}: {what} must lie in {low}…{high}; sample {outside[0]} has {int(values[outside[0]])} "
            f"({len(outside)} such samples)"
        )
