"""Errors that are no finite numbers never win a place within a budget."""

import math

import pytest

from milkweed.convert.budget_search import choose_within


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_option_without_a_finite_error_is_none(bad, place):
    options = [(10, 3.0, "small"), (20, 2.0, "middle"), (30, 1.0, "large")]
    others = [each for number, each in enumerate(options) if number != place]
    spoilt = [(cost, bad if number == place else error, name) for number, (cost, error, name) in enumerate(options)]
    for budget in (20, 25, 30, 60):
        assert choose_within({"a": spoilt}, budget) == choose_within({"a": others}, budget)


def test_a_layer_without_any_finite_error_is_named():
    with pytest.raises(ValueError, match="none of the candidates fits layer 'a'"):
        choose_within({"a": [(10, math.nan, "x")]}, 100)
