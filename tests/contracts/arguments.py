"""What every public call does with a wrong argument: it names it in a ValueError or TypeError, and nothing else."""

import inspect
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Union

import numpy as np
import torch

# Sizes that no machine has memory for.
ABSURD: dict[str, Callable[[], Any]] = {
    "2**40": lambda: 2**40,
    "-2**40": lambda: -(2**40),
    "10**30": lambda: 10**30,
}
# Written anew for each call: some functions change what they are given.
WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a string": lambda: "no",
    "bytes": lambda: b"no",
    "a list": lambda: [1.0],
    "a list of strings": lambda: ["no"],
    "an empty list": list,
    "a mapping": lambda: {"no": 1},
    "an array": lambda: np.ones(2),
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "a fraction": lambda: 1.5,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "1": lambda: 1,
    "3": lambda: 3,
    "an object": object,
    "integers": lambda: torch.ones(2, 2, dtype=torch.int64),
    "complex numbers": lambda: torch.ones(2, 2, dtype=torch.complex64),
    "booleans": lambda: torch.ones(2, 2, dtype=torch.bool),
    "a scalar": lambda: torch.tensor(1.0),
    "an empty tensor": lambda: torch.ones(0),
    "an empty matrix": lambda: torch.ones(0, 0),
    "five dimensions": lambda: torch.ones(1, 1, 1, 1, 1),
}
# What the messages of other layers call an argument.
CALLED = {"name": "init", "plan": "rules"}
LISTS = {"Sequence", "tuple", "list", "Iterable"}

Call = Callable[[], tuple[Callable[..., Any], dict[str, Any]]]


def faults(call: Call, values: dict[str, Callable[[], Any]] = WRONG) -> Iterator[str]:
    """Replace one argument at a time, and tell what neither works nor is refused by name."""
    function, given = call()
    run(function, given)
    hints = typing.get_type_hints(_plain(function))
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for words, make in values.items():
            function, given = call()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    run(function, {**given, name: (make(),) if parameter.kind is parameter.VAR_POSITIONAL else make()})
            except (TypeError, ValueError) as error:
                named = (CALLED.get(name, name), *inspect.signature(function).parameters)
                if not any(re.search(rf"\b{each}\b", str(error)) for each in named) and not (
                    name == "path" and "no" in str(error)
                ):
                    yield f"{name} = {words}: {type(error).__name__} without its name: {str(error)[:150]}"
            except OSError:
                if name != "path":
                    raise
            except Exception as error:
                yield f"{name} = {words}: {type(error).__name__}: {str(error)[:150]}"
            else:
                if not permitted(hints.get(name, Any), make()):
                    yield f"{name} = {words}: taken"


def run(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call, to the end where the result is made piece by piece."""
    torch.manual_seed(0)
    kinds = inspect.signature(function).parameters
    args = [each for name, value in given.items() if kinds[name].kind is kinds[name].VAR_POSITIONAL for each in value]
    named = {name: value for name, value in given.items() if kinds[name].kind is not kinds[name].VAR_POSITIONAL}
    result = function(*args, **named)
    return list(result) if isinstance(result, types.GeneratorType) else result


def permitted(hint: Any, value: Any) -> bool:
    """Whether what is documented about an argument covers a value."""
    kinds = _alternatives(hint)
    names = {getattr(typing.get_origin(kind) or kind, "__name__", str(kind)) for kind in kinds}
    if names & {"Any"} or any(
        getattr(kind, "_is_protocol", False) or isinstance(kind, typing.TypeVar) for kind in kinds
    ):
        return True
    if isinstance(value, float):
        return "float" in names and value == value and abs(value) < float("inf")
    if type(value) is int:
        return bool(names & {"int", "float", "device"})
    if isinstance(value, str):
        return bool(names & {"str", "PathLike"})
    if isinstance(value, torch.Tensor):
        return "Tensor" in names
    if isinstance(value, list):
        return bool(names & LISTS)
    return {types.NoneType: "NoneType", bool: "bool", dict: "Mapping"}.get(type(value), "") in names | (
        {"Mapping"} if "dict" in names else set()
    )


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isclass(function):
        function = function.__init__
    elif not inspect.isfunction(function) and not inspect.ismethod(function):
        function = function.forward if isinstance(function, torch.nn.Module) else type(function).__call__
    return inspect.unwrap(getattr(function, "__func__", function))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) not in {Union, types.UnionType}:
        return (hint,)
    return tuple(each for part in typing.get_args(hint) for each in _alternatives(part))
