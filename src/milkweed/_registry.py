"""One table of names: what recipes, saved files and the command line may name, the user's own classes included.

A file may name what is registered here and nothing else: nothing is ever imported because a file names it.
"""

from __future__ import annotations

import importlib
import inspect
import re
import threading
from collections.abc import Callable
from typing import Any, TypeVar, overload

from milkweed._suggest import unknown

C = TypeVar("C", bound=type)

# Kinds, and the package that registers the library's own classes of each: imported before anyone else takes a name.
KINDS = {
    "structure": "milkweed.structures",
    "linear": "milkweed.nn",
    "layer": "milkweed.nn",
    "config": "milkweed.nn",
    "model": "milkweed.models",
    "data": "milkweed.data",
    "task": "milkweed.tasks",
    "preprocessing": "milkweed.data",
}
_NAME = re.compile(r"\w[\w.-]*")
_lock = threading.RLock()
_classes: dict[str, dict[str, type]] = {kind: {} for kind in KINDS}
_checks: dict[str, Callable[[type, str], None]] = {}


class NameTakenError(ValueError):
    """The name stands for another class."""


@overload
def register(kind: str, name: str | None = None) -> Callable[[C], C]: ...


@overload
def register(kind: str, name: str | None, cls: C) -> C: ...


def register(kind: str, name: str | None = None, cls: type | None = None) -> Any:
    """Give a class of your own a name by which recipes, saved files and the command line may ask for it.

    The module that registers a class must be imported before a file that names it is read: files are data, and import
    nothing. A class may have several names: all of them are read, the last one is written.

    Args:
        kind: What the class is. ``"structure"``: a `milkweed.structures.StructuredMatrix`. ``"linear"``: a
            `milkweed.nn.StructuredLinear`. ``"layer"``: a layer on (B, L, d_model), called as
            ``layer(u, lengths=lengths)`` and made from ``d_model`` and plain options, or a
            `milkweed.nn.filters.Filter`, which gets a `milkweed.nn.SequenceLayer` around it. ``"config"``: a
            `milkweed.convert.LayerConfig`. ``"model"``, ``"data"``, ``"task"``: a `milkweed.models.Model`, a
            `milkweed.data.SequenceData` and a `milkweed.tasks.Task`, which have the names of their classes from the
            start, unless these are taken.
        name: Letters, digits, ``_``, ``-`` and dots. By default the class's own ``name``, or else that of the class.
        cls: The class; left out, this is a decorator.

    Returns:
        The class itself, or the decorator.

    Raises:
        ValueError: The kind is unknown, or the name is malformed.
        NameTakenError: Another class has the name, a ValueError too. The same class may come again, as when its module
            is loaded anew.
        TypeError: The class is not of the kind, or abstract.

    Example:
        >>> import milkweed as mw
        >>> @mw.register("linear", "doubled_low_rank")
        ... class DoubledLowRank(mw.nn.LowRankLinear):
        ...     def matrix(self):
        ...         return mw.structures.LowRank(2 * self.left, self.right)
        >>> mw.nn.build_linear({"name": "doubled_low_rank", "rank": 2}, 8, 8)
        DoubledLowRank(in_features=8, out_features=8, rank=2, bias=True)
    """
    if not isinstance(kind, str) or kind not in KINDS:
        example = "@milkweed.register('layer', 'my_layer')"
        error = ValueError if isinstance(kind, str) else TypeError
        raise error(f"{unknown('kind', kind, KINDS)}; the kind comes first, as in {example}")
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string, or None for the class's own; got {name!r}")
    if cls is None:
        return lambda decorated: register(kind, name, decorated)
    if not isinstance(cls, type):
        raise TypeError(f"a {kind} must be a class; got {cls!r}")
    own = getattr(cls, "name", None)
    name = name if name is not None else own if isinstance(own, str) else cls.__name__
    if not _NAME.fullmatch(name):
        raise ValueError(f"name must be letters, digits, '_', '-' and dots, e.g. 'my_{kind}'; got {name!r}")
    importlib.import_module(KINDS[kind])
    if inspect.isabstract(cls):
        lacking = ", ".join(sorted(cls.__abstractmethods__))
        raise TypeError(f"{cls.__name__} is abstract and cannot be registered; define {lacking}")
    if kind in _checks:
        _checks[kind](cls, name)
    with _lock:
        taken = _classes[kind].get(name)
        if taken is not None and not _same(taken, cls):
            raise NameTakenError(
                f"{kind} {name!r} is {_path(taken)} already; register {_path(cls)} under another name, e.g. "
                f"milkweed.register({kind!r}, 'my_{name}')"
            )
        _classes[kind].pop(name, None)  # so that the last name given is the last in order
        _classes[kind][name] = cls
    return cls


def register_if_free(kind: str, cls: type) -> None:
    """Register a class under its own name, if it is no abstract one and the name is free.

    A name that another class has stays with that one: files that name it must go on meaning it.
    """
    if inspect.isabstract(cls):
        return
    try:
        register(kind, cls.__name__, cls)
    except NameTakenError:
        return


def requires(kind: str, check: Callable[[type, str], None]) -> None:
    """Say what a class of a kind must be: ``check`` raises for others, of those registered before too."""
    with _lock:
        _checks[kind] = check
        for name, cls in _classes[kind].items():
            check(cls, name)


def find(kind: str, name: object, argument: str) -> Any:
    """The class of a name, which from a file may be anything; ``argument`` says where it stands, for messages."""
    known = registered(kind)
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"{unknown(argument, name, known)}. A class of your own has to be registered before, by importing the "
            f"module that calls milkweed.register({kind!r}, ...)"
        )
    return known[name]


def name_of(kind: str, cls: type) -> str:
    """The name to write for a class, the last one that it was given."""
    known = registered(kind)
    for name, found in reversed(known.items()):
        if _same(found, cls):
            return name
    taken = known.get(cls.__name__)
    why = "" if taken is None else f", as {cls.__name__!r} is {_path(taken)}"
    raise TypeError(
        f"{_path(cls)} has no name by which it could be built again{why}; register it: "
        f"milkweed.register({kind!r}, 'a_name')({cls.__name__})"
    )


def registered(kind: str) -> dict[str, Any]:
    """All classes of a kind by name, in the order of their registration."""
    importlib.import_module(KINDS[kind])
    with _lock:
        return dict(_classes[kind])


def _same(one: type, other: type) -> bool:
    """Whether two classes are one, which may have been loaded again."""
    return one is other or _path(one) == _path(other)


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
