"""SaShiMi: causal at every level, and the same step by step."""

import inspect

import pytest
import torch

import milkweed as mw
from milkweed.models import Sashimi, generate


def build(**options):
    defaults = {"depth": 1, "pool": [2, 3], "layer": {"name": "s4", "d_state": 4}, "encoder": "linear"}
    return Sashimi(3, 5, 4, **(defaults | options)).double().eval()


VARIANTS = {
    "plain": {},
    "unet": {"unet": True, "depth": 2},
    "no-ff": {"ff": 0, "layer": {"name": "s4d", "d_state": 4}},
    "one-level": {"pool": [4], "expand": 3},
    "no-level": {"pool": []},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
class TestVariants:
    def test_causality(self, options):
        model = build(**options)
        u = torch.randn(13, 3, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda u: model(u[None])[0].sum(-1), u).abs().sum(-1)
        assert jacobian.triu(1).max() < 1e-12 * jacobian.max()
        assert (jacobian.diagonal() > 0).all()
        assert (jacobian[-1] > 0).all()  # and nothing of the past is lost

    def test_steps_equal_forward(self, options):
        model = build(**options)
        u = torch.randn(2, 17, 3, dtype=torch.float64)
        expected = model(u)
        stepper = model.stepper()
        state, outputs = stepper.initial_state(2), []
        for t in range(17):
            y, state = stepper(u[:, t], state)
            outputs.append(y)
        torch.testing.assert_close(torch.stack(outputs, 1), expected, rtol=1e-9, atol=1e-9)
        # In pieces that end in the middle of a pooled step.
        state, outputs, start = stepper.initial_state(2), [], 0
        for size in (5, 1, 7, 4):
            y, state = stepper.read(u[:, start : start + size], state)
            outputs.append(y)
            start += size
        torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-9, atol=1e-9)

    def test_gradients_and_padding(self, options):
        model = build(**options).train()
        u = torch.randn(2, 11, 3, dtype=torch.float64)
        model(u).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        longer = torch.cat([u, torch.randn(2, 9, 3, dtype=torch.float64)], 1)
        torch.testing.assert_close(model(longer)[:, :11], model(u), rtol=1e-9, atol=1e-9)


def test_save_and_load(tmp_path):
    options = {
        "d_input": 6,
        "d_output": 6,
        "d_model": 4,
        "depth": 1,
        "pool": [2],
        "expand": 3,
        "ff": 1,
        "layer": {"name": "s4d", "d_state": 4},
        "unet": True,
        "dropout": 0.1,
        "encoder": "embedding",
    }
    assert set(options) == set(inspect.signature(Sashimi).parameters)
    model = Sashimi(**options).eval()
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    assert loaded.config == model.config
    tokens = torch.randint(6, (2, 9))
    assert torch.equal(loaded(tokens), model(tokens))
    text = tokens
    for _ in range(4):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generate(loaded, tokens, 4, temperature=0), text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": [2, 0]}, r"pool\[1\] must be at least 1"),
        ({"expand": 0}, "expand must be at least 1"),
        ({"ff": -1}, "ff must be at least 0"),
        ({"encoder": "linaer"}, "did you mean 'linear'"),
        ({"layer": {"name": "s44"}}, "did you mean 's4'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_bidirectional_one_does_not_step():
    with pytest.raises(ValueError, match="depends on the future"):
        build(layer={"name": "s4d", "d_state": 4, "bidirectional": True}).stepper()
