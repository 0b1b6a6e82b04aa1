"""M2-BERT checkpoints of the HazyResearch/m2 repository, and longer models from shorter ones."""

from __future__ import annotations

import datetime
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from milkweed._arguments import check_kind, checked
from milkweed._files import check_unpacked_size
from milkweed._suggest import unknown
from milkweed.convert.checkpoints.numbers import stored_numbers
from milkweed.convert.safetensors_files import SUFFIX, read_tensors
from milkweed.models import M2Bert
from milkweed.nn import ImplicitFilter
from milkweed.nn.wrappers import through_wrappers

_LAYER = "bert.encoder.layer."
_EMBEDDINGS = {
    "word_embeddings": "tokens",
    "position_embeddings": "positions",
    "token_type_embeddings": "types",
}
# Theirs to ours, inside one layer; those of the two filters, which are alike, follow.
_MIXER = {"attention.in_linear": "mixer.in_linear", "attention.out_linear": "mixer.out_linear"}
_WITH_BIAS = _MIXER | {"attention.short_filter": "mixer.short_conv", "mlp.wo": "mlp.down", "mlp.layernorm": "norm"}
_FILTERS = {"filter_fn": "long_conv", "filter_fn2": "residual_conv"}
_NETWORKS = {"implicit_filter": "layers", "implicit_filter_rev": "reverse_layers"}
# The same vector is there once per sine; this name stands for all of them.
_FREQUENCY = "implicit_filter.1.freq"
_ALIAS = re.compile(r"(.*\.)implicit_filter(?:_rev)?\.[135]\.freq")
_MASKED_LM = {
    "cls.predictions.transform.dense.weight": "head.dense.weight",
    "cls.predictions.transform.dense.bias": "head.dense.bias",
    "cls.predictions.transform.LayerNorm.weight": "head.norm.weight",
    "cls.predictions.transform.LayerNorm.bias": "head.norm.bias",
    "cls.predictions.decoder.bias": "head.bias",
}
_CLASSIFICATION = {
    f"{theirs}.{part}": f"head.{ours}.{part}"
    for theirs, ours in (("bert.pooler.dense", "pooler"), ("classifier", "classifier"))
    for part in ("weight", "bias")
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What the weights are called in a published folder, the first one found counting."""
# What Composer stores beside the model: states of random generators, as arrays, and how long the training took.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("uint32", "uint64", "int64", "float64")),
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    datetime.timedelta,
]
# The decoder's weight is the embedding; its own tensor is only looked at.
_TIED = "cls.predictions.decoder.weight"
_POSITION_IDS = "bert.embeddings.position_ids"
_EXTENSIONS = ("keep", "stretch")
_MOST_REPEATED = 16


@checked
def read_m2_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a published file as data; nothing in it is executed.

    Nothing is fetched: ``huggingface_hub.snapshot_download(name)`` gives the folder of a name on the hub.

    Args:
        path: A ``.safetensors`` file, or one that ``torch.save`` wrote (``.bin``, ``.pt``), of tensors by name or of
            Composer, which has them under ``state``, ``model``; or a folder with ``model.safetensors`` or
            ``pytorch_model.bin``.

    Returns:
        The tensors by their names there, for [`milkweed.convert.checkpoints.m2.load_m2_bert`][].

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It cannot be read, holds anything but data, or is not of this kind.
    """
    path = Path(path)
    if path.is_dir():
        found_files = [path / name for name in WEIGHT_FILES if (path / name).is_file()]
        if not found_files:
            raise FileNotFoundError(f"{path} holds neither {' nor '.join(WEIGHT_FILES)}; name the file itself")
        path = found_files[0]
    if path.suffix == SUFFIX:
        return read_tensors(path, "whoever published the model")[0]
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a .safetensors, .bin or .pt file or its folder; "
            "huggingface_hub.snapshot_download(name) fetches one from the hub"
        )
    check_unpacked_size(path)
    found = _unpickled(path)
    for name in ("state", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} must hold tensors by name, alone or under state, model; it holds other things")
    _check_sizes(path, found)
    return dict(found)


def _check_sizes(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are larger than what is stored of them: repeated by strides, or again and again by name."""
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.layout == torch.strided and not tensor.is_meta and sizes[name] > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path} holds {name!r} of shape {tuple(tensor.shape)}, but not as many numbers")
    # A tied embedding and the frequencies of a filter are there several times.
    stored = path.stat().st_size
    if sum(sizes.values()) > _MOST_REPEATED * stored:
        raise ValueError(f"{path} has {stored:,} bytes, but its tensors {sum(sizes.values()):,}; it repeats them")


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged pickle fails in whatever way its bytes happen to say
        refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        if refused is not None or "Unsupported class" in str(error):
            what = f"code, {refused[1]}," if refused is not None else "code"
            raise ValueError(
                f"{path} holds {what} beside tensors, which is not run; where you trust it, read it with torch and "
                "write its tensors with safetensors"
            ) from error
        raise ValueError(
            f"{path} cannot be read: it is damaged, or no file that torch.save wrote ({type(error).__name__}); fetch "
            "it again"
        ) from error


@checked(but=("state",))
def load_m2_bert(state: Mapping[str, Tensor], *, padding: str = "legacy", dropout: float = 0.1) -> M2Bert:
    """Make an M2-BERT from a published state dict, in which every key must be known and none may be missing.

    Sizes, and whether there is a masked language model's head, a classifier or none, are read off the tensors.

    Args:
        state: Its tensors, with or without ``model.`` or ``module.`` before the names; read files with
            [`milkweed.convert.checkpoints.m2.read_m2_checkpoint`][]. Buffers of fused convolutions (``flashfft``) are
            passed over.
        padding: As in [`milkweed.models.M2Bert`][]; published models were trained on ``"legacy"``.
        dropout: As in [`milkweed.models.M2Bert`][].

    Returns:
        The model with the original's outputs, in evaluation mode.

    Raises:
        ValueError: Keys are missing or left over, a shape does not fit, a tensor contradicts what it repeats, or is not
            of finite real numbers.
        TypeError: ``state`` is not a mapping.

    Source:
        HazyResearch/m2 at 7d359e8.
    """
    tensors = _bare(state)
    options = _options(tensors)
    names = _names(options["depth"], options["head"], tensors)
    with torch.device("meta"):
        model = M2Bert(**options, padding=padding, dropout=dropout)
    _check_repeated(tensors, options)
    expected = set(names)
    found = {name for name in tensors if name not in _repeated(options)}
    if found != expected:
        raise ValueError(
            f"not an M2-BERT state dict: missing {sorted(expected - found)}, unexpected {sorted(found - expected)}"
        )
    dtype = tensors[_embedding("word_embeddings")].dtype
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    renamed = {}
    for theirs, ours in names.items():
        # Of theirs some have a dimension of size 1 more.
        fits = [size for size in tensors[theirs].shape if size > 1] == [size for size in shapes[ours] if size > 1]
        # What does not fit is refused below; nothing of a size that the tensors do not have is made before.
        renamed[ours] = tensors[theirs].reshape(shapes[ours]).to("cpu", dtype, copy=True) if fits else tensors[theirs]
    try:
        model.load_state_dict(renamed, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the tensors do not make one M2-BERT: {error}") from error
    return model.eval()


@through_wrappers(changes=False)
@checked(but=("model",))
def extend_positions(model: M2Bert, length: int, kernels: str = "keep") -> M2Bert:
    """Make a model for longer sequences from a shorter one.

    Position embeddings are repeated. What becomes of the kernels of the long convolutions is a choice, as their time
    scale is the old length:

    - ``"keep"``: time goes on beyond the old length. Outputs for inputs up to the old length stay what they were; but
      kernels decay as fast as ever, to 1 % after 0.3 to 1.5 old lengths, so that no layer looks much further.
    - ``"stretch"``: the kernels are stretched over the new length, as if every token were spread over several. Layers
      look as far as there is to see; every output changes, and the model has to be trained further.

    Args:
        model: With implicit kernels.
        length: Longest sequence of the new model, at least that of the old one.
        kernels: ``"keep"`` or ``"stretch"``.

    Returns:
        A new model with copies of all parameters, in the old one's dtype, mode and place.

    Raises:
        TypeError: The model is not an M2-BERT, or the length is not an integer.
        ValueError: The choice is unknown, the length is below the model's, or its kernels are explicit.

    Source:
        Neither is what HazyResearch/m2 at 7d359e8 does: it repeats the features of the lags and sets the time scale to
        the new length, so that kernels repeat themselves every old length under a slower decay.
    """
    if not isinstance(model, M2Bert):
        raise TypeError(f"model must be an M2Bert; got {type(model).__name__}; read a file with load_pretrained first")
    check_kind(int, length=length)
    if kernels not in _EXTENSIONS:
        raise ValueError(unknown("kernels", kernels, _EXTENSIONS))
    old = model.encoder.length
    if length < old:
        raise ValueError(f"length must be at least the model's, {old}; got {length}; shorter inputs need no new model")
    filters = {name: module for name, module in model.named_modules() if isinstance(module, ImplicitFilter)}
    if not filters:
        raise ValueError("only implicit kernels can be extended; build the model with kernel='implicit'")
    scale = next(iter(filters.values())).time_scale
    if kernels == "stretch":
        scale = round((scale - 1) * (length - 1) / max(old - 1, 1)) + 1
    kernel_options = {**(model.options["kernel_options"] or {}), "time_scale": scale}
    if scale == length:
        del kernel_options["time_scale"]
    with torch.device("meta"):
        longer = M2Bert(**(model.options | {"length": length, "kernel_options": kernel_options or None}))
    state = model.state_dict()
    positions = state["encoder.positions.weight"]
    state["encoder.positions.weight"] = positions.repeat(-(-length // old), 1)[:length]
    longer.to_empty(device=positions.device).to(positions.dtype)
    for name in filters:
        features = state[f"{name}.positions"]
        if kernels == "stretch":
            stretched = F.interpolate(features.T[None].float(), size=length, mode="linear", align_corners=True)
            state[f"{name}.positions"] = stretched[0].T.to(features.dtype)
        else:
            beyond = longer.get_submodule(name).features()[old:]  # type: ignore[operator]
            state[f"{name}.positions"] = torch.cat([features, beyond.to(features)])
    longer.load_state_dict(state)
    return longer.train(model.training)


def _embedding(name: str) -> str:
    return f"bert.embeddings.{name}.weight"


def _bare(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by names without prefixes, one frequency per convolution, and no buffers of fused convolutions."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"state must be tensors by name; got {type(state).__name__}; read files with read_m2_checkpoint"
        )
    tensors: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str):
            raise ValueError(f"not an M2-BERT state dict: {key!r} is not the name of a tensor")
        name = key
        while name.startswith(("model.", "module.")):
            name = name.split(".", 1)[1]
        if "flashfft" in name.lower():
            continue
        alias = _ALIAS.fullmatch(name)
        if alias is not None:
            name = alias[1] + _FREQUENCY
        value = stored_numbers(key, value, whole=name == _POSITION_IDS)
        if name in tensors and (alias is None or not torch.equal(tensors[name], value)):
            what = "the frequencies of one filter must be equal" if alias else "is there twice, with and without prefix"
            raise ValueError(f"{key!r}: {what}; give the tensors of one model")
        tensors[name] = value
    return tensors


def _options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor's options, read off the shapes."""
    try:
        d_input, d_model = tensors[_embedding("word_embeddings")].shape
        first = f"{_LAYER}0.attention.filter_fn."
        width, features = tensors[f"{first}implicit_filter.0.weight"].shape
        nblocks, per_block, _ = tensors[f"{_LAYER}0.mlp.gated_layers.weight"].shape
        options = {
            "d_input": d_input,
            "length": tensors[_embedding("position_embeddings")].shape[0],
            "d_model": d_model,
            "depth": len({name.split(".")[3] for name in tensors if name.startswith(_LAYER)}),
            "d_hidden": nblocks * per_block // 2,
            "nblocks": nblocks,
            "token_types": tensors[_embedding("token_type_embeddings")].shape[0],
            "pre_norm": f"{_LAYER}0.attention.layernorm.weight" in tensors,
            "residual_long_conv": f"{_LAYER}0.attention.filter_fn2.bias" in tensors,
            "kernel_options": {"emb_dim": features, "width": width},
        }
        head, d_output = "none", None
        if any(name.startswith("cls.") for name in tensors):
            head = "masked_lm"
        elif "classifier.weight" in tensors:
            head, d_output = "classification", tensors["classifier.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"not an M2-BERT state dict: missing {error}") from error
    except ValueError as error:
        raise ValueError(f"not an M2-BERT state dict: a tensor has another number of dimensions ({error})") from error
    return options | {"head": head, "d_output": d_output}


def _names(depth: int, head: str, tensors: Iterable[str]) -> dict[str, str]:
    """Every name that the state dict must have, and ours for it."""
    names = {_embedding(theirs): f"encoder.{ours}.weight" for theirs, ours in _EMBEDDINGS.items()}
    names |= {f"bert.embeddings.LayerNorm.{part}": f"encoder.norm.{part}" for part in ("weight", "bias")}
    first = f"{_LAYER}0.attention."
    within = dict(_WITH_BIAS)
    if f"{first}layernorm.weight" in tensors:
        within["attention.layernorm"] = "mixer.norm"
    filters = {theirs: ours for theirs, ours in _FILTERS.items() if f"{first}{theirs}.bias" in tensors}
    for index in range(depth):
        layer, block = f"{_LAYER}{index}.", f"encoder.blocks.{index}."
        for theirs, ours in within.items():
            names |= {f"{layer}{theirs}.{part}": f"{block}{ours}.{part}" for part in ("weight", "bias")}
        names[f"{layer}mlp.gated_layers.weight"] = f"{block}mlp.up.weight"
        for theirs, ours in filters.items():
            names |= _filter_names(f"{layer}attention.{theirs}.", f"{block}mixer.{ours}.")
    return names | {"masked_lm": _MASKED_LM, "classification": _CLASSIFICATION, "none": {}}[head]


def _filter_names(theirs: str, ours: str) -> dict[str, str]:
    names = {
        f"{theirs}bias": f"{ours}skip",
        f"{theirs}pos_emb.z": f"{ours}filter.positions",
        f"{theirs}{_FREQUENCY}": f"{ours}filter.frequency",
    }
    for network, layers in _NETWORKS.items():
        for index in range(4):
            for part in ("weight", "bias") if index < 3 else ("weight",):
                names[f"{theirs}{network}.{2 * index}.{part}"] = f"{ours}filter.{layers}.{index}.{part}"
    return names


def _repeated(options: Mapping[str, Any]) -> set[str]:
    """Names of tensors that repeat what others or the sizes determine."""
    filters = list(_FILTERS)[: 1 + options["residual_long_conv"]]
    constants = {
        f"{_LAYER}{index}.attention.{name}.{part}"
        for index in range(options["depth"])
        for name in filters
        for part in ("pos_emb.t", "modulation.deltas")
    }
    return constants | {_POSITION_IDS} | ({_TIED} if options["head"] == "masked_lm" else set())


def _check_repeated(tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> None:
    """Refuse tensors that would have made another model of the original than we make of it."""
    length, d_model = options["length"], options["d_model"]
    constants = {
        "pos_emb.t": torch.linspace(0, 1, length),
        "modulation.deltas": torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, d_model),
        "position_ids": torch.arange(length),
    }
    for name in sorted(_repeated(options) & set(tensors)):
        if name == _TIED:
            expected, meaning = tensors[_embedding("word_embeddings")], "the token embedding"
        else:
            expected = next(value for suffix, value in constants.items() if name.endswith(suffix))
            meaning = f"what {length} positions and {d_model} channels make it"
        value, expected = tensors[name].reshape(-1).double(), expected.reshape(-1).double()
        tolerance = 0.0 if name in {_TIED, _POSITION_IDS} else 1e-2 if tensors[name].dtype.itemsize < 4 else 1e-5
        if value.shape != expected.shape or not torch.allclose(value, expected, rtol=tolerance, atol=tolerance):
            raise ValueError(f"{name} must be {meaning}; it is not, so that the original would be another model")
