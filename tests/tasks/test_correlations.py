"""Correlations against float64 references, and their values where a side is constant."""

import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import matthews_corrcoef

from milkweed.tasks import Glue
from milkweed.tasks.correlations import Matthews, Pearson


def pearson(found, targets, size=7):
    metric = Pearson()
    for parts in zip(torch.as_tensor(found).split(size), torch.as_tensor(targets).split(size), strict=True):
        metric.update(*parts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return metric.compute().item()


@pytest.mark.parametrize("offset", [0.0, 3.0, -100.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("count", [2, 7, 8, 50, 1000])
def test_pearson_is_that_of_float64(count, scale, offset):
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, generator=generator) * scale + offset * scale
    y = x * 0.3 + torch.randn(count, generator=generator) * scale
    assert pearson(x, y) == pytest.approx(
        stats.pearsonr(x.double(), y.double()).statistic, abs=2e-4 if offset < 0 else 1e-5
    )


def test_a_few_numbers_far_from_many_have_a_correlation():
    x = torch.zeros(10_000)
    x[17] = 1.0
    assert pearson(x, 2 * x, 64) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.3, 1e-20, 1e15, 12345.678])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_a_constant_tells_nothing(value, size):
    constant, varied = torch.full((100,), value), torch.randn(100)
    assert pearson(constant, varied, size) == 0.0
    assert pearson(varied, constant, size) == 0.0
    assert pearson(constant, constant, size) == 0.0


def test_one_number_tells_nothing():
    assert pearson([1.0], [2.0]) == 0.0


def test_gathered_processes_count_as_one():
    x, y = torch.randn(60) + 5, torch.randn(60)
    y = y + x
    parts = [Pearson() for _ in range(3)]
    for number, metric in enumerate(parts):
        metric.update(x[number * 20 : number * 20 + 20], y[number * 20 : number * 20 + 20])
    whole = Pearson()
    for name in whole._defaults:
        setattr(whole, name, torch.stack([getattr(metric, name) for metric in parts]))
    whole._update_count = 1
    assert whole.compute().item() == pytest.approx(stats.pearsonr(x.double(), y.double()).statistic, abs=1e-5)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_matthews_is_that_of_scikit_learn(classes):
    generator = torch.Generator().manual_seed(classes)
    targets = torch.randint(classes, (500,), generator=generator)
    noise = torch.randint(classes, (500,), generator=generator)
    found = torch.where(torch.rand(500, generator=generator) < 0.6, targets, noise)
    metric = Matthews(classes)
    metric.update(found, targets)
    assert metric.compute().item() == pytest.approx(matthews_corrcoef(targets, found), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("one", [0, 1])
@pytest.mark.parametrize("which", ["predictions", "targets", "both"])
def test_matthews_of_one_class_is_zero(classes, one, which):
    varied, constant = torch.arange(40) % 4 % classes, torch.full((40,), one)
    metric = Matthews(classes)
    metric.update(varied if which == "targets" else constant, varied if which == "predictions" else constant)
    assert metric.compute().item() == 0.0


def test_matthews_of_many_samples_loses_no_digits():
    metric = Matthews(2)
    metric.confmat = torch.tensor([[4_000_000, 1_000_000], [999_999, 4_000_001]])
    metric._update_count = 1
    table = np.array([[4_000_000, 1_000_000], [999_999, 4_000_001]], dtype=object)
    (tn, fp), (fn, tp) = table
    exact = (tp * tn - fp * fn) / float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert metric.compute().item() == pytest.approx(exact, abs=1e-7)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_every_metric_of_glue_has_a_value_for_a_model_that_always_says_the_same(classes):
    task = Glue(num_classes=classes)
    outputs = torch.zeros(12, classes)
    targets = torch.linspace(0, 1, 12) if classes == 1 else torch.arange(12) % classes
    for _ in range(2):
        task.update_averages("val", outputs, {"targets": targets}, torch.tensor(1.0))
    values = {name: metric.compute().item() for name, metric in task.scores.items() if name.startswith("val_")}
    accuracy = values.pop("val_accuracy", None)
    assert accuracy == (None if classes == 1 else pytest.approx(1 / classes))
    assert set(values.values()) == {0.0}
