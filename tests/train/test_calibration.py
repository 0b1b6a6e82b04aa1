"""Temperatures against scipy and against data of a known one; weights of classes against scikit-learn."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import milkweed as mw
from milkweed.cli import main
from milkweed.data import Digits
from milkweed.tasks import Classification
from milkweed.train.calibration import calibration_error, fit_temperature


def test_the_temperature_minimises_the_cross_entropy():
    minimize = pytest.importorskip("scipy.optimize").minimize_scalar
    logits, targets = 3 * torch.randn(400, 5, dtype=torch.float64), torch.randint(5, (400,))
    targets[:200] = logits[:200].argmax(1)
    expected = minimize(
        lambda t: float(F.cross_entropy(logits / t, targets)),
        bounds=(0.05, 20),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logits, targets) == pytest.approx(expected.x, rel=1e-5)


def test_a_known_temperature_is_found():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(60_000, 4, generator=generator, dtype=torch.float64)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(3 * logits, targets) == pytest.approx(3, rel=0.02)
    assert calibration_error(3 * logits, targets) > 0.1
    assert calibration_error(logits, targets) < 0.01


def test_all_right_and_all_wrong_stay_in_bounds():
    logits = 5 * torch.eye(3, dtype=torch.float64)
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(0.05)
    assert fit_temperature(logits, torch.tensor([1, 2, 0])) == pytest.approx(20)


def test_the_error_is_that_of_the_definition():
    logits, targets = torch.randn(300, 3), torch.randint(3, (300,))
    confidence, guess = logits.softmax(1).max(1)
    bins = np.ceil(confidence.numpy() * 15)
    expected = sum(
        (bins == each).mean()
        * abs((guess == targets).numpy()[bins == each].mean() - confidence.numpy()[bins == each].mean())
        for each in np.unique(bins)
    )
    assert calibration_error(logits, targets) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("runs")
    small = ["--model.d_model", "8", "--model.depth", "1", "--data.limit", "96", "--trainer.max_epochs", "1"]
    options = ["--task.calibrate", "true", "--task.class_weights", "balanced"]
    assert main(["train", "digits", "--out", str(out), *small, *options]) == 0
    return out / "digits"


def test_a_run_keeps_its_temperature_and_reports_its_errors(run):
    found = json.loads((run / "calibration.json").read_text())
    results = json.loads((run / "results.json").read_text())["calibration"]
    assert {name: found[name] for name in results} == results
    data, model = Digits(limit=96), mw.load_pretrained(run)
    for name in ("val", "test"):
        split = data.split(name)
        with torch.no_grad():
            logits = model(split.inputs, split.lengths).double()
        if name == "val":
            assert found["temperature"] == pytest.approx(fit_temperature(logits, split.targets), rel=1e-4)
        error = calibration_error(logits / found["temperature"], split.targets)
        assert found[f"{name}_calibration_error"] == pytest.approx(error, abs=1e-4)
        assert found[f"{name}_calibration_error_before"] == pytest.approx(
            calibration_error(logits, split.targets), abs=1e-4
        )


def test_damaged_temperatures_are_refused(run, tmp_path):
    import shutil

    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "calibration.json").write_text('{"temperature": -1}')
    with pytest.raises(ValueError, match="temperature must be a number above 0; delete the file"):
        mw.load_predictor(tmp_path / "run")


def test_balanced_weights_are_those_of_scikit_learn():
    compute = pytest.importorskip("sklearn.utils.class_weight").compute_class_weight
    targets = torch.tensor([0] * 7 + [1] * 2 + [2])
    task = Classification(3, class_weights="balanced")
    logits = torch.randn(10, 3)
    with pytest.raises(ValueError, match="class_weights=balanced counts the classes of the training split"):
        task.loss("train", logits, {"targets": targets})
    task.count(targets)
    expected = compute("balanced", classes=np.arange(3), y=targets.numpy())
    np.testing.assert_allclose(task.class_weights, expected, rtol=1e-6)
    rows = F.cross_entropy(logits.double(), targets, reduction="none")
    weights = torch.from_numpy(expected)[targets]
    found = task.loss("train", logits, {"targets": targets})
    torch.testing.assert_close(found.double(), (weights * rows).sum() / weights.sum(), rtol=1e-6, atol=1e-6)
    # Losses that models are compared by count every sample alike.
    torch.testing.assert_close(
        task.loss("val", logits, {"targets": targets}).double(), rows.mean(), rtol=1e-6, atol=1e-6
    )
    assert not {"class_weights", "temperature"} & task.state_dict().keys()
    with pytest.raises(ValueError, match="class number 2 is not there"):
        task.count(targets[:9])


@pytest.mark.parametrize("weights", ["even", [1.0, 2.0], [1.0, 0.0, 1.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]])
def test_other_weights_are_refused(weights):
    with pytest.raises(ValueError, match=r"class_weights.* must be"):
        Classification(3, class_weights=weights)


def test_weights_of_ones_own():
    task, logits, targets = Classification(2, class_weights=[1.0, 3.0]), torch.randn(6, 2), torch.tensor([0, 1] * 3)
    expected = F.cross_entropy(logits, targets, torch.tensor([1.0, 3.0]))
    assert torch.equal(task.loss("train", logits, {"targets": targets}), expected)
