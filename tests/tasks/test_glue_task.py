import math

import pytest
import torch

from milkweed.models import M2Bert
from milkweed.tasks import Glue
from milkweed.train.module import SequenceModule


@pytest.fixture
def make(monkeypatch):
    def make(classes, **options):
        model = M2Bert(9, classes, length=8, d_model=8, depth=1, head="classification", dropout=0.0)
        task = SequenceModule(model, Glue(classes, **options))
        monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)
        return task

    return make


def batch(targets):
    size = len(targets)
    return {
        "inputs": torch.randint(9, (size, 6)),
        "token_types": torch.randint(2, (size, 6)),
        "lengths": torch.randint(1, 7, (size,)),
        "targets": targets,
    }


def run(task, examples):
    """The model's outputs over all examples, after they have been measured."""
    outputs = []
    for number, example in enumerate(examples):
        outputs.append(task.model(example["inputs"], example["lengths"], example["token_types"]))
        task.validation_step(example, number)
    return torch.cat(outputs).detach().double(), torch.cat([example["targets"] for example in examples]).double()


def correlation(x, y):
    x, y = [v - sum(x) / len(x) for v in x], [v - sum(y) / len(y) for v in y]
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))


def ranks(values):
    """Ranks from 1, equal values sharing the mean of theirs."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def test_numbers_are_measured_by_correlations(make):
    task = make(1)
    outputs, targets = run(task, [batch(torch.tensor([0.0, 5.0, 2.5, 2.5, 1.0])), batch(torch.tensor([4.0, 3.2]))])
    x, y = outputs[:, 0].tolist(), targets.tolist()
    assert task.metric == "pearson"
    assert task.task.score("val").compute().item() == pytest.approx(correlation(x, y), abs=1e-4)
    assert task.task.further_scores("val")["spearman"].compute().item() == pytest.approx(
        correlation(ranks(x), ranks(y)), abs=1e-5
    )
    assert task.task.losses["val_loss"].compute().item() == pytest.approx(
        sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 7, rel=1e-5
    )


def test_two_classes_are_measured_by_accuracy_f1_and_matthews(make):
    task = make(2, judged_by="matthews")
    task.model.head.classifier.weight.data.mul_(50)
    outputs, targets = run(task, [batch(torch.randint(2, (40,))), batch(torch.randint(2, (23,)))])
    found, wanted = outputs.argmax(1).tolist(), targets.tolist()
    pairs = list(zip(found, wanted, strict=True))
    tp, tn, fp, fn = (pairs.count(pair) for pair in ((1, 1.0), (0, 0.0), (1, 0.0), (0, 1.0)))
    assert min(tp, tn, fp, fn) > 0
    assert task.metric == "matthews"
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert task.task.score("val").compute().item() == pytest.approx(expected, abs=1e-6)
    further = {name: metric.compute().item() for name, metric in task.task.further_scores("val").items()}
    assert further == pytest.approx({"accuracy": (tp + tn) / 63, "f1": 2 * tp / (2 * tp + fp + fn)}, abs=1e-6)
    losses = [row.exp().sum().log() - row[int(want)] for row, want in zip(outputs, wanted, strict=True)]
    assert task.task.losses["val_loss"].compute().item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_three_classes_have_no_f1(make):
    task = make(3)
    run(task, [batch(torch.tensor([0, 1, 2, 1]))])
    assert task.metric == "accuracy"
    assert set(task.task.further_scores("val")) == {"matthews"}


def test_token_types_reach_the_model(make):
    task, example = make(2), batch(torch.tensor([0, 1]))
    other = {**example, "token_types": 1 - example["token_types"]}
    assert not torch.allclose(task.task.run_model(task.model, example), task.task.run_model(task.model, other))


def test_what_does_not_fit_is_refused(make):
    with pytest.raises(ValueError, match=r"judged_by='pearson' is unknown.*accuracy, f1, matthews"):
        make(2, judged_by="pearson")
    with pytest.raises(ValueError, match="num_classes=0 must be at least 1"):
        Glue(0)
    task = make(2)
    task.task.num_classes = 3
    with pytest.raises(
        ValueError, match=r"one row per text, \(2, 3\); it gave \(2, 2\); set model.head=classification"
    ):
        task.training_step(batch(torch.tensor([0, 1])), 0)


def test_train_averages_survive_a_checkpoint_and_start_anew(make):
    task, later = make(1), batch(torch.tensor([2.0, 4.0]))
    task.training_step(batch(torch.tensor([0.0, 1.0, 5.0])), 0)
    again = make(1)
    again.load_state_dict(task.state_dict())
    for each in (task, again):
        each.training_step(later, 1)
    metrics = [[t.task.score("train"), *t.task.further_scores("train").values()] for t in (task, again)]
    assert [metric.compute() for metric in metrics[0]] == [metric.compute() for metric in metrics[1]]
    task.on_train_epoch_start()
    assert all(metric.update_count == 0 for metric in metrics[0])
