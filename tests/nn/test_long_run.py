import pytest
from tests.nn import long_run


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", long_run.LAYERS)
def test_200_steps_stay_finite_and_learn(name):
    found = long_run.train(long_run.LAYERS[name], 200)
    assert found["last_loss"] < 0.9 * found["first_loss"]
    # A kernel far beyond the trained length, where anything that grows would show.
    assert found["largest_kernel_at_100_times_the_length"] < 10


def test_what_is_not_finite_is_named(monkeypatch):
    monkeypatch.setattr(long_run.F, "mse_loss", lambda y, target: (y * float("nan")).sum())
    with pytest.raises(FloatingPointError, match="loss is not finite at step 0"):
        long_run.train(long_run.LAYERS["s4d legs zoh"], 1)
