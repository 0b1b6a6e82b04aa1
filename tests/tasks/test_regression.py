import pytest
import torch

from milkweed.models import LinearMemory
from milkweed.tasks import Regression
from milkweed.train.module import SequenceModule
from milkweed.train.optimisation import Optimisation


@pytest.fixture
def task(monkeypatch):
    task = SequenceModule(LinearMemory(1, 1, 2, {"name": "s4", "d_state": 4}), Regression())
    monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(SequenceModule, "current_epoch", 2)
    monkeypatch.setattr(SequenceModule, "global_step", 17)
    return task


def batch(size=4, length=6):
    inputs = torch.randn(size, length, 1)
    return {"inputs": inputs, "targets": inputs.roll(1, 1), "lengths": torch.full((size,), length)}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": 0.0}, "task.lr=0.0 must be above 0"), ({"warmup_steps": -1}, "task.warmup_steps=-1 must be at least 0")],
)
def test_options_are_checked(task, options, message):
    with pytest.raises(ValueError, match=message):
        SequenceModule(task.model, Regression(), Optimisation(**options))


def test_loss_is_the_mean_square_and_the_metric_its_root(task):
    examples = [batch(), batch(2)]
    errors = [(task.model(e["inputs"]) - e["targets"]).flatten().detach() for e in examples]
    assert torch.allclose(task.training_step(examples[0], 0), errors[0].square().mean())
    task.training_step(examples[1], 1)
    mean = torch.cat(errors).square().mean()
    assert torch.allclose(task.task.losses["train_loss"].compute(), mean)
    assert torch.allclose(task.task.score("train").compute(), mean.sqrt())


def test_padding_does_not_count(task):
    example = batch()
    example["lengths"][1] = 2
    example["inputs"][1, 2:] = example["targets"][1, 2:] = float("nan")
    valid = torch.arange(6) < example["lengths"][:, None]
    expected = (task.model(example["inputs"], example["lengths"]) - example["targets"])[valid].square().mean()
    assert torch.allclose(task.training_step(example, 0), expected)
    assert torch.allclose(task.task.score("train").compute(), expected.sqrt())


@pytest.mark.parametrize("what", ["inputs", "targets"])
def test_nan_in_the_data_is_named(task, what):
    example = batch()
    example[what][2, 3] = float("nan")
    with pytest.raises(FloatingPointError, match=rf"batch 5, epoch 2, step 17: the {what} hold NaN .* sample 2"):
        task.training_step(example, 5)


def test_diverged_parameters_are_named(task):
    task.model.head.bias.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"parameters diverged, first head\.bias; lower task\.lr"):
        task.training_step(batch(), 0)


def test_outputs_of_another_shape_are_refused(task):
    example = batch()
    example["targets"] = example["targets"][:, -1]
    with pytest.raises(ValueError, match=r"targets' shape \(4, 1\); the model gave \(4, 6, 1\).*model\.readout"):
        task.training_step(example, 0)
