import numpy as np
import pytest
import torch

from milkweed.data import Delay, Reconstruct
from milkweed.data.white_noise import white_noise

SMALL = {"length": 40, "train_size": 12, "eval_size": 5}


def test_delay_is_exact():
    split = Delay(lag=7, **SMALL).split("train")
    assert split.inputs.shape == split.targets.shape == (12, 40, 1)
    assert torch.equal(split.targets[:, 7:], split.inputs[:, :-7])
    assert not split.targets[:, :7].any()


def test_reconstruction_asks_for_the_last_steps_in_order():
    data = Reconstruct(memory=9, **SMALL)
    split = data.split("test")
    assert data.d_output == 9
    assert split.inputs.shape == (5, 40, 1)
    assert torch.equal(split.targets, split.inputs[:, -9:, 0])
    whole = Reconstruct(memory=40, **SMALL).split("val")
    assert torch.equal(whole.targets, whole.inputs[..., 0])


@pytest.mark.parametrize("kind", [Delay, Reconstruct])
def test_batches_have_the_promised_shapes(kind):
    data = kind(4, 40, 10, train_size=12, eval_size=5)
    batch = next(iter(data.train_dataloader()))
    assert batch["inputs"].shape == (4, data.length, data.d_input)
    assert batch["targets"].shape == ((4, 40, 1) if kind is Delay else (4, 10))
    assert batch["inputs"].dtype == batch["targets"].dtype == torch.float32
    assert batch["lengths"].tolist() == [40] * 4


def test_signals_depend_on_the_seed_alone():
    first, again, other = (Delay(lag=7, seed=seed, **SMALL).split("train").inputs for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_a_sum_of_waves_with_normal_weights():
    steps, expected = np.arange(8), np.zeros(8)
    for frequency, (cosine, sine) in enumerate(np.random.RandomState(3).standard_normal((2, 2)), 1):
        phase = 2 * np.pi * frequency / 8 * steps
        expected += (cosine * np.cos(phase) - sine * np.sin(phase)) / np.sqrt(2)
    np.testing.assert_allclose(white_noise(1, 8, 0.25, 3)[0], expected, atol=1e-6)


def test_splits_differ_and_a_limit_keeps_the_first():
    data, limited = Delay(lag=7, **SMALL), Delay(lag=7, limit=3, **SMALL)
    assert not torch.equal(data.split("val").inputs, data.split("test").inputs)
    assert torch.equal(limited.split("train").inputs, data.split("train").inputs[:3])
    assert len(limited.split("val")) == 3


@pytest.mark.parametrize(("length", "band"), [(100, 0.1), (100, 0.25), (101, 0.25), (100, 0.5), (101, 0.5)])
def test_noise_has_unit_variance_and_ends_at_its_band(length, band):
    signals = white_noise(4000, length, band, 0).astype(float)
    assert signals.var() == pytest.approx(1, abs=0.02)
    power = (np.abs(np.fft.rfft(signals)) ** 2).mean(0)
    inside = np.fft.rfftfreq(length) <= band + 1e-9
    inside[0] = False  # no mean
    assert power[~inside].max() < 1e-6
    assert power[inside].std() / power[inside].mean() < 0.1


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Delay, {"lag": 0}, "lag=0 must be at least 1 and below length=4000; use e.g. 1000"),
        (Delay, {"length": 100, "lag": 100}, "lag=100 must be at least 1 and below length=100; use e.g. 25"),
        (Reconstruct, {"length": 100, "memory": 101}, "memory=101 .* at most length=100; use e.g. 25"),
        (Delay, {"band": 0.6}, "band=0.6 must lie in 0.00025…0.5 cycles per step"),
        (Reconstruct, {"length": 10, "memory": 2, "band": 0.05}, "band=0.05 must lie in 0.1…0.5"),
        (Delay, {"train_size": 0}, "train_size=0 must be at least 1"),
        (Reconstruct, {"eval_size": 0}, "eval_size=0 must be at least 1"),
        (Delay, {"length": 1}, "length=1 must be at least 2"),
        (Delay, {"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_options_are_checked(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_nan_is_refused(monkeypatch):
    def broken(count, length, *_):
        return np.full((count, length), np.nan, np.float32)

    monkeypatch.setattr("milkweed.data.white_noise.white_noise", broken)
    with pytest.raises(ValueError, match="Delay: train split: 12 of 12 samples hold NaN or infinity"):
        Delay(lag=7, **SMALL).setup()
