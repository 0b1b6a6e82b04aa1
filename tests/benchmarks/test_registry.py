import pytest

from milkweed.benchmarks import registry
from milkweed.benchmarks.registry import UnknownCaseError, register, select


def names(cases):
    return [case.name for case in cases]


@pytest.fixture
def cases(toy):
    return [toy(name=name) for name in ("conv-forward", "conv-forward-small", "conv-train", "kernel-train")]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], ["conv-forward", "conv-forward-small", "conv-train", "kernel-train"]),
        (["conv-forward"], ["conv-forward"]),
        (["conv"], ["conv-forward", "conv-forward-small", "conv-train"]),
        (["*-train"], ["conv-train", "kernel-train"]),
        (["kernel", "small"], ["conv-forward-small", "kernel-train"]),
    ],
)
def test_select_takes_names_patterns_and_parts(cases, patterns, expected):
    assert names(select(patterns, cases)) == expected


def test_unknown_name_gets_the_nearest_ones(cases):
    with pytest.raises(UnknownCaseError, match=r"'kernal-trian'.*nearest names are kernel-train"):
        select(["conv", "kernal-trian"], cases)


def test_unknown_name_without_neighbours_points_to_the_list(cases):
    with pytest.raises(UnknownCaseError, match="--list"):
        select(["0123456789"], cases)


def test_a_name_is_registered_once(toy, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    case = toy()
    assert register(case) is case
    with pytest.raises(ValueError, match="'toy' is already registered"):
        register(toy())
