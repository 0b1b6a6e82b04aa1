import re

import pytest
import torch

from benchmarks import case as registry
from benchmarks.case import Case, Figure, UnknownCaseError, Work, all_cases, draw, place, register, select


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
    register(toy())
    with pytest.raises(ValueError, match="'toy' is already registered"):
        register(toy())


def test_every_case_is_well_described():
    cases = all_cases()
    assert {case.device for case in cases} == {"cpu", "cuda"}
    for case in cases:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", case.name)
        assert case.size.keys() == case.tiny.keys()
        assert case.description
        assert case.peer
        assert bool(case.lengths) == (case.figure is Figure.GROWTH)
        assert case.device == "cpu" or case.shrinks in case.size


def test_work_is_made_of_the_same_numbers_on_the_device_of_the_case():
    made = []

    def build(size):
        made.append((draw(size["n"], dtype=torch.float16), torch.get_default_device()))
        return Work({}, dict, {})

    case = Case("numbers", "", "", Figure.FORWARD, build, {"n": 4}, {"n": 1})
    before = torch.get_rng_state()
    case.make({"n": 4})
    torch.rand(3)
    case.make({"n": 4})
    case.make({"n": 4}, "meta")
    (first, device), (second, _), (third, other) = made
    assert torch.equal(first, second)
    assert (device.type, other.type, third.device.type) == ("cpu", "meta", "meta")
    torch.rand(3)
    torch.set_rng_state(before)
    case.make({"n": 4})
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_get_their_initial_values_on_the_cpu():
    def make():
        assert torch.get_default_device().type == "cpu"
        return torch.nn.Linear(2, 2)

    with torch.device("meta"):
        assert place(make, torch.bfloat16).weight.device.type == "meta"
