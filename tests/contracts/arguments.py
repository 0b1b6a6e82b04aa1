"""What every public call does with a wrong argument: it names it in a ValueError or TypeError, and nothing else."""

import inspect
import json
import os
import re
import resource
import signal
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Union

import numpy as np
import torch

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
# Sizes that no machine has memory for, nor time to walk through.
ABSURD: dict[str, Callable[[], Any]] = {
    "2**31": lambda: 2**31,
    "2**40": lambda: 2**40,
    "-2**40": lambda: -(2**40),
    "10**30": lambda: 10**30,
}
# What may be refused for what it has to have in common with another argument.
SHAPED = (torch.Tensor, int, list)
# What messages call an argument, if not by its name.
CALLED = {
    "name": ("name", "init"),
    "plan": ("plan", "rules"),
    "path": ("path", "no"),
    "source": ("source", "no"),
    "cls": ("class", "linear"),
}
LISTS = {"Sequence", "tuple", "list", "Iterable"}

Call = Callable[[], tuple[Callable[..., Any], dict[str, Any]]]


def faults(call: Call, values: dict[str, Callable[[], Any]] = WRONG, every: int = 1, first: int = 0) -> Iterator[str]:
    """Replace one argument at a time, and tell what neither works nor is refused by name.

    Of the values each argument gets every so many, another first one each: all arguments together get all of them.
    """
    function, given = call()
    expected = _message(function, given)
    hints = typing.get_type_hints(code_of(function))
    for position, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        for words in list(values)[(first + position) % every :: every]:
            make = values[words]
            function, given = call()
            given[name] = (make(),) if parameter.kind is parameter.VAR_POSITIONAL else make()
            try:
                said = _message(function, given)
            except OSError:
                if name not in {"path", "source"}:
                    raise
            except Exception as error:
                yield f"{name} = {words}: {type(error).__name__}: {str(error)[:150]}"
            else:
                if said == expected:
                    if not permitted(hints.get(name, Any), make()):
                        yield f"{name} = {words}: taken"
                    continue
                partners = inspect.signature(function).parameters if isinstance(make(), SHAPED) else ()
                if not any(re.search(rf"\b{each}\b", said or "") for each in (*CALLED.get(name, (name,)), *partners)):
                    yield f"{name} = {words}: refused without its name: {(said or '')[:150]}"


def _message(function: Callable[..., Any], given: dict[str, Any]) -> str | None:
    """What a call is refused with, if it is, run to the end where the result is made piece by piece."""
    torch.manual_seed(0)
    bound = inspect.BoundArguments(inspect.signature(function), given)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = function(*bound.args, **bound.kwargs)
            if isinstance(result, types.GeneratorType):
                list(result)
        except (TypeError, ValueError) as error:
            return str(error)
    return None


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
        single = value.ndim == 0 and permitted(hint, value.item())
        return "Tensor" in names or single
    if isinstance(value, np.ndarray):
        numbers = [typing.get_args(kind)[0] for kind in kinds if typing.get_args(kind)]
        return bool(names & LISTS) and float in numbers
    if isinstance(value, list):
        return bool(names & LISTS)
    return {types.NoneType: "NoneType", bool: "bool", dict: "Mapping"}.get(type(value), "") in names | (
        {"Mapping"} if "dict" in names else set()
    )


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) not in {Union, types.UnionType}:
        return (hint,)
    return tuple(each for part in typing.get_args(hint) for each in _alternatives(part))


def code_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function that is written down somewhere: of a class its constructor, of an object what calling it runs."""
    if inspect.isclass(function):
        function = function.__init__
    elif not inspect.isroutine(function):
        function = function.forward if isinstance(function, torch.nn.Module) else type(function).__call__
    return inspect.unwrap(getattr(function, "__func__", function))


def takes_arguments(public: object) -> Iterator[tuple[str, Callable[..., Any]]]:
    """A function, or the constructor and the public methods of a class, as far as they take arguments."""
    if not inspect.isclass(public):
        yield getattr(public, "__name__", ""), code_of(typing.cast(Callable[..., Any], public))
        return
    for name in dir(public):
        method = getattr(public, name)
        if (name.startswith("_") and name not in {"__init__", "__call__"}) or not inspect.isroutine(method):
            continue
        code = code_of(method)
        own = getattr(code, "__module__", None) or ""
        if not own.startswith("milkweed") or getattr(code, "__isabstractmethod__", False):
            continue
        names = [p.name for p in inspect.signature(code).parameters.values() if p.kind is not p.VAR_KEYWORD]
        if set(names) - {"self", "cls"}:
            yield code.__qualname__.removesuffix(".__init__"), code


def main(folder: str, memory: int, seconds: int) -> None:
    """Print the faults with absurd sizes as JSON; run in a process of its own, with little memory and time."""
    from tests.argument_calls import CALLS

    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    def late(*_: object) -> None:
        raise RuntimeError(f"not back after {seconds} seconds")

    signal.signal(signal.SIGALRM, late)
    found = []
    for name, call in CALLS.items():
        signal.alarm(seconds)
        found += [f"{name}: {fault}" for fault in faults(call, ABSURD)]
        signal.alarm(0)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
