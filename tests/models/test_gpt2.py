import inspect
import json
import math
import sys

import pytest
import torch

import milkweed as mw
from milkweed.models import Gpt2, generate
from milkweed.nn import MonarchLinear
from milkweed.nn.structured_linear import ConcatLinear

OPTIONS = {
    "d_input": 7,
    "d_output": 7,
    "length": 12,
    "d_model": 16,
    "depth": 2,
    "heads": 2,
    "linear": {"name": "monarch", "nblocks": 2},
    "dropout": 0.1,
    "vocabulary": "abcdefg",
}
TOKENS = torch.arange(20).reshape(2, 10) % 7


def test_every_option_is_in_the_config():
    assert set(OPTIONS) == set(inspect.signature(Gpt2).parameters)
    assert json.loads(json.dumps(Gpt2(**OPTIONS).config)) == {"name": "Gpt2", "options": OPTIONS}


@pytest.mark.parametrize("linear", [{"name": "dense"}, OPTIONS["linear"]])
def test_save_and_load(linear, tmp_path):
    model = Gpt2(**{**OPTIONS, "linear": linear}).eval()
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert loaded.vocabulary == loaded.options["vocabulary"] == "abcdefg"
    assert loaded.gpt2.lm_head.weight is loaded.gpt2.transformer.wte.weight


def test_made_dense_it_saves_and_loads(tmp_path):
    model = Gpt2(**OPTIONS).eval()
    before = model(TOKENS)
    assert len(mw.densify_(model)) == 8
    assert torch.allclose(model(TOKENS), before, atol=1e-6)
    mw.save_pretrained(model, tmp_path)
    loaded = mw.load_pretrained(tmp_path)
    assert not any(isinstance(module, MonarchLinear) for module in loaded.modules())
    assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_layers_are_replaced_and_the_packed_one_is_three():
    model = Gpt2(**OPTIONS)
    for block in model.gpt2.transformer.h:
        assert isinstance(block.attn.c_attn, ConcatLinear)
        assert [part.out_features for part in block.attn.c_attn.parts] == [16, 16, 16]
        assert all(type(layer) is MonarchLinear for layer in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj))
        assert not block.mlp.c_fc.bias.any()


def test_outputs_are_logits_of_the_past_alone():
    model = Gpt2(**OPTIONS).eval()
    changed = TOKENS.clone()
    changed[:, 6:] = 0
    one, two = model(TOKENS), model(changed)
    assert one.shape == (2, 10, 7)
    assert torch.allclose(one[:, :6], two[:, :6], atol=1e-6)
    assert not torch.allclose(one[:, 6:], two[:, 6:])
    # At the start the model is in doubt among all tokens.
    loss = torch.nn.functional.cross_entropy(one.flatten(0, 1), TOKENS.flatten())
    assert loss.item() == pytest.approx(math.log(7), abs=0.2)


def test_every_parameter_learns():
    model = Gpt2(**OPTIONS)
    model(TOKENS).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"d_output": 3}, "d_output=3 must be d_input=7"),
        ({"heads": 3}, "heads must divide d_model; got heads=3, d_model=16"),
        ({"vocabulary": "ab"}, "vocabulary must have d_input=7 characters; got 2"),
        ({"linear": {"name": "monach"}}, "did you mean 'monarch'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Gpt2(**{**OPTIONS, **options})


def test_bad_inputs_are_refused():
    model = Gpt2(**OPTIONS)
    with pytest.raises(ValueError, match="contexts up to length=12"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(ValueError, match=r"tokens must be in 0 .. 6; got 0 .. 7"):
        model(torch.tensor([[0, 7]]))


def test_without_transformers_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"milkweed\[hf\]\""):
        Gpt2(**OPTIONS)


@pytest.mark.parametrize("linear", [None, {"name": "monarch", "nblocks": 2}])
def test_it_steps_as_it_reads(linear):
    model = Gpt2(50, 50, length=24, d_model=16, depth=2, heads=2, linear=linear, dropout=0.5).eval()
    tokens, stepper = torch.randint(50, (3, 24)), model.stepper()
    expected = model(tokens)
    first, state = stepper.read(tokens[:, :10], stepper.initial_state(3))
    kept = [each.clone() for pair in state for each in pair]
    second, after = stepper.read(tokens[:, 10:15], state)
    outputs = [first, second]
    for step in range(15, 24):
        logits, after = stepper(tokens[:, step], after)
        outputs.append(logits[:, None])
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(kept, [each for pair in state for each in pair], strict=True))
    assert not any(parameter.requires_grad for parameter in stepper.parameters())
    with pytest.raises(ValueError, match="length=24; it has read 24 tokens, and got 1 more"):
        stepper(tokens[:, 0], after)
    logits, state = stepper.read(tokens[:0, :4], stepper.initial_state(0))
    assert logits.shape == (0, 4, 50)
    assert stepper(tokens[:0, 0], state)[0].shape == (0, 50)


def test_it_generates_what_it_finds_likeliest():
    model = Gpt2(50, 50, length=24, d_model=16, depth=1, heads=2).eval()
    tokens = torch.randint(50, (2, 5))
    found = generate(model, tokens, 6, temperature=0)
    for length in range(5, 11):
        assert torch.equal(model(found[:, :length])[:, -1].argmax(-1), found[:, length])
