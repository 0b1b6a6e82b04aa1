"""What M2's networks and the generation of tokens refuse, by name."""

import numpy as np
import pytest
import torch

from milkweed.models import M2Bert, M2Gpt, M2Vit, generate

BERT = {"d_input": 11, "length": 8, "d_model": 8, "depth": 1, "kernel_options": {"width": 4}}
VIT = {"d_input": 1, "d_output": 3, "size": [8, 8], "patch": 4, "d_model": 8, "depth": 1, "mixer_options": {"width": 4}}
GPT = {"d_input": 11, "d_output": 11, "length": 16, "d_model": 8, "depth": 2, "heads": 2, "mixer_options": {"width": 4}}
MONARCH = {"mixer": "causal_monarch", "mixer_options": {"filter": {"width": 4}}}


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (M2Bert, {"d_input": np.float64(11)}, TypeError, "d_input must be an integer; got np.float64"),
        (M2Bert, {"depth": True}, TypeError, "depth must be an integer; got True"),
        (M2Bert, {"length": "8"}, TypeError, "length must be an integer; got '8'"),
        (M2Bert, {"dropout": float("nan")}, ValueError, "dropout must be in 0 <= p <= 1; got nan"),
        (M2Bert, {"dropout": 1.5}, ValueError, "dropout must be in 0 <= p <= 1; got 1.5"),
        (M2Bert, {"padding": None}, TypeError, "padding must be a string; got None"),
        (M2Bert, {"head": ["none"]}, TypeError, "head must be a string"),
        (M2Bert, {"head": "classification", "d_output": 2.0}, TypeError, "d_output must be an integer, or None"),
        (M2Bert, {"kernel_options": {"bidirectional": False}}, ValueError, "'bidirectional' is unknown"),
        (M2Bert, {"kernel_options": {"l_max": 4}}, ValueError, "kernel_options='l_max' is unknown"),
        (M2Bert, {"kernel_options": {"widht": 4}}, ValueError, "did you mean 'width'"),
        (M2Vit, {"patch": 4.0}, TypeError, "patch must be an integer; got 4.0"),
        (M2Vit, {"d_output": None}, TypeError, "d_output must be an integer; got None"),
        (M2Vit, {"size": "88"}, ValueError, "size must be the image's height and width, .* got '88'"),
        (M2Vit, {"size": [8.0, 8.0]}, ValueError, "size must be the image's height and width"),
        (M2Vit, {"dropout": "0.1"}, TypeError, "dropout must be a number; got '0.1'"),
        (M2Gpt, {"expand": True}, TypeError, "expand must be an integer; got True"),
        (M2Gpt, {"heads": None}, TypeError, "heads must be an integer; got None"),
        (M2Gpt, {"vocabulary": "a" * 11}, ValueError, "11 different characters; got 11, 1 of them different"),
        (M2Gpt, {"vocabulary": ["a"] * 11}, TypeError, "vocabulary must be a string, or None"),
    ],
)
def test_options(kind, options, error, message):
    with pytest.raises(error, match=message):
        kind(**{M2Bert: BERT, M2Vit: VIT, M2Gpt: GPT}[kind] | options)


@pytest.mark.parametrize("kind", [M2Bert, M2Vit, M2Gpt])
def test_inputs_that_are_no_tensors(kind):
    model = kind(**{M2Bert: BERT, M2Vit: VIT, M2Gpt: GPT}[kind])
    for given in (None, [[1, 2]], np.zeros((1, 3), np.int64)):
        with pytest.raises(TypeError, match=f"must be a tensor; got {type(given).__name__}"):
            model(given)


def test_dtypes():
    tokens = torch.zeros(2, 8, dtype=torch.int8)
    for model in (M2Bert(**BERT), M2Gpt(**GPT)):
        with pytest.raises(ValueError, match=r"must be \(B, L\) integers, int64 or int32, .* got torch.int8"):
            model(tokens)
        assert torch.equal(model.eval()(tokens.int()), model(tokens.long()))
    with pytest.raises(
        TypeError, match=r"embedded inputs must be torch.float32 as the parameters are; got torch.float64"
    ):
        M2Bert(**BERT)(torch.randn(2, 8, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"inputs must be torch.float32 as the parameters are; got torch.float64"):
        M2Vit(**VIT)(torch.randn(2, 1, 8, 8, dtype=torch.float64))


def test_token_types_are_named():
    model, tokens = M2Bert(**BERT), torch.zeros(2, 8, dtype=torch.int64)
    for types, error, message in (
        (tokens + 2, ValueError, r"token_types must be in 0 .. 1; got 2 .. 2"),
        (tokens.bool(), ValueError, r"token_types must be \(B, L\) integers"),
        (tokens.tolist(), TypeError, "token_types must be a tensor; got list"),
        (tokens[:1], ValueError, r"token_types must have the inputs' shape \(2, 8\); got \(1, 8\)"),
    ):
        with pytest.raises(error, match=message):
            model(tokens, None, types)


@pytest.mark.parametrize("options", [{}, MONARCH])
def test_states(options):
    stepper = M2Gpt(**GPT | options).stepper()
    state, tokens = stepper.initial_state(2), torch.tensor([1, 2])
    for step, error, message in (
        (lambda: stepper(tokens[:, None], state), ValueError, r"tokens must be \(B,\), one step; got shape \(2, 1\)"),
        (lambda: stepper(tokens[0], state), ValueError, r"tokens must be \(B,\), one step; got shape \(\)"),
        (lambda: stepper(tokens, None), TypeError, "the states of 2 blocks; got NoneType"),
        (lambda: stepper(tokens, state[:1]), TypeError, "the states of 2 blocks; got 1 of them"),
        (lambda: stepper(tokens[:1], state), ValueError, "state must be of 1 sequences of"),
        (lambda: stepper.read(tokens[:1, None], state), ValueError, "state must be of 1 sequences of"),
        (lambda: stepper.initial_state(-1), ValueError, "batch_size must be at least 0; got -1"),
    ):
        with pytest.raises(error, match=message):
            step()


def test_generation():
    model, prompt = M2Gpt(**GPT), torch.zeros(2, 3, dtype=torch.int64)
    for options, error, message in (
        ({"temperature": "1"}, TypeError, "temperature must be a number; got '1'"),
        ({"temperature": True}, TypeError, "temperature must be a number; got True"),
        ({"top_k": 2.0}, TypeError, "top_k must be an integer, or None; got 2.0"),
        ({"top_p": "a"}, TypeError, "top_p must be a number, or None; got 'a'"),
    ):
        with pytest.raises(error, match=message):
            generate(model, prompt, 2, **options)
    for given, steps, error, message in (
        (prompt.tolist(), 2, TypeError, "prompt must be a tensor; got list"),
        (prompt[0], 2, ValueError, r"prompt must be \(B, L\) tokens with L >= 1; got shape \(3,\)"),
        (prompt[:, :0], 2, ValueError, r"prompt must be \(B, L\) tokens with L >= 1; got shape \(2, 0\)"),
        (prompt, 2.0, TypeError, "steps must be an integer; got 2.0"),
    ):
        with pytest.raises(error, match=message):
            generate(model, given, steps)


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 1e-320])
def test_almost_no_temperature_takes_the_likeliest(temperature):
    torch.manual_seed(0)
    model = M2Gpt(**GPT)
    with torch.no_grad():
        model.encoder.weight.mul_(1000)
    prompt = torch.randint(11, (3, 4))
    greedy = generate(model, prompt, 5, temperature=0)
    assert torch.equal(generate(model, prompt, 5, temperature=temperature), greedy)
