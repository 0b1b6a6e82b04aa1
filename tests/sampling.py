"""Which cases of the tests marked `sampled` a plain run takes; `pytest --all` takes every case.

`@pytest.mark.sampled` takes few cases of a test: they hold every value of every parameter, not every pair of values.
`@pytest.mark.sampled(3)` takes a third of those: the tests of a file take turns, so that three of them over the
same members leave no member out. The choice depends on nothing but the order in the file.
"""

from itertools import groupby


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
            taken = sample([item.callspec.indices for item in members], turn, share)
            found.update(item for number, item in enumerate(members) if number not in taken)
    return found


def sample(cases, turn, share=1):
    """The numbers of the cases that are taken; ``cases`` are mappings from a parameter to the number of its value."""
    values = [set(case.items()) for case in cases]
    remaining, covering = set().union(*values), []
    order = [(turn + number) % len(cases) for number in range(len(cases))]
    while remaining:
        best = max(order, key=lambda number: len(values[number] & remaining))
        covering.append(best)
        remaining -= values[best]
    covering.sort()
    return set(covering[turn % min(share, len(covering)) :: share])
