"""A further member of PEFT's enumeration of methods, which is closed."""

from __future__ import annotations

import enum
from typing import Any

# peft will not take this name itself, and its error says whose method a folder needs where milkweed is not imported.
NAME = "MILKWEED_MONARCH"


def add_member(enumeration: type[enum.Enum], name: str) -> enum.Enum:
    """Add a member whose value is its name to an enumeration of strings, or give the one that is there.

    Raises:
        TypeError: The enumeration is built in another way than those of Python 3.11 to 3.14 are.
    """
    try:
        return enumeration(name)
    except ValueError:
        pass
    if not (issubclass(enumeration, str) and issubclass(enumeration, enum.Enum)):
        raise TypeError(f"{enumeration.__name__} is no enumeration of strings")
    members: Any = enumeration
    member = str.__new__(members, name)
    member._name_, member._value_, member._sort_order_ = name, name, len(members._member_names_)
    member.__objclass__ = members
    setattr(enumeration, name, member)
    members._member_map_[name] = member
    members._member_names_.append(name)
    members._value2member_map_[name] = member
    if enumeration(name) is not member or getattr(enumeration, name) is not member or member not in enumeration:
        raise TypeError(f"{enumeration.__name__} does not take a member {name}")
    return member
