"""A model in one file, converted or not: safetensors with the architecture and the conversions in its metadata."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from milkweed._arguments import checked
from milkweed._files import atomic_write, read_json_file
from milkweed._tensor_files import write_tensors
from milkweed._version import __version__
from milkweed.convert.bounds import check_counts, check_numbers, check_tables, limited, without_numbers
from milkweed.convert.experts import experts_apart
from milkweed.convert.hub import transformers_files
from milkweed.convert.hub.attach import attach
from milkweed.convert.hub.card import CARD, model_card
from milkweed.convert.hub.conversion_progress import Progress
from milkweed.convert.hub.source import find_source, load_model, quiet_transformers
from milkweed.convert.metadata import read_json
from milkweed.convert.record import ENTRY, conversion_record, misfit, rebuild, recorded_layers, recorded_names
from milkweed.convert.safetensors_files import (
    SUFFIX,
    check_device,
    file_in,
    overlap,
    read_header,
    read_tensors,
    writing,
    written_by_milkweed,
)
from milkweed.convert.skeleton import skeleton_of
from milkweed.convert.versions import renamed
from milkweed.models.base import Model, build_model
from milkweed.nn.wrappers import gathered, one_writer, through_wrappers

FILE_NAME = "model.safetensors"
GENERATION = "generation_config.json"
PICKLED_NAME = "pytorch_model.bin"


@through_wrappers(changes=False)
@checked(but=("path",))
def save_pretrained(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's parameters, architecture and conversions to ``path/model.safetensors``, atomically.

    A transformers model also gets its ``config.json`` there, and ``generation_config.json`` if it generates, as
    transformers itself writes them: its ``from_pretrained`` reads the folder, of a converted model where milkweed has
    been imported. Such a model also gets a ``README.md``, if there is none. What was there before stays until
    everything is written. Buffers that are not persistent and ``requires_grad`` are not saved.

    Wrappers around the model or its layers are seen through: ``torch.compile``, DataParallel, DistributedDataParallel,
    AveragedModel, Fabric's. Of a model that ``fully_shard`` has spread over processes, all of them have to call this;
    they gather the tensors one by one, and the first writes.

    Args:
        model: A milkweed model, a transformers model, or any other module, a subclass of a transformers model included,
            which can be loaded only into a model of its architecture.
        path: A folder, made if needed, or a file name ending in ``.safetensors``.

    Returns:
        The file written.

    Raises:
        TypeError: The model is not a module, holds anything except ordinary tensors with numbers, or is one of peft or
            flattened (FSDP1).
        ValueError: It has adapters, or its config describes another model, e.g. as its head was replaced; or the folder
            is that of the dense transformers model that it was converted from.
        OSError: The disk is full or cannot be written.

    Example:
        >>> model = mw.models.SequenceModel(1, 10, d_model=8, depth=1)
        >>> mw.save_pretrained(model, "my-model").name
        'model.safetensors'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}")
    _check_not_peft(model)
    attach(model)
    skeleton = skeleton_of(model)
    record, state = conversion_record(model, skeleton), _plain_state(model)
    if skeleton is not None:
        with experts_apart(skeleton, recorded_names(record)):
            difference = misfit(skeleton, recorded_layers(skeleton, record, state), state)
        if difference is not None:
            raise ValueError(
                f"this {type(model).__name__} could not be loaded again, since its config describes another model: "
                f"{difference}; {_way_out(state)}, or wrap the model in a torch.nn.Module of your own"
            )
    file = file_in(path, FILE_NAME)
    if _is_transformers(model) and record:
        _check_apart(model, file.parent)
    metadata = {"format": "pt", "milkweed": __version__, "conversion": json.dumps(record, sort_keys=True)}
    if isinstance(model, Model):
        metadata["config"] = json.dumps(model.config, sort_keys=True)
    elif _is_transformers(model) and transformers_files.class_named(type(model).__name__) is type(model):
        metadata["transformers"] = type(model).__name__
    tensors, aliases = _without_aliases(state)
    metadata["aliases"] = json.dumps(aliases, sort_keys=True)
    with one_writer(model) as writes:
        if writes:
            _write(file, tensors, metadata, _side_files(model, file.parent, bool(record)))
    return file


def _write(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str], side_files: dict[str, str]) -> None:
    with writing(file), ExitStack() as stack:
        # Whatever comes last takes its place first: a config changes only after the weights that it describes.
        for name, text in side_files.items():
            stack.enter_context(atomic_write(file.with_name(name))).write_text(text, encoding="utf-8")
        write_tensors(tensors, stack.enter_context(atomic_write(file)), metadata)
    _remove_former(file)


@through_wrappers(changes=True, argument="into")
@checked(but=("path", "into", "device"))
def load_pretrained(
    path: str | os.PathLike[str], into: nn.Module | None = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """Read a model that ``save_pretrained`` or a training run wrote. The file is read as data; no code runs from it.

    A folder that transformers' own ``save_pretrained`` wrote is read too, dense or converted, by the class that its
    ``config.json`` names.

    Args:
        path: The folder that holds ``model.safetensors``, or the file.
        into: For models that neither milkweed nor transformers knows: a model of the architecture before conversion,
            whose layers are replaced and filled in place, also within ``torch.compile`` and DataParallel. After an
            error it is as before.
        device: Where the parameters go.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``into`` is not a module, or is in a wrapper that has taken account of its parameters.
        ValueError: The file is truncated, not written by ``save_pretrained``, or its parameters do not fit its config;
            or there is no such device.

    Example:
        >>> model, x = mw.models.SequenceModel(1, 10, d_model=8, depth=1).eval(), torch.randn(2, 30, 1)
        >>> path = mw.save_pretrained(model, "my-model")
        >>> torch.equal(mw.load_pretrained("my-model").eval()(x), model(x))
        True
    """
    if not (into is None or isinstance(into, nn.Module)):
        raise TypeError(f"into must be a torch.nn.Module, the dense architecture; got {into!r}")
    file = _file_to_read(path)
    if into is None and _by_transformers(file):
        return _load_by_transformers(file.parent, device)
    header, metadata = read_header(file, "save_pretrained")
    check_device(device)
    skeleton = _build(file, metadata, header) if into is None else into
    if into is not None and "milkweed" not in metadata:
        raise ValueError(f"{file} was not written by save_pretrained; load its tensors with safetensors")
    conversion = read_json(file, metadata, "conversion", [ENTRY])
    aliases = read_json(file, metadata, "aliases", {str: str})
    version = metadata.get("milkweed", __version__)
    try:
        header, conversion, aliases = _by_names_of_today(skeleton, version, header, conversion, aliases)
        with experts_apart(skeleton, recorded_names(conversion)):
            with limited(len(header)):
                layers = recorded_layers(skeleton, conversion, header)
            difference = misfit(skeleton, layers, _with_aliases(header, aliases))
        if difference is not None:
            raise ValueError(difference)
    except (RuntimeError, AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the parameters in {file} do not fit its config: {error}") from error
    model = _with_tables(file, skeleton, header) if into is None else into
    tensors = renamed(read_tensors(file, "save_pretrained", device)[0], skeleton, version)
    if {name: (t.shape, t.dtype) for name, t in tensors.items()} != {n: (t.shape, t.dtype) for n, t in header.items()}:
        raise ValueError(f"{file} changed while it was read; read it again")
    rebuild(model, layers)
    _fill(model, _with_aliases(tensors, aliases), aliases)
    attach(model)
    return model.to(device).eval()


def _file_to_read(path: str | os.PathLike[str]) -> Path:
    """The file of a model's tensors; the first shard's place where transformers spread them over several."""
    file, former = file_in(path, FILE_NAME), file_in(path, transformers_files.FORMER_FILE)
    if former.is_file() and not transformers_files.is_converted(former.parent):
        return former
    if not file.is_file() and not _by_transformers(file):
        beside = Path(path).parent
        if Path(path).is_file() and (beside / FILE_NAME).is_file():
            raise ValueError(f"{path} holds no parameters; give its folder {beside}")
        _check_not_pickled(Path(path))
    return file


def _by_transformers(file: Path) -> bool:
    """Whether transformers wrote the folder in which a file of tensors lies, or should lie."""
    folder = file.parent
    if file.name != FILE_NAME or not (folder / transformers_files.CONFIG).is_file():
        return False
    return not written_by_milkweed(file) if file.is_file() else (folder / transformers_files.INDEX).is_file()


def _load_by_transformers(folder: Path, device: torch.device | str) -> nn.Module:
    check_device(device)
    with quiet_transformers():
        return load_model(find_source(str(folder), None), set(), None, device, Progress())


def _by_names_of_today(
    skeleton: nn.Module, version: str, header: Any, conversion: list[dict[str, Any]], aliases: dict[str, str]
) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, str]]:
    """What a file says, in the names that this version uses."""

    def today(name: str) -> str:
        return next(iter(renamed({name: None}, skeleton, version)))

    conversion = [{**entry, "names": [today(name) for name in entry["names"]]} for entry in conversion]
    aliases = {today(name): today(stored) for name, stored in aliases.items()}
    return renamed(header, skeleton, version), conversion, aliases


def _check_not_pickled(path: Path) -> None:
    """Name the function that reads a file, or a folder, that others wrote by ``torch.save``."""
    file = path if path.is_file() else path / PICKLED_NAME
    if file.is_file():
        raise ValueError(
            f"{file} was not written by save_pretrained; read published M2-BERT with load_m2_bert(read_m2_checkpoint("
            "...)) of milkweed.convert.checkpoints.m2, other models with what wrote them"
        )


def _build(file: Path, metadata: dict[str, str], header: dict[str, Tensor]) -> nn.Module:
    """The architecture that a file describes, on the meta device: nothing is computed that it may not ask for."""
    if "config" in metadata:
        config = read_json(file, metadata, "config", {"name": str, "options": dict})
        _check_depth(file, config["options"].get("depth"), len(header))
        try:
            check_numbers(config["options"], "options")
            with without_numbers(header):
                return build_model(config)
        except ImportError:
            raise
        except Exception as error:  # of whatever the options happen to lead to
            raise ValueError(f"the config in {file} makes no model: {error}") from error
    if "transformers" in metadata:
        return _build_transformers(file, metadata["transformers"], header)
    if "milkweed" in metadata:
        raise ValueError(f"{file} holds a model of your own; give load_pretrained(..., into=the dense architecture)")
    raise ValueError(f"{file} has no milkweed config in its metadata; it was not written by save_pretrained")


def _build_transformers(file: Path, name: str, header: dict[str, Tensor]) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{file} holds a transformers model; pip install 'milkweed[hf]'") from error
    kind = transformers_files.class_named(name)
    if kind is None:
        raise ValueError(f"{file} holds a {name!r}, which is not a model of transformers {transformers.__version__}")
    if not (file.parent / transformers_files.CONFIG).is_file():
        raise FileNotFoundError(f"{file.parent / transformers_files.CONFIG} does not exist; it belongs to {file.name}")
    try:
        check_counts(read_json_file(file.parent / transformers_files.CONFIG), header)
        config = transformers_files.read_config(file.parent)
        _check_depth(file, getattr(config, "num_hidden_layers", None), len(header))
        with without_numbers(header):
            model: Any = kind(config)
        check_tables(model, header)
    except Exception as error:  # transformers and its checks of values have many kinds
        raise ValueError(f"{file.parent / transformers_files.CONFIG} does not describe a {name}: {error}") from error
    return cast(nn.Module, model)


def _with_tables(file: Path, skeleton: nn.Module, header: dict[str, Tensor]) -> nn.Module:
    """A model that can be filled from the file; one of transformers also has buffers that no file holds."""
    if isinstance(skeleton, Model):
        return skeleton
    kind, config = type(skeleton), skeleton.config
    try:
        with _without_initialisation():
            model: Any = kind(config)
        if model.can_generate() and (file.parent / GENERATION).is_file():
            model.generation_config = transformers_files.read_generation_config(file.parent)
    except Exception as error:  # as above
        raise ValueError(
            f"{file.parent / transformers_files.CONFIG} does not describe a {kind.__name__}: {error}"
        ) from error
    return cast(nn.Module, model)


def _check_depth(file: Path, depth: Any, count: int) -> None:
    """Refuse a number of layers for which a file cannot hold the parameters, before they are made one by one."""
    if isinstance(depth, int) and depth > count:
        raise ValueError(f"the config of {file} has {depth} layers, but the file holds {count} tensors")


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


def _check_apart(model: nn.Module, folder: Path) -> None:
    """Refuse to write a converted model over the dense one that it comes from, unless this library wrote that."""
    source = Path(str(getattr(model.config, "_name_or_path", "") or os.devnull))
    if not (source.is_dir() and folder.is_dir() and source.samefile(folder)):
        return
    dense = [*folder.glob("model*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not dense or all(file.suffix == SUFFIX and written_by_milkweed(file) for file in dense):
        return
    raise ValueError(overlap(source.resolve(), folder.resolve(), "path"))


def _remove_former(file: Path) -> None:
    """Remove what an earlier version left under another name: a folder holds one model."""
    former = file.with_name(transformers_files.FORMER_FILE)
    if file.name == FILE_NAME and former.is_file() and written_by_milkweed(former):
        former.unlink()


def _way_out(state: Mapping[str, Tensor]) -> str:
    """How a model becomes what its config describes."""
    for name in state:
        if ".parametrizations." in f".{name}":
            return "fold the parametrisation in with torch.nn.utils.parametrize.remove_parametrizations first"
        if ".base_layer." in f".{name}":
            return "merge peft's adapters into it first, with merge_and_unload()"
        if name.endswith(("_orig", "_mask", "_g", "_v")):
            return "fold weights that are computed from others in first, e.g. with torch.nn.utils.prune.remove"
    return "change the config with the modules"


def _check_not_peft(model: nn.Module) -> None:
    library = sys.modules.get("peft")
    if library is not None and isinstance(model, library.PeftModel):
        raise TypeError(
            f"model is peft's {type(model).__name__}, which no config of milkweed describes; give "
            "model.merge_and_unload(), or save the adapters with model.save_pretrained(path)"
        )


def _side_files(model: nn.Module, folder: Path, converted: bool) -> dict[str, str]:
    """The files by which transformers and its users know a model, by name."""
    if not _is_transformers(model):
        return {}
    config: Any = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    found: dict[str, Any] = {transformers_files.CONFIG: config}
    if model.can_generate():  # type: ignore[operator]
        found[GENERATION] = model.generation_config
    texts = {name: each.to_json_string() for name, each in found.items() if each is not None}
    if converted and not (folder / CARD).exists():
        texts[CARD] = model_card(model)
    return texts


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors as they can be written, or an error for the first that cannot."""
    found = {}
    whole: dict[int, Tensor] = {}  # what is tied is gathered once
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            reason = f"is a {type(value).__name__}, not a tensor"
        elif value.is_meta:
            reason = "is on the meta device and has no numbers"
        elif value.layout != torch.strided or value.is_quantized:
            reason = f"is sparse or quantised ({value.layout}, {value.dtype})"
        else:
            # A conjugate is a view with a mark, which a file would lose.
            if id(value) not in whole:
                whole[id(value)] = gathered(value.detach()).resolve_conj().resolve_neg()
            found[name] = whole[id(value)]
            continue
        raise TypeError(f"save_pretrained writes ordinary tensors; {name!r} {reason}")
    return found


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


def _with_aliases(tensors: dict[str, Tensor], aliases: dict[str, str]) -> dict[str, Tensor]:
    for alias, name in aliases.items():
        if alias in tensors or name not in tensors:
            problem = "the first is stored itself" if alias in tensors else "the second is not stored"
            raise ValueError(f"the aliases say that {alias!r} is {name!r}, but {problem}")
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def _fill(model: nn.Module, state: dict[str, Tensor], aliases: dict[str, str]) -> None:
    model.load_state_dict(state, assign=True)
    for alias, name in aliases.items():
        owner, _, leaf = alias.rpartition(".")
        if leaf in model.get_submodule(owner)._parameters:
            setattr(model.get_submodule(owner), leaf, model.get_parameter(name))
