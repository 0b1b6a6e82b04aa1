"""The gate that arguments pass: what is of another type or out of any range is refused by its name."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, Union, cast

import torch
from torch import Tensor, nn

F = TypeVar("F", bound=Callable[..., Any])
Check = Callable[[str, Any], Any]

# No size, count or index of a tensor is larger in practice, and loops over one that is would never end.
LARGEST = 2**31 - 1

_EXPECTED: dict[Any, str] = {
    bool: "True or False",
    float: "a number",
    int: "an integer",
    str: "a string",
    Tensor: "a tensor",
    torch.dtype: "a torch.dtype",
    torch.device: "a device",
    nn.Module: "a torch.nn.Module",
    os.PathLike: "a path",
    collections.abc.Mapping: "a mapping",
    collections.abc.Callable: "callable",
    collections.abc.Iterable: "iterable",
}
_FIX = {torch.dtype: "; use e.g. torch.float32"}
# Strings and tensors can be walked over, but are no list of anything.
_NO_LIST = (str, bytes, Tensor, Mapping)


@typing.overload
def checked(function: F, /) -> F: ...
@typing.overload
def checked(*, but: Sequence[str] = ()) -> Callable[[F], F]: ...
def checked(function: F | None = None, *, but: Sequence[str] = ()) -> Any:
    """Decorate a function whose arguments must be of the types that it is annotated with.

    Numbers must be finite, integers below 2³¹; numpy's become Python's. Tensors are not looked into. A compiled
    function is not checked: what it was compiled from was.

    Args:
        function: A function or method; ``@checked`` and ``@checked(but=...)`` will both do.
        but: Arguments that the function checks by itself.

    Returns:
        The function that checks first.
    """
    if function is None:
        return functools.partial(checked, but=but)
    parameters, but = inspect.signature(function).parameters, (*but, "return")
    names = [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY and p.kind is not p.VAR_KEYWORD]
    rest = next((name for name, p in parameters.items() if p.kind is p.VAR_POSITIONAL), None)
    if rest is not None:
        names.remove(rest)

    @functools.wraps(function)
    def gate(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        rules = _rules(function, but)
        passed = list(args)
        for index, value in enumerate(args):
            name = names[index] if index < len(names) else rest
            rule = rules.get(name) if name is not None else None
            if rule is not None and type(value) not in rule[0]:
                passed[index] = rule[1](f"{name}[{index - len(names)}]" if name == rest else cast(str, name), value)
        for name, value in kwargs.items():
            rule = rules.get(name)
            if rule is not None and type(value) not in rule[0]:
                kwargs[name] = rule[1](name, value)
        try:
            return function(*passed, **kwargs)
        except (RuntimeError, _TooLargeError) as error:
            _refuse_memory(error, dict(zip(names, passed, strict=False)) | kwargs)
            raise

    return cast(F, gate)


class _TooLargeError(ValueError):
    """Sizes that the host has no memory for; who called with them says so in its own words."""


def _refuse_memory(error: Exception, given: Mapping[str, Any]) -> None:
    """Say which sizes asked for more memory than the host has."""
    if not any(
        words in str(error) for words in ("can't allocate memory", "overflow", "Invalid size", "not enough memory")
    ):
        return
    sizes = [f"{name}={value}" for name, value in given.items() if type(value) is int and value >= 1 << 16]
    if sizes:
        raise _TooLargeError(f"not enough memory for {', '.join(sizes)}; use smaller sizes") from error


@functools.cache
def _rules(function: Callable[..., Any], but: tuple[str, ...]) -> dict[str, tuple[frozenset[type], Check]]:
    """The types that pass at once, and the check of all others, by argument."""
    hints = {name: hint for name, hint in typing.get_type_hints(function).items() if name not in but}
    found = {name: (_exact(hint), _check(hint)) for name, hint in hints.items()}
    return {name: (exact, check) for name, (exact, check) in found.items() if check is not None}


def _exact(hint: Any) -> frozenset[type]:
    alternatives = set(_alternatives(hint))
    if torch.device in alternatives:  # a string is one only if torch knows it
        return frozenset()
    exact = alternatives & {bool, str, type(None)}
    return frozenset(exact | ({Tensor, nn.Parameter} if Tensor in alternatives else set()))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) not in {Union, types.UnionType}:
        return (hint,)
    return tuple(each for part in typing.get_args(hint) for each in _alternatives(part))


def _check(hint: Any) -> Check | None:
    """Make the check of one annotation; None where it says nothing that could be checked."""
    alternatives = [each for each in _alternatives(hint) if each is not type(None)]
    if any(_outer(each) is None for each in alternatives):
        return None
    if torch.device in alternatives:  # a string too, which torch reads
        alternatives.remove(str)
    if os.PathLike in map(_outer, alternatives):
        alternatives.remove(str)
    optional = type(None) in _alternatives(hint)

    def check(name: str, value: Any) -> Any:
        if alternatives == [Sequence[str]]:
            check_names(**{name: value})
        if optional and value is None:
            return None
        for each in alternatives:
            if _fits(cast(type, _outer(each)), value):
                return _inside(each, name, value)
        if alternatives == [Tensor]:
            check_tensor(name, value)
        raise TypeError(f"{name} must be {_wanted(alternatives, optional)}; got {got(value)}{_fix(alternatives, name)}")

    return check


def _outer(hint: Any) -> type | None:
    """The class of a hint without what it holds; None where isinstance cannot answer."""
    kind = typing.get_origin(hint) or hint
    if kind is Any or not isinstance(kind, type) or getattr(kind, "_is_protocol", False):
        return None
    return kind


def _fits(kind: type, value: object) -> bool:
    if kind in {bool, int, float, str}:
        return is_kind(value, kind)
    if kind in {tuple, list, collections.abc.Sequence}:
        return isinstance(value, Sequence) and not isinstance(value, _NO_LIST)
    if kind is collections.abc.Iterable:
        return isinstance(value, Iterable) and not isinstance(value, _NO_LIST)
    if kind is torch.device:
        return isinstance(value, torch.device | str) or (isinstance(value, int) and not isinstance(value, bool))
    if kind is os.PathLike:
        return isinstance(value, str | os.PathLike)
    return callable(value) if kind is collections.abc.Callable else isinstance(value, kind)


def _inside(hint: Any, name: str, value: Any) -> Any:
    """Check what a value of the right type holds."""
    kind, parts = _outer(hint), typing.get_args(hint)
    if kind in {int, float}:
        return number(name, value)
    if kind is torch.device:
        return _device(name, value)
    if kind is os.PathLike and "\0" in os.fspath(value):
        raise ValueError(f"{name} must be a path; got {value!r}")
    if kind not in {tuple, list, collections.abc.Sequence} or not parts:
        return value
    whole = parts[:1] * len(value) if kind is not tuple or parts[-1] is Ellipsis else parts
    if len(whole) != len(value):
        raise ValueError(f"{name} must be {len(whole)} values; got {got(value)}")
    found = []
    for index, (part, each) in enumerate(zip(whole, value, strict=True)):
        check = _check(part)
        found.append(each if check is None else check(f"{name}[{index}]", each))
    same = all(a is b for a, b in zip(found, value, strict=True))
    return value if same else type(value)(found)


def _wanted(alternatives: Sequence[Any], optional: bool) -> str:
    def words(hint: Any) -> str:
        kind, parts = _outer(hint), typing.get_args(hint)
        if kind in {tuple, list, collections.abc.Sequence}:
            each = [part for part in parts if part is not Ellipsis]
            return f"a list of {_wanted(_alternatives(each[0]), False)} each" if each else "a list"
        return _EXPECTED.get(kind) or f"a {kind.__name__}"  # type: ignore[union-attr]

    # Tensors are never called optional: what was given for one was meant as one.
    or_none = ", or None" if optional and Tensor not in alternatives else ""
    return " or ".join(dict.fromkeys(map(words, alternatives))) + or_none


def _fix(alternatives: Sequence[Any], name: str) -> str:
    if Tensor in alternatives:
        return f"; use torch.as_tensor({name})"
    return "".join(_FIX.get(each, "") for each in alternatives)


def _device(name: str, value: Any) -> Any:
    try:
        torch.device(value)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{name} must be a device such as 'cpu' or 'cuda'; got {value!r}") from error
    return value


def got(value: object) -> str:
    """Say what was given: a short value itself, and of all others the type.

    Args:
        value: Anything.

    Returns:
        E.g. ``'no'``, ``[1, 2]`` or ``ndarray``.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | list | tuple | torch.dtype):
        text = repr(value)
        if len(text) <= 80 and "tensor(" not in text:
            return text
    return type(value).__name__


def is_kind(value: object, kind: type) -> bool:
    """Tell whether a value may stand where a bool, float, int or str is expected.

    Args:
        value: Anything.
        kind: One of these types. An integer is a float too, but a bool is nothing else; numpy's numbers are numbers.

    Returns:
        Whether it may.
    """
    if kind is bool or kind is str or isinstance(value, bool):
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if isinstance(value, int) or (kind is float and isinstance(value, float)):
        return True
    if isinstance(value, torch.SymInt) or (kind is float and isinstance(value, torch.SymFloat)):
        return True
    return isinstance(value, numbers.Integral if kind is int else numbers.Real)


def number(name: str, value: Any) -> Any:
    """Refuse what is no finite number, or too large to count anything.

    Args:
        name: The argument.
        value: A number.

    Returns:
        The same, as a Python number.

    Raises:
        ValueError: It is NaN or infinite, or an integer of 2³¹ or more.
    """
    if isinstance(value, torch.SymInt | torch.SymFloat):
        return value
    if isinstance(value, numbers.Integral):
        if abs(int(value)) > LARGEST:
            raise ValueError(f"{name} must be below 2**31; got {value}")
        return value if isinstance(value, int) else int(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
    return value if isinstance(value, float) else float(value)


def check_kind(kind: type, /, *, optional: bool = False, **options: object) -> None:
    """Refuse options of another type.

    Args:
        kind: ``bool``, ``float``, ``int`` or ``str``.
        optional: None will do as well.
        **options: Values by argument name.

    Raises:
        TypeError: One is of another type.
        ValueError: A number is not finite, or an integer 2³¹ or more.
    """
    for name, value in options.items():
        if optional and value is None:
            continue
        if not is_kind(value, kind):
            or_none = ", or None" if optional else ""
            raise TypeError(f"{name} must be {_EXPECTED[kind]}{or_none}; got {value!r}")
        if kind in {int, float}:
            number(name, value)


def check_names(**options: object) -> None:
    """Refuse options that are no list of names; a single string would be read letter by letter.

    Args:
        **options: Values by argument name.

    Raises:
        TypeError: One is no list or tuple of strings.
    """
    for name, value in options.items():
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
            fix = f"; use [{value!r}]" if isinstance(value, str) else ""
            raise TypeError(f"{name} must be a list of names; got {value!r}{fix}")


def check_probability(**options: Any) -> None:
    """Refuse what is no probability.

    Args:
        **options: Values by argument name.

    Raises:
        ValueError: One is not between 0 and 1.
        TypeError: One is no number.
    """
    check_kind(float, **options)
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in 0 <= p <= 1; got {value}")


def check_size(**options: Any) -> None:
    """Refuse what is no number of things of which there must be one.

    Args:
        **options: Values by argument name.

    Raises:
        ValueError: One is below 1, or 2³¹ or more.
        TypeError: One is no integer.
    """
    check_kind(int, **options)
    for name, value in options.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")


def whole(name: str, value: Any, least: int = 1) -> int:
    """Refuse what is no integer of at least so much.

    Args:
        name: The argument.
        value: What was given for it.
        least: The smallest that will do.

    Returns:
        The integer, Python's own.

    Raises:
        ValueError: It is no integer, smaller, or 2³¹ or more.
    """
    if not is_kind(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {got(value)}")
    return cast(int, number(name, value))


def check_pairs(**tensors: Tensor) -> None:
    """Refuse what are no complex numbers as real pairs.

    Args:
        **tensors: Tensors by argument name.

    Raises:
        ValueError: One is not (..., N, 2).
        TypeError: One is no tensor, or not real floating point.
    """
    check_real(**tensors)
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or tensor.shape[-1] != 2 or tensor.shape[-2] == 0:
            raise ValueError(f"{name} must be (..., N, 2) real pairs; got shape {tuple(tensor.shape)}")


def check_features(name: str, value: Tensor, option: str, features: int) -> None:
    """Refuse what are no vectors of so many real numbers.

    Args:
        name: The argument.
        value: (..., features).
        option: What the layer calls that number.
        features: The number.

    Raises:
        ValueError: The last dimension is another.
        TypeError: It is no tensor, or not real floating point.
    """
    check_tensor(name, value)
    if value.ndim == 0 or value.shape[-1] != features:
        raise ValueError(f"{name} must be (..., {option}={features}); got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be real floating point; got {value.dtype}; use {name}.float()")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Refuse what parameters cannot be stored in.

    Args:
        dtype: Of the parameters; None for torch's default.

    Raises:
        TypeError: It is not real floating point.
    """
    if dtype is None:
        return
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, or None; got {dtype!r}; use e.g. torch.float32")
    if not dtype.is_floating_point:
        fix = f"; use {dtype.to_real()}, complex numbers are stored as real pairs" if dtype.is_complex else ""
        raise TypeError(f"dtype must be real floating point; got {dtype}{fix}")


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor.

    Args:
        name: The argument.
        value: What was given for it.

    Raises:
        TypeError: It is something else.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}; use torch.as_tensor({name})")


def check_real(**tensors: Tensor) -> None:
    """Refuse what are no real numbers.

    Args:
        **tensors: Tensors by argument name.

    Raises:
        TypeError: One is no tensor, or not real floating point.
    """
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be real floating point; got {tensor.dtype}")


def check_numbers(**tensors: Tensor) -> None:
    """Refuse integer and boolean tensors.

    Args:
        **tensors: Tensors by argument name.

    Raises:
        TypeError: One is no tensor, or neither floating point nor complex.
    """
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        if not (tensor.is_floating_point() or tensor.is_complex()):
            raise TypeError(f"{name} must be floating point or complex; got {tensor.dtype}")


def check_no_empty_block(**factors: Tensor) -> None:
    """Refuse factors without entries.

    Args:
        **factors: Tensors by argument name.

    Raises:
        ValueError: A size is 0.
    """
    for name, factor in factors.items():
        if 0 in factor.shape:
            raise ValueError(f"{name} must have no dimension of size 0; got shape {tuple(factor.shape)}")
