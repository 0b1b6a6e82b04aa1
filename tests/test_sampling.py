"""What a plain run takes of the sampled tests."""

from collections import Counter
from itertools import product

from tests.sampling import sample


def grid(*sizes):
    return [dict(zip("abc", values, strict=False)) for values in product(*map(range, sizes))]


def test_every_value_is_there_and_few_cases_are():
    for sizes in [(1,), (7,), (4, 4), (5, 2), (2, 6, 3)]:
        for turn in range(8):
            cases = grid(*sizes)
            taken = [cases[number] for number in sample(cases, turn)]
            assert len(taken) <= max(sizes) + 2
            for name, size in zip("abc", sizes, strict=False):
                assert {case[name] for case in taken} == set(range(size))


def test_turns_differ_and_leave_no_member_out():
    cases = grid(8)
    turns = [sample(cases, turn, 3) for turn in range(3)]
    assert turns == [{0, 3, 6}, {1, 4, 7}, {2, 5}]
    assert sample(grid(4, 4), 0) != sample(grid(4, 4), 1)


def test_values_meet_in_equal_parts():
    for turn in range(8):
        taken = [grid(12, 2, 2)[number] for number in sample(grid(12, 2, 2), turn)]
        assert len(taken) == 12
        assert Counter((case["b"], case["c"]) for case in taken) == Counter(list(product(range(2), range(2))) * 3)


def test_a_test_with_fewer_cases_than_its_share_still_runs():
    assert all(sample(grid(2), turn, 3) for turn in range(6))


def test_parameters_without_a_full_product():
    cases = [{"a": 0, "b": 0}, {"a": 0, "b": 1}, {"a": 1, "b": 0}, {"a": 2, "b": 2}]
    for turn in range(8):
        assert {1, 2, 3} <= sample(cases, turn)
