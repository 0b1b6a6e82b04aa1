import numpy as np
import pytest
import torch

from milkweed.data import Digits
from milkweed.data.batches import ArrayDataset
from milkweed.data.checks import check_split
from milkweed.data.digits import stratified_split


def test_splits_are_stratified_and_complete():
    targets = np.random.RandomState(1).randint(0, 10, 1000)
    parts = stratified_split(targets)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1000))
    for label in range(10):
        total = (targets == label).sum()
        assert abs((targets[parts["val"]] == label).sum() - 0.1 * total) <= 1
        assert abs((targets[parts["test"]] == label).sum() - 0.2 * total) <= 1


def test_split_does_not_depend_on_the_seed():
    first, second = Digits(seed=0), Digits(seed=1)
    for name in ("train", "val", "test"):
        assert torch.equal(first.split(name).inputs, second.split(name).inputs)
    assert [len(first.split(name)) for name in ("train", "val", "test")] == [1258, 179, 360]


def test_batches_have_the_promised_shapes():
    data = Digits(batch_size=16)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        count = len(batch["targets"])
        assert batch["inputs"].shape == (count, data.length, data.d_input)
        assert batch["inputs"].dtype == torch.float32
        assert batch["targets"].dtype == batch["lengths"].dtype == torch.int64
    assert data.d_output == 10
    assert abs(data.split("train").inputs.mean().item()) < 1e-5


def test_rows_are_the_pixels_in_steps_of_eight():
    pixels, rows = Digits(), Digits(rows=True)
    assert (rows.length, rows.d_input) == (8, 8)
    assert torch.equal(rows.split("test").inputs.flatten(1), pixels.split("test").inputs.flatten(1))
    assert rows.split("test").lengths.unique().item() == 8


def test_batch_sizes_are_checked_against_data_and_processes():
    data = Digits(batch_size=7)
    with pytest.raises(ValueError, match=r"batch_size=7 .* 2 of them; use e\.g\. data\.batch_size=6"):
        data.check_processes(2)
    with pytest.raises(ValueError, match="batch_size=64 exceeds the 10 training samples"):
        Digits(limit=10).train_dataloader()
    data = Digits(batch_size=360)
    with pytest.raises(ValueError, match="val split has 179 samples, fewer than the 180 processes"):
        data.check_processes(180)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        Digits(batch_size=0)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (torch.zeros(0, 4, 1), torch.zeros(0).long(), "train split is empty"),
        (torch.tensor([0.0, float("nan")]).view(2, 1, 1), torch.tensor([0, 1]), "first at sample 1"),
        (torch.tensor([float("inf"), 0.0]).view(2, 1, 1), torch.tensor([0, 1]), "NaN or infinity, first at sample 0"),
        (torch.zeros(2, 1, 1), torch.tensor([0, 3]), r"targets must lie in 0…2; sample 1 has 3"),
    ],
)
def test_bad_data_are_refused(inputs, targets, message):
    with pytest.raises(ValueError, match=message):
        check_split("Mine", "train", ArrayDataset(inputs, targets), classes=3)


def test_lengths_are_checked():
    split = ArrayDataset(torch.zeros(2, 4, 1), torch.tensor([0, 1]), torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="lengths must lie in 1…4; sample 1 has 5"):
        check_split("Mine", "val", split, classes=2)
