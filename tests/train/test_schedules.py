import pytest

from milkweed.train.schedules import warmup_constant, warmup_cosine, warmup_linear


def test_cosine_after_linear_warmup():
    factor = warmup_cosine(110, warmup_steps=10)
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(10) == 1.0
    assert factor(60) == pytest.approx(0.5)
    assert factor(110) == pytest.approx(0.0)
    assert factor(500) == pytest.approx(0.0)


def test_cosine_ends_at_the_final_factor():
    assert warmup_cosine(100, final=0.1)(100) == pytest.approx(0.1)


def test_linear_after_linear_warmup():
    factor = warmup_linear(110, warmup_steps=10, final=0.02)
    assert [factor(step) for step in (0, 9, 10, 60, 110, 500)] == pytest.approx([0.1, 1.0, 1.0, 0.51, 0.02, 0.02])


def test_short_training_is_all_warmup():
    factor = warmup_cosine(3, warmup_steps=10)
    assert [factor(step) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_constant_after_warmup():
    factor = warmup_constant(4)
    assert [factor(step) for step in (0, 3, 100)] == [0.25, 1.0, 1.0]
    assert warmup_constant()(0) == 1.0


@pytest.mark.parametrize(
    "make", [lambda: warmup_cosine(10, -1), lambda: warmup_linear(10, -1), lambda: warmup_constant(-1)]
)
def test_negative_warmup_is_refused(make):
    with pytest.raises(ValueError, match="warmup_steps=-1"):
        make()


def test_final_must_be_a_fraction():
    with pytest.raises(ValueError, match="final=2"):
        warmup_cosine(10, final=2)
    with pytest.raises(ValueError, match="final=-1"):
        warmup_linear(10, final=-1)
