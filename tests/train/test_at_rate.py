"""A trained model at another sampling rate."""

import pytest
import torch

from milkweed.data import Delay, Text
from milkweed.models import MlpMixer, SequenceModel
from milkweed.train.at_rate import at_rate, set_rate


def test_a_model_at_a_rate_passes_it_on():
    model, u = SequenceModel(1, 2, d_model=4, depth=1).eval(), torch.randn(2, 9, 1)
    assert at_rate(model, 1) is model
    lengths = torch.tensor([9, 3])
    assert torch.equal(at_rate(model, 2.0)(u, lengths), model(u, lengths, rate=2.0))


def test_models_that_know_only_steps_are_refused():
    with pytest.raises(ValueError, match=r"rate must be 1 for a MlpMixer.*got 2\.0; train a SequenceModel"):
        at_rate(MlpMixer(1, 2, length=8, d_model=4, depth=1), 2.0)


def test_tokens_have_no_rate(tmp_path):
    (tmp_path / "text.txt").write_text("to be or not to be " * 20)
    with pytest.raises(ValueError, match="rate=2 must be 1: Text gives tokens"):
        set_rate(Text(str(tmp_path / "text.txt"), length=8), 2.0)
    data = Delay(length=20, lag=4)
    set_rate(data, 2.0)
    assert data.rate == 2.0
