"""A model in one file, converted or not: safetensors with the architecture and the conversions in its metadata."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from milkweed._files import atomic_write
from milkweed._version import __version__
from milkweed.convert.files import file_in, read_tensors, written_by_milkweed
from milkweed.convert.record import conversion_record, rebuild
from milkweed.convert.skeleton import skeleton_of
from milkweed.models.base import Model, build_model

FILE_NAME = "model.safetensors"
# transformers would read a model.safetensors beside its config.json, miss the dense weights and draw them at random.
CONVERTED_FILE_NAME = "milkweed.safetensors"


def save_pretrained(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's parameters, architecture and conversions to ``path/model.safetensors``, atomically.

    A transformers model also gets its ``config.json`` there, as transformers itself writes it. Has it been converted,
    so that only `load_pretrained` can read it, the file is ``path/milkweed.safetensors``.

    Args:
        model: A milkweed model, a transformers model, or any other module, which can be loaded only into a model of
            its architecture.
        path: A folder, made if needed, or a file name ending in ``.safetensors``.

    Returns:
        The file written.

    Raises:
        TypeError: The model is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    record = conversion_record(model, skeleton_of(model))
    foreign = _is_transformers(model) and bool(record)
    file = file_in(path, CONVERTED_FILE_NAME if foreign else FILE_NAME)
    metadata = {"format": "pt", "milkweed": __version__, "conversion": json.dumps(record)}
    if isinstance(model, Model):
        metadata["config"] = json.dumps(model.config)
    elif _is_transformers(model):
        metadata["transformers"] = type(model).__name__
    tensors, aliases = _without_aliases(model.state_dict())
    metadata["aliases"] = json.dumps(aliases)
    if "transformers" in metadata:
        _write_config(model, file.parent)
    with atomic_write(file) as temporary:
        save_file(tensors, temporary, metadata)
    _remove_other(file)
    return file


def load_pretrained(
    path: str | os.PathLike[str], into: nn.Module | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """Read a model that ``save_pretrained`` or a training run wrote. The file is read as data; no code runs from it.

    Args:
        path: The folder that holds ``model.safetensors`` or ``milkweed.safetensors``, or the file.
        into: For models that neither milkweed nor transformers knows: a model of the architecture before conversion,
            whose layers are replaced and filled in place.
        device: Where the parameters go.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is truncated, not written by ``save_pretrained``, or its parameters do not fit its config.
    """
    file = file_in(path, FILE_NAME)
    converted = file_in(path, CONVERTED_FILE_NAME)
    file = converted if converted.is_file() else file
    tensors, metadata = read_tensors(file, "save_pretrained", device)
    if into is None:
        into = _build(file, metadata)
    elif "milkweed" not in metadata:
        raise ValueError(f"{file} was not written by save_pretrained; load its tensors with safetensors")
    conversion, aliases = (_json(file, metadata, key, kind) for key, kind in (("conversion", list), ("aliases", dict)))
    try:
        rebuild(into, conversion)
        _fill(into, tensors, aliases)
    except (RuntimeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the parameters in {file} do not fit its config: {error}") from error
    return into.to(device).eval()


def _build(file: Path, metadata: dict[str, str]) -> nn.Module:
    if "config" in metadata:
        with torch.device("meta"):
            return build_model(_json(file, metadata, "config", dict))
    if "transformers" in metadata:
        return _build_transformers(file, metadata["transformers"])
    if "milkweed" in metadata:
        raise ValueError(f"{file} holds a model of your own; give load_pretrained(..., into=the dense architecture)")
    raise ValueError(f"{file} has no milkweed config in its metadata; it was not written by save_pretrained")


def _build_transformers(file: Path, name: str) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{file} holds a transformers model; pip install 'milkweed[hf]'") from error
    kind = getattr(transformers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"{file} holds a {name!r}, which is no model of transformers {transformers.__version__}")
    if not (file.parent / "config.json").is_file():
        raise FileNotFoundError(f"{file.parent / 'config.json'} does not exist; it belongs to {file.name}")
    config = transformers.AutoConfig.from_pretrained(file.parent)
    with _without_initialisation():
        model: nn.Module = kind(config)
    return model


@contextmanager
def _without_initialisation() -> Iterator[None]:
    """Let transformers leave parameters unfilled, as they are read from a file; buffers are computed."""
    before_version_5 = importlib.util.find_spec("transformers.initialization") is None
    module = importlib.import_module(f"transformers.{'modeling_utils' if before_version_5 else 'initialization'}")
    with module.no_init_weights():
        yield


def _is_transformers(model: nn.Module) -> bool:
    library = sys.modules.get("transformers")
    return library is not None and isinstance(model, library.PreTrainedModel)


def _remove_other(file: Path) -> None:
    """Remove what an earlier save left under the other of the two names: a folder holds one model."""
    names = {FILE_NAME, CONVERTED_FILE_NAME}
    for name in names - {file.name} if file.name in names else ():
        other = file.with_name(name)
        if other.is_file() and written_by_milkweed(other):
            other.unlink()


def _write_config(model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(model.config.to_json_string())  # type: ignore[operator, union-attr]


def _without_aliases(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that tied names share are stored once; the other names point to the first."""
    first: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and not tensor.is_meta and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            # Views of one memory are stored apart.
            tensors[name] = tensor.detach().contiguous()
    owners: dict[int, str] = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in owners:
            tensors[name] = tensor.clone()
        owners[memory] = name
    return tensors, aliases


def _fill(model: nn.Module, tensors: dict[str, Tensor], aliases: dict[str, str]) -> None:
    state = tensors | {alias: tensors[name] for alias, name in aliases.items()}
    model.load_state_dict(state, assign=True)
    for alias, name in aliases.items():
        owner, _, leaf = alias.rpartition(".")
        if leaf in model.get_submodule(owner)._parameters:
            setattr(model.get_submodule(owner), leaf, model.get_parameter(name))


def _json(file: Path, metadata: dict[str, str], key: str, kind: type) -> Any:
    if key not in metadata:
        return kind()
    try:
        value = json.loads(metadata[key])
    except json.JSONDecodeError as error:
        raise ValueError(f"the {key} in {file} is not JSON: {error}") from error
    if not isinstance(value, kind):
        expected = "mapping" if kind is dict else "list"
        raise ValueError(f"the {key} in {file} must be a {expected}; got {value!r}")
    return value
