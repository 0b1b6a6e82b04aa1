"""Adapters in a file of their own: kilobytes beside the model that they belong to, and only to that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed._files import atomic_write
from milkweed._tensor_files import write_tensors
from milkweed._version import __version__
from milkweed.convert.adapters import adaptable_sites, adapted_layers, attach, base_parameters
from milkweed.convert.bounds import limited
from milkweed.convert.metadata import read_json
from milkweed.convert.record import ENTRY, build_entry, layer_entry
from milkweed.convert.safetensors_files import file_in, read_tensors, writing
from milkweed.convert.sites import LinearSite
from milkweed.convert.versions import former, renamed
from milkweed.nn.structured_linear import AdaptedLinear
from milkweed.nn.structured_linear.adapted import Update
from milkweed.nn.wrappers import gathered, is_distributed, one_writer, through_wrappers

FILE_NAME = "adapters.safetensors"
_SAMPLE = 8
_ENTRY = ENTRY | {"scale": float}
_BASE = {"class": str, "count": int, "names": str, "samples": {str: {"dtype": str, "values": [float]}}}
_DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype) and d.is_floating_point}


@through_wrappers(changes=False)
@checked
def save_adapters(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's adapters, and whatever else of it is trainable, to ``path/adapters.safetensors``, atomically.

    The file also holds what identifies its base model: the names of its parameters, the sizes of the adapted
    layers, and a few numbers of each frozen parameter.

    Args:
        model: A model with adapters, not merged.
        path: A folder, made if needed, or a file name ending in ``.safetensors``.

    Returns:
        The file written.

    Raises:
        ValueError: The model has no adapters, or they have no numbers yet (meta device).
        OSError: The disk is full or cannot be written.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64))
        >>> names = mw.add_adapters_(model, {"0": mw.AdapterConfig(nblocks=4)})
        >>> mw.save_adapters(model, "tuned").name
        'adapters.safetensors'
    """
    layers = adapted_layers(model)
    tensors = {
        f"{names[0]}.update.{key}": value
        for adapted, names in layers.items()
        for key, value in adapted.update.state_dict().items()
    }
    trained = {parameter: name for name, parameter in base_parameters(model).items() if parameter.requires_grad}
    tensors |= {name: parameter.data for parameter, name in trained.items()}
    if any(tensor.is_meta for tensor in tensors.values()):
        raise ValueError("the adapters are on the meta device and have no numbers; load some, or to_empty and reset")
    entries = [layer_entry(names, a.update) | {"scale": a.scale} for a, names in layers.items()]
    metadata = {"format": "pt", "milkweed": __version__, "adapters": json.dumps(entries, sort_keys=True)}
    metadata["trained"] = json.dumps(sorted(trained.values()))
    metadata["base"] = json.dumps(_fingerprint(model), sort_keys=True)
    file = file_in(path, FILE_NAME)
    whole = {name: gathered(tensor.detach()) for name, tensor in tensors.items()}
    with one_writer(model) as writes:
        if writes:
            contiguous = {name: t.clone(memory_format=torch.contiguous_format) for name, t in whole.items()}
            with writing(file), atomic_write(file) as temporary:
                write_tensors(contiguous, temporary, metadata)
    return file


@through_wrappers(changes=True)
@checked
def load_adapters_(model: nn.Module, path: str | os.PathLike[str]) -> list[str]:
    """Add the adapters of a file to the model that they were made for, in place, and freeze everything else.

    Whatever was saved with them, such as a head, is filled in and stays trainable. The file is read as data; no code
    runs from it.

    Args:
        model: The model as it was before adapters were added; its dtype, device and quantisation may differ. After an
            error it is as before.
        path: The folder that holds ``adapters.safetensors``, or the file.

    Returns:
        The names of the layers that have an adapter now, all paths of each.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, not written by ``save_adapters`` or made for another model, or the model has
            adapters already or no numbers.

    Example:
        >>> base = nn.Sequential(nn.Linear(64, 64))
        >>> tuned = copy.deepcopy(base)
        >>> names = mw.add_adapters_(tuned, {"0": mw.AdapterConfig(nblocks=4)})
        >>> path = mw.save_adapters(tuned, "tuned")
        >>> mw.load_adapters_(base, "tuned")
        ['0']
    """
    file = file_in(path, FILE_NAME)
    tensors, entries, base, trained, version = _read(file)
    tensors, base["samples"] = renamed(tensors, model, version), renamed(base["samples"], model, version)
    entries = [{**entry, "names": list(renamed(dict.fromkeys(entry["names"]), model, version))} for entry in entries]
    for name, tensor in tensors.items():
        # Numbers of 8 bits are for keeping: torch computes nothing with them, not even whether they are finite.
        if not (tensor.is_floating_point() and tensor.itemsize > 1 and tensor.isfinite().all()):
            raise ValueError(
                f"{file} holds {name!r}, {tensor.dtype}, with NaN, infinite or whole numbers, or numbers of 8 bits; "
                "train again, or save it in bfloat16 or wider"
            )
    sites = {name: site for site in adaptable_sites(model) for name in site.names}
    parameters = base_parameters(model)
    if any(parameter.is_meta for parameter in parameters.values()):
        raise ValueError("model is on the meta device; load its own weights first, then adapters on top")
    difference = _difference(model, sites, parameters, entries, base, version)
    if difference is not None:
        raise ValueError(f"{file} was made for another model, a {base['class']}: {difference}")
    try:
        with limited(len(tensors)):
            placed = [(sites[e["names"][0]].names, _adapted(sites[e["names"][0]], e, tensors)) for e in entries]
    except (RuntimeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the adapters in {file} do not fit their description: {error}") from error
    _check_trained(file, tensors, trained, parameters)  # those of the adapters have been taken out
    attach(model, placed, [parameters[name] for name in tensors])
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
    return [name for names, _ in placed for name in names]


def _read(file: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any], set[str] | None, str]:
    tensors, metadata = read_tensors(file, "save_adapters")
    if not {"adapters", "base"} <= metadata.keys():
        raise ValueError(f"{file} has no adapters in its metadata; it was not written by save_adapters")
    entries = read_json(file, metadata, "adapters", (_ENTRY,))
    base = read_json(file, metadata, "base", _BASE)
    if unknown := {sample["dtype"] for sample in base["samples"].values()} - _DTYPES.keys():
        raise ValueError(
            f"the base in {file} names a dtype {min(unknown)!r}, which this version of torch does not have"
        )
    trained = set(read_json(file, metadata, "trained", [str])) if "trained" in metadata else None
    return tensors, entries, base, trained, metadata.get("milkweed", __version__)


def _check_trained(
    file: Path, tensors: dict[str, Tensor], trained: set[str] | None, parameters: dict[str, nn.Parameter]
) -> None:
    """Refuse a file that lacks what was trained beside the adapters, or holds more than that."""
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            size = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise ValueError(f"{file} holds {name!r} of shape {tuple(tensor.shape)}; the model has {size}")
    if trained is None:  # a file of an earlier version, which does not list them
        return
    for name in sorted(tensors.keys() ^ trained):
        lists, holds = ("lists", "does not hold") if name in trained else ("does not list", "holds")
        raise ValueError(f"{file} {lists} {name!r} as trained with the adapters, but {holds} it; save them again")


def _adapted(site: LinearSite, entry: dict[str, Any], tensors: dict[str, Tensor]) -> AdaptedLinear:
    """The layer with its adapter, whose tensors are taken out of those of the file."""
    prefix = f"{entry['names'][0]}.update."
    own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
    update = cast(Update, build_entry(entry))
    update.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in own.items()}, assign=True)
    device = next((p.device for p in site.module.parameters()), torch.device("cpu"))
    return AdaptedLinear(site.module, update.to(device), entry["scale"]).train(site.module.training)


def _fingerprint(model: nn.Module) -> dict[str, Any]:
    """What identifies a base model, whatever its dtype or quantisation: a sample of all that is frozen."""
    parameters = base_parameters(model)
    frozen = {p: name for name, p in parameters.items() if _has_numbers(p) and not p.requires_grad}  # tied ones once
    samples = {
        name: {"dtype": str(parameter.dtype), "values": values.tolist()}
        for parameter, name in frozen.items()
        if (values := _sample(parameter)).isfinite().all()
    }
    names = _digest(list(parameters))
    return {"class": type(model).__name__, "count": len(parameters), "names": names, "samples": samples}


def _difference(
    model: nn.Module,
    sites: dict[str, LinearSite],
    parameters: dict[str, nn.Parameter],
    entries: Sequence[dict[str, Any]],
    base: dict[str, Any],
    version: str,
) -> str | None:
    """In what a model differs from the one that adapters were made for."""
    for entry in entries:
        name, sizes = entry["names"][0], (entry["in_features"], sum(entry["out_features"]))
        if name not in sites:
            return f"this {type(model).__name__} has no linear layer {name!r}"
        if isinstance(sites[name].module, AdaptedLinear):
            raise ValueError(f"layer {name!r} cannot have an adapter: {sites[name].obstacle}")
        found = sites[name].in_features, sites[name].out_features
        if found != sizes:
            return f"layer {name!r} has {sizes[0]} inputs and {sizes[1]} outputs there, here {found[0]} and {found[1]}"
    if _digest(former(parameters, model, version)) != base["names"]:
        return (
            f"its {base['count']} parameters have other names than the {len(parameters)} of this "
            f"{type(model).__name__}; was one of them converted?"
        )
    for name, sample in base["samples"].items():
        parameter = parameters.get(name)
        if parameter is None:
            return f"this {type(model).__name__} has no parameter {name!r}"
        if _has_numbers(parameter) and not _same_numbers(parameter, sample):
            return (
                f"{name!r} has other numbers there; load the weights that the adapters were trained on (what was "
                "trained with them is saved with them if add_adapters_ was asked to train it)"
            )
    return None


def _same_numbers(parameter: nn.Parameter, sample: dict[str, Any]) -> bool:
    dtypes = parameter.dtype, _DTYPES[sample["dtype"]]
    rounding = max(torch.finfo(dtype).eps for dtype in dtypes) if dtypes[0] != dtypes[1] else 0.0
    found, expected = _sample(parameter), torch.tensor(sample["values"], dtype=torch.float64)
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=rounding, atol=1e-7 * (rounding > 0))


def _sample(parameter: nn.Parameter) -> Tensor:
    """A few numbers, evenly spread."""
    count = min(_SAMPLE, parameter.numel())
    positions = torch.arange(count) * (parameter.numel() - 1) // max(count - 1, 1)
    return gathered(parameter.detach()).reshape(-1)[positions.to(parameter.device)].double().cpu()


def _has_numbers(parameter: nn.Parameter) -> bool:
    ordinary = type(parameter) is nn.Parameter or is_distributed(parameter)
    return ordinary and parameter.is_floating_point() and not parameter.is_meta


def _digest(names: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
