"""Folders that transformers wrote, read as data: the one place where anything of them is read by transformers.

No code that lies in such a folder runs, whatever its files say, whatever the environment says, and nobody is asked.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from milkweed._files import UnsafeFileError, inside, read_json_file

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
FORMER_FILE = "milkweed.safetensors"
"""Where milkweed 0.1.0 wrote the tensors of a converted model, which transformers could not read."""
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# How config.json says that milkweed converted a model.
CONFIG_KEY, METHOD = "quantization_config", "milkweed"
# Files that transformers follows to other models, or whose values name code.
_READ = (CONFIG, TOKENIZER_CONFIG, "generation_config.json")
_KERNELS = ("attn_implementation", "experts_implementation")


def read_config(folder: str | os.PathLike[str]) -> Any:
    """Read a model's config; code in the folder or on the hub is refused, and an adapter of another model."""
    import transformers

    return _read(transformers.AutoConfig, folder)


def read_generation_config(folder: str | os.PathLike[str]) -> Any:
    """Read how a model generates."""
    import transformers

    return _read(transformers.GenerationConfig, folder)


def read_tokenizer(name: str | os.PathLike[str]) -> Any:
    """Read a tokenizer from a folder or, by its name, from the hub."""
    import transformers

    return _read(transformers.AutoTokenizer, name)


def read_model(kind: Any, folder: str | os.PathLike[str], **options: Any) -> Any:
    """Read a model of a class with its weights, which must be safetensors."""
    # transformers would add it if peft is installed, and pass it over if not.
    if (Path(folder) / ADAPTER).is_file():
        raise UnsafeFileError(
            f"{folder} holds an adapter of PEFT ({ADAPTER}) beside a model; merge the adapter into it, or move the "
            "adapter's files to a folder of their own"
        )
    return _read(kind, folder, use_safetensors=True, **options)


def model_class(config: Any) -> Any:
    """The class of the bare model of a config, in transformers and in what the user registered."""
    import torch
    import transformers

    with torch.device("meta"):
        return type(transformers.AutoModel.from_config(config, trust_remote_code=False))


def class_named(name: str) -> Any:
    """The class of a model by its name, in transformers or among those registered with its Auto classes; else None."""
    import transformers
    from transformers.models.auto import modeling_auto

    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    mappings = [getattr(auto, "_model_mapping", None) for auto in vars(modeling_auto).values()]
    registered = [kind for mapping in mappings for kind in getattr(mapping, "_extra_content", {}).values()]
    flat = [each for kind in registered for each in (kind if isinstance(kind, tuple) else (kind,))]
    return next((each for each in flat if each.__name__ == name), None)


def shards(folder: Path) -> list[Path]:
    """The files over which the index of a folder spreads a model's weights, all of them inside it."""
    index = read_json_file(folder / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(str(name).endswith(".safetensors") for name in names.values()):
        raise ValueError(f"{folder / INDEX} must map parameters to .safetensors files")
    return [inside(folder, name) for name in sorted(set(names.values()))]


def weight_files(folder: Path) -> list[Path]:
    """The single file of a model's weights, or all shards; none if there are neither."""
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    return shards(folder) if (folder / INDEX).is_file() else []


def is_ours(config: object) -> bool:
    """Whether a quantization config, as an object or as plain values, is milkweed's."""
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return method == METHOD


def is_converted(folder: Path) -> bool:
    """Whether the config in a folder says that milkweed converted its model."""
    if not (folder / CONFIG).is_file():
        return False
    values = read_json_file(folder / CONFIG)
    return isinstance(values, dict) and is_ours(values.get(CONFIG_KEY))


def _read(kind: Any, name: str | os.PathLike[str], **options: Any) -> Any:
    folder = Path(name)
    local = folder.is_dir()
    files = _check_files(folder) if local else {}
    try:
        return kind.from_pretrained(
            folder if local else name,
            **options,
            trust_remote_code=False,
            **({"local_files_only": True} if local else {}),
        )
    except (OSError, ValueError, ImportError, AttributeError, KeyError, TypeError) as error:
        code = any("auto_map" in values for values in files.values()) or "trust_remote_code" in str(error)
        if not code:
            raise
        raise UnsafeFileError(
            f"{name} holds code of its own, which is not run; use a model of a kind that this version of transformers "
            "knows, or register the model's classes with transformers' Auto classes yourself"
        ) from error


def _check_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Refuse files that send transformers elsewhere."""
    if (folder / ADAPTER).is_file() and not (folder / CONFIG).is_file():
        raise UnsafeFileError(
            f"{folder} holds an adapter of PEFT, whose {ADAPTER} names another model; merge the adapter into "
            "it and save that"
        )
    found = {}
    for name in _READ:
        if (folder / name).is_file():
            values = read_json_file(folder / name)
            if not isinstance(values, dict):
                raise ValueError(f"{folder / name} must hold a JSON object; got a {type(values).__name__}")
            found[name] = values
            _check_kernels(folder / name, values)
    if (folder / INDEX).is_file():
        shards(folder)
    for key, value in found.get(TOKENIZER_CONFIG, {}).items():
        _check_tokenizer_file(folder, key, value)
    return found


def _check_kernels(file: Path, values: Any) -> None:
    """Refuse an implementation of attention or experts that is code on the hub: ``owner/name``."""
    if isinstance(values, list):
        for each in values:
            _check_kernels(file, each)
    elif isinstance(values, dict):
        for key, value in values.items():
            if key.removeprefix("_").removesuffix("_internal") in _KERNELS:
                names = value.values() if isinstance(value, dict) else [value]
                strange = [each for each in names if isinstance(each, str) and "/" in each]
                if strange:
                    raise UnsafeFileError(
                        f"{file} asks for {key}={strange[0]!r}, code on the hub, which is not run; remove the entry"
                    )
            _check_kernels(file, value)


def _check_tokenizer_file(folder: Path, key: str, value: Any) -> None:
    """Refuse a tokenizer file outside of the folder that would be read because there is none inside."""
    if not (key.endswith("_file") and isinstance(value, str)) or "\0" in value:
        return
    if not (folder / Path(value).name).is_file() and any(Path(each).is_file() for each in (value, folder / value)):
        inside(folder, value)
