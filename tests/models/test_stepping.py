"""Networks step by step, and text generated that way."""

import pytest
import torch

from milkweed.models import M2Bert, M2Gpt, SequenceModel, generate, stream


def build(pooling="none", encoder="linear", **options):
    layer = {"name": "s4d", "d_state": 4} | options.pop("layer", {})
    return SequenceModel(5, 7, 6, 3, layer, pooling=pooling, encoder=encoder, **options).double()


@pytest.mark.sampled
@pytest.mark.parametrize("pooling", ["none", "last", "mean"])
@pytest.mark.parametrize(
    "options",
    [{}, {"layer": {"name": "s4", "d_state": 4}}, {"norm": "batch"}, {"prenorm": False, "dropout": 0.5}],
    ids=["s4d", "s4", "batch-norm", "post-norm"],
)
def test_steps_equal_forward(pooling, options):
    model = build(pooling, **options)
    u = torch.randn(2, 11, 5, dtype=torch.float64)
    model(u)  # batch norm learns statistics
    stepper = model.stepper()
    model.eval()
    state = stepper.initial_state(2)
    for t in range(11):
        y, state = stepper(u[:, t], state)
        whole = model(u[:, : t + 1])
        torch.testing.assert_close(y, whole[:, -1] if pooling == "none" else whole, rtol=1e-9, atol=1e-9)
    # A prompt read at once, in two parts, then single steps.
    y, state = stepper.read(u[:, :4], stepper.initial_state(2))
    torch.testing.assert_close(y, model(u[:, :4]), rtol=1e-9, atol=1e-9)
    y, state = stepper.read(u[:, 4:9], state)
    whole = model(u[:, :9])
    torch.testing.assert_close(y, whole[:, 4:] if pooling == "none" else whole, rtol=1e-9, atol=1e-9)
    y, state = stepper(u[:, 9], state)
    whole = model(u[:, :10])
    torch.testing.assert_close(y, whole[:, -1] if pooling == "none" else whole, rtol=1e-9, atol=1e-9)


def test_a_bidirectional_model_does_not_step():
    with pytest.raises(ValueError, match="depends on the future"):
        build(layer={"bidirectional": True}).stepper()


def test_greedy_generation_is_the_argmax_of_forward():
    model = build(encoder="embedding", norm="layer").eval()
    model.head = torch.nn.Linear(6, 5).double()
    prompt = torch.randint(5, (2, 4), generator=torch.Generator().manual_seed(0))
    found = generate(model, prompt, 6, temperature=0)
    text = prompt
    for _ in range(6):
        text = torch.cat([text, model(text)[:, -1:].argmax(-1)], 1)
    assert torch.equal(found, text)
    assert torch.equal(torch.stack(list(stream(model, prompt, 6, temperature=0)), 1), text[:, 4:])
    assert torch.equal(generate(model, prompt, 0), prompt)


def test_sampling_follows_the_probabilities():
    model = build(encoder="embedding").eval()
    model.head = torch.nn.Linear(6, 5).double()
    prompt = torch.zeros(1, 3, dtype=torch.int64)
    probabilities = (model(prompt)[0, -1] / 0.7).softmax(-1).detach()
    many = prompt.expand(4000, -1)
    drawn = generate(model, many, 1, temperature=0.7, generator=torch.Generator().manual_seed(0))[:, -1]
    share = torch.bincount(drawn, minlength=5) / 4000
    assert (share - probabilities).abs().max() < 0.03
    order = probabilities.argsort(descending=True)
    two = generate(model, many, 1, temperature=0.7, top_k=2)[:, -1]
    assert set(two.tolist()) == set(order[:2].tolist())
    bound = float(probabilities[order[:2]].sum()) - 1e-6
    nucleus = generate(model, many, 1, temperature=0.7, top_p=bound)[:, -1]
    assert set(nucleus.tolist()) == set(order[:2].tolist())
    assert set(generate(model, many, 1, top_p=1e-9)[:, -1].tolist()) == {int(order[0])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps must be at least 0"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"prompt": torch.tensor([[7]])}, r"tokens must be in 0 .. 4; got 7 .. 7"),
        ({"prompt": torch.zeros(1, 2)}, r"tokens must be \(B, L\) integers"),
        ({"prompt": torch.zeros(1, 0, dtype=torch.int64)}, "with L >= 1"),
    ],
)
def test_bad_input(options, message):
    model = build(encoder="embedding")
    options = {"prompt": torch.zeros(1, 2, dtype=torch.int64), "steps": 3} | options
    with pytest.raises(ValueError, match=message):
        generate(model, **options)


def test_generation_needs_logits_for_every_step():
    with pytest.raises(ValueError, match="pooling='none'"):
        generate(build("mean", "embedding"), torch.zeros(1, 2, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match="encoder='tokens' is unknown"):
        build(encoder="tokens")


def test_generation_stops_at_the_models_length():
    model = M2Gpt(5, 5, length=8, d_model=8, depth=1, heads=2)
    prompt = torch.zeros(1, 3, dtype=torch.int64)
    assert generate(model, prompt, 6).shape == (1, 9)
    with pytest.raises(ValueError, match=r"length=8; got 3 tokens and steps=7; use steps=6 or less"):
        next(stream(model, prompt, 7))


def test_generation_needs_a_stepper():
    with pytest.raises(TypeError, match=r"M2Bert has no stepper\(\)"):
        generate(M2Bert(5, length=8, d_model=8, depth=1), torch.zeros(1, 2, dtype=torch.int64), 3)
