"""What is to be exported: a model from a folder of any of the kinds that milkweed knows, or one in memory."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import cast

import torch
from torch import nn

from milkweed._files import inside, read_json_file
from milkweed.convert.hub import transformers_files
from milkweed.convert.hub.conversion_progress import FolderError, Progress
from milkweed.convert.hub.inputs import first_line
from milkweed.convert.hub.source import find_source, load_model, quiet_transformers
from milkweed.convert.pretrained import FILE_NAME, load_pretrained
from milkweed.convert.safetensors_files import written_by_milkweed

MODULES = "modules.json"
# Of sentence-transformers, what stands behind the transformer and only computes.
STAGES = ("Pooling", "Normalize", "Dense", "LayerNorm", "Dropout")
# Those that have nothing to read; older versions of sentence-transformers write no folder for them.
WITHOUT_FILES = ("Normalize", "Dropout")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model that can be exported: float32, on the CPU.

    Attributes:
        name: What messages call it.
        model: The model.
        stages: Modules of sentence-transformers that make one vector of a text from its output.
        folder: Where it comes from, if from a folder.
    """

    name: str
    model: nn.Module
    stages: tuple[nn.Module, ...] = ()
    folder: Path | None = None


def load(source: str | os.PathLike[str] | nn.Module, steps: Progress) -> Loaded:
    """Read a model from a folder, or take one."""
    if isinstance(source, nn.Module):
        return _from_memory(source)
    name, folder = os.fspath(source), Path(source).expanduser()
    steps.begin(f"reading {name}")
    if folder.is_file() and folder.suffix == ".safetensors" and written_by_milkweed(folder):
        return Loaded(name, load_pretrained(folder).float(), folder=folder.parent)
    listed = _sentence_modules(folder)
    home = folder if not listed else _home(folder, listed[0])
    stages = tuple(_stage(folder, each) for each in listed[1:])
    return Loaded(name, _model(name if home == folder else str(home), home, steps), stages, folder)


def _from_memory(model: nn.Module) -> Loaded:
    name = type(model).__name__
    stages: tuple[nn.Module, ...] = ()
    library = sys.modules.get("sentence_transformers")
    if library is not None and isinstance(model, library.SentenceTransformer):
        first, *rest = model
        for each in rest:
            if type(each).__name__ not in STAGES:
                raise FolderError(f"{name} has a {type(each).__name__}, which cannot be exported; {_known_stages()}")
        stages, model = tuple(rest), first.auto_model
    elsewhere = any(
        p.device.type != "cpu" or (p.is_floating_point() and p.dtype != torch.float32) for p in model.parameters()
    )
    if elsewhere:
        model = copy.deepcopy(model).float().cpu()
        stages = tuple(copy.deepcopy(each).float().cpu() for each in stages)
    return Loaded(name, model, stages)


def _model(name: str, folder: Path, steps: Progress) -> nn.Module:
    """The model of a folder, whoever wrote it."""
    if _is_ours(folder):
        return load_pretrained(folder).float()
    if folder.is_dir() and not (folder / transformers_files.CONFIG).is_file():
        raise FolderError(
            f"{name} holds neither {FILE_NAME} of milkweed nor config.json of transformers; expected a folder that one "
            "of the two saved, or that of a finished run"
        )
    if importlib.util.find_spec("transformers") is None:
        raise ModuleNotFoundError(f"{name} holds a transformers model; pip install 'milkweed[hf]'")
    with quiet_transformers():
        found = find_source(name, None)
        return load_model(found, (), "float32", "cpu", steps)


def _is_ours(folder: Path) -> bool:
    """Whether `load_pretrained` reads a folder."""
    files = [folder / name for name in (transformers_files.FORMER_FILE, FILE_NAME)]
    return any(file.is_file() and written_by_milkweed(file) for file in files)


def _sentence_modules(folder: Path) -> list[dict[str, str]]:
    """The modules of a folder of sentence-transformers, the transformer first; none if it is of another kind."""
    if not (folder / MODULES).is_file():
        return []
    try:
        listed = [{"path": str(each["path"]), "type": str(each["type"])} for each in read_json_file(folder / MODULES)]
    except (ValueError, TypeError, KeyError) as error:
        raise FolderError(f"{folder / MODULES} does not list modules with a path and a type each") from error
    kinds = [each["type"].rpartition(".")[2] for each in listed]
    strange = [kind for kind in kinds[1:] if kind not in STAGES]
    if not listed or kinds[0] != "Transformer" or strange:
        what = strange[0] if strange else (kinds or ["nothing"])[0]
        raise FolderError(f"{folder / MODULES} lists {what}, which cannot be exported; {_known_stages()}")
    return listed


def _known_stages() -> str:
    return f"expected a Transformer and, behind it, {', '.join(STAGES[:-1])} or {STAGES[-1]} of sentence-transformers"


def _home(folder: Path, listed: dict[str, str]) -> Path:
    return inside(folder, listed["path"]) if listed["path"] else folder


def _stage(folder: Path, listed: dict[str, str]) -> nn.Module:
    """Read one module, by a class of sentence-transformers whatever the folder names."""
    kind = listed["type"].rpartition(".")[2]
    try:
        from sentence_transformers.sentence_transformer import modules
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{folder} is a sentence encoder, whose {kind} is one of sentence-transformers: "
            "pip install sentence-transformers"
        ) from error
    place = inside(folder, listed["path"])
    if not place.is_dir():  # which sentence-transformers would look for on the hub
        if kind in WITHOUT_FILES:
            return cast(nn.Module, getattr(modules, kind)())
        raise FolderError(f"{folder / MODULES} lists {listed['path']}, a {kind}, which is not there")
    if any(place.glob("*.bin")) and not any(place.glob("*.safetensors")):
        raise FolderError(
            f"{place} holds its weights as a pickle, which can run code when it is read; save safetensors"
        )
    try:
        made: nn.Module = getattr(modules, kind).load(str(place))
    except Exception as error:  # of sentence-transformers, so of any kind
        raise FolderError(f"{place} makes no {kind} of sentence-transformers: {first_line(error)}") from error
    return made.float()
