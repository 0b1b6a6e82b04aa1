"""Which cases of the tests marked `sampled` a plain run takes; `pytest --all` takes every case.

`@pytest.mark.sampled` takes few cases of a test: they hold every value of every parameter, not every pair of values.
`@pytest.mark.sampled(3)` takes a third of those: the tests of a file take turns, so that three of them over the
same members leave no member out. The choice depends on nothing but the order in the file.
"""

import random
from collections import Counter
from itertools import combinations, groupby


def left_out(items):
    """The items that a plain run leaves out, of all that pytest collected."""
    found = set()
    for _, tests in groupby(items, key=lambda item: item.nodeid.partition("::")[0]):
        cases = {}
        for item in tests:
            if item.get_closest_marker("sampled"):
                cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        for turn, members in enumerate(cases.values()):
            (share,) = members[0].get_closest_marker("sampled").args or (1,)
            taken = sample(numbered([values_of(item) for item in members]), turn, share)
            found.update(item for number, item in enumerate(members) if number not in taken)
    return found


def values_of(item):
    """The values of a case by what gives them: a `parametrize`, of one argument or several, or a fixture."""
    values = dict(item.callspec.params)
    found = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if isinstance(mark.args[0], str) else ",".join(mark.args[0])
        found[names] = tuple(values.pop(name.strip()) for name in names.split(","))
    return found | {name: (value,) for name, value in values.items()}


def numbered(cases):
    """Cases with numbers in the place of values, which may be of any kind; the same objects are the same value."""
    numbers = {}
    return [
        {
            name: numbers.setdefault(name, {}).setdefault(tuple(map(id, value)), len(numbers[name]))
            for name, value in case.items()
        }
        for case in cases
    ]


def sample(cases, turn, share=1):
    """The numbers of the cases that are taken; ``cases`` are mappings from a parameter to the number of its value."""
    values = [set(case.items()) for case in cases]
    parts = [{*each, *combinations(sorted(each), 2)} for each in values]
    remaining, uses, covering = set().union(*values), Counter(), []
    order = random.Random(turn).sample(range(len(cases)), len(cases))
    while remaining:
        # Among those with as many new values, the one whose values and pairs of values have been taken least.
        best = max(order, key=lambda n: (len(values[n] & remaining), -sum(uses[part] for part in parts[n])))
        covering.append(best)
        remaining -= values[best]
        uses.update(parts[best])
    covering.sort()
    return set(covering[turn % min(share, len(covering)) :: share])
