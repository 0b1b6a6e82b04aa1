"""Structures as safetensors files: the tensors by dotted name, what they make in the metadata."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from milkweed import _json, _registry
from milkweed._arguments import checked
from milkweed._files import atomic_write
from milkweed._tensor_files import read_safetensors_header, write_tensors
from milkweed.structures.base import StructuredMatrix

_KEY = "milkweed.structure"


@checked
def save(matrix: StructuredMatrix, path: str | os.PathLike[str]) -> None:
    """Write a structure to one safetensors file, atomically.

    Args:
        matrix: Any structure, also of a class of your own; complex numbers are stored as real pairs.
        path: The file.

    Raises:
        ValueError: The path is empty or a folder.
        TypeError: It holds a structure of a class that has no name, see `milkweed.register`, or other objects.

    Example:
        >>> mw.structures.save(mw.monarch_dct(100), "dct.safetensors")
        >>> mw.structures.load("dct.safetensors").num_parameters
        4000
    """
    if not os.fspath(path) or os.path.isdir(path):
        raise ValueError(f"path must be a file, e.g. 'matrix.safetensors'; got {os.fspath(path)!r}")
    tensors: dict[str, Tensor] = {}
    metadata = {_KEY: json.dumps(_describe(matrix, "", tensors), sort_keys=True)}
    with atomic_write(path) as temporary:
        write_tensors(tensors, temporary, metadata)


@checked
def load(path: str | os.PathLike[str]) -> StructuredMatrix:
    """Read a structure that ``save`` wrote.

    Classes of your own must have been registered before, see `milkweed.register`.

    Args:
        path: The file.

    Returns:
        The structure, on the CPU.

    Raises:
        ValueError: It is no such file, or what it describes does not fit together.
        FileNotFoundError: There is no file.

    Example:
        >>> mw.structures.save(mw.monarch_hadamard(16), "hadamard.safetensors")
        >>> mw.structures.load("hadamard.safetensors").shape
        (16, 16)
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


def _describe(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Plain values that say how to make the structure; tensors appear by name, under which they are collected."""
    if isinstance(value, Tensor):
        plain = value.detach().resolve_conj()
        tensors[name] = (torch.view_as_real(plain) if plain.is_complex() else plain).clone().contiguous()
        return {"tensor": name, "complex": value.is_complex()}
    if isinstance(value, StructuredMatrix):
        try:
            kind = _registry.name_of("structure", type(value))
        except TypeError as error:
            raise TypeError(f"cannot save a {type(value).__name__}: {error}") from error
        fields = [field.name for field in dataclasses.fields(value)]
        names = [f"{name}.{field}" if name else field for field in fields]
        parts = [_describe(getattr(value, field), each, tensors) for field, each in zip(fields, names, strict=True)]
        return {"class": kind, "fields": dict(zip(fields, parts, strict=True))}
    if isinstance(value, tuple):
        return [_describe(part, f"{name}.{index}", tensors) for index, part in enumerate(value)]
    if value is None or type(value) in {bool, int, float, str}:
        return value
    raise TypeError(
        f"{name} must be a tensor, a structure, a number, a text, None or a tuple of such to be saved; got {value!r}"
    )


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
    kind = _registry.find("structure", description["class"], "structure")
    fields = {name: _rebuild(value, tensors) for name, value in description["fields"].items()}
    own = [part for value in fields.values() for part in (value if isinstance(value, tuple) else (value,))]
    dtypes = {str(part.dtype) for part in own if isinstance(part, Tensor)}
    if len(dtypes) > 1:
        raise ValueError(
            f"the tensors of one {description['class']} must have one dtype; got {', '.join(sorted(dtypes))}"
        )
    return kind(**fields)
