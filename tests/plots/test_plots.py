import numpy as np
import pytest

from milkweed.plots import save_confusion_matrix, save_learning_curves

PNG = b"\x89PNG\r\n\x1a\n"


def row(epoch):
    return {
        "epoch": epoch,
        "train_loss": 2.0 / (epoch + 1),
        "val_loss": 2.1,
        "train_accuracy": 0.5,
        "val_accuracy": 0.4,
    }


@pytest.mark.parametrize("epochs", [1, 20])
def test_learning_curves(tmp_path, epochs):
    path = tmp_path / "curves.png"
    save_learning_curves([row(epoch) for epoch in range(epochs)], path, "run", best_epoch=0)
    assert path.read_bytes().startswith(PNG)
    assert list(tmp_path.iterdir()) == [path]


def test_learning_curves_without_validation(tmp_path):
    save_learning_curves([{"epoch": 0, "train_loss": 1.0, "train_accuracy": 0.1}], tmp_path / "curves.png", "run")


def test_learning_curves_of_another_metric(tmp_path):
    metrics = {"train_loss": 1.0, "val_loss": 1.0, "train_rmse": 1.0, "val_rmse": 1.0}
    rows = [{"epoch": epoch, **metrics} for epoch in (0, 1)]
    with_metric, without = tmp_path / "rmse.png", tmp_path / "accuracy.png"
    save_learning_curves(rows, with_metric, "run", metric="rmse")
    save_learning_curves(rows, without, "run")
    assert with_metric.read_bytes() != without.read_bytes()


def test_learning_curves_need_rows(tmp_path):
    with pytest.raises(ValueError, match="rows is empty"):
        save_learning_curves([], tmp_path / "curves.png", "run")


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_confusion_matrix(tmp_path, classes):
    matrix = np.eye(classes, dtype=int) * 5
    matrix[0, 1] = 2
    matrix[1] = 0
    names = [f"class {index}" for index in range(classes)]
    save_confusion_matrix(matrix, names, tmp_path / "confusion.png", "run")
    assert (tmp_path / "confusion.png").read_bytes().startswith(PNG)


def test_confusion_matrix_must_match_its_names(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(2, 2\); expected \(3, 3\)"):
        save_confusion_matrix(np.eye(2), ["a", "b", "c"], tmp_path / "confusion.png", "run")
