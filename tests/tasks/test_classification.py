import pytest
import torch

from milkweed.models import SequenceModel
from milkweed.tasks import Classification
from milkweed.train.module import SequenceModule
from milkweed.train.optimisation import Optimisation


@pytest.fixture
def model():
    return SequenceModel(1, 3, d_model=8, depth=1, layer={"name": "s4d", "d_state": 4})


def batch(size=4, features=1, length=6):
    return {
        "inputs": torch.randn(size, length, features),
        "targets": torch.arange(size) % 3,
        "lengths": torch.full((size,), length),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "task.lr=0.0 must be above 0"),
        ({"ssm_lr": -1.0}, "task.ssm_lr=-1.0 must be above 0"),
        ({"weight_decay": -0.1}, "task.weight_decay=-0.1 must be at least 0"),
        ({"label_smoothing": 1.0}, "task.label_smoothing=1.0 must be at least 0 and below 1"),
    ],
)
def test_options_are_checked(model, options, message):
    with pytest.raises(ValueError, match=message):
        train(model, **options)


def train(model, label_smoothing=0.0, **options):
    return SequenceModule(model, Classification(3, label_smoothing), Optimisation(**options))


@pytest.fixture
def task(model, monkeypatch):
    task = train(model)
    monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(SequenceModule, "current_epoch", 2)
    monkeypatch.setattr(SequenceModule, "global_step", 17)
    return task


def test_loss_is_cross_entropy(task):
    example = batch()
    loss = task.training_step(example, 0)
    expected = torch.nn.functional.cross_entropy(task.model(example["inputs"]), example["targets"])
    assert torch.allclose(loss, expected)
    assert torch.allclose(task.task.losses["train_loss"].compute(), expected)


def test_nan_in_the_inputs_is_named(task):
    example = batch()
    example["inputs"][2, 3] = float("nan")
    with pytest.raises(FloatingPointError, match=r"train batch 5, epoch 2, step 17: the inputs hold NaN .* sample 2"):
        task.training_step(example, 5)


def test_diverged_parameters_are_named(task):
    task.model.head.bias.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"parameters diverged, first head\.bias; lower task\.lr"):
        task.training_step(batch(), 0)


def test_empty_batch_is_refused(task):
    with pytest.raises(ValueError, match=r"val batch 3: inputs must be .* got \(0, 6, 1\)"):
        task.validation_step(batch(size=0), 3)


def test_wrong_feature_size_is_refused(task):
    with pytest.raises(ValueError, match="d_input=1"):
        task.training_step(batch(features=2), 0)


def test_sequences_of_one_step_work(task):
    assert torch.isfinite(task.training_step(batch(length=1), 0))
