"""The nearest known name, for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, given: object, known: Iterable[str]) -> str:
    """Say ``init='leg' is unknown; did you mean 'legs'? Known: inv, legs, lin`` of a name that is not known."""
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{kind}={given!r} is unknown{hint} Known: {', '.join(names)}"


class UsageError(ValueError):
    """A command line or a recipe asks for something that does not exist or does not fit."""
