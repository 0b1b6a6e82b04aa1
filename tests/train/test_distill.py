"""A converted model learns from the dense one."""

import copy

import pytest
import torch
from tests.convert.families import batches, build, output
from torch import nn

import milkweed as mw
from milkweed.tasks.distillation import Distillation, relative_error
from milkweed.train.distill import distill_


def test_relative_error_is_one_for_a_guess_at_the_mean():
    target = torch.randn(6, 7, 3) * 5 + 2
    guess = target.flatten(0, 1).mean(0).expand_as(target)
    assert float(relative_error(guess.flatten(0, 1), target.flatten(0, 1))) == pytest.approx(1)
    mask = torch.ones(6, 7, dtype=torch.bool)
    mask[3:, 4:] = False
    spoiled = torch.where(mask[..., None], target, 100.0)
    assert float(relative_error(target, spoiled, mask)) == 0
    expected = (target - 1)[mask].square().mean() / (target[mask] - target[mask].mean(0)).square().mean()
    torch.testing.assert_close(relative_error(torch.ones_like(target), target, mask), expected)


@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_the_student_comes_closer(family):
    teacher, inputs = build(family), batches(family)
    student = copy.deepcopy(teacher)
    mw.convert_(student, mw.MonarchConfig(2))
    student.train()
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    expected = output(copy.deepcopy(teacher).eval(), inputs[0])

    def error():
        return float((output(copy.deepcopy(student).eval(), inputs[0]) - expected).norm() / expected.norm())

    start = error()
    losses = distill_(student, teacher, inputs, epochs=4, lr=3e-3)
    assert len(losses) == 80
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert error() < 0.9 * start
    assert student.training
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.requires_grad for p in teacher.parameters())


def test_any_module():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    student = copy.deepcopy(teacher)
    mw.convert_(student, mw.MonarchConfig(2, rank=2))
    losses = distill_(student, teacher, [torch.randn(16, 8) for _ in range(30)], epochs=5, lr=1e-2)
    assert losses[-1] < 0.5 * losses[0]


def test_the_same_seed_gives_the_same_student():
    found = []
    for _ in range(2):
        teacher = build("bert")
        student = copy.deepcopy(teacher)
        mw.convert_(student, mw.MonarchConfig(2))
        distill_(student, teacher, batches("bert", 4), seed=3)
        found.append(student.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_bad_input():
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="needs batches"):
        distill_(model, nn.Linear(4, 4), [])
    with pytest.raises(ValueError, match="epochs=0"):
        distill_(model, nn.Linear(4, 4), [torch.randn(2, 4)], epochs=0)
    with pytest.raises(ValueError, match="one model"):
        Distillation(model, model)
    with pytest.raises(ValueError, match="lr=0"):
        Distillation(model, nn.Linear(4, 4), lr=0)
    with pytest.raises(FloatingPointError, match="lower lr"):
        distill_(model, nn.Linear(4, 4), [torch.full((2, 4), torch.nan)])
