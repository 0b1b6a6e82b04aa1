"""Data at another sampling rate: every k-th step, or k steps for every one."""

import numpy as np
import pytest
import torch

from milkweed.data import Delay, Digits, Reconstruct
from milkweed.data.batches import ArrayDataset
from milkweed.data.rates import Resampled, check_data_rate, resampled


def batch(targets=None):
    inputs = torch.randn(3, 7, 2)
    lengths = torch.tensor([7, 4, 1])
    return {"inputs": inputs, "targets": torch.arange(3) if targets is None else targets, "lengths": lengths}


def test_every_kth_step_is_kept():
    given = batch()
    found = resampled(given, 2.0)
    assert torch.equal(found["inputs"], given["inputs"][:, ::2])
    assert found["lengths"].tolist() == [4, 2, 1]
    assert torch.equal(found["targets"], given["targets"])
    assert resampled(given, 1.0) is given


def test_steps_between_lie_on_straight_lines():
    given = batch()
    given["inputs"][1, 4:] = torch.nan  # padding
    found = resampled(given, 0.25)
    assert found["lengths"].tolist() == [28, 16, 4]
    for row, length in enumerate(given["lengths"].tolist()):
        own = given["inputs"][row, :length].numpy()
        places = np.minimum(np.arange(4 * length) / 4, length - 1)
        expected = np.stack([np.interp(places, np.arange(length), own[:, d]) for d in range(2)], -1)
        np.testing.assert_allclose(found["inputs"][row, : 4 * length].numpy(), expected, atol=1e-6)
    # What was added is taken away again.
    again = resampled(found, 4.0)
    torch.testing.assert_close(again["inputs"], given["inputs"], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again["lengths"], given["lengths"])


def test_targets_of_every_step_follow():
    numbers = torch.randn(3, 7, 1)
    assert torch.equal(resampled(batch(numbers), 3.0)["targets"], numbers[:, ::3])
    classes = torch.randint(5, (3, 7))
    assert torch.equal(resampled(batch(classes), 0.5)["targets"], classes.repeat_interleave(2, 1))
    of_sequences = torch.randn(3, 7)  # as many numbers as steps
    assert torch.equal(resampled(batch(of_sequences), 3.0)["targets"], of_sequences)


@pytest.mark.parametrize("module", [Delay, Reconstruct])
def test_modules_give_batches_at_their_rate(module):
    data = module(
        batch_size=4, length=20, train_size=8, eval_size=6, **({"lag": 4} if module is Delay else {"memory": 4})
    )
    whole = next(iter(data.test_dataloader()))
    data.rate = 2.0
    found = next(iter(data.test_dataloader()))
    assert torch.equal(found["inputs"], whole["inputs"][:, ::2])
    assert torch.equal(found["targets"], whole["targets"][:, ::2] if module is Delay else whole["targets"])
    assert next(iter(data.train_dataloader()))["inputs"].shape[1] == 20


def test_a_rate_that_leaves_no_samples_is_refused():
    pytest.importorskip("sklearn")
    data = Digits()
    data.rate = 65.0
    with pytest.raises(ValueError, match=r"rate=65 leaves no samples.*test split has 64; use rate=32 or less"):
        data.test_dataloader()
    Resampled(ArrayDataset(torch.zeros(2, 5, 1), torch.zeros(2)), 5.0, "test")


@pytest.mark.parametrize("rate", [0.0, -2.0, float("nan"), float("inf"), True, "2", 1.5, 0.3, 0.7])
def test_other_rates_are_refused(rate):
    with pytest.raises(ValueError, match="rate"):
        check_data_rate(rate)


def test_typed_fractions_are_made_exact():
    assert check_data_rate(0.3333) == 1 / 3
    assert check_data_rate(2) == 2.0
