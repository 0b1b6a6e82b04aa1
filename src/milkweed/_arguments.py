"""The gate that arguments pass: what is of another type or out of any range is refused by its name.

Functions that are not called in every step are decorated by ``checked``, which reads their annotations. Operations,
forward passes and steps call the small checks below it, which cost them next to nothing.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, KeysView, Mapping, Sequence, Set
from typing import Any, NoReturn, TypeVar, Union, cast

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])

# No size, count or index of a tensor is larger in practice, and a loop over one that is would never end.
LARGEST = 2**31 - 1

# What torch and Python say about arguments in words that do not name them.
RAW = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)

_NUMBERS = {
    int: (int, numbers.Integral, torch.SymInt),
    float: (float, int, numbers.Real, torch.SymInt, torch.SymFloat),
}
_LISTS = (tuple, list, collections.abc.Sequence, collections.abc.Iterable)
# These can be walked over, as arrays and tensors can, but are no list of anything.
_NO_LIST = (str, bytes, Mapping)
_EXPECTED: dict[Any, str] = {
    bool: "True or False",
    float: "a number",
    int: "an integer",
    str: "a string",
    Tensor: "a tensor",
    torch.dtype: "a torch.dtype",
    torch.device: "a device such as 'cpu' or 'cuda'",
    nn.Module: "a torch.nn.Module",
    os.PathLike: "a path",
    collections.abc.Mapping: "a mapping",
    collections.abc.Callable: "callable",
    types.NoneType: "None",
} | dict.fromkeys(_LISTS, "a list")
_LISTED = {int: "a list of integers", float: "a list of numbers", str: "a list of names", Tensor: "a list of tensors"}


@typing.overload
def checked(function: F, /) -> F: ...
@typing.overload
def checked(*, but: Sequence[str] = ()) -> Callable[[F], F]: ...
def checked(function: F | None = None, *, but: Sequence[str] = ()) -> Any:
    """Refuse arguments of a function that are not as annotated, except those of which it speaks in better words."""
    if function is None:
        return functools.partial(checked, but=but)

    @functools.wraps(function)
    def gate(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        signature, hints = _written(function)
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:  # which the function itself raises under its full name
            return function(*args, **kwargs)
        for name, value in given.arguments.items():
            kind = signature.parameters[name].kind
            if name in but or name not in hints or kind is inspect.Parameter.VAR_KEYWORD:
                continue
            if kind is inspect.Parameter.VAR_POSITIONAL:
                found: Any = tuple(_fitted(f"{name}[{i}]", hints[name], each) for i, each in enumerate(value))
            else:
                found = _fitted(name, hints[name], value)
            given.arguments[name] = found
        try:
            return function(*given.args, **given.kwargs)
        except (RuntimeError, MemoryError) as error:
            sizes = [f"{name}={value}" for name, value in given.arguments.items() if type(value) is int and value > 999]
            if sizes and any(words in str(error) for words in ("allocate", "memory", "overflow", "Invalid size")):
                raise ValueError(f"not enough memory for {', '.join(sizes)}; use smaller sizes") from error
            raise

    return cast(F, gate)


@functools.cache
def _written(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    # Beside the gate and not in it: a compiler could not make a gate that holds them.
    return inspect.signature(function), typing.get_type_hints(function)


def _fitted(name: str, hint: Any, value: Any) -> Any:
    """Give a value back if it is what a type hint says, numpy's numbers as Python's; refuse it by its name if not."""
    kinds = _kinds(hint)
    for kind in kinds:
        if _is(value, kind):
            return _within(name, kind, value)
    for kind in kinds:
        listed = _outer(kind) in _LISTS
        found = _names(value) if _of_names(kind) else plain(value)
        if listed and not {int, float, str}.intersection(typing.get_args(kind)[:1]):
            continue
        if found is not value and isinstance(found, list) == listed and _is(found, kind):
            return _within(name, kind, found)
    fix = ""
    if Tensor in kinds:
        fix = f"; use torch.as_tensor({name})"
    elif torch.dtype in kinds:
        fix = "; use e.g. torch.float32"
    elif isinstance(value, str) and any(map(_of_names, kinds)):
        fix = f"; use [{value!r}]"
    given = type(value).__name__ if kinds == (Tensor,) else got(value)
    raise TypeError(f"{name} must be {_words(kinds)}; got {given}{fix}")


def plain(value: Any) -> Any:
    """Give a number, text or truth of numpy or torch back as Python's, an array of one dimension as a list."""
    if isinstance(value, Tensor):
        try:
            return value if value.ndim else value.item()
        except RuntimeError:  # it has no value: it is traced, vectorised over or on the meta device
            return value
    single = hasattr(value, "__array__") and hasattr(value, "tolist") and getattr(value, "ndim", 2) < 2
    return value.tolist() if single else value


def _names(value: Any) -> Any:
    """A set as a list in a fixed order, as keys of a mapping have one."""
    if not isinstance(value, Set):
        return value
    return list(value) if isinstance(value, KeysView) else sorted(value, key=str)


@functools.cache
def _kinds(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a hint; a string is not one where it must be a device or a path."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in {Union, types.UnionType} else (hint,)
    outer = {_outer(part) for part in parts}
    return tuple(part for part in parts if part is not str or not outer & {torch.device, os.PathLike})


def _outer(kind: Any) -> Any:
    return typing.get_origin(kind) or kind


def _of_names(kind: Any) -> bool:
    return _outer(kind) in _LISTS and typing.get_args(kind)[:1] == (str,)


def _is(value: object, kind: Any) -> bool:
    outer = _outer(kind)
    if outer is Any or not isinstance(outer, type) or getattr(outer, "_is_protocol", False):
        return True
    if outer in {bool, int, float, str}:
        return is_kind(value, outer)
    if outer in _LISTS:
        walked = Iterable if outer is collections.abc.Iterable else Sequence
        listed = isinstance(value, walked) and not isinstance(value, _NO_LIST) and not hasattr(value, "__array__")
        return listed and (not _of_names(kind) or all(isinstance(each, str) for each in cast(Sequence[Any], value)))
    if outer is os.PathLike:
        return isinstance(value, str | os.PathLike)
    if outer is torch.device:  # torch takes an index too
        return isinstance(value, str | torch.device) or is_kind(value, int)
    return callable(value) if outer is collections.abc.Callable else isinstance(value, outer)


def _within(name: str, kind: Any, value: Any) -> Any:
    """Check what a value of the right type holds."""
    outer, parts = _outer(kind), typing.get_args(kind)
    if outer in {int, float}:
        return _number(name, value)
    if outer is torch.device:
        try:
            torch.device(value)
        except (RuntimeError, ValueError):
            raise ValueError(f"{name} must be {_EXPECTED[outer]}; got {value!r}") from None
    if outer not in _LISTS[:3] or not parts:
        return value
    items = list(value)
    each = parts[:1] * len(items) if outer is not tuple or parts[-1] is Ellipsis else parts
    if len(each) != len(items):
        raise ValueError(f"{name} must be {len(each)} values; got {got(value)}")
    found = [_fitted(f"{name}[{i}]", part, item) for i, (part, item) in enumerate(zip(each, items, strict=True))]
    if all(new is old for new, old in zip(found, items, strict=True)):
        return tuple(value) if outer is tuple and isinstance(value, list) else value
    return found if isinstance(value, list) and outer is not tuple else tuple(found)


def _words(kinds: Sequence[Any]) -> str:
    """Say what a value must be. Tensors are never called optional: what was given for one was meant as one."""
    said = []
    for kind in kinds:
        inside = (*typing.get_args(kind), None)[0] if _outer(kind) in _LISTS else None
        said.append(_LISTED.get(inside) or _EXPECTED.get(_outer(kind)) or _with_article(_outer(kind).__name__))
    said = [words for words in dict.fromkeys(said) if words != "None"]
    return " or ".join(said) + (", or None" if types.NoneType in kinds and Tensor not in kinds else "")


def got(value: object) -> str:
    """Say what was given: a short value itself, and of all others the type."""
    if value is None or isinstance(value, bool | int | float | complex | str | list | tuple | torch.dtype):
        text = repr(value)
        if len(text) <= 80 and "tensor(" not in text:
            return text
    return type(value).__name__


def is_kind(value: object, kind: type) -> bool:
    """Tell whether a value may stand for a bool, float, int or str: an integer is a float too, a bool nothing else."""
    if kind is bool or kind is str:
        return isinstance(value, kind)
    if isinstance(value, bool):
        return False
    return isinstance(value, _NUMBERS[kind])


def _number(name: str, value: Any) -> Any:
    """Refuse what is not finite, or too large to count anything; give numpy's numbers back as Python's."""
    # Sizes of a graph that is being traced are left open.
    if torch.compiler.is_compiling() or isinstance(value, (torch.SymInt, torch.SymFloat)):
        return value
    if isinstance(value, numbers.Integral):
        if abs(int(value)) > LARGEST:
            raise ValueError(f"{name} must be below 2**31; got {value}")
        return value if isinstance(value, int) else int(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
    return value if isinstance(value, float) else float(value)


def whole(name: str, value: Any, least: int = 1) -> int:
    """Give an integer of at least so much back, as Python's; refuse all others by their name."""
    if not is_kind(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {got(value)}")
    return cast(int, _number(name, value))


def check_kind(kind: type, /, *, optional: bool = False, **options: object) -> None:
    """Refuse options that are no ``bool``, ``float``, ``int`` or ``str``, or None where they may be."""
    for name, value in options.items():
        if not (optional and value is None) and not is_kind(value, kind):
            raise TypeError(f"{name} must be {_EXPECTED[kind]}{', or None' if optional else ''}; got {got(value)}")
        if value is not None and kind in {int, float}:
            _number(name, value)


def _with_article(name: str) -> str:
    return f"{'an' if name.startswith((*'AEIOU', 'M2', 'S4')) else 'a'} {name}"


def check_probability(**options: Any) -> None:
    """Refuse options that are not between 0 and 1."""
    for name, value in options.items():
        if not is_kind(value, float):
            raise TypeError(f"{name} must be a number; got {got(value)}")
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0 <= p <= 1; got {value}")


def check_size(**options: Any) -> None:
    """Refuse options that are no numbers of things of which there must be one."""
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what parameters cannot be stored in."""
    if dtype is not None and not dtype.is_floating_point:
        fix = f"; use {dtype.to_real()}, complex numbers are stored as real pairs" if dtype.is_complex else ""
        raise TypeError(f"dtype must be real floating point; got {dtype}{fix}")


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}; use torch.as_tensor({name})")


def check_real(**tensors: Tensor) -> None:
    """Refuse what are no tensors of real floating point numbers."""
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be real floating point; got {tensor.dtype}")


def check_numbers(**tensors: Tensor) -> None:
    """Refuse what are no tensors of real or complex floating point numbers."""
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise TypeError(f"{name} must be floating point or complex; got {tensor.dtype}")


def check_pairs(**tensors: Tensor) -> None:
    """Refuse what are no complex numbers as real pairs (..., N, 2)."""
    check_real(**tensors)
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.shape[-1] != 2 or tensor.shape[-2] == 0:
            raise ValueError(f"{name} must be (..., N, 2) real pairs; got shape {tuple(tensor.shape)}")


def check_features(name: str, value: Tensor, option: str, features: int) -> None:
    """Refuse what are no real vectors of so many numbers, which the layer calls by the name of its option."""
    check_tensor(name, value)
    if value.ndim == 0 or value.shape[-1] != features:
        raise ValueError(f"{name} must be (..., {option}={features}); got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be real floating point; got {value.dtype}; use {name}.float()")


def refuse_dtype(error: Exception, name: str, value: Tensor, module: nn.Module) -> NoReturn:
    """Say by name that a module failed on a signal of another dtype than its parameters', if that was the reason."""
    own = next((each.dtype for each in module.parameters()), value.dtype)
    cast_by_autocast = torch.is_autocast_enabled(value.device.type) and value.dtype != torch.float64
    if value.is_floating_point() and value.dtype != own and not cast_by_autocast:
        raise TypeError(
            f"{name} must be {own} as the parameters are; got {value.dtype}; use {name}.to({own})"
        ) from error
    raise error


def refuse_features(error: Exception, name: str, value: Tensor, option: str, features: int) -> NoReturn:
    """Say by name what is wrong with the vectors that a layer failed on; of anything else speaks its own error."""
    check_features(name, value, option, features)
    raise error
