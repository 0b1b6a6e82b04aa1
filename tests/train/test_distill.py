"""A converted model learns from the dense one."""

import copy
import os
import signal

import lightning.pytorch as pl
import pytest
import torch
from tests.convert.families import batches, build, output
from torch import nn

import milkweed as mw
from milkweed.tasks.distillation import relative_error
from milkweed.train.distill import Distillation, distill_, warmup_of


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
    mw.convert_(student, mw.MonarchConfig(3))
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


def test_the_warm_up_is_a_tenth_or_ten_steps_or_half():
    assert [warmup_of(steps) for steps in (1, 2, 7, 20, 60, 100, 101, 1000)] == [0, 1, 3, 10, 10, 10, 10, 100]


def test_a_short_distillation_never_undoes_the_projection():
    torch.manual_seed(0)
    teacher = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.GELU())))
    student, batches = copy.deepcopy(teacher), [torch.randn(64, 64) for _ in range(20)]
    mw.convert_(student, mw.plan_conversion(student, mw.MonarchConfig(4), batches, tokens=None))
    losses = distill_(student, teacher, batches, lr=1e-2, accelerator="cpu")
    assert max(losses) < 1.2 * losses[0]
    assert losses[-1] < losses[0]


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


def pair():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(8, 16), nn.Dropout(), nn.Linear(16, 8))
    student = copy.deepcopy(teacher)
    mw.convert_(student, mw.MonarchConfig(2, rank=2))
    student[1].eval()
    return student, teacher


def modes(model):
    return [module.training for module in model.modules()]


def inputs(count=4):
    return [torch.randn(4, 8) for _ in range(count)]


class Interrupted(pl.Callback):
    """Presses Ctrl-C."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_stays_what_it_is_and_leaves_the_modes():
    student, teacher = pair()
    before = modes(student), modes(teacher), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        distill_(student, teacher, inputs(), epochs=50, callbacks=[Interrupted()])
    assert (modes(student), modes(teacher), signal.getsignal(signal.SIGINT)) == before


def test_an_exit_of_a_callback_stays_one():
    class Leaving(pl.Callback):
        def on_train_batch_end(self, *_):
            raise SystemExit(3)

    with pytest.raises(SystemExit) as raised:
        distill_(*pair(), inputs(), callbacks=[Leaving()])
    assert raised.value.code == 3


def test_an_error_leaves_the_modes():
    student, teacher = pair()
    before = modes(student), modes(teacher)
    with pytest.raises(FloatingPointError):
        distill_(student, teacher, [torch.full((2, 8), torch.nan)])
    assert (modes(student), modes(teacher)) == before


class Named(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return {"y": self.layer(x)}


def test_outputs_by_name():
    student, teacher = pair()
    assert len(distill_(Named(student), Named(teacher), inputs())) == 4


@pytest.mark.parametrize("outputs", [1, 7])
def test_teachers_of_other_outputs(outputs):
    # One output would broadcast: a student that learns the wrong thing without a word.
    student, _ = pair()
    with pytest.raises(ValueError, match=rf"\[\(4, 8\)\] from the student and \[\(4, {outputs}\)\] from the teacher"):
        distill_(student, nn.Linear(8, outputs), inputs())
    with pytest.raises(ValueError, match="none from the student and none from the teacher"):
        distill_(nn.Sequential(student, Said()), nn.Sequential(nn.Linear(8, 8), Said()), inputs())


class Said(nn.Module):
    def forward(self, x):
        return str(x)


@pytest.mark.parametrize(
    ("batches", "options", "error", "message"),
    [
        ((x for x in inputs()), {}, TypeError, "batches must be a list of inputs .* got a generator"),
        (torch.randn(4, 8), {}, TypeError, "batches must be a list .* got a Tensor"),
        ({"x": torch.randn(4, 8)}, {}, TypeError, "batches must be a list .* got a dict"),
        (inputs(), {"epochs": 1.5}, ValueError, r"epochs=1\.5 must be a whole number"),
        (inputs(), {"epochs": "1"}, ValueError, "epochs='1' must be a whole number"),
        (inputs(), {"max_epochs": 3}, TypeError, "distill_ sets max_epochs itself; use epochs"),
        (inputs(), {"logger": True}, TypeError, "distill_ sets logger itself"),
        (inputs(), {"lr": float("inf")}, ValueError, "lr=inf must be above 0 and finite"),
    ],
)
def test_arguments_of_other_kinds(batches, options, error, message):
    student, teacher = pair()
    before = modes(student)
    with pytest.raises(error, match=message):
        distill_(student, teacher, batches, **options)
    assert modes(student) == before


def test_students_that_cannot_learn():
    student, teacher = pair()
    with pytest.raises(ValueError, match="no parameter that is trained"):
        distill_(student.requires_grad_(False), teacher, inputs())
    with pytest.raises(ValueError, match=r"student is in torch\.bfloat16, which would lose small steps"):
        distill_(student.requires_grad_(True).bfloat16(), teacher, inputs())


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
