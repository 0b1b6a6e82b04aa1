"""Models that transformers saved, read as data: safetensors and JSON, and no code that comes with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from milkweed._files import UnsafeFileError, read_json_file
from milkweed.convert.bounds import check_counts, check_tables, without_numbers
from milkweed.convert.experts import split_recorded_
from milkweed.convert.hub import transformers_files
from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.destination import check_apart
from milkweed.convert.hub.inputs import first_line
from milkweed.convert.metadata import check
from milkweed.convert.record import ENTRY, rebuild, recorded_layers, recorded_names
from milkweed.convert.safetensors_files import read_header

# Weights in the first folder, everything else that is data; patterns of the hub match slashes too.
HUB_FILES = ["model*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "[0-9]_*/*.safetensors"]
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A saved model."""

    name: str  # as it was asked for
    folder: Path  # where its files are
    config: Any  # its transformers config
    kind: Any  # its class, by the architecture that config.json names
    stored: dict[str, Tensor]  # its tensors, without numbers

    def tokenizer(self) -> Any:
        """Read the tokenizer."""
        try:
            found = transformers_files.read_tokenizer(self.folder)
            # Where files are missing, transformers may make a tokenizer that knows no word.
            reason = "it knows no word" if set(found.get_vocab()) <= set(found.all_special_tokens) else None
        except Exception as error:  # tokenizers raises plain ones
            reason = first_line(error)
        if reason is not None:
            raise FolderError(
                f"{self.name} has no tokenizer that transformers can read ({reason}); put its files beside "
                "config.json, or convert without texts"
            )
        return found

    def conversions(self) -> list[dict[str, Any]]:
        """What the config says of layers that were converted before."""
        found = getattr(self.config, transformers_files.CONFIG_KEY, None)
        layers = found.get("layers", []) if isinstance(found, dict) and transformers_files.is_ours(found) else []
        return cast(list[dict[str, Any]], check(layers, [ENTRY], "layers", f"{self.name}/config.json"))

    def skeleton(self) -> nn.Module:
        """Build the model without numbers, on the meta device."""
        try:
            with without_numbers(self.stored):
                model: nn.Module = self.kind(self.config)
                split_recorded_(model, recorded_names(self.conversions()))
                rebuild(model, recorded_layers(model, self.conversions(), self.stored))
            check_tables(model, self.stored)
        except Exception as error:  # of any model, so of any kind
            raise FolderError(
                f"{self.name}/config.json makes no {self.kind.__name__}: {type(error).__name__}: {first_line(error)}"
            ) from error
        return model


def find_source(name: str, out: Path | None) -> Source:
    """Find a model, in a folder or on the hub, and check that it can be read, but do not read its weights yet."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise FolderError(f"{name} is a file; expected the folder that holds config.json and {WEIGHTS}")
        if not transformers_files.HUB_ID.fullmatch(name):
            raise FolderError(f"{name} does not exist; expected a folder, or a name on the hub such as owner/model")
        folder = _download(name)
    if out is not None:
        check_apart(folder, out)
    architecture = _check_config(name, folder)
    stored = _check_weights(name, folder)
    try:
        check_counts(_json(folder / "config.json"), stored)
    except ValueError as error:
        raise FolderError(f"{name}/{error} beside it") from error
    config, kind = _classes(name, folder, architecture)
    depth = getattr(config, "num_hidden_layers", None)
    if isinstance(depth, int) and depth > len(stored):
        raise FolderError(f"{name}/config.json has {depth} layers, but only {len(stored)} tensors are stored beside it")
    return Source(name, folder, config, kind, stored)


def load_model(
    source: Source, needed: Collection[str], dtype: str | None, device: str | torch.device, steps: Progress
) -> nn.Module:
    """Read the weights, some of which must not be missing, into a model in evaluation mode."""
    import transformers

    steps.begin(f"loading {source.name}")
    try:
        model, found = transformers_files.read_model(
            source.kind,
            source.folder,
            config=source.config,
            output_loading_info=True,
            # Version 5 has another name for it.
            **{"torch_dtype" if transformers.__version__.startswith("4.") else "dtype": dtype or "auto"},
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise FolderError(f"the weights of {source.name} cannot be read: {first_line(error)}") from error
    missing = sorted(found["missing_keys"])
    lost = set(needed) & set(missing)
    if lost:
        raise FolderError(
            f"{source.name} lacks {min(lost)}; its config.json names {source.kind.__name__}, another model"
        )
    unused = sorted(found["unexpected_keys"])
    if source.conversions() and (missing or unused):
        what = f"lack {missing[0]}" if missing else f"hold {unused[0]}, for which there is no place"
        raise FolderError(
            f"the weights of {source.name} do not fit its config.json, which describes a converted "
            f"{source.kind.__name__}: they {what}; restore the folder or write it again"
        )
    if missing:
        steps.warn(f"{source.name} lacks {', '.join(missing)}: these start at random, as in transformers")
    if unused:
        steps.warn(
            f"{source.kind.__name__}, which config.json of {source.name} describes, has no place for "
            f"{', '.join(unused[:5])}{f' and {len(unused) - 5} more' if len(unused) > 5 else ''}: "
            "stored, but not in the converted model"
        )
    return model.to(device).eval()


def check_device(name: str | torch.device) -> None:
    """Refuse a device that is not there."""
    if name is None:
        raise TypeError("device must be a device such as 'cpu' or 'cuda'; got None")
    try:
        torch.empty(1, device=name).add(1).cpu()
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # torch without CUDA asserts
        raise FolderError(f"device={str(name)!r} cannot be used: {first_line(error)}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing bars and reports of its own while the block runs."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (OSError, ValueError) as error:
        raise FolderError(
            f"{name} is not a folder here, and the hub did not provide it ({first_line(error)}); check the name, or "
            "download the model and give its folder"
        ) from error


def _check_config(name: str, folder: Path) -> str | None:
    """The architecture that config.json names, if any."""
    file = folder / "config.json"
    if not file.is_file():
        raise FolderError(f"{name} holds no config.json; expected a folder that save_pretrained of transformers wrote")
    architectures = _json(file).get("architectures") or [None]
    return architectures[0] if isinstance(architectures, list) else None


def _check_weights(name: str, folder: Path) -> dict[str, Tensor]:
    """Check what can be checked without reading them, and list the tensors, without numbers."""
    file, index = folder / WEIGHTS, folder / INDEX
    if (folder / transformers_files.FORMER_FILE).is_file() and not (file.is_file() or index.is_file()):
        raise FolderError(
            f"{name} was written by an earlier milkweed; bring it up to date once with "
            f"milkweed.save_pretrained(milkweed.load_pretrained({name!r}), NEW_FOLDER)"
        )
    if not (file.is_file() or index.is_file()):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise FolderError(
                f"{name} holds its weights only as pickles ({', '.join(pickles)}), which can run code when they are "
                f"read. If you trust them, write safetensors once: "
                f"AutoModel.from_pretrained({name!r}, use_safetensors=False).save_pretrained(NEW_FOLDER)"
            )
        raise FolderError(f"{name} holds no {WEIGHTS} and no {INDEX}; weights of other kinds are not read")
    try:
        shards = transformers_files.weight_files(folder)
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise FolderError(f"{index} names {missing[0]}, which is not there; download it again")
        return {key: tensor for shard in shards for key, tensor in read_header(shard, "transformers")[0].items()}
    except FolderError:
        raise
    except ValueError as error:
        raise FolderError(str(error)) from error


def _json(file: Path) -> dict[str, Any]:
    try:
        values = read_json_file(file)
    except ValueError as error:
        raise FolderError(str(error)) from error
    if not isinstance(values, dict):
        raise FolderError(f"{file} must hold a JSON object; got a {type(values).__name__}")
    return values


def _classes(name: str, folder: Path, architecture: str | None) -> tuple[Any, Any]:
    """The config, and the class of the model."""
    import transformers

    try:
        config = transformers_files.read_config(folder)
    except UnsafeFileError as error:
        raise FolderError(str(error)) from error
    except Exception as error:  # transformers and its checks of values have many kinds
        raise FolderError(
            f"transformers {transformers.__version__} does not know the model of {name}/config.json "
            f"({first_line(error)}); code that comes with a model is not run"
        ) from error
    if architecture is None:
        return config, transformers_files.model_class(config)
    kind = transformers_files.class_named(architecture)
    if kind is None:
        raise FolderError(
            f"{name}/config.json names the architecture {architecture!r}, which is not a model of transformers "
            f"{transformers.__version__}; code that comes with a model is not run"
        )
    return config, kind
