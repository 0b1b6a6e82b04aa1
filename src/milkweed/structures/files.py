"""Structures as safetensors files: the tensors by dotted name, what they make in the metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from milkweed import _json
from milkweed._arguments import checked
from milkweed._files import atomic_write
from milkweed._suggest import unknown
from milkweed._tensor_files import read_safetensors_header, write_tensors
from milkweed.structures.base import StructuredMatrix
from milkweed.structures.block_diagonal import BlockDiagonal
from milkweed.structures.chain import Chain
from milkweed.structures.diagonal import Diagonal
from milkweed.structures.flat_butterfly import FlatBlockButterfly
from milkweed.structures.low_rank import LowRank
from milkweed.structures.monarch import Monarch
from milkweed.structures.permutation import Permutation
from milkweed.structures.product import Product, Sum
from milkweed.structures.toeplitz import Circulant, Toeplitz

_KEY = "milkweed.structure"
_CLASSES: dict[str, type[StructuredMatrix]] = {
    cls.__name__: cls
    for cls in (
        BlockDiagonal,
        Chain,
        Circulant,
        Diagonal,
        FlatBlockButterfly,
        LowRank,
        Monarch,
        Permutation,
        Product,
        Sum,
        Toeplitz,
    )
}


@checked
def save(matrix: StructuredMatrix, path: str | os.PathLike[str]) -> None:
    """Write a structure to one safetensors file, atomically.

    Args:
        matrix: Any structure of this package; complex numbers are stored as real pairs.
        path: The file.

    Raises:
        TypeError: It holds a structure of a class that ``load`` does not know.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in matrix.named_tensors():
        plain = tensor.detach().resolve_conj()
        tensors[name] = (torch.view_as_real(plain) if plain.is_complex() else plain).clone().contiguous()
    metadata = {_KEY: json.dumps(_describe(matrix), sort_keys=True)}
    with atomic_write(path) as temporary:
        write_tensors(tensors, temporary, metadata)


@checked
def load(path: str | os.PathLike[str]) -> StructuredMatrix:
    """Read a structure that ``save`` wrote.

    Args:
        path: The file.

    Returns:
        The structure, on the CPU.

    Raises:
        ValueError: It is no such file, or what it describes does not fit together.
        FileNotFoundError: There is no file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {os.fspath(path)!r}")
    try:
        read_safetensors_header(path)
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if description is None:
            raise ValueError("no structure is described in it; it was not written by milkweed.structures.save")
        matrix = _rebuild(_json.read(description), tensors)
        if not isinstance(matrix, StructuredMatrix):
            raise ValueError("what it describes is no structure")
        if tensors:
            raise ValueError(f"it holds {min(tensors)!r}, which is no part of what it describes")
        return matrix
    except RecursionError:
        raise ValueError(f"cannot read a structure from {os.fspath(path)!r}: it is nested too deeply") from None
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"cannot read a structure from {os.fspath(path)!r}: {error}") from error


def _describe(value: Any, name: str = "") -> Any:
    """Plain values that say how to make the structure; tensors appear by name."""
    if isinstance(value, Tensor):
        return {"tensor": name, "complex": value.is_complex()}
    if isinstance(value, StructuredMatrix):
        kind = type(value).__name__
        if _CLASSES.get(kind) is not type(value):
            raise TypeError(f"cannot save a {kind}; known structures are {', '.join(_CLASSES)}")
        fields = dataclasses.fields(value)
        prefix = f"{name}." if name else ""
        return {"class": kind, "fields": {f.name: _describe(getattr(value, f.name), prefix + f.name) for f in fields}}
    if isinstance(value, tuple):
        return [_describe(part, f"{name}.{index}") for index, part in enumerate(value)]
    return value


def _rebuild(description: Any, tensors: dict[str, Tensor]) -> Any:
    """Make what is described, of tensors that are taken out: used twice, a small file could fill any memory."""
    if isinstance(description, list):
        return tuple(_rebuild(part, tensors) for part in description)
    if not isinstance(description, dict):
        return description
    if "tensor" in description:
        if description["tensor"] not in tensors:
            raise ValueError(f"the tensor {description['tensor']!r} is not stored, or is described twice")
        tensor = tensors.pop(description["tensor"])
        # A copy, since the file may place it at any address and complex products need an aligned one.
        return torch.view_as_complex(tensor.clone()) if description["complex"] else tensor
    if description["class"] not in _CLASSES:
        raise ValueError(unknown("structure", description["class"], _CLASSES))
    fields = {name: _rebuild(value, tensors) for name, value in description["fields"].items()}
    return _CLASSES[description["class"]](**fields)
