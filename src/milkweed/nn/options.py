"""Options of the wrong type, which Python would take in silence: ``gate="no"`` is true."""

from __future__ import annotations

_EXPECTED = {bool: "True or False", float: "a number", int: "an integer", str: "a string"}


def is_kind(value: object, kind: type) -> bool:
    """Tell whether a value may stand where a bool, float, int or str is expected.

    Args:
        value: Anything.
        kind: One of these types. An integer is a float too, but a bool is nothing else.

    Returns:
        Whether it may.
    """
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def check_kind(kind: type, /, *, optional: bool = False, **options: object) -> None:
    """Refuse options of another type.

    Args:
        kind: ``bool``, ``float``, ``int`` or ``str``.
        optional: None will do as well.
        **options: Values by argument name.

    Raises:
        TypeError: One is of another type.
    """
    for name, value in options.items():
        if not (is_kind(value, kind) or (optional and value is None)):
            or_none = ", or None" if optional else ""
            raise TypeError(f"{name} must be {_EXPECTED[kind]}{or_none}; got {value!r}")


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
